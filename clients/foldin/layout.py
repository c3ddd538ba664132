"""Writing the file of a compressed task vector, in the layout of daemon/foldind/checkpoints/README.md."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import numpy as np

from foldin.coding import Coded
from foldin.modelfile import KIND
from foldin.recipe import Coding

COMPRESSED = "compressed_task_vector"

_ALIGNMENT = 8


class CompressedWriter:
    """Takes tensors one by one; a context manager. Codes wait in a file of their own beside it, the rest in memory.

    Args:
      path: of the file that `finish` writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._metadata = {"format": "pt", KIND: COMPRESSED}
        self._wide: list[tuple[str, str, tuple[int, ...], bytes]] = []
        self._narrow: list[tuple[str, str, tuple[int, ...], bytes]] = []
        self._codes: list[tuple[str, int]] = []
        self._codes_file = TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._codes_file.close()

    @property
    def empty(self) -> bool:
        """Whether no tensor was written."""
        return not (self._narrow or self._codes)

    def write_plain(self, name: str, shape: Sequence[int], values: bytes) -> None:
        """Write a task vector as it is, in bfloat16."""
        self._narrow.append((name, "BF16", tuple(shape), values))

    def write_coded(self, name: str, coding: Coding, shape: Sequence[int], coded: Coded) -> None:
        """Write a task vector as symbols and scales. Raises OSError."""
        lengths = [self._codes_file.write(block) for block in coded.blocks]
        self._codes.append((f"{name}:codes", sum(lengths)))
        self._wide += [
            (f"{name}:lengths", "U32", (len(lengths),), np.array(lengths, "<u4").tobytes()),
            (f"{name}:scales", "F32", coded.scales.shape, coded.scales.astype("<f4").tobytes()),
        ]
        self._metadata[f"{name}:coding"] = f"{coding} {','.join(map(str, shape))}"

    def finish(self) -> None:
        """Write the file: what needs aligning first. Raises OSError."""
        header: dict[str, object] = {"__metadata__": self._metadata}
        end = 0
        whole = [*self._wide, *self._narrow]
        sizes = [(name, dtype, shape, len(values)) for name, dtype, shape, values in whole]
        for name, dtype, shape, size in [*sizes, *((name, "U8", (size,), size) for name, size in self._codes)]:
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        with self._path.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, _, _, values in whole:
                file.write(values)
            self._codes_file.seek(0)
            shutil.copyfileobj(self._codes_file, file, 2**20)
