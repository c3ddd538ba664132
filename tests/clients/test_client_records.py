"""The JSON of records, the sentences of errors, and what importing the client loads."""

import json
import subprocess
import sys

import foldin
import grpc
import pytest
from foldin.connection import Connection
from foldin.decoding import snapshot_of, submission_of
from foldin.errors import error_of
from foldin.v1 import snapshots_pb2, submissions_pb2


def test_submission():
    message = submissions_pb2.Submission(
        id="s1",
        name="task",
        state=submissions_pb2.SUBMISSION_STATE_MERGING,
        labels={"team": "vision"},
        attempts=1,
        files=[submissions_pb2.FileSpec(name="model.safetensors", size=3, sha256="ab")],
        progress=submissions_pb2.Progress(stage="folding", done=1, total=2, tensor="weight"),
    )
    message.created_at.FromJsonString("2025-01-02T03:04:05.678Z")
    message.updated_at.FromJsonString("2025-01-02T03:04:06Z")
    assert json.loads(json.dumps(submission_of(message).to_json())) == {
        "id": "s1",
        "name": "task",
        "state": "MERGING",
        "version": None,
        "reason": "",
        "labels": {"team": "vision"},
        "partial": False,
        "attempts": 1,
        "created_at": "2025-01-02T03:04:05.678Z",
        "updated_at": "2025-01-02T03:04:06.000Z",
        "progress": {"stage": "folding", "done": 1, "total": 2, "tensor": "weight"},
        "content_digest": "",
        "files": [{"name": "model.safetensors", "size": 3, "sha256": "ab"}],
        "vocab": "same",
        "common_rows": [],
        "takes_out": False,
        "took_out": "",
    }


def test_submission_of_common_rows():
    rows = submissions_pb2.CommonRows(tensor="lm_head.weight", folded=10, submission=12, base=10)
    message = submissions_pb2.Submission(id="s1", vocab=submissions_pb2.VOCAB_POLICY_COMMON, common_rows=[rows])
    document = submission_of(message).to_json()
    assert document["vocab"] == "common"
    assert document["common_rows"] == [{"tensor": "lm_head.weight", "folded": 10, "submission": 12, "base": 10}]
    message.vocab = 9  # of a newer daemon
    assert submission_of(message).vocab == "policy_9"


def test_submission_with_history():
    message = submissions_pb2.Submission(id="s1", state=submissions_pb2.SUBMISSION_STATE_MERGED, version=7)
    event = message.history.add(state=submissions_pb2.SUBMISSION_STATE_QUEUED, detail="bytes are durable")
    event.at.FromJsonString("2025-01-02T03:04:05Z")
    document = submission_of(message).to_json()
    assert (document["version"], document["progress"]) == (7, None)
    assert document["history"] == [{"at": "2025-01-02T03:04:05.000Z", "state": "QUEUED", "detail": "bytes are durable"}]


def test_snapshot():
    message = snapshots_pb2.Snapshot(
        version=2,
        parent=1,
        aliases=["latest", "stable"],
        submission_id="s2",
        submission_name="task-2",
        submissions=2,
        accumulated_norm=3.0,
        mean_task_vector_norm=2.0,
        task_vector_norm=2.5,
        rule="opcm",
        merge_seconds=0.5,
        publication="norm",
        variant=True,
        state=snapshots_pb2.SNAPSHOT_STATE_PUBLISHED,
        files=[snapshots_pb2.SnapshotFile(name="config.json", size=2, sha256="cd")],
        gate=snapshots_pb2.Gate(
            verdict=snapshots_pb2.GATE_VERDICT_FAILED, reason="too bad", scores={"b": 2, "a": 1}, seconds=1.5
        ),
        took_out="s1",
        took_out_name="task-1",
        **{"lambda": 1.5},
    )
    message.created_at.FromJsonString("2025-01-02T03:04:05Z")
    message.gate.judged_at.FromJsonString("2025-01-02T03:04:06Z")
    assert json.loads(json.dumps(snapshot_of(message).to_json())) == {
        "version": 2,
        "parent": 1,
        "state": "PUBLISHED",
        "created_at": "2025-01-02T03:04:05.000Z",
        "aliases": ["latest", "stable"],
        "submission_id": "s2",
        "submission_name": "task-2",
        "submissions": 2,
        "lambda": 1.5,
        "accumulated_norm": 3.0,
        "mean_task_vector_norm": 2.0,
        "task_vector_norm": 2.5,
        "rule": "opcm",
        "merge_seconds": 0.5,
        "publication": "norm",
        "variant": True,
        "files": [{"name": "config.json", "size": 2, "sha256": "cd"}],
        "gate": {
            "verdict": "FAILED",
            "reason": "too bad",
            "scores": {"a": 1.0, "b": 2.0},
            "judged_at": "2025-01-02T03:04:06.000Z",
            "seconds": 1.5,
        },
        "took_out": "s1",
        "took_out_name": "task-1",
    }
    message.gate.verdict = 9  # of a newer daemon
    message.gate.ClearField("judged_at")
    newer = snapshot_of(message).to_json()["gate"]
    assert (newer["verdict"], newer["judged_at"]) == ("VERDICT_9", None)
    message.ClearField("gate")
    assert snapshot_of(message).to_json()["gate"] is None


def test_states_are_those_of_the_contract():
    names = [name.removeprefix("SUBMISSION_STATE_") for name in submissions_pb2.SubmissionState.keys()[1:]]
    assert names == [str(state) for state in foldin.SubmissionState]


def test_a_state_of_a_newer_daemon():
    assert submission_of(submissions_pb2.Submission(id="s1", state=99)).state == "STATE_99"


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_has_an_error_with_a_sentence(code):
    for details in ("what to do.", ""):
        error = error_of(code.name, details, "host:1")
        assert isinstance(error, foldin.FoldinError)
        assert error.code == code.name
        assert str(error)


def test_a_transport_failure_says_its_last_reason():
    nested = "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4: connect: Connection refused (111)"
    sentence = str(error_of("UNAVAILABLE", nested, "host:1"))
    assert sentence.startswith("cannot reach the Foldin daemon at host:1: is it running?")
    assert sentence.endswith("(Connection refused (111)).")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (None, "localhost:7070"),
        ("merge.example.org", "merge.example.org:7070"),
        ("merge.example.org:80", "merge.example.org:80"),
        ("[::1]", "[::1]:7070"),
        ("[::1]:80", "[::1]:80"),
    ],
)
def test_address(monkeypatch, given, address):
    monkeypatch.delenv("FOLDIN_SERVER", raising=False)
    connection = Connection(given, 0)
    connection.close()
    assert connection.server == address


def test_address_from_the_environment(monkeypatch):
    monkeypatch.setenv("FOLDIN_SERVER", "merge.example.org:81")
    with foldin.Client() as client:
        assert client.server == "merge.example.org:81"


@pytest.mark.parametrize("given", ["http://host:7070", "host:port", "host/path", ":7070", "::1"])
def test_no_address(given):
    with pytest.raises(foldin.InvalidArgument, match="give HOST:PORT"):
        foldin.Client(given)


def test_list_follows_pages_and_filters(daemon, client, tmp_path, save):
    ids = [client.submit(save(tmp_path / f"{i}.safetensors", seed=i)).id for i in range(5)]
    assert [submission.id for submission in client.list()] == ids
    assert [submission.id for submission in client.list(["queued"])] == ids
    assert client.list([foldin.SubmissionState.MERGED]) == []
    with pytest.raises(foldin.InvalidArgument, match="the states are RECEIVING, QUEUED"):
        client.list(["done"])


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_cannot_be_never_removes_an_alias(client, version):
    with pytest.raises(foldin.InvalidArgument, match="numbered from 1"):
        client.set_alias("stable", version)
    with pytest.raises(foldin.InvalidArgument, match="numbered from 1"):
        client.rollback(version)


def test_public_names_load_and_torch_does_not():
    program = (
        "import sys, foldin\n"
        "assert 'grpc' not in sys.modules\n"
        "for name in foldin.__all__: getattr(foldin, name)\n"
        "import foldin.cli, foldin.cli.display, foldin.cli.rendering\n"
        "assert 'torch' not in sys.modules\n"
        "print(foldin.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip()


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = foldin.nothing
