"""The files of a snapshot as they lie on the daemon: small ones whole, the tensors of a model in blocks.

Invariant: what is in memory is a few blocks, however large a tensor is; nothing is written to disk.
"""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foldin.checkpoint import INDEX, SINGLE
from foldin.dtypes import STORED, decode
from foldin.errors import DataLoss, NotFound
from foldin.models import File, Snapshot
from foldin.reading import MOST_FETCHES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldin.client import Client

BLOCK_ELEMENTS = 2**16

_MOST_HEADER_BYTES = 100_000_000  # as safetensors has it


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a snapshot.

    Attributes:
      start: offset of its data, behind the header.
      header_digest: SHA-256 of what comes before that, to be copied and gone on with.
    """

    file: File
    start: int
    header_digest: "hashlib._Hash"


@dataclass(frozen=True)
class ServedTensor:
    """Where one tensor lies.

    Attributes:
      dtype: as safetensors writes it.
      start: offset of its first byte in the file.
      size: bytes.
    """

    shard: Shard
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)


def read_whole(client: "Client", snapshot: Snapshot, name: str) -> bytes:
    """Return the content of a small file of a snapshot, verified by its SHA-256.

    Raises:
      NotFound: the snapshot has no such file, or is no longer kept.
      DataLoss: it arrived altered twice.
    """
    file = _file(snapshot, name)
    for _ in range(MOST_FETCHES):
        content = b"".join(client.read(snapshot.version, file))
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
    raise _altered(file, snapshot.version)


def served_tensors(client: "Client", snapshot: Snapshot) -> dict[str, ServedTensor]:
    """Return the tensors of a snapshot's whole model, sharded or not: name -> where it lies, in the order of the bytes.

    Raises:
      NotFound: the snapshot has no whole model, or is no longer kept.
      DataLoss: its files are not what they should be.
    """
    names = {file.name for file in snapshot.files}
    if names and not names & {SINGLE, INDEX}:
        raise NotFound(
            f"v{snapshot.version} was published as an adapter only, and tensors of whole models are compared: choose "
            "versions with one, or have the daemon publish both from now on (foldind serve --publish model "
            "--publish adapter)."
        )
    files = [SINGLE] if SINGLE in names or not names else _shards(client, snapshot)
    tensors: dict[str, ServedTensor] = {}
    for name in files:
        tensors |= _read_header(client, snapshot.version, _file(snapshot, name))
    return tensors


class ModelReader:
    """Reads the tensors of one version in blocks; in the order of their bytes, every file is fetched once.

    A file that is read in that order, from the first tensor to the last, is verified by its SHA-256.

    Args:
      on_bytes: called with the number of bytes of every block.
    """

    def __init__(self, client: "Client", version: int, on_bytes: Callable[[int], None]) -> None:
        self._client = client
        self._version = version
        self._on_bytes = on_bytes
        self._shard: Shard | None = None
        self._position = 0
        self._digest: hashlib._Hash | None = None
        self._arrived = bytearray()
        self._stream: Generator[bytes, None, None] | None = None

    def close(self) -> None:
        """End what is being received."""
        if self._stream:
            self._stream.close()
        self._stream = self._shard = None

    def blocks(self, tensor: ServedTensor) -> "Iterator[NDArray[Any]]":
        """Yield the numbers of a tensor, row by row, in arrays of one dimension.

        Raises:
          DataLoss: the file arrived altered.
          NotFound: the version is no longer kept.
        """
        kind = np.dtype(STORED[tensor.dtype])
        step = BLOCK_ELEMENTS * kind.itemsize
        for first in range(tensor.start, tensor.start + tensor.size, step):
            size = min(step, tensor.start + tensor.size - first)
            yield decode(np.frombuffer(self._take(tensor.shard, first, size), kind), tensor.dtype)
            self._on_bytes(size)

    def _take(self, shard: Shard, start: int, size: int) -> bytes:
        if shard is not self._shard or start != self._position:
            self._open(shard, start)
        assert self._stream is not None
        while len(self._arrived) < size and (piece := next(self._stream, None)) is not None:
            self._arrived += piece
            if self._digest:
                self._digest.update(piece)
        taken = bytes(memoryview(self._arrived)[:size])
        del self._arrived[:size]
        self._position += size
        if self._position == shard.file.size and self._digest and self._digest.hexdigest() != shard.file.sha256:
            raise _altered(shard.file, self._version)
        return taken

    def _open(self, shard: Shard, start: int) -> None:
        self.close()
        self._shard, self._position, self._arrived = shard, start, bytearray()
        self._digest = shard.header_digest.copy() if start == shard.start else None
        self._stream = self._client.read(self._version, shard.file, start)


def _file(snapshot: Snapshot, name: str) -> File:
    if not snapshot.files:
        raise NotFound(
            f"v{snapshot.version} is {snapshot.state}: its files are no longer kept. `foldin snapshots` lists the "
            "versions that are."
        )
    for file in snapshot.files:
        if file.name == name:
            return file
    raise NotFound(f"v{snapshot.version} has no file {name!r}: `foldin show v{snapshot.version}` lists what it has.")


def _shards(client: "Client", snapshot: Snapshot) -> list[str]:
    try:
        return sorted(set(json.loads(read_whole(client, snapshot, INDEX))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _malformed(INDEX, snapshot.version) from None


def _read_header(client: "Client", version: int, file: File) -> dict[str, ServedTensor]:
    head, length = bytearray(), 0
    with closing(client.read(version, file)) as pieces:
        for piece in pieces:
            head += piece
            length = int.from_bytes(head[:8], "little")
            if len(head) >= 8 + min(length, _MOST_HEADER_BYTES):
                break
    if length > min(_MOST_HEADER_BYTES, file.size - 8):
        raise _malformed(file.name, version)
    shard = Shard(file, 8 + length, hashlib.sha256(head[: 8 + length]))
    try:
        header = json.loads(head[8 : 8 + length])
        header.pop("__metadata__", None)
        tensors = {name: _tensor(shard, entry) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _malformed(file.name, version) from None
    return dict(sorted(tensors.items(), key=lambda named: named[1].start))


def _tensor(shard: Shard, entry: dict[str, Any]) -> ServedTensor:
    first, last = entry["data_offsets"]
    tensor = ServedTensor(shard, entry["dtype"], tuple(entry["shape"]), shard.start + first, last - first)
    known = STORED.get(tensor.dtype)
    if known and tensor.size != tensor.elements * np.dtype(known).itemsize:
        raise ValueError("its length is not that of its shape")
    if not 0 <= first <= last <= shard.file.size - shard.start:
        raise ValueError("it is not within the file")
    return tensor


def _altered(file: File, version: int) -> DataLoss:
    return DataLoss(
        f"{file.name} of v{version} arrived altered: its SHA-256 is not {file.sha256}. Check the network and the "
        "daemon's disk (`foldind fsck`), then try again."
    )


def _malformed(name: str, version: int) -> DataLoss:
    return DataLoss(f"{name} of v{version} is not what it should be: check the daemon's disk with `foldind fsck`.")
