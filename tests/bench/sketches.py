"""What sketching the task vector adds to a fold: with and without in turn, in one process that is set up as a worker."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.worker import folding
from foldind.worker.fold import fold_submission
from foldind.worker.messages import FoldRequest, FoldResult, Progress
from foldind.worker.supervisor import worker_environment

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
    print("## What sketches cost a fold (ViT-B/32 shapes, 87.5M float32, bases ready, one processor)\n")
    print("| rule | fold without | with | processor time without | with | |\n|---|---|---|---|---|---|")
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
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(RUNS + 1):
        for sketched in (False, True):
            folding.sketch = sketch if sketched else _nothing  # type: ignore[attr-defined]
            target = place / f"{number}-{sketched}"
            began = time.process_time()
            told = fold(
                Here(),  # type: ignore[arg-type]
                folder,
                folder / "2",
                target,
                (state, first.result),
                place / "bases",
                publish=("model",),
                rule=rule,
            )
            if number:  # the first finds nothing in the caches
                seconds[sketched].append((told.folding, time.process_time() - began))
            shutil.rmtree(target)
    folding.sketch = sketch  # type: ignore[attr-defined]
    (wall, used), (wall_with, used_with) = (
        [median(values) for values in zip(*seconds[sketched], strict=True)] for sketched in (False, True)
    )
    share = f"{100 * (used_with / used - 1):+.1f} % of a merge"
    return f"{wall:.2f} s | {wall_with:.2f} s | {used:.2f} s | {used_with:.2f} s | {share}"


def _nothing(*_: object) -> None:
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
