"""The command `foldin` against a real daemon, as a script would use it."""

import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from foldin.cli import app
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.support.daemon import BIN, Daemon, foldin
from tests.support.models import load_model, make_base, make_checkpoint

SUBMISSION = {
    "id",
    "name",
    "state",
    "version",
    "reason",
    "labels",
    "partial",
    "attempts",
    "created_at",
    "updated_at",
    "progress",
    "content_digest",
    "files",
    "vocab",
    "common_rows",
    "takes_out",
    "took_out",
}
SNAPSHOT = {
    "version",
    "parent",
    "state",
    "created_at",
    "aliases",
    "submission_id",
    "submission_name",
    "submissions",
    "lambda",
    "accumulated_norm",
    "mean_task_vector_norm",
    "task_vector_norm",
    "rule",
    "merge_seconds",
    "publication",
    "variant",
    "files",
    "gate",
    "took_out",
    "took_out_name",
}

STEP = {
    "version",
    "parent",
    "state",
    "created_at",
    "change",
    "submission_id",
    "submission_name",
    "submissions",
    "publication",
}

Run = Callable[..., "Ended"]
_seeds = count(1000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("commands") / "base")


@pytest.fixture(scope="module")
def daemon(base: Path) -> Iterator[Daemon]:
    with Daemon(base.parent / "state", base, "--allowed-root", str(base.parent)) as running:
        yield running


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """What --json printed."""
        return json.loads(self.stdout)


@pytest.fixture
def run(daemon: Daemon) -> Run:
    """Run a command in this process; status 0 is expected, and no exception whatever the status."""

    def start(*arguments: object, status: int = 0) -> Ended:
        ended = CliRunner().invoke(app, [*map(str, arguments), "--server", daemon.server])
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        assert ended.exit_code == status, ended.stderr
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    return start


@pytest.fixture
def run_alone(daemon: Daemon) -> Run:
    """The same in a process of its own."""

    def start(*arguments: object, status: int = 0) -> Ended:
        ended = foldin(*map(str, arguments), "--server", daemon.server, check=False)
        assert ended.returncode == status, ended.stderr
        assert "Traceback" not in ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return start


@pytest.fixture
def task(base: Path, tmp_path: Path) -> Path:
    """A checkpoint that nobody submitted before."""
    return make_checkpoint(tmp_path / "task", base, seed=next(_seeds))


def assert_moment(text: str) -> None:
    assert text.endswith("Z")
    assert datetime.fromisoformat(text)


def test_submit_and_wait(run: Run, run_alone: Run, task: Path) -> None:
    ended = run_alone(
        "submit", task, "--name", "größe", "--label", "team=vision", "--label", "round=4", "--wait", "--json"
    )
    submission = ended.document
    assert submission.keys() == SUBMISSION
    assert (submission["name"], submission["state"], submission["reason"]) == ("größe", "MERGED", "")
    assert submission["labels"] == {"team": "vision", "round": "4"}
    assert submission["version"] >= 1
    assert submission["progress"] is None
    assert [file["name"] for file in submission["files"]] == ["model.safetensors"]
    assert_moment(submission["created_at"])

    told = run("status", submission["id"], "--json").document
    assert told.keys() == SUBMISSION | {"history"}
    assert [event["state"] for event in told["history"]] == ["RECEIVING", "QUEUED", "MERGING", "MERGED"]
    assert {key: told[key] for key in SUBMISSION} == submission
    assert run("watch", submission["id"], "--json").document == submission


def test_submit_for_people(run: Run, task: Path) -> None:
    ended = run("submit", task)
    assert "QUEUED" in ended.stdout or "MERG" in ended.stdout
    assert "foldin watch" in ended.stderr
    submission_id = ended.stdout.split()[1]
    followed = run("watch", submission_id)
    assert f"{submission_id} ({task.name}) is merged: v" in followed.stdout, "it has the name of its path"
    again = run("submit", task, "--wait")
    assert submission_id in again.stdout, "the same content is the same submission"
    assert "MERGED" in run("status", submission_id).stdout


def test_a_refused_submission(run: Run, run_alone: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    save_file({**load_model(base), "extra.weight": torch.ones(2)}, tmp_path / "bad" / "model.safetensors")
    ended = run_alone("submit", tmp_path / "bad", status=1)
    assert ended.stdout == ""
    assert "extra.weight" in ended.stderr
    assert "rejected" in ended.stderr
    ended = run_alone("submit", tmp_path / "bad", "--wait", "--json", status=1)
    submission = ended.document
    assert submission["state"] == "REJECTED"
    assert submission["version"] is None
    assert "extra.weight" in submission["reason"]
    assert submission["reason"] in ended.stderr
    for command in ("status", "watch"):
        ended = run(command, submission["id"], status=1 if command == "watch" else 0)
        assert "extra.weight" in ended.stdout + ended.stderr


def test_values_that_cannot_be_merged(run_alone: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "nan").mkdir()
    tensors = load_model(base)
    tensors["logit_scale"] = torch.tensor(torch.nan)
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    ended = run_alone("submit", tmp_path / "nan", "--wait", status=1)
    assert "NaN" in ended.stderr
    assert "logit_scale" in ended.stderr


def test_errors_are_sentences(run: Run, base: Path, tmp_path: Path) -> None:
    run("submit", make_checkpoint(tmp_path / "task", base, seed=next(_seeds)), "--wait")
    for arguments, words in {
        ("status", "nowhere"): "nowhere",
        ("show", "v999"): "v999",
        ("show", "nothing"): "nothing",
        ("diff", "v1", "v999"): "v999",
        ("pull", "v999", "--to", tmp_path / "x"): "v999",
        ("withdraw", "nowhere"): "nowhere",
        ("retry", "nowhere"): "nowhere",
        ("submit", tmp_path / "nowhere"): "does not exist",
        ("alias", "latest", "v1"): "latest",
        ("alias", "Stable", "v1"): "Stable",
        ("rollback", "v999"): "v999",
    }.items():
        ended = run(*arguments, status=1)
        assert ended.stdout == ""
        assert words in ended.stderr
        assert ended.stderr.startswith("foldin: ")
    error = run("show", "v999", "--json", status=1).document["error"]
    assert error["code"] == "NOT_FOUND"
    assert "v999" in error["message"]


def test_wrong_usage(run: Run) -> None:
    for arguments in (("submit",), ("alias", "stable", "vx"), ("list", "--state", "lost"), ("destroy",)):
        run(*arguments, status=2)


def test_lists_are_oldest_first(run: Run, base: Path, tmp_path: Path) -> None:
    ids = []
    for number in range(2):
        checkpoint = make_checkpoint(tmp_path / f"task{number}", base, seed=next(_seeds))
        ids.append(run("submit", checkpoint, "--wait", "--json", "--name", f"listed{number}").document["id"])
    submissions = run("list", "--json").document
    assert all(submission.keys() == SUBMISSION for submission in submissions)
    assert [submission["id"] for submission in submissions[-2:]] == ids
    assert [submission["created_at"] for submission in submissions] == sorted(
        submission["created_at"] for submission in submissions
    )

    snapshots = run("snapshots", "--json").document
    assert all(snapshot.keys() == SNAPSHOT for snapshot in snapshots)
    assert [snapshot["version"] for snapshot in snapshots] == list(range(1, len(snapshots) + 1))
    newest = snapshots[-1]
    assert (newest["submission_id"], newest["submission_name"], newest["aliases"]) == (ids[1], "listed1", ["latest"])
    assert (newest["state"], newest["parent"], newest["rule"]) == ("PUBLISHED", len(snapshots) - 1, "opcm")
    assert newest["lambda"] == pytest.approx(newest["accumulated_norm"] / newest["mean_task_vector_norm"])
    assert_moment(newest["created_at"])
    shown = run("show", "--json", "--tensors").document
    assert shown.keys() == SNAPSHOT | {"lineage", "tensors"}
    assert {key: shown[key] for key in SNAPSHOT} == newest
    assert [step["submission_id"] for step in shown["lineage"]][:2] == ids[::-1]
    assert {step.keys() == STEP for step in shown["lineage"]} == {True}
    assert {tensor["treatment"] for tensor in shown["tensors"]} == {"projected", "summed"}

    found = run("diff", f"v{newest['parent']}", "latest", "--json").document
    assert [step["submission_name"] for step in found["lineage"]["done"]] == ["listed1"]
    assert found["b"] == newest
    assert 0 < found["relative"] < 1

    table = run("snapshots").stdout
    assert table.index("listed0") < table.index("listed1")
    table = run("list").stdout
    assert table.index(ids[0]) < table.index(ids[1])


def test_list_by_state(run: Run, task: Path) -> None:
    merged = run("submit", task, "--wait", "--json").document["id"]
    only = run("list", "--state", "merged", "--json").document
    assert {submission["state"] for submission in only} == {"MERGED"}
    assert merged in {submission["id"] for submission in only}
    assert run("list", "--state", "queued", "--state", "MERGING", "--json").document == []
    assert "no submissions" in run("list", "--state", "QUARANTINED").stdout


def test_pull_twice_and_another_version(run: Run, base: Path, tmp_path: Path) -> None:
    versions = []
    for number in range(2):
        checkpoint = make_checkpoint(tmp_path / f"task{number}", base, seed=next(_seeds))
        versions.append(run("submit", checkpoint, "--wait", "--json").document["version"])
    to = tmp_path / "merged"
    assert f"is v{versions[1]}" in run("pull", "--to", to).stdout
    names = {path.name for path in to.iterdir()}
    assert names == {"README.md", "config.json", "foldin.json", "model.safetensors", "tokenizer_config.json"}
    before = {path.name: path.stat().st_ino for path in to.iterdir()}
    snapshot = run("pull", "latest", "--to", to, "--json").document
    assert snapshot["version"] == versions[1]
    assert {path.name: path.stat().st_ino for path in to.iterdir()} == before, "it was there already"
    assert {file["name"]: file["size"] for file in snapshot["files"]} == {
        path.name: path.stat().st_size for path in to.iterdir()
    }
    run("pull", f"v{versions[0]}", "--to", to)
    assert json.loads((to / "foldin.json").read_text())["version"] == versions[0]
    assert load_model(to).keys() == load_model(base).keys()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_aliases(run: Run, task: Path) -> None:
    version = run("submit", task, "--wait", "--json").document["version"]
    assert "stable" in run("alias", "stable", f"v{version}").stdout
    assert run("show", "stable", "--json").document["version"] == version
    assert run("alias", "stable", "--json").document["aliases"] == ["latest", "stable"]
    assert run("alias", "stable", "1", "--json").document["version"] == 1
    assert "removed" in run("alias", "stable", "--delete").stdout
    assert run("alias", "stable", "--delete", "--json").document is None
    run("alias", "stable", status=1)


def test_names_of_what_was_rolled_back(run: Run, base: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "task", base, seed=next(_seeds))
    version = f"v{run('submit', checkpoint, '--wait', '--json').document['version']}"
    run("alias", "stable", version)
    for arguments in (("rollback", version), ("show", "stable"), ("pull", "stable", "--to", tmp_path / "pulled")):
        ended = run(*arguments)
        assert ended.stderr.count("warning: ") == 1
        assert f"warning: {version} was rolled back, and stable still names it" in ended.stderr
    run("alias", "stable", "--delete")
    assert f"warning: {version} was rolled back.\n" in run("show", version).stderr
    assert "warning" not in run("show").stderr


def test_watch_and_rollback(run: Run, daemon: Daemon, base: Path, tmp_path: Path) -> None:
    for number in range(2):
        checkpoint = make_checkpoint(tmp_path / f"task{number}", base, seed=next(_seeds))
        newest = run("submit", checkpoint, "--wait", "--json").document
    command = [BIN / "foldin", "watch", "--json", "--server", daemon.server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["version"] == newest["version"]
        done = run("rollback", f"v{newest['version']}", "--json").document
        assert done.keys() == {"undone", "snapshot"}
        assert done["undone"] == newest["version"]
        assert done["snapshot"].keys() == SNAPSHOT
        assert done["snapshot"]["version"] == newest["version"] - 1
        line = json.loads(watching.stdout.readline())
        assert line.keys() == SNAPSHOT
        assert line["version"] == newest["version"] - 1
        watching.terminate()
    told = run("status", newest["id"], "--json").document
    assert (told["state"], told["history"][-1]["state"]) == ("WITHDRAWN", "WITHDRAWN")
    assert f"v{newest['version']}" in told["reason"]
    run("rollback", f"v{newest['version']}", status=1)
    assert run("show", f"v{newest['version']}", "--json").document["state"] == "WITHDRAWN"


def test_on_the_server(run: Run, base: Path, tmp_path: Path) -> None:
    inside = make_checkpoint(base.parent / "on-server", base, seed=next(_seeds))
    assert run("submit", inside, "--on-server", "--wait", "--json").document["state"] == "MERGED"
    outside = make_checkpoint(tmp_path / "outside", base, seed=next(_seeds))
    assert "allowed_roots" in run("submit", outside, "--on-server", status=1).stderr


def test_partial_and_force(run: Run, task: Path, tmp_path: Path) -> None:
    tensors = load_model(task)
    del tensors["logit_scale"]
    (tmp_path / "partial").mkdir()
    save_file(tensors, tmp_path / "partial" / "model.safetensors")
    assert "logit_scale" in run("submit", tmp_path / "partial", status=1).stderr
    first = run("submit", tmp_path / "partial", "--partial", "--wait", "--json").document
    assert (first["state"], first["partial"]) == ("MERGED", True)
    again = run("submit", tmp_path / "partial", "--partial")
    assert f"handed in before, as {first['id']}; --force takes it once more" in again.stderr
    second = run("submit", tmp_path / "partial", "--partial", "--force", "--wait", "--json").document
    assert second["version"] == first["version"] + 1


def test_without_a_daemon() -> None:
    ended = foldin("list", "--server", "127.0.0.1:1", check=False)
    assert ended.returncode == 1
    assert "cannot reach the Foldin daemon at 127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr
