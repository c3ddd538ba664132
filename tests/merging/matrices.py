"""Matrices that are hard on a decomposition, and task vectors to fold into them. All float32, all small."""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

ALPHAS = (0.0, 0.3, 0.5, 0.9, 0.999999)
CROSS_BLOCKS = ("keep", "drop")

Build = Callable[[Generator], Tensor]


def random(rows: int, columns: int, generator: Generator) -> Tensor:
    """Gaussian, float32."""
    return torch.randn(rows, columns, generator=generator)


def with_spectrum(rows: int, columns: int, singular_values: Tensor, generator: Generator) -> Tensor:
    """A matrix of given singular values and random singular vectors, computed in float64, stored in float32."""
    rank = len(singular_values)
    left, _ = torch.linalg.qr(random(rows, rank, generator).double())
    right, _ = torch.linalg.qr(random(columns, rank, generator).double())
    return ((left * singular_values.double()) @ right.mT).float()


def _lora_sum(generator: Generator) -> Tensor:
    total = torch.zeros(40, 28)
    for _ in range(3):  # each product and each sum is rounded to float32, as the daemon's state is
        total += random(40, 4, generator) @ random(4, 28, generator)
    return total


UNIQUE: Mapping[str, Build] = {
    "random tall": lambda g: random(40, 24, g),
    "random wide": lambda g: random(24, 40, g),
    "random square": lambda g: random(32, 32, g),
    "very tall": lambda g: random(96, 5, g),
    "very wide": lambda g: random(5, 96, g),
    "1 x n": lambda g: random(1, 30, g),
    "n x 1": lambda g: random(30, 1, g),
    "1 x 1": lambda g: random(1, 1, g),
    "2 x 2": lambda g: random(2, 2, g),
    "rank 1": lambda g: random(30, 1, g) @ random(1, 20, g),
    "sum of three LoRA updates": _lora_sum,
    "low rank, square": lambda g: random(32, 6, g) @ random(6, 32, g),
    "geometric decay to 1e-5": lambda g: with_spectrum(36, 24, torch.logspace(0, -5, 24), g),
    "decay below the rank tolerance": lambda g: with_spectrum(28, 36, torch.logspace(0, -8, 18), g),
    "nearly equal singular values": lambda g: with_spectrum(32, 24, 1 + 1e-5 * torch.arange(24, 0, -1), g),
    "one dominant direction": lambda g: with_spectrum(32, 24, torch.tensor([999.0, *range(40, 17, -1)]), g),
    "bf16 values": lambda g: random(36, 24, g).bfloat16().float(),
    "fp16 values": lambda g: random(24, 36, g).half().float(),
    "scale 1e-20": lambda g: random(32, 24, g) * 1e-20,
    "scale 1e15": lambda g: random(24, 32, g) * 1e15,
    "a zero row and column": lambda g: random(30, 20, g) * (torch.arange(30) != 3)[:, None] * (torch.arange(20) != 7),
}  # fmt: skip
"""Matrices whose singular vectors of nonzero singular values are determined up to sign by the stored float32."""

AMBIGUOUS: Mapping[str, Build] = {
    "identity": lambda g: torch.eye(24),
    "scaled permutation": lambda g: 3 * torch.eye(24)[torch.randperm(24, generator=g)],
    "wide, equal singular values": lambda g: 0.25 * torch.eye(16, 40),
    "tall, pairs of singular values": lambda g: torch.eye(25, 16) * torch.arange(1.0, 9).repeat(2),
    "orthogonal, rounded to float32": lambda g: with_spectrum(24, 24, torch.ones(24), g),
    "low rank, equal singular values": lambda g: with_spectrum(40, 24, torch.ones(6), g),
    "all elements equal": lambda g: torch.full((20, 30), 0.1),
}  # fmt: skip
"""Matrices with repeated singular values: many bases are right, and P depends on which."""

ALL: Mapping[str, Build] = {**UNIQUE, **AMBIGUOUS}


def scale_of(matrix: Tensor) -> float:
    """Root mean square of the elements."""
    return float(matrix.double().square().mean().sqrt())


def task_vectors(accumulated: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Task vectors of every angle to a matrix, at its scale."""
    rows, columns = accumulated.shape
    noise = random(rows, columns, generator) * scale_of(accumulated)
    return {
        "random": noise,
        "low rank": (random(rows, 2, generator) @ random(2, columns, generator)) * scale_of(accumulated),
        "close to S": accumulated + 0.1 * noise,
        "S": accumulated.clone(),
        "-S": -accumulated,
        "zero": torch.zeros_like(accumulated),
    }
