"""Attacks through the watched folder: all at once, each with its own sentence, and good drops among them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.attacks import ATTACKS
from tests.hostile.checkpoints import Files, Tensors
from tests.support.dropping import Box
from tests.support.wire import INDEX, SINGLE, fine_tuned, sharded, single

HUGE = 100 * 1024**3
SHARD = "model-00001-of-00002.safetensors"


def file(name: str, make: Callable[[Path], object]) -> Callable[[Path, Files], None]:
    """A drop that is one entry of its own making."""

    def drop(inbox: Path, _: Files) -> None:
        make(inbox / name)

    return drop


def folder(name: str, **entries: Callable[[Path], object]) -> Callable[[Path, Files], None]:
    """A sharded checkpoint with some of its entries made anew: index, shard."""
    names = {"index": INDEX, "shard": SHARD}

    def drop(inbox: Path, good: Files) -> None:
        place = inbox / f".{name}"
        place.mkdir()
        for file_name, content in good.items():
            (place / file_name).write_bytes(content)
        for entry, make in entries.items():
            (place / names[entry]).unlink()
            make(place / names[entry])
        place.rename(inbox / name)

    return drop


def sparse(path: Path) -> None:
    """A hundred gigabytes that take no room."""
    with path.open("wb") as made:
        made.write((2**33).to_bytes(8, "little"))
        made.truncate(HUGE)


def pickled(path: Path) -> None:
    """The beginning of a pickle."""
    path.write_bytes(b"\x80\x04cos\nsystem\n.")


def listening(path: Path) -> None:
    """A socket."""
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


PLACES: dict[str, tuple[Callable[[Path, Files], None], str, str]] = {
    "a link to a file of others": (
        file("escape.safetensors", link_to("/etc/passwd")), "escape.safetensors", "leads out of the folders"
    ),
    "a link to a folder of others": (file("escape", link_to("/etc")), "escape", "leads out of the folders"),
    "a link to nowhere": (file("nowhere.safetensors", link_to("gone")), "nowhere.safetensors", "leads nowhere"),
    "a link to itself": (file("loop.safetensors", link_to("loop.safetensors")), "loop.safetensors", "leads nowhere"),
    "a pipe": (file("pipe.safetensors", os.mkfifo), "pipe.safetensors", "is not a regular file"),
    "a socket": (file("socket.safetensors", listening), "socket.safetensors", "is not a regular file"),
    "a sparse file of a false length": (file("sparse.safetensors", sparse), "sparse.safetensors", "states a header of"),
    "a pickle": (file("pytorch_model.bin", pickled), "pytorch_model.bin", "is a pickle"),
    "a text": (file("notes.txt", lambda path: path.write_text("hello")), "notes.txt", "is no part of a checkpoint"),
    "an empty folder": (file("empty", Path.mkdir), "empty", "holds neither model.safetensors nor"),
    "a shard that is a link out": (folder("shard-out", shard=link_to("/etc/passwd")), "shard-out", "leads out of"),
    "a shard that is a link up": (folder("shard-up", shard=link_to("../../../etc/passwd")), "shard-up", "leads out of"),
    "a shard that is a pipe": (folder("shard-pipe", shard=os.mkfifo), "shard-pipe", "is not a regular file"),
    "a shard that is a folder": (folder("shard-folder", shard=Path.mkdir), "shard-folder", "is not a regular file"),
    "a sparse shard": (folder("shard-sparse", shard=sparse), "shard-sparse", "states a header of"),
    "an index that is a link out": (folder("index-out", index=link_to("/etc/passwd")), "index-out", "leads out of"),
    "an index that is a pipe": (folder("index-pipe", index=os.mkfifo), "index-pipe", "is not a regular file"),
    "a sparse index": (folder("index-sparse", index=sparse), "index-sparse", "is larger than"),
}  # fmt: skip
"""What -> how it is dropped, its name, and the words in its receipt."""


@pytest.fixture(scope="module")
def under_attack(box: Box, tensors: Tensors) -> Box:
    """Everything is dropped, and a good one before, amid and after it."""
    box.write("good-before.safetensors", single(fine_tuned(tensors))[SINGLE])
    for number, attack in enumerate(ATTACKS.values()):
        files = attack.build(tensors)
        if files.keys() == {SINGLE}:
            box.write(f"{attack.drop}.safetensors", files[SINGLE])
        else:
            box.write_folder(f".{attack.drop}", files).rename(box.path / attack.drop)
        if number == len(ATTACKS) // 2:
            box.write("good-amid.safetensors", single(fine_tuned(tensors))[SINGLE])
    for drop, _, _ in PLACES.values():
        drop(box.path, sharded(fine_tuned(tensors)))
    box.write("good-after.safetensors", single(fine_tuned(tensors))[SINGLE])
    return box


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(under_attack: Box, tensors: Tensors, name: str) -> None:
    attack = ATTACKS[name]
    drop = f"{attack.drop}.safetensors" if attack.build(tensors).keys() == {SINGLE} else attack.drop
    under_attack.rejected(drop, attack.words)


@pytest.mark.parametrize("what", PLACES)
def test_no_checkpoint(under_attack: Box, what: str) -> None:
    _, drop, words = PLACES[what]
    under_attack.rejected(drop, words)


def test_the_good_ones_and_nothing_else_are_merged(under_attack: Box) -> None:
    for drop in ("good-before.safetensors", "good-amid.safetensors", "good-after.safetensors"):
        under_attack.accepted(drop)
    assert len(list((under_attack.path / "accepted").glob("*.json"))) == 3
    assert "Traceback" not in under_attack.daemon.log.read_text()
