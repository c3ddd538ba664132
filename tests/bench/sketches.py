"""What sketching the task vector adds to a merge: with and without in turn, in one process set up as a worker."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.worker import folding
from foldind.worker.fold import fold_submission
from foldind.worker.messages import FoldRequest, FoldResult, Progress
from foldind.worker.supervisor import worker_environment
from torch import Tensor

from tests.bench import vit
from tests.bench.settings import Settings
from tests.bench.worker import Worker, compute_bases, fold

RUNS = 5
RULES = ("opcm", "average")


class Here:
    """Does in this process what a worker does."""

    def ask(self, request: FoldRequest, report: Callable[[Progress], None]) -> FoldResult:
        return fold_submission(request, report)


def run(folder: Path, settings: Settings) -> None:
    """Measure, and print the figures."""
    base = vit.make_base(folder / "base")
    for seed in (1, 2):
        vit.make_checkpoint(folder / str(seed), base, seed=seed)
    (folder / "plan.json").write_text(make_plan(open_checkpoint(folder / "base")).to_json())
    environment = {**os.environ, **worker_environment(threads=1)}
    subprocess.run([sys.executable, "-m", "tests.bench.sketches", folder], env=environment, check=True)


def main(folder: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    plan = Plan.from_json((folder / "plan.json").read_bytes())
    print("## What sketches cost a merge (ViT-B/32 shapes, 87.5M float32, bases ready, one processor)\n")
    print("| rule | merge without, processor time | with | of that in sketches | share |\n|---|---|---|---|---|")
    for rule in RULES:
        print(f"| `{rule}` | {_compare(rule, folder, plan)} |", flush=True)
    print()


def _compare(rule: str, folder: Path, plan: Plan) -> str:
    place = folder / rule
    first = fold(Here(), folder, folder / "1", place / "first", rule=rule)  # type: ignore[arg-type]
    state = place / "first" / "state"
    worker = Worker()
    compute_bases(worker, plan, state, place / "bases")
    worker.end()
    sketch = folding.sketch
    seconds: dict[bool, list[float]] = {False: [], True: []}
    in_sketches = []

    def timed(*arguments: Any) -> Tensor:
        started = time.thread_time()
        made = sketch(*arguments)
        in_sketches[-1] += time.thread_time() - started
        return made

    for number in range(RUNS + 1):
        for sketched in (False, True):
            folding.sketch = timed if sketched else _nothing  # type: ignore[attr-defined]
            target = place / f"{number}-{sketched}"
            in_sketches += [0.0] * sketched
            began = time.process_time()
            fold(
                Here(),  # type: ignore[arg-type]
                folder,
                folder / "2",
                target,
                (state, first.result),
                place / "bases",
                rule=rule,
            )
            if number:  # the first finds nothing in the caches
                seconds[sketched].append(time.process_time() - began)
            shutil.rmtree(target)
    folding.sketch = sketch  # type: ignore[attr-defined]
    without, with_them, alone = median(seconds[False]), median(seconds[True]), median(in_sketches[1:])
    share = 100 * alone / with_them
    return f"{without:.2f} s | {with_them:.2f} s | {1000 * alone:.0f} ms | {share:.1f} %"


def _nothing(*_: object) -> None:
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
