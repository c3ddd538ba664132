"""Dropping checkpoints into the folder that a running daemon watches."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from grpc import StatusCode
from torch import Tensor

from tests.support.daemon import Daemon, wait_for
from tests.support.dropping import SETTINGS, SETTLE, Box
from tests.support.wire import INDEX, SINGLE, Wire, idle_worker, refused, sharded, single, state, write_files

Checkpoint = Callable[[], dict[str, Tensor]]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, base: Path, root: Path) -> Iterator[Box]:
    """The folder that the daemon of this module watches."""
    folder = tmp_path_factory.mktemp("watched")
    flags = ("--inbox", str(folder / "inbox"), "--allowed-root", str(root))
    with Daemon(folder / "state", base, *flags, environment=SETTINGS) as daemon:
        wait_for((folder / "inbox" / "accepted").is_dir, "the inbox to be made")
        yield Box(folder / "inbox", daemon)


@pytest.fixture(scope="module")
def wire(box: Box) -> Iterator[Wire]:
    with Wire(box.daemon) as wire:
        yield wire


@pytest.fixture
def content(checkpoint: Checkpoint) -> bytes:
    """A good checkpoint in one file."""
    return single(checkpoint())[SINGLE]


def handed_in(box: Box, name: str) -> int:
    """How many submissions were made of drops of a name."""
    return box.daemon.log.read_text().count(f"dropped into the inbox as {name!r}")


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """Stop a daemon's clock."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def queued(box: Box, name: str) -> str:
    """The id of the submission that a drop of a name became; empty until it is queued."""
    log = box.daemon.log.read_text()
    found = re.search(rf"submission (\w+): dropped into the inbox as {re.escape(repr(name))}", log)
    return found[1] if found and f"submission {found[1]}: queued" in log else ""


class TestAccepted:
    def test_a_file(self, box: Box, wire: Wire, content: bytes) -> None:
        box.write("epoch 3.safetensors", content)
        receipt = box.accepted("epoch 3.safetensors")
        submission = wire.get(receipt["submission"])
        assert (state(submission), submission.version) == ("MERGED", receipt["version"])
        assert submission.name == "epoch 3"
        assert [file.name for file in submission.files] == [SINGLE]
        assert (receipt["drop"], receipt["note"]) == ("epoch 3.safetensors", "")
        assert (box.path / "accepted" / "epoch 3.safetensors").read_bytes() == content

    def test_a_folder(self, box: Box, wire: Wire, content: bytes) -> None:
        folder = box.write_folder("task", {SINGLE: content, "optimizer.pt": b"pickle"})
        (folder / "runs").mkdir()
        submission = wire.get(box.accepted("task")["submission"])
        assert submission.name == "task"
        assert [file.name for file in submission.files] == [SINGLE]
        assert sorted(path.name for path in (box.path / "accepted" / "task").iterdir()) == [
            *(SINGLE, "optimizer.pt", "runs")
        ]

    def test_shards_that_come_one_after_the_other(self, box: Box, checkpoint: Checkpoint) -> None:
        files = sharded(checkpoint(), shards=3)
        folder = box.write_folder("shards", {})
        for name, data in files.items():
            (folder / name).write_bytes(data)
            assert handed_in(box, "shards") == 0
            time.sleep(2 * SETTLE)
        box.accepted("shards")

    def test_a_slow_writer(self, box: Box, content: bytes) -> None:
        with (box.path / "slow.safetensors").open("wb", buffering=0) as file:
            for start in range(0, len(content), 2000):
                time.sleep(SETTLE / 3 if start % 8000 else 2 * SETTLE)
                assert handed_in(box, "slow.safetensors") == 0
                file.write(content[start : start + 2000])
        box.accepted("slow.safetensors")

    def test_a_writer_that_reserves_its_room(self, box: Box, content: bytes) -> None:
        with (box.path / "reserved.safetensors").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, len(content))
            time.sleep(3 * SETTLE)
            file.write(content[:100])
            time.sleep(3 * SETTLE)
            assert handed_in(box, "reserved.safetensors") == 0
            file.write(content[100:])
        box.accepted("reserved.safetensors")

    @pytest.mark.parametrize("name", [".x.safetensors", "x.safetensors.tmp", "x.safetensors.part", "x.safetensors~"])
    def test_one_that_is_renamed_when_it_is_complete(self, box: Box, content: bytes, name: str) -> None:
        path = box.write(name, content)
        time.sleep(3 * SETTLE)
        assert handed_in(box, name) == 0
        final = f"renamed-{len(name)}{name[-1]}.safetensors"
        path.rename(box.path / final)
        box.accepted(final)

    @pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.faults)])
    def test_many_at_once_in_the_order_of_their_times(self, box: Box, checkpoint: Checkpoint, count: int) -> None:
        names = [f"{count}-{number}.safetensors" for number in torch.randperm(count).tolist()]
        moment = time.time() - 10_000
        (hidden := box.path.parent / "hidden").mkdir()
        for number, name in enumerate(names):
            (hidden / name).write_bytes(single(checkpoint())[SINGLE])
            os.utime(hidden / name, (moment + number // 2, moment + number // 2))
        with stopped(box.daemon):  # so that it sees all of them at one look
            for path in hidden.iterdir():
                path.rename(box.path / path.name)
        hidden.rmdir()
        versions = [box.accepted(name)["version"] for name in names]
        pairs = [sorted(names[start : start + 2]) for start in range(0, count, 2)]
        expected = [name for pair in pairs for name in pair]
        assert [name for _, name in sorted(zip(versions, names, strict=True))] == expected

    def test_names_that_clash(self, box: Box, checkpoint: Checkpoint) -> None:
        for name in ("twice.safetensors", "twice-2.safetensors", "twice-3.safetensors"):
            box.write("twice.safetensors", single(checkpoint())[SINGLE])
            assert box.accepted(name)["drop"] == "twice.safetensors"

    @pytest.mark.parametrize(
        "name", ["n" * 243 + ".safetensors", "line\nend\x1b[31m.safetensors", "\udcfe.safetensors"]
    )
    def test_odd_names(self, box: Box, wire: Wire, content: bytes, name: str) -> None:
        box.write(name, content)
        receipt = wait_for(lambda: box.of(name), f"{name!r} to be filed")
        assert receipt["state"] == "MERGED"
        assert wire.get(receipt["submission"]).name.isprintable()
        assert "\x1b" not in box.daemon.log.read_text()


class TestSameContent:
    def test_by_another_door(self, box: Box, wire: Wire, checkpoint: Checkpoint) -> None:
        files = single(checkpoint())
        uploaded = wire.settled(wire.upload(files).id)
        box.write("known.safetensors", files[SINGLE])
        receipt = box.accepted("known.safetensors")
        assert (receipt["submission"], receipt["version"]) == (uploaded.id, uploaded.version)
        assert uploaded.id in receipt["note"]

    def test_while_it_is_being_uploaded(self, box: Box, wire: Wire, checkpoint: Checkpoint) -> None:
        files = single(checkpoint())
        upload = wire.create(files).submission
        box.write("uploading.safetensors", files[SINGLE])
        receipt = box.accepted("uploading.safetensors")
        wire.send(upload.id, files)
        assert wire.settled(wire.commit(upload.id, files).id).version == receipt["version"]

    def test_a_folder_of_hard_links_dropped_three_times(self, box: Box, wire: Wire, checkpoint: Checkpoint) -> None:
        (hidden := box.path / ".hidden").mkdir()
        for name, data in sharded(checkpoint()).items():
            (hidden / name).write_bytes(data)
        for name in ("linked-1", "linked-2", "linked-3"):
            shutil.copytree(hidden, box.path / name, copy_function=os.link)
        receipts = [box.accepted(name) for name in ("linked-1", "linked-2", "linked-3")]
        assert len({receipt["version"] for receipt in receipts}) == 1
        assert sum(bool(receipt["note"]) for receipt in receipts) == 2

    def test_of_one_that_turns_out_to_be_no_good(self, box: Box, checkpoint: Checkpoint) -> None:
        tensors = checkpoint()
        tensors["encoder.layer.0.output.dense.weight"][0, 0] = torch.nan
        content = single(tensors)[SINGLE]
        seen = len(box.daemon.log.read_text())
        with idle_worker(box.daemon):
            for name in ("nan-1.safetensors", "nan-2.safetensors"):
                box.write(name, content)
            wait_for(lambda: "withdrawn, submission" in box.daemon.log.read_text()[seen:], "one to be withdrawn")
        first, second = (box.rejected(f"nan-{n}.safetensors", "encoder.layer.0.output.dense.weight") for n in (1, 2))
        assert first["submission"] == second["submission"]
        assert second["note"] or first["note"]


class TestRejected:
    def test_one_that_stays_incomplete(self, box: Box, content: bytes) -> None:
        box.write("cut.safetensors", content[:-1])
        receipt = box.rejected(
            "cut.safetensors", "is incomplete", f"{len(content)} bytes", f"{len(content) - 1}", "copy it again"
        )
        assert receipt["submission"] is None
        assert (receipt["state"], receipt["version"]) == ("REJECTED", None)
        assert (box.path / "rejected" / "cut.safetensors").read_bytes() == content[:-1]

    def test_one_that_is_too_long(self, box: Box, content: bytes) -> None:
        box.write("long.safetensors", content + b"x")
        box.rejected("long.safetensors", "followed by bytes that belong to no tensor")

    def test_one_that_does_not_fit_the_base(self, box: Box, wire: Wire, checkpoint: Checkpoint) -> None:
        tensors = checkpoint()
        box.write("extra.safetensors", single(tensors | {"extra": torch.ones(3)})[SINGLE])
        receipt = box.rejected("extra.safetensors", "extra")
        assert state(wire.get(receipt["submission"])) == "REJECTED"

    def test_a_pickle(self, box: Box) -> None:
        box.write("pytorch_model.bin", b"PK")
        box.rejected("pytorch_model.bin", "pickle", "save_pretrained")

    def test_a_folder_without_a_checkpoint(self, box: Box) -> None:
        box.write_folder("nothing", {"pytorch_model.bin": b"PK"})
        box.rejected("nothing", "holds neither")

    def test_one_that_was_withdrawn(self, box: Box, wire: Wire, content: bytes, checkpoint: Checkpoint) -> None:
        with idle_worker(box.daemon):
            wire.upload(single(checkpoint()))  # the worker gets no further than this
            box.write("withdrawn.safetensors", content)
            submission = wait_for(lambda: queued(box, "withdrawn.safetensors"), "it to be queued")
            wire.withdraw(submission)
            receipt = box.receipt("withdrawn.safetensors")
        assert (receipt["state"], receipt["reason"]) == ("WITHDRAWN", "withdrawn by its submitter")

    def test_put_back_it_is_judged_again(self, box: Box, content: bytes) -> None:
        path = box.write("again.safetensors", content[:-1])
        box.rejected("again.safetensors", "is incomplete")
        (box.path / "rejected" / "again.safetensors").rename(path)
        assert box.rejected("again-2.safetensors")["drop"] == "again.safetensors"
        (box.path / "rejected" / "again-2.safetensors").rename(path)
        with path.open("ab") as file:
            file.write(content[-1:])
        box.accepted("again.safetensors")


class TestLinks:
    def test_below_an_allowed_root(self, box: Box, root: Path, checkpoint: Checkpoint) -> None:
        folder = write_files(root / "linked", sharded(checkpoint()))
        (root / "linked.safetensors").write_bytes(single(checkpoint())[SINGLE])
        (box.path / "link").symlink_to(folder)
        (box.path / "link.safetensors").symlink_to(root / "linked.safetensors")
        box.accepted("link")
        box.accepted("link.safetensors")
        assert (box.path / "accepted" / "link").readlink() == folder
        assert (folder / INDEX).exists()

    def test_to_another_drop(self, box: Box, content: bytes) -> None:
        (hidden := box.path / ".later").mkdir()
        (hidden / "a.safetensors").symlink_to("z.safetensors")
        (hidden / "z.safetensors").write_bytes(content)
        (hidden / "z.safetensors").rename(box.path / "z.safetensors")
        (hidden / "a.safetensors").rename(box.path / "a.safetensors")
        assert box.accepted("a.safetensors")["version"] == box.accepted("z.safetensors")["version"]

    def test_out_of_the_folders_that_are_allowed(self, box: Box, tmp_path: Path, checkpoint: Checkpoint) -> None:
        outside = write_files(tmp_path / "outside", single(checkpoint()))
        (box.path / "escape.safetensors").symlink_to(outside / SINGLE)
        (box.path / "escape").symlink_to(outside)
        box.write_folder("holding", {})
        (box.path / "holding" / SINGLE).symlink_to(outside / SINGLE)
        for name in ("escape.safetensors", "escape", "holding"):
            box.rejected(name, "leads out of", "allowed_roots")
        assert (outside / SINGLE).exists()

    def test_that_lead_nowhere(self, box: Box) -> None:
        (box.path / "nowhere.safetensors").symlink_to("nothing")
        (box.path / "loop.safetensors").symlink_to("loop.safetensors")
        for name in ("nowhere.safetensors", "loop.safetensors"):
            box.rejected(name, "leads nowhere")


class TestWhileItWaits:
    def test_it_is_taken_away(self, box: Box, wire: Wire, content: bytes) -> None:
        with idle_worker(box.daemon):
            path = box.write("taken.safetensors", content)
            wait_for(lambda: queued(box, "taken.safetensors"), "it to be queued")
            path.unlink()
            wait_for(lambda: "'taken.safetensors' was taken out of the inbox" in box.daemon.log.read_text(), "the log")
        assert "taken.safetensors.json" not in {path.name for path in box.receipts()}

    def test_it_is_replaced(self, box: Box, checkpoint: Checkpoint) -> None:
        with idle_worker(box.daemon):
            box.write("replaced.safetensors", single(checkpoint())[SINGLE])
            wait_for(lambda: queued(box, "replaced.safetensors"), "it to be queued")
            (new := box.path / ".new").write_bytes(content := single(checkpoint())[SINGLE])
            new.rename(box.path / "replaced.safetensors")
        box.accepted("replaced.safetensors")
        wait_for(lambda: "replaced.safetensors" not in box.waiting(), "it to be filed")
        assert handed_in(box, "replaced.safetensors") == 2
        assert (box.path / "accepted" / "replaced.safetensors").read_bytes() == content


class TestTheFolder:
    def test_its_folders_are_made_again(self, box: Box, content: bytes) -> None:
        shutil.rmtree(box.path / "accepted")
        shutil.rmtree(box.path / "rejected")
        box.write("after.safetensors", content)
        box.write("after.bin", b"")
        box.accepted("after.safetensors")
        box.rejected("after.bin", "pickle")

    def test_it_is_made_again(self, box: Box, checkpoint: Checkpoint) -> None:
        shutil.rmtree(box.path)
        wait_for(lambda: "cannot be looked through" in box.daemon.log.read_text(), "it to be missed")
        box.path.mkdir()
        box.write("made.safetensors", single(checkpoint())[SINGLE])
        box.accepted("made.safetensors")
        assert box.daemon.log.read_text().count("cannot be looked through") == 1

    def test_request_ids_of_drops_are_nobody_elses(self, wire: Wire, root: Path, checkpoint: Checkpoint) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "watched folder"):
            wire.create(single(checkpoint()), request_id="inbox 1")
        with refused(StatusCode.INVALID_ARGUMENT, "watched folder"):
            wire.submit_path(root, request_id="inbox 1")


def test_many_attacks_at_once(box: Box, checkpoint: Checkpoint) -> None:
    """None of them stops the others, the daemon, or a good drop beside them."""
    shards = sharded(checkpoint())
    index, first, _ = shards
    for name, content in {
        "brackets": b"[" * 200_000,
        "plain": b'{"weight_map": {"a": "../../etc/passwd"}}',
        "long": b'{"weight_map": {"a": "' + b"x" * 300 + b'.safetensors"}}',
        "control": b'{"weight_map": {"a": "a\\n\\u001b.safetensors"}}',
    }.items():
        box.write_folder(f"attack-{name}", shards | {index: content})
    os.truncate(box.write_folder("attack-sparse", shards) / index, 100 * 2**30)
    os.truncate(box.write("attack-sparse.safetensors", single(checkpoint())[SINGLE]), 100 * 2**30)
    for name, missing in (("index", index), ("shard", first)):
        folder = box.write_folder(f"attack-pipe-{name}", {k: v for k, v in shards.items() if k != missing})
        os.mkfifo(folder / missing)
    os.mkfifo(box.path / "attack-pipe.safetensors")
    box.write("attack-bomb.safetensors", b"\xff" * 64)
    (box.path / "attack-folder.safetensors" / SINGLE).mkdir(parents=True)
    box.write("good.safetensors", single(checkpoint())[SINGLE])
    for name, word in {
        "attack-brackets": "not valid JSON",
        "attack-plain": "not a plain file name",
        "attack-long": "not a plain file name",
        "attack-control": "not a plain file name",
        "attack-sparse": "larger than",
        "attack-sparse.safetensors": "belong to no tensor",
        "attack-pipe-index": "not a regular file",
        "attack-pipe-shard": "not a regular file",
        "attack-pipe.safetensors": "not a regular file",
        "attack-bomb.safetensors": "states a header",
        "attack-folder.safetensors": "not a regular file",
    }.items():
        assert box.rejected(name, word)["submission"] is None
    box.accepted("good.safetensors")


def test_nothing_is_left_over(box: Box) -> None:
    assert not list((box.daemon.state / "submissions").glob("*.tmp"))
    assert {name for name in box.waiting() if not name.startswith(".")} == set()
    assert "Traceback" not in box.daemon.log.read_text()
