"""The exclusive use of a state folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from foldind.errors import StateError
from foldind.state.folder import StateFolder

from tests.support.commands import command


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with StateFolder(tmp_path):
        with pytest.raises(StateError, match=r"in use by another process.*stop the daemon"), StateFolder(tmp_path):
            pass
        with pytest.raises(StateError), StateFolder(tmp_path):
            raise AssertionError("the failed attempt gave the lock away")
    with StateFolder(tmp_path):
        pass


def test_a_killed_process_gives_the_lock_back(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from foldind.state.folder import StateFolder\n"
        "with StateFolder(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StateError), StateFolder(tmp_path):
            pass
        holder.kill()
    with StateFolder(tmp_path):
        pass


def test_the_commands_say_so(folder: StateFolder) -> None:
    with folder:
        for name in ("serve", "fsck"):
            ended = command(name, "--state", folder.root)
            assert ended.status == 1
            assert "in use by another process" in ended.stderr


def test_numbers_of_versions(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.make_folders()
    for name in ("v1", "v10", "v2", "v0", "v01", "v3.tmp", "v", "latest", "v-1", "v1 "):
        (folder.merge / name).mkdir()
    assert folder.accumulated_versions() == [1, 2, 10]
    assert folder.snapshot_versions() == []


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StateFolder(Path("state")).base == tmp_path / "state" / "base"
