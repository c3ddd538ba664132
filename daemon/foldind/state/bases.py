"""The bases kept beside the accumulated state: what the next fold would otherwise have to compute first.

    bases/<key>/<tensor>-<row>.safetensors      one file for each projected matrix

The key names the state and all else that decides the bytes of its bases. A file under its final name is complete, and
ends with the SHA-256 of what comes before. They are a cache: what is missing is computed when it is needed, and losing
them costs time only.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from foldind.checkpoints.header import ITEM_BYTES
from foldind.config import MergeSettings
from foldind.state.durable import TEMPORARY_SUFFIX, FileDigest, digest_file, make_folder, move, move_files, remove

FORMAT = 3
"""Of the files, and of the algorithm that makes them: a basis made by another one would give other bytes."""


DIGEST_BYTES = 32
"""Length of the SHA-256 at the end of each file."""


def basis_file(tensor: int, row: int) -> str:
    """Return the name of a basis' file.

    Args:
      tensor: number of the tensor among the folded ones.
      row: of the tensor, the first of the matrix; matrices may be stacked in one tensor.
    """
    return f"{tensor:05}-{row:05}.safetensors"


def basis_bytes(m: int, n: int) -> int:
    """Return how many bytes the basis of an (m, n) matrix takes at the most, in memory and in its file.

    The file is laid out in basisfile.py; its header and its digest are not counted.
    """
    k = min(m, n)
    left, right, lengths = m * k, k * n, k
    singular_values = k
    return ITEM_BYTES["F32"] * (left + right + lengths) + ITEM_BYTES["F64"] * singular_values


def bases_key(state_files: Mapping[str, FileDigest], merge: MergeSettings) -> str:
    """Return what names the bases of a state.

    Args:
      state_files: the files of the accumulated state.
      merge: the settings that decide the bytes of a merge.
    """
    return sha256(json.dumps([FORMAT, dict(state_files), merge.to_json()], sort_keys=True).encode()).hexdigest()


class KeptBases:
    """The folder of the bases; its methods block on the disk, and raise OSError."""

    def __init__(self, root: Path):
        self._root = root

    def folder(self, key: str) -> Path:
        """Return where the bases of a key lie, if there are any."""
        return self._root / key

    def missing(self, key: str, files: Iterable[str]) -> list[str]:
        """Return which of the files are not there."""
        folder = self.folder(key)
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return [file for file in files if file not in there]

    def damaged(self, key: str, before_block: Callable[[], None] = lambda: None) -> list[Path]:
        """Return the files whose content is not what was written; `before_block` is called every few megabytes."""
        files = sorted(self.folder(key).glob("*.safetensors"))
        return [path for path in files if not _is_sound(path, before_block)]

    def keep_only(self, key: str) -> None:
        """Remove all bases but those of one key, and make its folder.

        Args:
          key: empty: remove all.
        """
        for path in self._root.iterdir():
            if path.name != key:
                remove(path)
        if key:
            make_folder(self.folder(key))

    def add(self, folder: Path, key: str) -> None:
        """Move a folder's durable files, from beside the keys, to the bases of a key, and remove all others."""
        for path in self._root.iterdir():
            if path not in (folder, self.folder(key)):
                remove(path)
        make_folder(self.folder(key))
        move_files(folder, self.folder(key))
        remove(folder)

    def temporary(self, key: str, file: str, attempt: str) -> Path:
        """Return where a basis is to be written."""
        return self.folder(key) / f"{file}.{attempt}{TEMPORARY_SUFFIX}"

    def seal(self, temporary: Path, file: str) -> None:
        """Give a durable file, written under a temporary name, its final one."""
        move(temporary, temporary.with_name(file))


def _is_sound(path: Path, before_block: Callable[[], None]) -> bool:
    content = max(0, path.stat().st_size - DIGEST_BYTES)
    with path.open("rb") as file:
        file.seek(content)
        recorded = file.read(DIGEST_BYTES)
    return digest_file(path, before_block, content).sha256 == recorded.hex()
