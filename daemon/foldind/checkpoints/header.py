"""The header of a safetensors file, read and checked without touching its tensors; and the bytes of one tensor.

Source: the format description of huggingface/safetensors: 8 bytes little-endian header length, a JSON object of
`name -> {dtype, shape, data_offsets}` with an optional `__metadata__` of strings, then the data without gaps.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from foldind.errors import CheckpointIncomplete, CheckpointRefused

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_NAME_LENGTH = 500
_BLOCK_BYTES = 4 * 1024 * 1024

_HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Of surrogates: JSON can write it, and UTF-8 cannot, and so no ledger, log or answer."""

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Safetensors dtype -> bytes an element."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies, and what it is."""

    name: str
    file: str
    """Name of the file that holds it, without folders."""
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte from the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header."""

    tensors: tuple[TensorInfo, ...]
    """In the order of their bytes."""
    metadata: Mapping[str, str]
    length: int
    """Length of the whole file in bytes."""


def read_header(path: Path, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read and check the header of a safetensors file, against the file's length too.

    Args:
      path: of the file.
      max_bytes: a longer header is refused unread; parsed, it takes about thirty times its length.

    Raises:
      CheckpointIncomplete: the file is shorter than it says, or its beginning was not written yet.
      CheckpointRefused: the file is not a well-formed safetensors file.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return read_open_header(file, path, max_bytes)


def read_open_header(file: BinaryIO, path: Path, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """As `read_header`, of a file that is open for reading.

    Args:
      file: the file.
      path: gives the file its name in what is returned and raised.
      max_bytes: as in `read_header`.
    """
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        _refuse(
            path,
            f"is {size} bytes long, too short for a safetensors file",
            "it was probably cut off; send it again",
            CheckpointIncomplete,
        )
    length = int.from_bytes(prefix, "little")
    if length > max_bytes:
        _refuse(
            path,
            f"states a header of {length} bytes, more than the {max_bytes} allowed",
            "it is probably no safetensors file; write one with save_pretrained or safetensors.torch.save_file",
        )
    text = file.read(length)
    if len(text) < length:
        _refuse(
            path,
            f"ends inside its header ({size} of {8 + length} bytes)",
            "it was cut off; send it again",
            CheckpointIncomplete,
        )
    entries = _parse(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, [*metadata, *metadata.values()])):
        _refuse(path, "has a __metadata__ that is not a map of strings", "write it with save_pretrained")
    tensors = sorted(
        (_tensor(path, name, entry, 8 + length) for name, entry in entries.items()),
        key=lambda tensor: (tensor.start, tensor.nbytes),
    )
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            what = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            _refuse(path, f"is malformed: tensor {tensor.name!r} {what}", "write it anew with save_pretrained")
        end = tensor.start + tensor.nbytes
    if end != size:
        what = "cut off" if size < end else "followed by bytes that belong to no tensor"
        kind = CheckpointIncomplete if size < end else CheckpointRefused
        _refuse(path, f"is {what}: its header describes {end} bytes and it has {size}", "send it again, whole", kind)
    return Header(tuple(tensors), metadata, end)


def read_blocks(path: Path, tensor: TensorInfo) -> Iterator[bytes]:
    """Yield the bytes of a tensor, which lies in the file at `path`, in blocks of 4 MiB. Raises OSError."""
    end = tensor.start + tensor.nbytes
    with path.open("rb") as file:
        for start in range(tensor.start, end, _BLOCK_BYTES):
            yield os.pread(file.fileno(), min(_BLOCK_BYTES, end - start), start)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f"{twice[:80]!r} stands in it twice")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    def integer(digits: str) -> int | float:
        return -0.0 if digits == "-0" else int(digits)  # as the safetensors library reads it: no size

    try:
        entries = json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant, parse_int=integer
        )
    except (ValueError, RecursionError) as error:
        # Zeros are no JSON: they are the room that a copier reserved and did not write to yet.
        kind = CheckpointIncomplete if b"\0" in text or not text else CheckpointRefused
        _refuse(path, f"has a header that is not valid JSON ({error})", "it is no safetensors file, or damaged", kind)
    if not isinstance(entries, dict):
        _refuse(path, "has a header that is not a JSON object", "it is no safetensors file, or damaged")
    return entries


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        _refuse(path, f"names a tensor {name[:80]!r}", f"names are 1 to {MAX_NAME_LENGTH} printable characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(
            path, f"describes tensor {name!r} by something else than dtype, shape and data_offsets", "it is damaged"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(path, f"gives tensor {name!r} the dtype {str(dtype)[:20]!r}", f"known ones are {', '.join(ITEM_BYTES)}")
    if not _sizes(shape) or len(shape) > 16:
        _refuse(path, f"gives tensor {name!r} a shape that is not a list of up to 16 sizes", "it is damaged")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(path, f"gives tensor {name!r} data_offsets that are not an ascending pair", "it is damaged")
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if nbytes != offsets[1] - offsets[0]:
        _refuse(
            path,
            f"is malformed: tensor {name!r} of dtype {dtype} and shape {shape} takes {nbytes} bytes, "
            f"its data_offsets span {offsets[1] - offsets[0]}",
            "write it anew with save_pretrained",
        )
    return TensorInfo(name, path.name, dtype, tuple(shape), data_start + offsets[0], nbytes)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _HALF_PAIR.search(value)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _refuse(path: Path, what: str, hint: str, kind: type[CheckpointRefused] = CheckpointRefused) -> NoReturn:
    raise kind(f"{path.name} {what}", hint)
