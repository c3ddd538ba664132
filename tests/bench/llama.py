"""Models with the shapes of Llama-like decoders, bfloat16, random."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from safetensors.torch import save_file
from torch import Generator, Tensor

_BLOCK_ELEMENTS = 2**22


class Size(NamedTuple):
    """Dimensions of a decoder."""

    width: int
    intermediate: int
    layers: int
    key_value_width: int
    words: int
    tied: bool
    """Whether there is no output layer beside the embedding."""


SIZES = {
    "0.3B": Size(1024, 4096, 16, 256, 32_000, tied=False),
    "0.5B": Size(896, 4864, 24, 128, 151_936, tied=True),
    "1.1B": Size(2048, 5632, 22, 256, 32_000, tied=False),
    "7B": Size(4096, 11008, 32, 4096, 32_000, tied=False),
}
"""The second has the shapes of Qwen2.5-0.5B, the third those of TinyLlama, the last those of Llama 2."""


def shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of every tensor."""
    yield "model.embed_tokens.weight", (size.words, size.width)
    for layer in range(size.layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "o_proj"):
            yield f"{prefix}self_attn.{name}.weight", (size.width, size.width)
        for name in ("k_proj", "v_proj"):
            yield f"{prefix}self_attn.{name}.weight", (size.key_value_width, size.width)
        for name in ("gate_proj", "up_proj"):
            yield f"{prefix}mlp.{name}.weight", (size.intermediate, size.width)
        yield f"{prefix}mlp.down_proj.weight", (size.width, size.intermediate)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (size.width,)
    yield "model.norm.weight", (size.width,)
    if not size.tied:
        yield "lm_head.weight", (size.words, size.width)


def write(folder: Path, size: Size, seed: int = 0) -> Path:
    """Write the base (seed 0) or a checkpoint of it, whose task vectors have a decaying spectrum."""
    tensors = {name: _tensor(shape, number, seed) for number, (name, shape) in enumerate(shapes(size))}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_streamed(folder: Path, size: Size) -> Path:
    """Write a base of any size, block by block: random bits that are numbers of the magnitude of weights."""
    specs = [TensorSpec(name, "BF16", shape, 2 * math.prod(shape)) for name, shape in shapes(size)]
    generator = np.random.default_rng(0)
    folder.mkdir()
    with TensorFileWriter(folder / "model.safetensors", specs, {"format": "pt"}) as writer:
        for spec in specs:
            elements = spec.nbytes // 2
            for first in range(0, elements, _BLOCK_ELEMENTS):
                bits = generator.integers(0, 2**16, min(_BLOCK_ELEMENTS, elements - first), np.uint16)
                values = (bits & 0x807F) | (0x3B80 + (bits & 0x0180))  # exponents of 2^-8 to 2^-5
                writer.write(memoryview(values).cast("B"))
        writer.finish()
    return folder


def _tensor(shape: tuple[int, ...], number: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=Generator().manual_seed(number)).mul_(0.02)
    if seed:
        generator = Generator().manual_seed(1000 * seed + number)
        values += torch.randn(shape, generator=generator).mul_(5e-4)
        if len(shape) == 2:
            rank = min(64, *shape)
            right = torch.randn(rank, shape[1], generator=generator) * torch.linspace(1, 0.05, rank)[:, None]
            values.addmm_(torch.randn(shape[0], rank, generator=generator), right, alpha=4e-4)
    return values.bfloat16()
