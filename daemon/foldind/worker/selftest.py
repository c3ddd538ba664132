"""Which linear algebra is the faster one on this machine: `python -m foldind.worker.selftest`, run by `foldind init`.

Prints one JSON object: name of a backend -> its figures.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

from foldind.merging.backend import BACKENDS, Backend

_WIDTH = 768
_RUNS = 5


@dataclass(frozen=True)
class Figures:
    """What was measured of one backend."""

    product_seconds: float
    """Of a float32 product of 4 x 768 by 768 by 768."""
    decomposition_seconds: float
    """Of the Gram matrix and the eigenvectors of such a matrix, in float64."""
    error: float
    """Relative, of the product."""


def main() -> None:
    """Measure every backend."""
    print(json.dumps({name: asdict(measure(backend)) for name, backend in BACKENDS.items()}))


def measure(backend: Backend) -> Figures:
    """Measure one backend."""
    generator = torch.Generator().manual_seed(0)
    tall = torch.randn(4 * _WIDTH, _WIDTH, generator=generator)
    small = torch.randn(_WIDTH, _WIDTH, generator=generator)
    exact = tall.double() @ small.double()
    error = torch.linalg.vector_norm(backend.matmul(tall, small) - exact) / torch.linalg.vector_norm(exact)
    wide = tall.double()
    return Figures(
        _seconds(lambda: backend.matmul(tall, small)), _seconds(lambda: backend.eigh(backend.gram(wide))), float(error)
    )


def _seconds(work: Callable[[], object]) -> float:
    durations = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return median(durations)


if __name__ == "__main__":
    main()
