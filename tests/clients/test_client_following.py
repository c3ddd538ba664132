"""Watches through restarts of the daemon."""

import foldin
import grpc
import pytest
from foldin.v1 import submissions_pb2 as pb

from tests.clients.stand_in import answering


def at(state, **fields):
    return pb.Submission(id="s1", state=getattr(pb, f"SUBMISSION_STATE_{state}"), **fields)


UNAVAILABLE = answering(grpc.StatusCode.UNAVAILABLE, "the daemon is shutting down.")
FOLDING = pb.Progress(stage="folding", done=3, total=9, tensor="encoder.weight")


def test_submission_through_an_outage(daemon, client):
    daemon.submissions.watched = [
        at("QUEUED"),
        UNAVAILABLE,
        at("QUEUED"),
        at("MERGING", progress=FOLDING),
        UNAVAILABLE,
        at("MERGED", version=4),
    ]
    seen = list(client.watch("s1"))
    assert [submission.state for submission in seen] == ["QUEUED", "MERGING", "MERGED"]
    assert seen[1].progress == foldin.Progress("folding", 3, 9, "encoder.weight")
    assert [submission.version for submission in seen] == [None, None, 4]


def test_submission_through_a_restart(daemon, client):
    daemon.submissions.watched = [at("QUEUED"), lambda context: context.cancel()]
    watch = client.watch("s1")
    assert next(watch).state == "QUEUED"
    daemon.stop()
    daemon.submissions.watched = [at("MERGED", version=1)]
    daemon.start()
    assert [submission.state for submission in watch] == ["MERGED"]


def test_wait_reports_the_merge(daemon, client):
    daemon.submissions.watched = [at("MERGING", progress=FOLDING), at("MERGED", version=1)]
    steps = []
    assert client.wait("s1", on_progress=steps.append).version == 1
    assert steps == [foldin.Progress("folding", 3, 9, "encoder.weight")]


@pytest.mark.parametrize("state", ["REJECTED", "QUARANTINED", "WITHDRAWN"])
def test_wait_raises_for_every_refusal(daemon, client, state):
    daemon.submissions.watched = [at(state, reason="because.")]
    with pytest.raises(foldin.Refused, match=r"because\."):
        client.wait("s1")


def test_outage_outlasts_the_patience(daemon):
    daemon.submissions.watched = [at("QUEUED"), *[UNAVAILABLE] * 1000]
    with foldin.Client(daemon.address, patience=0.2) as client, pytest.raises(foldin.ServerUnavailable):
        list(client.watch("s1"))


def test_nobody_is_waited_for_who_never_answered():
    with foldin.Client("127.0.0.1:1", patience=600) as client, pytest.raises(foldin.ServerUnavailable):
        list(client.watch("s1"))


def test_unknown_submission_is_not_watched_again(daemon, client):
    daemon.submissions.faults["Watch"] = [answering(grpc.StatusCode.NOT_FOUND, "there is no submission s9.")]
    with pytest.raises(foldin.NotFound, match="there is no submission s9"):
        list(client.watch("s9"))
    assert daemon.submissions.calls["Watch"] == 1


def test_snapshots_through_a_restart(daemon, client):
    daemon.snapshots.publish(1, {})
    watch = client.watch_snapshots()
    assert next(watch).version == 1
    daemon.snapshots.publish(2, {})
    assert next(watch).version == 2
    daemon.stop()
    # Only once v2 was sent again, which must not be yielded again.
    daemon.snapshots.after_watched = [lambda: daemon.snapshots.publish(3, {})]
    daemon.start()
    assert next(watch).version == 3
    watch.close()
