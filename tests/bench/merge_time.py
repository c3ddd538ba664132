"""Time and memory of one merge of an 88M model on one processor, against FusionBench and mergekit in the same run.

The references need environments of their own (see RESULTS.md); without one, its row is left out.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foldind.worker.supervisor import worker_environment

from tests.bench import vit
from tests.bench.products import product_seconds
from tests.bench.settings import Settings
from tests.support.daemon import Daemon

RUNS = 5
REFERENCES = Path(__file__).parent / "references"
CHECKPOINTS = 2


@dataclass
class Ours:
    """What was measured of one way to merge."""

    merges: list[float]
    """Seconds from the acknowledgement of CommitSubmission to the ledger's commit."""
    bases: list[float]
    """Seconds in the background after each."""
    peak: int
    """Of the worker, MB."""


def run(folder: Path, settings: Settings) -> None:
    """Measure, and print the figures."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    models = folder / "models"
    models.mkdir()
    base = vit.make_base(models / "base")
    checkpoints = [vit.make_checkpoint(models / str(number + 1), base, seed=number) for number in range(CHECKPOINTS)]
    kinds = {
        "bases ready": _ours(folder, models / "base", checkpoints, (), keep=True),
        "bases computed by the merge": _ours(folder, models / "base", checkpoints, (), keep=False),
        "projection = leading, bases ready": _ours(
            folder, models / "base", checkpoints, ("--projection", "leading"), keep=True
        ),
    }
    print("## One merge on one processor (ViT-B/32 shapes, 87.5M float32, 350 MB)\n")
    print("| | median of merges | range | background after it | worker's peak, MB |\n|---|---|---|---|---|")
    for kind, ours in kinds.items():
        background = f"{statistics.median(ours.bases):.1f} s" if ours.bases else "-"
        print(f"| Foldin, {kind} | {_figures(ours.merges)} | {background} | {ours.peak} |", flush=True)
    if settings.fusionbench:
        told = [_reference("fusionbench_opcm.py", settings.fusionbench, models) for _ in range(RUNS)]
        seconds = [sum(one["merge_s"]) + one["load_s"][-1] + sum(one["save_s"]) for one in told]
        peak = max(one["peak_bytes"] for one in told) // 2**20
        print(f"| FusionBench {told[0]['version']} OPCM: load, merge, save | {_figures(seconds)} | - | {peak} |")
        for kind, ours in kinds.items():
            ratio = statistics.median(seconds) / statistics.median(ours.merges)
            print(f"\n{kind}: {ratio:.1f} times as fast as FusionBench, {peak / ours.peak:.1f} times less memory.")
        total = statistics.median(kinds["bases ready"].merges) + statistics.median(kinds["bases ready"].bases)
        print(f"\nTotal work with the bases of the background: {statistics.median(seconds) / total:.1f} times less.")
    if settings.mergekit:
        told = [_reference("mergekit_task_arithmetic.py", settings.mergekit, models) for _ in range(RUNS)]
        seconds = [one["total_s"] for one in told]
        peak = max(one["peak_bytes"] for one in told) // 2**20
        print(f"\nmergekit {told[0]['version']}, task arithmetic of both at once: {_figures(seconds)}, peak {peak} MB.")
    floor = _copies(models / "1" / "model.safetensors", folder)
    products = product_seconds(list(vit.shapes().values()))
    ready = statistics.median(kinds["bases ready"].merges)
    print(f"\nThe float32 products alone: {products:.2f} s; cp, sha256sum and sync of what is written: {floor:.2f} s.")
    print(f"The merge with the bases ready takes {ready / (products + floor):.2f} times their sum.\n")


def _ours(folder: Path, base: Path, checkpoints: Sequence[Path], init_flags: tuple[str, ...], *, keep: bool) -> Ours:
    state = folder / "state"
    environment = {"FOLDIN_KEEP_BASES": str(keep)}
    daemon = Daemon(
        state, base, "--keep-snapshots", "1", "--lease", "0", init_flags=init_flags, environment=environment
    )
    merges, bases = [], []
    with daemon, daemon.client() as client:
        for number in range(RUNS + 1):
            submission = client.submit(checkpoints[number % len(checkpoints)], force=True, wait=True)
            done = time.time()
            if number:  # the first folds onto nothing
                at = {event.state: event.at for event in client.status(submission.id).history}
                merges.append((at["MERGED"] - at["QUEUED"]).total_seconds())
            if keep:
                daemon.wait_for_bases()
                bases.append(time.time() - done)
    peaks = [int(peak) for peak in re.findall(r"worker peak (\d+) MB", daemon.log.read_text())]
    shutil.rmtree(state)
    daemon.log.unlink()
    return Ours(merges, bases, max(peaks))


def _reference(script: str, python: Path, models: Path) -> dict[str, object]:
    run = subprocess.run(
        [python, REFERENCES / script, models, "--threads", "1"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **worker_environment(1)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return json.loads(run.stdout)


def _copies(file: Path, folder: Path) -> float:
    """Seconds of cp, sha256sum and sync of as many bytes as a merge writes: the state, and the snapshot."""
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        for name in ("one", "two"):
            copy = folder / name
            subprocess.run(["cp", file, copy], check=True)
            subprocess.run(["sha256sum", copy], check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["sync", copy], check=True)
        seconds.append(time.perf_counter() - started)
        (folder / "one").unlink()
        (folder / "two").unlink()
    return statistics.median(seconds)


def _figures(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s | {min(seconds):.2f} to {max(seconds):.2f} s"
