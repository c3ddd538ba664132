"""Where the time of a merge goes: a flame graph of the worker while it merges an 88M model, bases ready."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import make_plan

from tests.bench import vit
from tests.bench.settings import Settings
from tests.bench.worker import Worker, compute_bases, fold

MERGES = 10
GRAPH = Path(__file__).with_name("profile.svg")


def run(folder: Path, settings: Settings) -> None:
    """Merge under py-spy, which has to be installed, and draw."""
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if py_spy is None:
        print("## Profile: skipped, for py-spy is not installed\n")
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    base = vit.make_base(folder / "base")
    checkpoints = [vit.make_checkpoint(folder / str(seed), base, seed=seed) for seed in (1, 2)]
    plan = make_plan(open_checkpoint(folder / "base"))
    (folder / "plan.json").write_text(plan.to_json())
    worker = Worker()
    first = fold(worker, folder, checkpoints[0], folder / "first")
    state = folder / "first" / "state"
    compute_bases(worker, plan, state, folder / "bases")
    command = [py_spy, "record", "--pid", str(worker.pid), "--output", str(GRAPH), "--rate", "100", "--native"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sampler:
        for number in range(MERGES):
            place = folder / f"merge-{number}"
            fold(worker, folder, checkpoints[1], place, (state, first.result), folder / "bases")
            shutil.rmtree(place)
        sampler.send_signal(signal.SIGINT)
    GRAPH.write_text(GRAPH.read_text().replace(" ".join(map(str, command)), "ten merges, bases ready"))
    worker.end()
    print(f"## Profile\n\n{MERGES} merges: {GRAPH.name}\n")
