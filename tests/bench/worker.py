"""A worker process without a daemon, spoken to as the daemon does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from foldind.checkpoints.plan import Plan
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.config import PublishedAs
from foldind.merging.record import Record
from foldind.state.layout import dense_tensors
from foldind.worker.blocks import projected_matrices
from foldind.worker.messages import (
    BasisDone,
    BasisRequest,
    BasisTarget,
    FoldRequest,
    FoldResult,
    Job,
    Message,
    Progress,
    Ready,
    decode,
    encode,
)
from foldind.worker.supervisor import worker_environment

GENEROUS = 4 * 2**30


class Folded(NamedTuple):
    """A merge, and the seconds that its stages took."""

    result: FoldResult
    folding: float
    publishing: float


class Worker:
    """One process; one thread a product.

    Args:
      budget: of memory, in bytes.
    """

    def __init__(self, budget: int = GENEROUS) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "foldind.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **worker_environment(1, budget)},
        )
        ready = self._receive()
        assert isinstance(ready, Ready)
        self.imports = ready.resident_bytes

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

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


def fold(
    worker: Worker,
    root: Path,
    submission: Path,
    place: Path,
    before: tuple[Path, FoldResult] | None = None,
    bases: Path | None = None,
    budget: int = GENEROUS,
    publish: tuple[PublishedAs, ...] = ("model",),
    max_rank: int = 0,
    rule: str = "opcm",
) -> Folded:
    """Fold a submission.

    Args:
      worker: does it.
      root: has base/ and plan.json.
      submission: the folder of the checkpoint.
      place: to make, for state/ and snapshot/.
      before: the state to start from, and the result that made it.
      bases: of that state.
      budget: of memory, in bytes.
      publish: as what the snapshot is published.
      max_rank: of what is held as factors; 0: any.
      rule: the merge rule, with its defaults.
    """
    for name in ("state", "snapshot", "new_bases"):
        (place / name).mkdir(parents=True)
    job = Job(
        base=str(root / "base"),
        plan=str(root / "plan.json"),
        rule=rule,
        hyper_parameters={},
        publication="",
        backend="numpy",
        threads=1,
        memory_budget=budget,
        publish=publish,
        adapter_rank=0,
    )
    started, stages = time.perf_counter(), {}
    result = worker.ask(
        FoldRequest(
            job=job,
            record=before[1].record if before else Record(0, 0.0, 0.0),
            max_rank=max_rank,
            submission=str(submission),
            vocab=VocabPolicy.SAME,
            seed="",
            take_out=False,
            accumulated=str(before[0]) if before else "",
            bases=str(bases or place),
            state_folder=str(place / "state"),
            new_bases=str(place / "new_bases"),
            snapshot_folder=str(place / "snapshot"),
        ),
        lambda progress: stages.setdefault(progress.stage.partition(" ")[0], time.perf_counter()) and None,
    )
    ended = time.perf_counter()
    assert isinstance(result, FoldResult), result
    published = min(stages.get("decomposing", ended), stages["publishing"])
    return Folded(result, published - started, ended - published)


def compute_bases(worker: Worker, plan: Plan, state: Path, bases: Path) -> float:
    """Compute the bases of a state, one matrix a processor at a time, and return how many seconds that took."""
    bases.mkdir()
    dense = dense_tensors(state)
    matrices = [matrix for matrix in projected_matrices(plan) if matrix.tensor.name in dense]
    processors = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    for first in range(0, len(matrices), processors):
        targets = tuple(
            BasisTarget(matrix.tensor.name, matrix.rows, str(bases / matrix.basis_file))
            for matrix in matrices[first : first + processors]
        )
        answer = worker.ask(BasisRequest("opcm", {}, "numpy", 1, str(state), targets))
        assert isinstance(answer, BasisDone), answer
    return time.perf_counter() - started
