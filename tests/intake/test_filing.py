"""Where drops go, and their receipts."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from foldind.errors import SourceChanged
from foldind.intake import filing
from foldind.intake.drops import observe
from foldind.intake.filing import Filing, Receipt

from tests.support.dropping import read_receipt


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (folder := tmp_path / "inbox").mkdir()
    return folder


@pytest.fixture(params=["a folder", "another device"])
def accepted(request: pytest.FixtureRequest, inbox: Path) -> Iterator[Path]:
    """The folder for what was accepted, on the device of the inbox and on another."""
    if request.param == "a folder":
        (inbox / "accepted").mkdir()
        yield inbox / "accepted"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == inbox.stat().st_dev:
            pytest.skip("/dev/shm is no other device")
        (inbox / "accepted").symlink_to(other)
        yield Path(other)


def receipt(path: Path, state: str = "MERGED") -> Receipt:
    moment = "2026-01-01T00:00:00.000+00:00"
    return Receipt(path.name, observe(path).request_id, "id", state, 1, "", "", moment, moment)


def write(path: Path, content: str = "content") -> Path:
    path.write_text(content)
    return path


def file_it(inbox: Path, path: Path, state: str = "MERGED") -> Path:
    return Filing(inbox).file(observe(path), receipt(path, state))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file(inbox: Path, accepted: Path) -> None:
    path = write(inbox / "a.safetensors")
    told = receipt(path)
    target = file_it(inbox, path)
    assert target.read_text() == "content"
    assert read_receipt(accepted / "a.safetensors.json")["request_id"] == told.request_id
    assert names(inbox) == {"accepted"}
    assert names(accepted) == {"a.safetensors", "a.safetensors.json"}


def test_a_folder(inbox: Path, accepted: Path) -> None:
    (folder := inbox / "task").mkdir()
    (folder / "inner").mkdir()
    write(folder / "inner" / "file")
    (folder / "link").symlink_to("inner/file")
    os.mkfifo(folder / "pipe")
    target = file_it(inbox, folder)
    assert (target / "inner" / "file").read_text() == "content"
    assert (target / "link").readlink() == Path("inner/file")
    assert (target / "pipe").is_fifo()
    assert names(inbox) == {"accepted"}
    assert names(accepted) == {"task", "task.json"}


def test_a_link_is_moved_itself(inbox: Path, accepted: Path, tmp_path: Path) -> None:
    real = write(tmp_path / "real")
    for path, target in ((inbox / "absolute", str(real)), (inbox / "relative", "../real"), (inbox / "none", "nowhere")):
        path.symlink_to(target)
        assert file_it(inbox, path).readlink() == Path(target)
    assert real.read_text() == "content"


def test_names_that_are_taken(inbox: Path, accepted: Path) -> None:
    for number in range(4):
        file_it(inbox, write(inbox / "a.safetensors", str(number)))
    assert [(accepted / f"a{n}.safetensors").read_text() for n in ("", "-2", "-3", "-4")] == ["0", "1", "2", "3"]
    assert read_receipt(accepted / "a-3.safetensors.json")["drop"] == "a.safetensors"


def test_a_name_is_free_only_if_its_receipts_is(inbox: Path, accepted: Path) -> None:
    write(accepted / "a.json", "somebody's")
    (accepted / "a-2").symlink_to("nowhere")
    assert file_it(inbox, write(inbox / "a")).name == "a-3"
    assert (accepted / "a.json").read_text() == "somebody's"


@pytest.mark.parametrize("name", ["n" * 255, "n" * 243 + ".safetensors", "é" * 127, ".".join("abc" * 80)[:255]])
def test_long_names(inbox: Path, accepted: Path, name: str) -> None:
    targets = {file_it(inbox, write(inbox / name, str(n))) for n in range(3)}
    assert len(targets) == 3
    assert {target.read_text() for target in targets} == {"0", "1", "2"}
    assert {read_receipt(path)["drop"] for path in accepted.glob("*.json")} == {name}
    assert all(target.name.endswith(".safetensors") for target in targets) == name.endswith(".safetensors")
    assert names(inbox) == {"accepted"}


def test_names_of_any_bytes(inbox: Path, accepted: Path) -> None:
    for name in ("a\nb", "\udcff\udcfe", "-rf", '"quoted"', "a\x1b[31m", "\udcff" * 255):
        path = inbox / name
        path.write_bytes(b"")
        target = file_it(inbox, path)
        assert read_receipt(target.with_name(target.name + ".json"))["drop"] == name


def test_hard_links(inbox: Path, accepted: Path) -> None:
    write(inbox / "a")
    for name in ("b", "c"):
        os.link(inbox / "a", inbox / name)
    for name in ("a", "b", "c"):
        file_it(inbox, inbox / name)
    assert names(inbox) == {"accepted"}
    assert names(accepted) == {f"{name}{end}" for name in "abc" for end in ("", ".json")}


def test_the_folders_are_made_again(inbox: Path) -> None:
    for _ in range(2):
        target = file_it(inbox, write(inbox / "a"), "REJECTED")
        assert target == inbox / "rejected" / "a"
        for path in sorted(inbox.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


class Killed(BaseException):
    """The process ends here."""


def kill_at(nth: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """End the nth of the steps that change what lies on the disk, before or after it; tells whether it came to that."""
    calls = 0

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Killed
            result = original(*arguments)
            calls += 1
            if calls == nth:
                raise Killed
            return result

        return step

    for name in ("write_file", "move", "copy_open_file", "remove", "make_folder"):
        monkeypatch.setattr(filing, name, wrap(getattr(filing, name)))
    return lambda: calls >= nth


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_anywhere(inbox: Path, accepted: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number, struck = 0, True
    while struck:
        number += 1
        name = f"drop-{number}"
        if kind == "folder":
            (inbox / name).mkdir()
            write(inbox / name / "model.safetensors")
            write(inbox / name / "other")
        else:
            write(inbox / name)
        sight, told = observe(inbox / name), receipt(inbox / name)
        with monkeypatch.context() as patched:
            is_struck = kill_at(number, patched)
            with suppress(Killed):
                Filing(inbox).file(sight, told)
            struck = is_struck()
        Filing(inbox).prepare()
        if (inbox / name).exists():
            assert observe(inbox / name) == sight
            Filing(inbox).file(sight, told)
        assert names(inbox) == {"accepted", "rejected"}
        assert names(accepted) == {f"drop-{n}{end}" for n in range(1, number + 1) for end in ("", ".json")}
        if kind == "folder":
            assert names(accepted / name) == {"model.safetensors", "other"}
    assert number > 6


def test_what_was_replaced_stays(inbox: Path, accepted: Path) -> None:
    path = write(inbox / "a")
    sight, told = observe(path), receipt(path)
    path.unlink()
    with pytest.raises(SourceChanged):
        Filing(inbox).file(sight, told)
    write(path, "another")
    with pytest.raises(SourceChanged):
        Filing(inbox).file(sight, told)
    assert path.read_text() == "another"


def test_what_is_replaced_in_the_last_moment_is_put_back(
    inbox: Path, accepted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(inbox / "a")
    sight, told = observe(path), receipt(path)
    original = filing.move

    def move(source: Path, target: Path) -> None:
        if source == path:
            write(inbox / "new", "another").rename(path)
        original(source, target)

    monkeypatch.setattr(filing, "move", move)
    with pytest.raises(SourceChanged):
        Filing(inbox).file(sight, told)
    assert path.read_text() == "another"


def test_a_full_disk_leaves_the_drop(inbox: Path, accepted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(inbox / "a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(filing, "copy_open_file", full)
        patched.setattr(filing, "write_file", full)
        with pytest.raises(OSError, match="No space"):
            file_it(inbox, path)
    assert path.read_text() == "content"
    assert names(accepted) == set()
    file_it(inbox, path)
    assert names(accepted) == {"a", "a.json"}


def test_hostile_receipts(inbox: Path, accepted: Path) -> None:
    for number, content in enumerate(("[" * 50_000, "{", "[]", "null", json.dumps({"request_id": 7})), 1):
        write(accepted / ("a.json" if number == 1 else f"a-{number}.json"), content)
    os.mkfifo(accepted / "a-6.json")
    (accepted / "a-7.json").mkdir()
    assert file_it(inbox, write(inbox / "a")).name == "a-8"
