"""Bases that make a moment long enough to strike at: three chunks to send, or a second to fold."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.models import CONFIG, base_tensors

CHUNK_BYTES = 2 * 1024 * 1024
CHUNKS_OF_LARGE = 30
_BYTES_PER_WORD = 24 * 4


def three_chunks() -> dict[str, Tensor]:
    """A base whose checkpoints take three chunks, and some milliseconds to fold."""
    return _with_embedding(2.7) | {"encoder.layer.0.mixing.weight": torch.randn(256, 256).mul(0.1)}


def thirty_chunks() -> dict[str, Tensor]:
    """A base whose checkpoints take thirty chunks, and next to nothing to fold."""
    return _with_embedding(29.9)


def slow_to_fold() -> dict[str, Tensor]:
    """A base on which every fold but the first takes a second or more."""
    return {f"encoder.layer.{number}.dense.weight": torch.randn(640, 640).mul(0.1) for number in range(4)}


def write_base(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a base model folder."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def _with_embedding(chunks: float) -> dict[str, Tensor]:
    words = round(chunks * CHUNK_BYTES / _BYTES_PER_WORD)
    return base_tensors() | {"embeddings.word_embeddings.weight": torch.randn(words, 24).mul(0.1)}
