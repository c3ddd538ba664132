"""The float32 products of a merge alone: what the projection cannot do without."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from foldind.worker.supervisor import worker_environment

RUNS = 5


def product_seconds(shapes: Sequence[Sequence[int]], threads: int = 1) -> float:
    """Seconds of U^T tau and U (...) for every 2-D shape but the tables, by numpy, in a process of its own."""
    matrices = [shape for shape in shapes if len(shape) == 2 and min(shape) > 64]
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.products", json.dumps(matrices)],
        env=worker_environment(threads),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout)


def _measure(shapes: Sequence[Sequence[int]]) -> float:
    import numpy as np

    total = 0.0
    for m, n in {(m, n) for m, n in shapes}:
        generator = np.random.default_rng(0)
        left = generator.standard_normal((m, min(m, n)), np.float32)
        task_vector = generator.standard_normal((m, n), np.float32)
        seconds = []
        for _ in range(RUNS):
            started = time.perf_counter()
            left @ (left.T @ task_vector)
            seconds.append(time.perf_counter() - started)
        total += statistics.median(seconds) * shapes.count([m, n])
    return total


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
