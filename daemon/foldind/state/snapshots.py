"""Snapshots: Hugging Face model folders, sealed and never changed.

The worker writes the tensor files; here they get the base's other files, a manifest and a model card. None of these
holds a clock, a path or a random id: equal merges are equal bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foldind.state.durable import FileDigest, copy_file, write_file

MANIFEST = "foldin.json"
MODEL_CARD = "README.md"

_WEIGHT_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".onnx",
)


def companion_files(base: Path) -> list[Path]:
    """Return the files of a base that go into every snapshot as they are: configuration, tokenizer, licence."""
    return [
        path
        for path in sorted(base.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and not path.name.endswith(_WEIGHT_SUFFIXES)
        and path.name not in (MANIFEST, MODEL_CARD)
    ]


def complete_snapshot(
    folder: Path, base: Path, *, manifest: Mapping[str, Any], model_card: str, tensor_files: Mapping[str, FileDigest]
) -> dict[str, FileDigest]:
    """Add to a snapshot's tensor files everything else it needs, durably, and return the digests of all its files.

    Raises:
      OSError: a disk is full or failing.
    """
    files = dict(tensor_files)
    for path in companion_files(base):
        files[path.name] = copy_file(path, folder / path.name)
    files[MODEL_CARD] = write_file(folder / MODEL_CARD, model_card.encode())
    listed = {name: {"size": digest.size, "sha256": digest.sha256} for name, digest in sorted(files.items())}
    text = json.dumps({**manifest, "files": listed}, indent=1) + "\n"
    files[MANIFEST] = write_file(folder / MANIFEST, text.encode())
    return dict(sorted(files.items()))
