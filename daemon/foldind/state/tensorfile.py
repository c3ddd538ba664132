"""Writing a safetensors file tensor by tensor, in constant memory, durably."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from foldind.state.durable import DurableFile, FileDigest


class TensorSpec(NamedTuple):
    """What the header says of a tensor."""

    name: str
    dtype: str
    """As safetensors writes it."""
    shape: tuple[int, ...]
    nbytes: int


class TensorFileWriter:
    """A safetensors file whose tensors arrive in the order announced; a context manager.

    Left by an exception, or before `finish`, the file is removed. The same tensors give the same bytes.
    """

    def __init__(self, path: Path, tensors: Sequence[TensorSpec], metadata: Mapping[str, str]):
        header = _header(tensors, metadata)
        self._file = DurableFile(path, len(header) + sum(tensor.nbytes for tensor in tensors))
        try:
            self._file.write(header)
        except OSError:
            self._file.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def write(self, data: memoryview) -> None:
        """Append the next bytes of the next tensor, little-endian, row by row. Raises as DurableFile.write."""
        self._file.write(data)

    def digest(self) -> bytes:
        """Return the SHA-256 of the file so far, 32 bytes."""
        return self._file.digest()

    def finish(self) -> FileDigest:
        """Make the file durable and return its digest. Raises as DurableFile.finish."""
        return self._file.finish()


def _header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
