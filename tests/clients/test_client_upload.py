"""Uploads through faults that a real daemon does not produce on demand."""

import os
from threading import Event, Thread

import foldin
import grpc
import pytest
from foldin.v1 import submissions_pb2 as pb

from tests.clients.stand_in import CHUNK_SIZE, answering

UNAVAILABLE = answering(grpc.StatusCode.UNAVAILABLE, "the daemon is shutting down.")
TOO_MANY = answering(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many chunks in flight: wait and repeat.")


def offsets(checkpoint):
    return list(range(0, (checkpoint / "model.safetensors").stat().st_size, CHUNK_SIZE))


def sent_offsets(daemon):
    return [offset for _, offset in daemon.submissions.written]


def test_sends_every_chunk_once_and_reports(daemon, client, checkpoint):
    steps = []
    submission = client.submit(checkpoint, name="one", labels={"k": "v"}, partial=True, on_progress=steps.append)
    assert submission.state == foldin.SubmissionState.QUEUED
    assert (submission.name, submission.labels, submission.partial) == ("one", {"k": "v"}, True)
    assert sorted(sent_offsets(daemon)) == offsets(checkpoint)
    size = (checkpoint / "model.safetensors").stat().st_size
    assert {step.total for step in steps} == {size}
    assert [step.stage for step in steps] == sorted(step.stage for step in steps)
    assert {step.stage: step.done for step in steps} == {"hashing": size, "uploading": size}


def test_same_content_is_not_sent_again(daemon, client, checkpoint):
    first = client.submit(checkpoint)
    assert client.submit(checkpoint).id == first.id
    assert sorted(sent_offsets(daemon)) == offsets(checkpoint)


def test_sharded_checkpoint(daemon, client, tmp_path, save):
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for seed, name in enumerate(names):
        save(tmp_path / "model" / name, 3 * CHUNK_SIZE, seed)
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {' + ", ".join(f'"{name}": "{name}"' for name in names) + "}}")
    submission = client.submit(tmp_path / "model")
    assert [file.name for file in submission.files] == [index.name, *names]


@pytest.mark.parametrize("strikes_at", [0, 1, 5, 10])
def test_outage_in_mid_upload_sends_only_what_is_missing(daemon, client, checkpoint, strikes_at):
    daemon.submissions.faults["WriteChunk"] = [None] * strikes_at + [UNAVAILABLE] * 3
    assert client.submit(checkpoint).state == "QUEUED"
    assert sorted(sent_offsets(daemon)) == offsets(checkpoint)
    assert daemon.submissions.calls["CreateSubmission"] >= 2


def test_restart_in_mid_upload(daemon, client, checkpoint):
    reached = Event()

    def stop_here(context):
        reached.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is shutting down.")

    def restart():
        assert reached.wait(10)
        daemon.stop()
        daemon.start()

    daemon.submissions.faults["WriteChunk"] = [None, None, stop_here]
    thread = Thread(target=restart)
    thread.start()
    submission = client.submit(checkpoint)
    thread.join()
    assert submission.state == "QUEUED"
    assert sorted(set(sent_offsets(daemon))) == offsets(checkpoint)


def test_resumes_after_this_process_died(daemon, client, checkpoint):
    class Killed(BaseException):
        pass

    def die(progress):
        if progress.stage == "uploading" and progress.done > progress.total / 2:
            raise Killed

    with pytest.raises(Killed):
        client.submit(checkpoint, on_progress=die)
    with foldin.Client(daemon.address) as another:
        daemon.submissions.calls.clear()
        before = len(set(sent_offsets(daemon)))
        another.submit(checkpoint)
    assert before >= 5
    assert sorted(set(sent_offsets(daemon))) == offsets(checkpoint)
    assert daemon.submissions.calls["WriteChunk"] <= len(offsets(checkpoint)) - 5


def test_waits_where_too_many_chunks_are_in_flight(daemon, client, checkpoint):
    daemon.submissions.faults["WriteChunk"] = [None, TOO_MANY, TOO_MANY, None, TOO_MANY]
    assert client.submit(checkpoint).state == "QUEUED"
    assert sorted(sent_offsets(daemon)) == offsets(checkpoint)
    assert daemon.submissions.calls["CreateSubmission"] == 1


def test_gives_up_where_chunks_stay_refused(daemon, checkpoint):
    daemon.submissions.faults["WriteChunk"] = [TOO_MANY] * 1000
    with foldin.Client(daemon.address, patience=0.2) as client, pytest.raises(foldin.ResourceExhausted) as error:
        client.submit(checkpoint)
    assert "too many chunks in flight" in str(error.value)


def test_gives_up_where_the_daemon_stays_away(daemon, checkpoint):
    daemon.submissions.faults["WriteChunk"] = [UNAVAILABLE] * 1000
    with foldin.Client(daemon.address, patience=0.2) as client, pytest.raises(foldin.ServerUnavailable) as error:
        client.submit(checkpoint)
    assert f"cannot reach the Foldin daemon at {daemon.address}" in str(error.value)


def test_a_full_disk_is_an_answer(daemon, client, checkpoint):
    full = answering(grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk has 1 GB free: free 3 GB more.")
    daemon.submissions.faults["CreateSubmission"] = [full]
    with pytest.raises(foldin.ResourceExhausted, match="free 3 GB more"):
        client.submit(checkpoint)


@pytest.mark.parametrize("parallel", [1, 3])
def test_never_more_in_flight_than_asked(daemon, checkpoint, parallel):
    with foldin.Client(daemon.address, parallel=parallel) as client:
        client.submit(checkpoint)
    assert daemon.submissions.most_in_flight <= parallel


def test_outage_at_commit_commits_again(daemon, client, checkpoint):
    daemon.submissions.faults["CommitSubmission"] = [UNAVAILABLE, UNAVAILABLE]
    assert client.submit(checkpoint, force=True).state == "QUEUED"
    assert daemon.submissions.calls["CreateSubmission"] == 1


def corrupting(daemon, times):
    def corrupt(context):
        upload = next(iter(daemon.submissions.uploads.values()))
        upload.chunks["model.safetensors", 0] = bytes(CHUNK_SIZE)

    daemon.submissions.faults["CommitSubmission"] = [corrupt] * times


def test_altered_bytes_are_sent_once_more(daemon, client, checkpoint):
    corrupting(daemon, times=1)
    assert client.submit(checkpoint).state == "QUEUED"
    assert sorted(sent_offsets(daemon)) == sorted(2 * offsets(checkpoint))


def test_bytes_altered_twice_are_an_error(daemon, client, checkpoint):
    corrupting(daemon, times=2)
    with pytest.raises(foldin.DataLoss, match="arrived altered"):
        client.submit(checkpoint)


def test_bytes_the_daemon_lost_are_sent_again(daemon, client, checkpoint):
    def lose(context):
        del daemon.submissions.uploads["s1"].chunks["model.safetensors", CHUNK_SIZE]

    daemon.submissions.faults["CommitSubmission"] = [lose]
    assert client.submit(checkpoint).state == "QUEUED"
    assert sent_offsets(daemon).count(CHUNK_SIZE) == 2
    assert len(sent_offsets(daemon)) == len(offsets(checkpoint)) + 1


@pytest.mark.parametrize("change", ["touched", "grown", "cut", "replaced"])
def test_a_file_that_changes_is_not_committed(daemon, client, checkpoint, save, change):
    path = checkpoint / "model.safetensors"

    def alter(context):
        match change:
            case "touched":
                os.utime(path, ns=(0, 0))
            case "grown":
                path.write_bytes(path.read_bytes() + b"!")
            case "cut":
                os.truncate(path, CHUNK_SIZE)
            case "replaced":
                save(checkpoint / "new", 10 * CHUNK_SIZE, seed=1).rename(path)

    daemon.submissions.faults["WriteChunk"] = [alter]
    with pytest.raises(foldin.CheckpointError, match="while it was being sent"):
        client.submit(checkpoint)
    assert daemon.submissions.calls["CommitSubmission"] == 0


def test_nothing_is_hashed_where_nobody_answers(checkpoint):
    steps = []
    with foldin.Client("127.0.0.1:1", patience=60) as client, pytest.raises(foldin.ServerUnavailable):
        client.submit(checkpoint, on_progress=steps.append)
    assert steps == []


def test_wait_raises_what_became_of_it(daemon, client, checkpoint):
    refused = pb.Submission(id="s1", state=pb.SUBMISSION_STATE_REJECTED, reason="it holds NaN: look at the training.")
    daemon.submissions.watched = [refused]
    with pytest.raises(foldin.Refused, match="s1 was rejected: it holds NaN") as refusal:
        client.submit(checkpoint, wait=True)
    assert refusal.value.submission.state == "REJECTED"


def test_without_wait_a_rejected_one_is_returned(daemon, client, checkpoint):
    daemon.submissions.after_commit = pb.SUBMISSION_STATE_REJECTED
    daemon.submissions.reason = "no tensor of the base is in it."
    submission = client.submit(checkpoint)
    assert submission.refused
    assert "no tensor of the base is in it." in submission.verdict
