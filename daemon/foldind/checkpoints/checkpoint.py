"""A checkpoint folder: one safetensors file, or an index and its shards."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from foldind.checkpoints.header import MAX_HEADER_BYTES, Header, TensorInfo, read_header
from foldind.errors import CheckpointIncomplete, CheckpointRefused

SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
STATISTICS = "statistics.safetensors"
"""May lie beside any checkpoint, and is no part of it; see statistics.py."""
MAX_INDEX_BYTES = 64 * 1024 * 1024

_DISAGREEMENT = "the index and the shards are of different models; save the model anew with save_pretrained(...)"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Limits:
    """How much of a checkpoint is read into memory."""

    header_bytes: int = MAX_HEADER_BYTES
    """Of each file."""
    index_bytes: int = MAX_INDEX_BYTES


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and agree with each other; its tensors were not touched."""

    folder: Path
    headers: Mapping[str, Header]
    """File name -> header, in the order of the names."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files it consists of, the one that describes the others first, if it has one."""
        description = () if SINGLE in self.headers else (ADAPTER_CONFIG,) if self.is_adapter else (INDEX,)
        return (*description, *self.headers)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter."""
        return ADAPTER in self.headers

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, file by file, in the order of the bytes."""
        return {tensor.name: tensor for header in self.headers.values() for tensor in header.tensors}


def check_file_names(names: Collection[str]) -> None:
    """Check that files of these names can be one checkpoint, statistics beside it or not.

    Raises:
      CheckpointRefused: a name has folders in it or strange characters, or the files do not make a checkpoint.
    """
    for name in names:
        if not _PLAIN_NAME.fullmatch(name) or ".." in name:
            raise CheckpointRefused(
                f"{name[:80]!r} is not a plain file name",
                "send files under names of letters, digits, '.', '_' and '-', without folders",
            )
    if pickled := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))):
        raise CheckpointRefused(
            f"{pickled[0]} is a pickle file, which can run code when it is loaded",
            "run `foldin convert` on it, or save the model with save_pretrained, and submit that",
        )
    names = [name for name in names if name != STATISTICS]
    if ADAPTER_CONFIG in names or ADAPTER in names:
        if set(names) != {ADAPTER_CONFIG, ADAPTER}:
            raise CheckpointRefused(
                f"a PEFT adapter is {ADAPTER_CONFIG} and {ADAPTER}, and {', '.join(sorted(names)[:3])} came",
                "send these two files, and each adapter as a submission of its own",
            )
        return
    shards = {name for name in names if name not in (SINGLE, INDEX)}
    if stray := sorted(name for name in shards if not name.endswith(".safetensors")):
        raise CheckpointRefused(f"{stray[0]} is no part of a checkpoint", f"send {SINGLE}, or {INDEX} and its shards")
    if SINGLE in names and len(names) > 1:
        raise CheckpointRefused(
            f"{SINGLE} came together with {', '.join(sorted(set(names) - {SINGLE})[:3])}",
            f"send {SINGLE} alone, or {INDEX} and the shards it names",
        )
    if shards and INDEX not in names:
        raise CheckpointRefused(f"the shards came without {INDEX}", "send the index too")
    if not set(names) - {INDEX}:
        raise CheckpointRefused("no weights were sent", f"send {SINGLE}, or {INDEX} and the shards it names")


def choose_files(names: Collection[str], *, statistics: bool = False) -> list[str]:
    """Return which of the files in a folder are its checkpoint: the adapter, else the model, else index and shards.

    Nothing, if it holds neither.

    Args:
      names: of the files.
      statistics: whether those beside the checkpoint are wanted too.
    """
    beside = [STATISTICS] if statistics and STATISTICS in names else []
    if ADAPTER_CONFIG in names:
        return [ADAPTER_CONFIG, ADAPTER, *beside]
    if SINGLE in names:
        return [SINGLE, *beside]
    if INDEX in names:
        shards = (name for name in names if name.endswith(".safetensors") and name[0] != "." and name != STATISTICS)
        return [INDEX, *sorted(shards), *beside]
    return []


def open_checkpoint(folder: Path, limits: Limits = Limits()) -> Checkpoint:
    """Read the headers of the checkpoint in a folder: model.safetensors, else index and shards, else an adapter.

    Args:
      folder: that holds it.
      limits: what is larger is refused unread.

    Raises:
      CheckpointRefused: there is none, or a file is malformed, or index and shards disagree.
      OSError: a file cannot be read.
    """
    if (folder / SINGLE).is_file():
        return Checkpoint(folder, {SINGLE: read_header(folder / SINGLE, limits.header_bytes)})
    if not (folder / INDEX).is_file() and (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER).is_file():
        return Checkpoint(folder, {ADAPTER: read_header(folder / ADAPTER, limits.header_bytes)})
    if not (folder / INDEX).is_file():
        raise CheckpointRefused(
            f"{folder.name} holds neither {SINGLE} nor {INDEX}", "save the model with save_pretrained(...)"
        )
    with (folder / INDEX).open("rb") as file:
        weight_map = read_index(file, limits.index_bytes)
    shards = sorted(set(weight_map.values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise CheckpointRefused(
            f"{INDEX} names {missing[0]}, which is missing ({len(missing)} of {len(shards)} shards are)",
            "submit the folder with all its shards",
        )
    present = sorted(path.name for path in folder.glob("*.safetensors"))
    if stray := [name for name in present if name not in (*shards, STATISTICS)]:
        raise CheckpointRefused(
            f"{stray[0]} is not named by {INDEX}", "remove it, or save the model anew so that the index names it"
        )
    headers = {}
    for name in shards:  # each is checked before the next is read, so that all together hold no more than the index
        headers[name] = read_header(folder / name, limits.header_bytes)
        _check_shard(weight_map, name, headers[name])
    held = {tensor.name for header in headers.values() for tensor in header.tensors}
    if absent := next((tensor for tensor in weight_map if tensor not in held), ""):
        raise CheckpointRefused(
            f"{INDEX} names tensor {absent!r}, which {weight_map[absent]} does not hold", _DISAGREEMENT
        )
    return Checkpoint(folder, headers)


def read_index(file: BinaryIO, max_bytes: int = MAX_INDEX_BYTES) -> dict[str, str]:
    """Read an index that is open for reading: tensor name -> name of its shard.

    Raises:
      CheckpointIncomplete: it ends before it is complete, or its bytes were not written yet.
      CheckpointRefused: it is malformed, longer than `max_bytes`, or a name in it is not one of a file beside it.
      OSError: it cannot be read.
    """
    hint = "save the model anew with save_pretrained(...)"
    text = file.read(max_bytes + 1)  # its length may be a lie
    if len(text) > max_bytes:
        raise CheckpointRefused(f"{INDEX} is larger than {max_bytes} bytes", hint)
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = CheckpointIncomplete if _may_be_a_part(text, error) else CheckpointRefused
        raise kind(f"{INDEX} is not valid JSON ({error})", hint) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointRefused(f"{INDEX} has no weight_map", hint)
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise CheckpointRefused(
                f"{INDEX} puts tensor {tensor[:80]!r} into {str(name)[:80]!r}, which is not a plain file name "
                "that ends in .safetensors",
                "shards lie beside the index",
            )
    if STATISTICS in weight_map.values():
        raise CheckpointRefused(f"{INDEX} names {STATISTICS}, which is no name of a shard", hint)
    return weight_map


def _may_be_a_part(text: bytes, error: Exception) -> bool:
    # An object ends with a brace; what a copier reserved, and did not write to yet, is zeros.
    ends_early = not text.rstrip().endswith(b"}") or (
        isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip())
    )
    return b"\0" in text or not text.strip() or (text.lstrip().startswith(b"{") and ends_early)


def _check_shard(weight_map: Mapping[str, str], name: str, header: Header) -> None:
    for tensor in header.tensors:
        told = weight_map.get(tensor.name)
        if told is None:
            raise CheckpointRefused(f"{name} holds tensor {tensor.name!r}, which {INDEX} does not name", _DISAGREEMENT)
        if told != name:
            raise CheckpointRefused(f"tensor {tensor.name!r} lies in {name}, and {INDEX} says {told}", _DISAGREEMENT)
