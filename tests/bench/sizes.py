"""Merges of models from 0.3 to 1.1 billion parameters by one worker: time, its split, and memory at several budgets."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import make_plan
from foldind.worker.blocks import projected_matrices
from foldind.worker.messages import (
    BasisDone,
    BasisRequest,
    BasisTarget,
    FoldRequest,
    FoldResult,
    Message,
    Progress,
    Ready,
    decode,
    encode,
)
from foldind.worker.supervisor import worker_environment

from tests.bench import llama
from tests.bench.settings import Settings

BUDGETS = (512 * 2**20, 2**30, 2 * 2**30, 4 * 2**30)


class Worker:
    """A worker process, spoken to as the daemon does."""

    def __init__(self, threads: int):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "foldind.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **worker_environment(threads)},
        )
        ready = self._receive()
        assert isinstance(ready, Ready)
        self.imports = ready.resident_bytes

    def ask(self, request: Message, report: Callable[[Progress], None] = lambda _: None) -> Message:
        """Return the answer to a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(encode(request))
        self._process.stdin.flush()
        while isinstance(answer := self._receive(), Progress):
            report(answer)
        return answer

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()

    def _receive(self) -> Message:
        assert self._process.stdout is not None
        return decode(self._process.stdout.readline())


def run(folder: Path, settings: Settings) -> None:
    """Measure every size, and print the figures."""
    print("## Larger models (Llama shapes, bfloat16), both processors\n")
    print(
        "| | parameters | bases | merge, bases ready: fold / publish | peak at budgets of 0.5 / 1 / 2 / 4 GiB |", end=""
    )
    print(" peak of a merge that computes the bases, 0.5 GiB |")
    print("|---|---|---|---|---|---|")
    for name, size in llama.SIZES.items():
        place = folder / name
        place.mkdir()
        print(f"| {name} | {_measure(place, size)} |", flush=True)
        shutil.rmtree(place)
    print()


def _measure(folder: Path, size: llama.Size) -> str:
    processors = len(os.sched_getaffinity(0))
    base = llama.write(folder / "base", size)
    checkpoints = [llama.write(folder / f"task-{seed}", size, seed) for seed in (1, 2)]
    plan = make_plan(open_checkpoint(base))
    (folder / "plan.json").write_text(plan.to_json())
    state, bases = folder / "first" / "state", folder / "bases"
    bases.mkdir()
    worker = Worker(threads=1)

    def fold(
        checkpoint: Path, place: Path, accumulated: Path | None, budget: int, bases: Path = bases
    ) -> tuple[FoldResult, float, float]:
        (place / "state").mkdir(parents=True)
        (place / "snapshot").mkdir()
        started, stages = time.perf_counter(), {}
        result = worker.ask(
            FoldRequest(
                base=str(base),
                plan=str(folder / "plan.json"),
                rule="opcm",
                hyper_parameters={},
                backend="numpy",
                threads=1,
                max_rank=0,
                memory_budget=budget,
                submission=str(checkpoint),
                accumulated=str(accumulated or ""),
                bases=str(bases),
                submissions=1 if accumulated else 0,
                task_vector_norm_sum=1.0 if accumulated else 0.0,
                accumulated_norm=1.0 if accumulated else 0.0,
                state_folder=str(place / "state"),
                snapshot_folder=str(place / "snapshot"),
            ),
            lambda progress: stages.setdefault(progress.stage, time.perf_counter()) and None,
        )
        ended = time.perf_counter()
        assert isinstance(result, FoldResult), result
        return result, stages["publishing"] - started, ended - stages["publishing"]

    fold(checkpoints[0], folder / "first", None, BUDGETS[-1])
    started = time.perf_counter()
    matrices = list(projected_matrices(plan))
    for first in range(0, len(matrices), processors):
        targets = tuple(
            BasisTarget(matrix.tensor.name, matrix.rows, str(bases / matrix.basis_file))
            for matrix in matrices[first : first + processors]
        )
        answer = worker.ask(
            BasisRequest(
                rule="opcm",
                hyper_parameters={},
                backend="numpy",
                threads=1,
                accumulated=str(state),
                targets=targets,
            )
        )
        assert isinstance(answer, BasisDone), answer
    seconds = time.perf_counter() - started
    peaks = []
    for budget in BUDGETS:
        place = folder / str(budget)
        result, folding, publishing = fold(checkpoints[1], place, state, budget)
        assert result.bases_computed == 0
        peaks.append(f"{result.peak_resident_bytes // 2**20}")
        shutil.rmtree(place)
    without, _, _ = fold(checkpoints[1], folder / "without", state, BUDGETS[0], bases=folder)
    assert without.bases_computed == len(matrices)
    worker.end()
    parameters = sum(matrix.tensor.shape[0] * matrix.tensor.shape[1] for matrix in matrices)
    total = (base / "model.safetensors").stat().st_size // 2
    split = f"{folding:.1f} / {publishing:.1f} s"
    return (
        f"{total / 1e6:.0f}M, {parameters / 1e6:.0f}M projected | {seconds:.0f} s | {split} | {' / '.join(peaks)} MB | "
        f"{without.peak_resident_bytes // 2**20} MB"
    )
