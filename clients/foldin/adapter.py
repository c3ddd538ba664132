"""The adapter of a snapshot, as it lies in a folder: how much it holds, and cutting it to a lower rank.

Its factors are in the order of their singular values, so that the first rows of A and columns of B are the best
approximation of a lower rank; nothing is computed anew.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

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
        statistics = json.loads((folder / MANIFEST).read_bytes())["adapter"]
        return {"rank": statistics["rank"], "retained": statistics["retained"], "left_out": statistics["left_out"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise PullError(f"{folder / MANIFEST} says nothing of an adapter: pull it again.") from None


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
    except (ValueError, KeyError, TypeError) as error:
        raise PullError(f"{folder} holds no adapter that can be cut to a lower rank ({error}).") from None
    temporary.replace(weights)
    config_file.write_text(json.dumps(config | {"r": rank, "lora_alpha": rank}, indent=1) + "\n")


def _cut_weights(source: Path, target: Path, published: int, rank: int) -> None:
    with source.open("rb") as opened, target.open("wb") as out:
        length = int.from_bytes(opened.read(8), "little")
        if length > source.stat().st_size:
            raise ValueError("its header is not whole")
        header = json.loads(opened.read(length))
        cut_header = {"__metadata__": header.pop("__metadata__", {})}
        end = 0
        for name, entry in header.items():
            shape, (start, stop) = list(entry["shape"]), entry["data_offsets"]
            if name.endswith(_DOWN + _UP):
                side = 0 if name.endswith(_DOWN) else 1
                if entry["dtype"] != "F32" or shape[side] != published:
                    raise ValueError(f"{name} is no factor of rank {published}")
                shape[side] = rank
                stop = start + 4 * shape[0] * shape[1]
            cut_header[name] = entry | {"shape": shape, "data_offsets": [end, end + stop - start]}
            end += stop - start
        text = json.dumps(cut_header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if name.endswith(_UP):
                factor = np.memmap(source, "<f4", "r", start, tuple(entry["shape"]))
                for first in range(0, len(factor), _CUT_ROWS):
                    out.write(np.ascontiguousarray(factor[first : first + _CUT_ROWS, :rank]).tobytes())
                continue
            if name.endswith(_DOWN):
                stop = start + 4 * rank * entry["shape"][1]
            opened.seek(start)
            while block := opened.read(min(_COPY_BYTES, stop - opened.tell())):
                out.write(block)
        out.flush()
        os.fsync(out.fileno())
