import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from foldind.errors import StateError
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.fsck import check_state

from tests.support.commands import command

TENSORS = "model.safetensors"


def check(folder: StateFolder) -> list[str]:
    return check_state(folder.root, lambda what: None)


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_in_order(folder: StateFolder) -> None:
    told: list[str] = []
    assert check_state(folder.root, told.append) == []
    assert [what for what in told if what.startswith("v")] == ["v1", "v2", "v3", "v4"]


def test_after_an_interruption_it_is_in_order(folder: StateFolder) -> None:
    for path in (
        folder.merge / "v5",
        folder.snapshots / "v5",
        folder.merge / "v5.ab.tmp",
        folder.submissions / "c.tmp",
    ):
        path.mkdir()
    (folder.snapshots / ".latest.tmp").symlink_to("v1")
    shutil.rmtree(folder.accumulated(3))
    assert check(folder) == []


DAMAGES: dict[str, tuple[Callable[[StateFolder], object], list[str]]] = {
    "a bit of a snapshot": (lambda folder: flip(folder.snapshot(2) / TENSORS), ["snapshots/v2/model.safetensors"]),
    "a snapshot cut off": (
        lambda folder: (folder.snapshot(2) / TENSORS).write_bytes(b"1234"),
        ["snapshots/v2/model.safetensors: it has 4 bytes, and"],
    ),
    "a file of a snapshot missing": (
        lambda folder: (folder.snapshot(1) / "config.json").unlink(),
        ["snapshots/v1/config.json: No such file"],
    ),
    "a file too many": (lambda folder: (folder.snapshot(1) / "x").write_text(""), ["snapshots/v1/x: it is no part"]),
    "a bit of the state": (
        lambda folder: flip(folder.accumulated(4) / "accumulated.safetensors"),
        ["merge/v4/accumulated.safetensors"],
    ),
    "a bit of the base": (lambda folder: flip(folder.base / TENSORS), ["base: its digest is not the one"]),
    "the base cut off": (lambda folder: (folder.base / TENSORS).write_bytes(b"12345678"), ["base: model.safetensors"]),
    "a manifest": (lambda folder: flip(folder.snapshot(3) / "foldin.json", 0), ["v3/foldin.json", "v3/foldin.json"]),
    "another plan": (
        lambda folder: folder.plan.write_text(folder.plan.read_text().replace("projected", "summed", 1)),
        ["plan.json: it is not the plan of the base"],
    ),
    "no plan": (lambda folder: folder.plan.unlink(), ["plan.json"]),
    "a snapshot missing": (lambda folder: shutil.rmtree(folder.snapshot(2)), ["snapshots/v2: the ledger records it"]),
    "the state missing": (lambda folder: shutil.rmtree(folder.accumulated(4)), ["merge/v4: the ledger records it"]),
    "an unknown snapshot": (lambda folder: (folder.snapshots / "v9").mkdir(), ["snapshots/v9: the ledger does not"]),
    "unknown bytes": (lambda folder: (folder.submissions / "x").mkdir(), ["submissions/x: the ledger does not know"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(folder: StateFolder, damage: str) -> None:
    do, words = DAMAGES[damage]
    do(folder)
    findings = check(folder)
    assert len(findings) == len(words), findings
    for finding, word in zip(findings, words, strict=True):
        assert word in finding


def test_a_manifest_of_another_version(folder: StateFolder) -> None:
    path = folder.snapshot(1) / "foldin.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps(manifest | {"version": 2}))
    assert any("it is not the manifest of v1" in finding for finding in check(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE submissions SET state = 'QUEUED', bytes_kept = 0 WHERE version = 2", "v2: its submission"),
        ("UPDATE submissions SET version = 9 WHERE version = 2", "MERGED, and in no version"),
        ("UPDATE versions SET submissions = 9 WHERE version = 4", "v4: it does not hold one submission more"),
        ("UPDATE versions SET parent = 4 WHERE version = 3", "v3: its parent v4 is no earlier version"),
        ("UPDATE aliases SET version = 3 WHERE name = 'latest'", "v4: it is newer than what `latest` names"),
        ("UPDATE versions SET state = 'WITHDRAWN' WHERE version = 4", "v4: `latest` names it"),
        ('UPDATE versions SET "lambda" = 7 WHERE version = 4', "it is not the manifest of v4"),
    ],
)
def test_a_ledger_that_contradicts_itself(folder: StateFolder, change: str, words: str) -> None:
    with Database(folder.ledger) as database, database.transaction() as connection:
        connection.execute(change)
    assert any(words in finding for finding in check(folder)), check(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StateError, match=r"no state folder.*foldind init"):
            check_state(path, lambda what: None)


def test_the_command(folder: StateFolder) -> None:
    ended = command("fsck", "--state", folder.root)
    assert (ended.status, ended.stdout) == (0, "")
    assert "is in order" in ended.stderr
    flip(folder.snapshot(2) / TENSORS)
    ended = command("fsck", "--state", folder.root)
    assert ended.status == 1
    assert "snapshots/v2/model.safetensors" in ended.stdout
    assert "1 finding" in ended.stderr
