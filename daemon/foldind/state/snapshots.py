"""Snapshots: Hugging Face model folders, sealed and never changed; with an adapter of the model in a folder of its own.

The worker writes the tensor files; here they get the base's other files, a manifest and model cards. None of these
holds a clock, a path or a random id: equal merges are equal bytes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foldind.state.durable import FileDigest, copy_file, write_file

MANIFEST = "foldin.json"
MODEL_CARD = "README.md"
ADAPTER_FOLDER = "adapter"
"""Where a snapshot has its PEFT adapter; beside the model, transformers would take it for the model."""

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
    folder: Path,
    companions: Iterable[Path],
    *,
    cards: Mapping[str, str],
    manifest: Mapping[str, Any],
    tensor_files: Mapping[str, FileDigest],
) -> dict[str, FileDigest]:
    """Add to a snapshot's tensor files everything else it needs, durably, and return the digests of all its files.

    Args:
      folder: of the snapshot.
      companions: files that are copied into it.
      cards: its model cards, by their names.
      manifest: its manifest but for the files.
      tensor_files: what is there, by name.

    Raises:
      OSError: a disk is full or failing.
    """
    files = dict(tensor_files)
    for path in companions:
        files[path.name] = copy_file(path, folder / path.name)
    for name, text in cards.items():
        files[name] = write_file(folder / name, text.encode())
    listed = {name: {"size": digest.size, "sha256": digest.sha256} for name, digest in sorted(files.items())}
    text = json.dumps({**manifest, "files": listed}, indent=1) + "\n"
    files[MANIFEST] = write_file(folder / MANIFEST, text.encode())
    return dict(sorted(files.items()))
