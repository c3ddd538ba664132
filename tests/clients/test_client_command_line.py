"""The command `foldin`: exit statuses, and what stands on stdout and on stderr."""

import json
import re
import signal
import subprocess
import sys

import numpy
import pytest
from foldin.cli import app
from foldin.v1 import submissions_pb2 as pb
from safetensors.numpy import save
from typer.testing import CliRunner

MODEL = {"model.safetensors": b"weights", "foldin.json": b"{}"}


@pytest.fixture
def foldin(daemon):
    def run(*arguments, server=daemon.address, terminal=False):
        environment = {"FOLDIN_SERVER": server, "FORCE_COLOR": "1" if terminal else "", "TERM": "xterm"}
        return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])

    return run


def merged(version=3):
    return pb.Submission(id="s1", name="task", state=pb.SUBMISSION_STATE_MERGED, version=version)


def rejected():
    return pb.Submission(id="s1", state=pb.SUBMISSION_STATE_REJECTED, reason="it holds NaN: look at the training.")


def test_submit(foldin, checkpoint):
    done = foldin("submit", checkpoint, "--name", "one", "--label", "a=b", "--label", "c=d=e", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["state"], document["name"], document["labels"]) == ("QUEUED", "one", {"a": "b", "c": "d=e"})
    again = foldin("submit", checkpoint)
    assert (again.exit_code, again.stdout) == (0, "submission s1 (one) is QUEUED.\n")
    assert "foldin watch s1" in again.stderr


def test_submit_and_wait_until_merged(foldin, daemon, checkpoint):
    merging = pb.Submission(
        id="s1", state=pb.SUBMISSION_STATE_MERGING, progress=pb.Progress(stage="folding", done=1, total=2, tensor="w")
    )
    daemon.submissions.watched = [merging, merged()]
    done = foldin("submit", checkpoint, "--wait")
    assert (done.exit_code, done.stdout) == (0, "submission s1 (task) is merged: v3 and later versions contain it.\n")
    assert done.stderr.split() == ["hashing", "uploading", "folding"]
    daemon.submissions.watched = [merging, merged()]
    done = foldin("submit", checkpoint, "--wait", "--json")
    assert (done.exit_code, json.loads(done.stdout)["version"]) == (0, 3)


def test_bars_on_a_terminal(foldin, daemon, checkpoint):
    queued = pb.Submission(id="s1", state=pb.SUBMISSION_STATE_QUEUED, reason="the disk is [/full]: free some.")
    folding = pb.Progress(stage="folding", done=1, total=2, tensor="w")
    merging = pb.Submission(id="s1", state=pb.SUBMISSION_STATE_MERGING, progress=folding)
    daemon.submissions.watched = [queued, merging, merged()]
    done = foldin("submit", checkpoint, "--wait", "--json", terminal=True)
    assert (done.exit_code, json.loads(done.stdout)["version"]) == (0, 3)
    for text in ("hashing", "uploading", "100%", "the disk is [/full]", "1 of 2 tensors"):
        assert text in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_submit_and_wait_until_refused(foldin, daemon, checkpoint, as_json):
    daemon.submissions.watched = [rejected()]
    done = foldin("submit", checkpoint, "--wait", *["--json"] * as_json)
    assert done.exit_code == 1
    assert "foldin: submission s1 was rejected: it holds NaN: look at the training." in done.stderr
    if as_json:
        assert json.loads(done.stdout)["state"] == "REJECTED"
    else:
        assert done.stdout == ""


def test_submit_without_waiting_and_refused_at_once(foldin, daemon, checkpoint):
    daemon.submissions.after_commit = pb.SUBMISSION_STATE_REJECTED
    daemon.submissions.reason = "shapes differ."
    done = foldin("submit", checkpoint)
    assert (done.exit_code, "shapes differ." in done.stderr) == (1, True)


@pytest.mark.parametrize("as_json", [False, True])
def test_errors_are_sentences(foldin, tmp_path, as_json):
    done = foldin("submit", tmp_path / "nowhere", *["--json"] * as_json)
    assert done.exit_code == 1
    assert f"foldin: {tmp_path / 'nowhere'} does not exist." in done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        assert json.loads(done.stdout)["error"]["code"] == "INVALID_ARGUMENT"
    else:
        assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "s9"],
        ["list"],
        ["snapshots"],
        ["watch", "s9"],
        ["watch"],
        ["rollback"],
        ["retry", "s9"],
        ["show"],
        ["diff", "v1", "v2"],
    ],
)
def test_nobody_answers(foldin, arguments):
    done = foldin(*arguments, server="127.0.0.1:1")
    assert done.exit_code == 1
    assert "cannot reach the Foldin daemon at 127.0.0.1:1: is it running?" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["submit", "x", "--label", "nothing"],
        ["list", "--state", "done"],
        ["rollback", "latest"],
        ["alias", "stable", "v0"],
        ["alias", "stable", "v1", "--delete"],
        ["pull", "v1"],
        ["diff", "v1"],
        ["diff", "v1", "v2", "--top", "0"],
        ["diff", "v1", "v2", "--sort", "size"],
        ["show", "--ancestors", "-1"],
        ["fold"],
    ],
)
def test_wrong_usage(foldin, arguments):
    done = foldin(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")


def test_status_and_list(foldin, checkpoint):
    foldin("submit", checkpoint, "--name", "[bold]one\x1b[31m")
    assert json.loads(foldin("status", "s1", "--json").stdout)["history"][0]["detail"] == "opened"
    assert [one["id"] for one in json.loads(foldin("list", "--json").stdout)] == ["s1"]
    assert [one["id"] for one in json.loads(foldin("list", "--state", "queued", "--json").stdout)] == ["s1"]
    assert json.loads(foldin("list", "--state", "merged", "--json").stdout) == []
    for command in (["status", "s1"], ["list"]):
        shown = foldin(*command).stdout
        assert "[bold]one" in shown
        assert "\x1b" not in shown
    unknown = foldin("status", "s9")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "see `foldin list`" in unknown.stderr


def test_snapshots(foldin, daemon, tmp_path):
    assert json.loads(foldin("snapshots", "--json").stdout) == []
    assert "nothing has been merged yet" in foldin("snapshots").stdout
    daemon.snapshots.publish(1, MODEL)
    daemon.snapshots.publish(2, MODEL)
    assert [one["version"] for one in json.loads(foldin("snapshots", "--json").stdout)] == [1, 2]
    assert json.loads(foldin("show", "--json").stdout)["version"] == 2
    assert json.loads(foldin("show", "v1", "--json").stdout)["version"] == 1
    assert "task-2" in foldin("snapshots").stdout
    assert "made from         v1" in foldin("show").stdout
    pulled = foldin("pull", "--to", tmp_path / "merged", "--json")
    assert json.loads(pulled.stdout)["version"] == 2
    assert foldin("pull", "v1", "--to", tmp_path / "merged").stdout == f"{tmp_path / 'merged'} is v1.\n"


def test_show_tells_what_came_before(foldin, daemon):
    tensors = {"w[0]": {"treatment": "projected", "task_vector_norm": 1.5, "kept": 0.25, "split_rank": 2, "rank": 0}}
    manifest = json.dumps({"tensors": tensors}).encode()
    for version in range(1, 15):
        daemon.snapshots.publish(version, {"foldin.json": manifest})
    shown = foldin("show").stdout
    assert [line.split()[-4:] for line in shown.splitlines() if "before it" in line] == [
        ["v13", "added", "task-13", "(s13)"]
    ]
    assert "v4 added task-4 (s4)" in shown
    assert "v3 added" not in shown
    assert "foldin show v14 --ancestors 100" in shown
    assert "older ones" not in foldin("show", "--ancestors", "13").stdout
    assert "before it" not in foldin("show", "--ancestors", "0").stdout
    assert "25.00 %" not in shown
    assert re.search(r"w\[0\] +projected +1\.5 +25\.00 % +2", foldin("show", "--tensors").stdout)

    document = json.loads(foldin("show", "--json", "--ancestors", "2").stdout)
    assert [step["version"] for step in document["lineage"]] == [14, 13, 12]
    assert "tensors" not in document
    (told,) = json.loads(foldin("show", "v1", "--json", "--tensors").stdout)["tensors"]
    assert told == {"name": "w[0]"} | tensors["w[0]"]


@pytest.fixture
def compared(daemon):
    names = [f"layer.{number:02}[x]" for number in range(25)]
    first = {name: numpy.ones(4, numpy.float32) for name in names}
    second = {name: numpy.ones(4, numpy.float32) + number for number, name in enumerate(names)}
    for version, tensors in ((1, first), (2, second)):
        daemon.snapshots.publish(version, {"model.safetensors": save(tensors)})
    return names


def rows(stdout):
    return re.findall(r"layer\.\d\d\[x\]", stdout)


def test_diff_for_people(foldin, compared):
    done = foldin("diff", "v1", "v2")
    assert rows(done.stdout) == compared[:4:-1]
    assert "From v1 to v2:\n  v2 added task-2 (s2)\n" in done.stdout
    assert re.search(r"layer\.24\[x\] +F32 4 +2400 % +48 +24 +100 % +1\.000000", done.stdout)
    assert re.search(r"the whole model +100 elements +1400 % +140 +24 +96 %", done.stdout)
    assert "5 tensors more: --all shows them." in done.stdout
    assert done.stderr.split() == ["comparing"]
    assert rows(foldin("diff", "v1", "latest", "--all").stdout) == compared[::-1]
    assert rows(foldin("diff", "v1", "v2", "--sort", "name", "--top", "2").stdout) == compared[:2]
    assert "v2 is undone: it added task-2 (s2)" in foldin("diff", "v2", "v1").stdout
    assert foldin("diff", "v2", "2").stdout == "Both are v2.\nTheir models are the same, byte by byte.\n"


def test_diff_as_json(foldin, compared):
    document = json.loads(foldin("diff", "v1", "v2", "--json", "--top", "1").stdout)
    assert list(document) == [
        "a", "b", "lineage", "norm", "difference_norm", "relative", "largest_change", "changed_share", "elements",
        "unread", "tensors",
    ]  # fmt: skip
    assert (document["a"]["version"], document["b"]["version"]) == (1, 2)
    (step,) = document["lineage"].pop("done")
    assert document["lineage"] == {"ancestor": 1, "undone": []}
    assert step == {
        "version": 2,
        "parent": 1,
        "state": "PUBLISHED",
        "created_at": "2023-11-14T22:13:20.000Z",
        "change": "added",
        "submission_id": "s2",
        "submission_name": "task-2",
        "submissions": 2,
        "publication": "",
    }
    assert [tensor["name"] for tensor in document["tensors"]] == compared[::-1]
    assert document["tensors"][0] == {
        "name": "layer.24[x]",
        "dtype": "F32",
        "shape": [4],
        "norm": 2.0,
        "difference_norm": 48.0,
        "relative": 24.0,
        "cosine": 1.0,
        "largest_change": 24.0,
        "changed_share": 1.0,
    }
    by_name = json.loads(foldin("diff", "v1", "v2", "--json", "--sort", "name").stdout)["tensors"]
    assert [tensor["name"] for tensor in by_name] == compared


def test_alias(foldin, daemon):
    daemon.snapshots.publish(1, MODEL)
    assert foldin("alias", "stable", "v1").stdout == "stable names v1.\n"
    assert json.loads(foldin("alias", "stable", "1", "--json").stdout)["version"] == 1
    assert foldin("alias", "latest").stdout == "latest names v1.\n"
    assert foldin("alias", "stable", "--delete").stdout == "stable is removed.\n"
    assert json.loads(foldin("alias", "stable", "--delete", "--json").stdout) is None


def test_rollback(foldin, daemon):
    daemon.snapshots.publish(1, MODEL)
    daemon.snapshots.publish(2, MODEL)
    assert foldin("rollback", "v2").stdout == "v2 is undone; the newest is v1.\n"
    assert json.loads(foldin("rollback", "--json").stdout) == {"undone": 1, "snapshot": None}
    refused = foldin("rollback")
    assert (refused.exit_code, "nothing was merged yet" in refused.stderr) == (1, True)


def test_watch_one(foldin, daemon):
    daemon.submissions.watched = [pb.Submission(id="s1", state=pb.SUBMISSION_STATE_QUEUED), merged()]
    done = foldin("watch", "s1", "--json")
    assert (done.exit_code, json.loads(done.stdout)["state"]) == (0, "MERGED")
    daemon.submissions.watched = [rejected()]
    done = foldin("watch", "s1", "--json")
    assert (done.exit_code, json.loads(done.stdout)["state"]) == (1, "REJECTED")
    assert "it holds NaN" in done.stderr


def test_watch_all_until_interrupted(daemon):
    daemon.snapshots.publish(1, MODEL)
    command = [sys.executable, "-m", "foldin", "watch", "--json", "--server", daemon.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["version"] == 1
        daemon.snapshots.publish(2, MODEL)
        assert json.loads(process.stdout.readline())["version"] == 2
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr == "foldin: interrupted.\n"


def test_interrupted_upload_says_how_to_go_on(daemon, checkpoint):
    def interrupt(context):
        process.send_signal(signal.SIGINT)

    daemon.submissions.faults["WriteChunk"] = [None, interrupt]
    daemon.submissions.faults["CommitSubmission"] = [lambda context: process.wait(20)]
    command = [sys.executable, "-m", "foldin", "submit", str(checkpoint), "--server", daemon.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")
    assert "Run the same command again: it goes on where this one stopped." in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "command",
    [
        "submit", "status", "list", "retry", "withdraw", "snapshots", "show", "pull", "watch", "alias", "rollback",
        "diff",
    ],
)  # fmt: skip
def test_every_help_has_examples(foldin, command):
    done = foldin(command, "--help")
    assert done.exit_code == 0
    assert f"$ foldin {command}" in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def test_version(foldin):
    assert foldin("--version").stdout.startswith("foldin ")
