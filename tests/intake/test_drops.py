"""What a drop is judged to be."""

import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from foldind.checkpoints.checkpoint import Limits
from foldind.errors import SourceChanged
from foldind.intake.copies import Source, Stamp, look_at, open_source
from foldind.intake.drops import Growing, Ready, Refused, Verdict, is_ignored, judge, observe

from tests.hostile.files import ATTACKS, ENTRY, craft
from tests.support.wire import INDEX, SINGLE

GOOD = craft({"a": ENTRY})
OTHER = craft({"b": ENTRY})


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (folder := tmp_path / "inbox").mkdir()
    return folder


def verdict(path: Path, *roots: Path) -> Verdict:
    return judge(path, observe(path), (path.parent, *roots), Limits())


def is_growing(path: Path, *words: str) -> None:
    match verdict(path):
        case Growing(reason):
            assert all(word in reason for word in words), reason
        case other:
            pytest.fail(str(other))


def is_refused(path: Path, *words: str) -> None:
    match verdict(path):
        case Refused(reason):
            assert all(word in reason for word in words), reason
        case other:
            pytest.fail(str(other))


def sources(path: Path, *roots: Path) -> dict[str, Path]:
    found = verdict(path, *roots)
    assert isinstance(found, Ready), found
    return {name: source.path for name, source in found.sources.items()}


def shards(folder: Path) -> Path:
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    (folder / "one.safetensors").write_bytes(GOOD)
    (folder / "two.safetensors").write_bytes(OTHER)
    return folder


@pytest.mark.parametrize("name", ["x.tmp", "x.part", "x.partial", "x.crdownload", "x~", ".x", "accepted", "rejected"])
def test_ignored_names(name: str) -> None:
    assert is_ignored(name)
    assert not is_ignored(f"{name}s.safetensors"[1:] if name.startswith(".") else f"{name}s.safetensors")


class TestFiles:
    def test_a_whole_one(self, inbox: Path) -> None:
        (path := inbox / "any name.safetensors").write_bytes(GOOD)
        assert sources(path) == {SINGLE: path}

    def test_every_length_but_the_last_is_growing(self, inbox: Path) -> None:
        path = inbox / "a.safetensors"
        for length in range(len(GOOD)):
            path.write_bytes(GOOD[:length])
            is_growing(path)
        path.write_bytes(GOOD[:-1])
        is_growing(path, f"describes {len(GOOD)} bytes and it has {len(GOOD) - 1}")
        path.write_bytes(GOOD + b"x")
        is_refused(path, "followed by bytes that belong to no tensor")

    def test_room_reserved_before_it_is_written(self, inbox: Path) -> None:
        path = inbox / "a.safetensors"
        for written in range(len(GOOD) - len(bytes(24))):
            path.write_bytes(GOOD[:written].ljust(len(GOOD), b"\0"))
            is_growing(path)

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_what_can_never_be_one_is_refused(self, attack: str, inbox: Path) -> None:
        build, sentence = ATTACKS[attack]
        (path := inbox / "a.safetensors").write_bytes(build())
        found = verdict(path)
        assert not isinstance(found, Ready)
        assert sentence in found.reason

    @pytest.mark.parametrize(
        ("name", "word"),
        [
            ("pytorch_model.bin", "pickle"),
            ("model.pt", "pickle"),
            ("notes.txt", "no part of a checkpoint"),
            ("my notes.txt", "not a plain file name"),
            (INDEX, "no weights"),
            ("adapter_config.json", "adapter"),
        ],
    )
    def test_other_files(self, name: str, word: str, inbox: Path) -> None:
        (path := inbox / name).write_bytes(b"{}")
        is_refused(path, word)

    def test_a_name_with_control_characters_is_shown_without(self, inbox: Path) -> None:
        (path := inbox / "a\n\x1b[31m\udcff.safetensors").write_bytes(GOOD + b"x")
        found = verdict(path)
        assert isinstance(found, Refused)
        assert found.reason.isprintable()


class TestFolders:
    def test_a_model(self, inbox: Path) -> None:
        (folder := inbox / "task").mkdir()
        is_growing(folder, "holds neither")
        (folder / "optimizer.pt").write_bytes(b"pickle")
        is_growing(folder, "holds neither")
        (folder / SINGLE).write_bytes(GOOD)
        assert sources(folder) == {SINGLE: folder / SINGLE}

    def test_shards(self, inbox: Path) -> None:
        folder = shards(inbox / "task")
        assert set(sources(folder)) == {INDEX, "one.safetensors", "two.safetensors"}
        (folder / "two.safetensors").write_bytes(OTHER[:-1])
        is_growing(folder, "two.safetensors", "describes")
        (folder / "two.safetensors").unlink()
        is_growing(folder, "names two.safetensors, which is missing (1 of 2")
        (folder / INDEX).unlink()
        is_growing(folder, "holds neither")

    def test_the_hidden_files_of_other_systems_are_no_shards(self, inbox: Path) -> None:
        folder = shards(inbox / "task")
        (folder / "._one.safetensors").write_bytes(b"resource fork")
        assert set(sources(folder)) == {INDEX, "one.safetensors", "two.safetensors"}

    def test_an_index_that_is_being_written(self, inbox: Path) -> None:
        folder = shards(inbox / "task")
        whole = (folder / INDEX).read_bytes()
        for length in range(len(whole)):
            (folder / INDEX).write_bytes(whole[:length])
            is_growing(folder)
            (folder / INDEX).write_bytes(whole[:length].ljust(len(whole), b"\0"))
            is_growing(folder)

    @pytest.mark.parametrize(
        ("index", "word"),
        [
            (b"[" * 100_000, "not valid JSON"),
            (b"import os", "not valid JSON"),
            (b'{"weight_map": {"a"}}', "not valid JSON"),
            (b"[]", "no weight_map"),
            (b"{}", "no weight_map"),
            (b'{"weight_map": {}}', "no weight_map"),
            (b'{"weight_map": {"a": "../one.safetensors"}}', "not a plain file name"),
            (b'{"weight_map": {"a": "/etc/passwd"}}', "not a plain file name"),
            (b'{"weight_map": {"a": 7}}', "not a plain file name"),
            (b'{"weight_map": {"a": "' + b"x" * 300 + b'.safetensors"}}', "not a plain file name"),
        ],
    )
    def test_an_index_that_can_never_be_one(self, index: bytes, word: str, inbox: Path) -> None:
        folder = shards(inbox / "task")
        (folder / INDEX).write_bytes(index)
        is_refused(folder, word)

    def test_an_index_of_a_false_length(self, inbox: Path) -> None:
        folder = shards(inbox / "task")
        os.truncate(folder / INDEX, 100 * 2**30)
        is_refused(folder, "larger than")

    def test_an_adapter(self, inbox: Path) -> None:
        (folder := inbox / "task").mkdir()
        (folder / "adapter_model.safetensors").write_bytes(GOOD)
        is_growing(folder, "holds neither")
        (folder / "adapter_config.json").write_bytes(b'{"peft_type": "LO')
        is_growing(folder, "is not valid JSON")
        (folder / "adapter_config.json").write_bytes(b'{"peft_type": "LORA"}')
        found = verdict(folder)
        assert isinstance(found, Ready)
        assert set(found.sources) == {"adapter_config.json", "adapter_model.safetensors"}
        (folder / "adapter_model.safetensors").write_bytes(GOOD[:-1])
        is_growing(folder, "cut off")
        (folder / "adapter_model.safetensors").unlink()
        is_growing(folder, "without adapter_model.safetensors")

    @pytest.mark.parametrize(
        ("config", "word"), [(b"[]", "not a JSON object"), (b'{"a": }', "JSON"), (b" " * 2**20 + b"{}", "larger")]
    )
    def test_an_adapter_that_can_never_be_one(self, config: bytes, word: str, inbox: Path) -> None:
        (folder := inbox / "task").mkdir()
        (folder / "adapter_config.json").write_bytes(config)
        is_refused(folder, word)

    @pytest.mark.parametrize("name", [SINGLE, INDEX, "two.safetensors"])
    def test_a_pipe_in_place_of_a_file(self, name: str, inbox: Path) -> None:
        folder = shards(inbox / "task")
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        is_refused(folder, "is not a regular file")

    def test_a_folder_in_place_of_a_file(self, inbox: Path) -> None:
        (folder := inbox / "task").mkdir()
        (folder / SINGLE).mkdir()
        is_refused(folder, "is not a regular file")


@contextmanager
def not_as_root(folder: Path) -> Iterator[None]:
    """Be somebody to whom permissions mean something, and who can get to a folder of a test."""
    if os.geteuid() != 0:
        yield
        return
    for place in (folder, *folder.parents):
        if place.is_relative_to(tempfile.gettempdir()) and place.stat().st_uid == 0:
            place.chmod(place.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestOtherKinds:
    def test_a_pipe(self, inbox: Path) -> None:
        os.mkfifo(path := inbox / "a.safetensors")
        is_refused(path, "is not a regular file")

    def test_a_socket(self, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(inbox)  # the addresses of sockets are short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("a.safetensors")
            is_refused(inbox / "a.safetensors", "is not a regular file")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
    def test_a_device(self, inbox: Path) -> None:
        path = inbox / "a.safetensors"
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("not even root may make devices here")
        is_refused(path, "is not a regular file")

    def test_what_may_not_be_read(self, inbox: Path) -> None:
        (path := inbox / "a.safetensors").write_bytes(GOOD)
        (folder := inbox / "task").mkdir()
        for place in (path, folder):
            place.chmod(0)
        (listed := inbox / "listed").mkdir()
        (listed / SINGLE).write_bytes(GOOD)
        listed.chmod(0o444)
        with not_as_root(inbox):
            is_refused(path, "may not read 'a.safetensors'")
            is_refused(folder, "may not read 'task'")
            is_refused(listed, "may not read 'listed'")


class TestLinks:
    def test_to_what_may_be_read(self, inbox: Path, tmp_path: Path) -> None:
        (allowed := tmp_path / "allowed").mkdir()
        (real := allowed / "real").write_bytes(GOOD)
        (path := inbox / "a.safetensors").symlink_to(real)
        assert sources(path, allowed) == {SINGLE: real}
        (allowed / "task").mkdir()
        (allowed / "task" / SINGLE).symlink_to("../real")
        (folder := inbox / "task").symlink_to(allowed / "task")
        assert sources(folder, allowed) == {SINGLE: real}
        is_refused(path, "leads out of", "allowed_roots")
        is_refused(folder, "leads out of", "allowed_roots")

    def test_out_of_a_folder(self, inbox: Path, tmp_path: Path) -> None:
        (real := tmp_path / "real").write_bytes(GOOD)
        folder = shards(inbox / "task")
        (folder / "two.safetensors").unlink()
        (folder / "two.safetensors").symlink_to(real)
        is_refused(folder, "'two.safetensors' is a link that leads out")

    def test_that_lead_nowhere(self, inbox: Path) -> None:
        (path := inbox / "a.safetensors").symlink_to("b.safetensors")
        is_growing(path, "leads nowhere")
        (loop := inbox / "loop.safetensors").symlink_to("loop.safetensors")
        is_growing(loop, "leads nowhere")
        (folder := inbox / "task").mkdir()
        (folder / SINGLE).symlink_to("nothing")
        is_growing(folder, "leads nowhere")

    def test_what_they_lead_to_changes(self, inbox: Path) -> None:
        (real := inbox / "real").write_bytes(GOOD[:-1])
        (path := inbox / "a.safetensors").symlink_to(real)
        before = observe(path)
        real.write_bytes(GOOD)
        assert observe(path) != before


class TestChange:
    def test_is_seen_before_it_is_read(self, inbox: Path) -> None:
        (path := inbox / "a.safetensors").write_bytes(GOOD)
        source = look_at(path)
        with open_source(source, [inbox]) as file:
            assert file.read() == GOOD
        path.write_bytes(OTHER)
        with pytest.raises(SourceChanged), open_source(source, [inbox]):
            pass

    def test_is_seen_after_it_was_read(self, inbox: Path) -> None:
        (path := inbox / "a.safetensors").write_bytes(GOOD)
        with pytest.raises(SourceChanged), open_source(look_at(path), [inbox]) as file:
            file.read()
            path.write_bytes(OTHER)

    @pytest.mark.parametrize("kind", ["nothing", "a link to itself", "a link elsewhere", "a pipe", "a folder"])
    def test_of_kind(self, kind: str, inbox: Path, tmp_path: Path) -> None:
        (path := inbox / "a.safetensors").write_bytes(GOOD)
        source = look_at(path)
        os.link(path, tmp_path / "same")
        path.unlink()
        match kind:
            case "a link to itself":
                path.symlink_to(path)
            case "a link elsewhere":
                path.symlink_to(tmp_path / "same")
            case "a pipe":
                os.mkfifo(path)
            case "a folder":
                path.mkdir()
        with pytest.raises(SourceChanged), open_source(source, [inbox]):
            pass

    def test_of_a_folder_on_the_way(self, inbox: Path, tmp_path: Path) -> None:
        (inbox / "task").mkdir()
        (path := inbox / "task" / SINGLE).write_bytes(GOOD)
        stamp = Stamp.of(path.stat())
        (inbox / "task").rename(tmp_path / "outside")
        (inbox / "task").symlink_to(tmp_path / "outside")
        with pytest.raises(SourceChanged), open_source(Source(path, stamp), [inbox]):
            pass
