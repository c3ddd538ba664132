"""The adapter of a snapshot, as it lies in a folder: how much it holds, and cutting it to a lower rank.

Its factors are in the order of their singular values, so that the first rows of A and columns of B are the best
approximation of a lower rank; nothing is computed anew.
"""

import json
import os
from pathlib import Path
from typing import Any

from foldin.checkpoint import ADAPTER
from foldin.destination import MANIFEST
from foldin.errors import PullError

_DOWN = (".lora_A.weight", ".lora_embedding_A")
_UP = (".lora_B.weight", ".lora_embedding_B")
_COPY_BYTES = 1024 * 1024
_CUT_ROWS = 4096


def read_statistics(folder: Path) -> dict[str, Any]:
    """Return what the manifest says of the adapter that was published: its `rank`, `retained` and `left_out`.

    Raises:
      PullError: it says nothing of one.
    """
    try:
        adapter = json.loads((folder / MANIFEST).read_bytes())["adapter"]
        retained = [float(share) for share in adapter["retained"]]
        left_out = [str(name) for name in adapter["left_out"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        retained, left_out = [], []
    if not retained:
        raise PullError(f"{folder / MANIFEST} says nothing of an adapter: pull it again.")
    return {"rank": len(retained), "retained": retained, "left_out": left_out}


def cut_to_rank(folder: Path, rank: int) -> None:
    """Cut the adapter in a folder to a rank; one of that rank or a lower one stays as it is.

    Raises:
      PullError: it is no adapter of Foldin's.
      OSError: it cannot be read or written.
    """
    config_file, weights = (folder / name for name in ADAPTER)
    try:
        config = json.loads(config_file.read_bytes())
        if config["r"] <= rank:
            return
        temporary = weights.with_name(f".{weights.name}.cut")
        _cut_weights(weights, temporary, config["r"], rank)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PullError(f"{folder} holds no adapter that can be cut to a lower rank ({error}).") from None
    temporary.replace(weights)
    with config_file.open("w") as file:
        file.write(json.dumps(config | {"r": rank, "lora_alpha": rank}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _cut_weights(source: Path, target: Path, published: int, rank: int) -> None:
    import numpy as np  # nothing else that pulls needs it

    with source.open("rb") as opened, target.open("wb") as out:
        length = int.from_bytes(opened.read(8), "little")
        if length > source.stat().st_size:
            raise ValueError("its header is not whole")
        header = json.loads(opened.read(length))
        cut_header, end = {"__metadata__": header.pop("__metadata__", {})}, 0
        for name, entry in header.items():
            shape, (start, stop) = _cut_shape(name, entry, published, rank), entry["data_offsets"]
            size = 4 * shape[0] * shape[1] if name.endswith(_DOWN + _UP) else stop - start
            cut_header[name] = entry | {"shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(cut_header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            start = 8 + length + entry["data_offsets"][0]
            if name.endswith(_UP):
                factor = np.memmap(source, "<f4", "r", start, tuple(entry["shape"]))
                for first in range(0, len(factor), _CUT_ROWS):
                    out.write(np.ascontiguousarray(factor[first : first + _CUT_ROWS, :rank]).tobytes())
                continue
            first, last = cut_header[name]["data_offsets"]  # the first bytes, or all of them
            opened.seek(start)
            for done in range(0, last - first, _COPY_BYTES):
                out.write(opened.read(min(_COPY_BYTES, last - first - done)))
        out.flush()
        os.fsync(out.fileno())


def _cut_shape(name: str, entry: dict[str, Any], published: int, rank: int) -> list[int]:
    shape = list(entry["shape"])
    if not name.endswith(_DOWN + _UP):
        return shape
    side = 0 if name.endswith(_DOWN) else 1
    if entry["dtype"] != "F32" or len(shape) != 2 or shape[side] != published:
        raise ValueError(f"{name} is no factor of rank {published}")
    shape[side] = rank
    return shape
