"""A thousand folds of a small model: time of each, resident memory, file descriptors and disk space."""

import statistics
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.bench.settings import Settings
from tests.support.daemon import Daemon
from tests.support.models import load_model, make_base, make_checkpoint

FOLDS = 1000
EVERY = 50
SHOWN = (50, 100, 300, 600, 1000)
DIFFERENT = 20
PLOT = Path(__file__).with_name("many_folds.svg")


class Sample(NamedTuple):
    """What was measured after a number of folds; times are means over the folds since the sample before."""

    seconds: float
    """From QUEUED to MERGED; the median."""
    daemon_seconds: float
    worker_seconds: float
    """Of the processor."""
    daemon_mb: float
    worker_mb: float
    """Resident."""
    descriptors: float
    disk_mb: float


LABELS = {
    "seconds": "a fold, s",
    "daemon_seconds": "daemon's processor, s",
    "worker_seconds": "worker's processor, s",
    "daemon_mb": "daemon, MB",
    "worker_mb": "worker, MB",
    "descriptors": "descriptors",
    "disk_mb": "disk, MB",
}


def run(folder: Path, settings: Settings) -> None:
    """Fold, print the figures, and draw them."""
    base = make_base(folder / "base")
    checkpoints = [make_checkpoint(folder / f"task-{number}", base, seed=number) for number in range(DIFFERENT)]
    samples: dict[int, Sample] = {}
    daemon = Daemon(folder / "state", folder / "base", "--keep-snapshots", "2", "--lease", "0")
    with daemon, daemon.client() as client:
        client.submit(checkpoints[0], force=True, wait=True)  # starts the worker
        before, seconds = _processor_seconds(daemon), []
        for number in range(1, FOLDS + 1):
            submission = client.submit(checkpoints[number % DIFFERENT], force=True, wait=True)
            at = {event.state: event.at for event in client.status(submission.id).history}
            seconds.append((at["MERGED"] - at["QUEUED"]).total_seconds())
            if number % EVERY == 0:
                now = _processor_seconds(daemon)
                used = [(after - earlier) / EVERY for earlier, after in zip(before, now, strict=True)]
                samples[number] = Sample(statistics.median(seconds[-EVERY:]), *used, *_resources(daemon))
                before = now
    parameters = sum(tensor.numel() for tensor in load_model(base).values())
    print(f"## {FOLDS} folds of a small model ({parameters // 1000}k parameters)\n")
    print("| folds | " + " | ".join(LABELS.values()) + " |")
    print("|---" * (1 + len(LABELS)) + "|")
    for number in SHOWN:
        sample = samples[number]
        times = " | ".join(f"{value:.4f}" for value in sample[:3])
        print(f"| {number} | {times} | " + " | ".join(f"{value:.1f}" for value in sample[3:]) + " |")
    late = {number: sample for number, sample in samples.items() if number > 2 * EVERY}
    used = [sample.daemon_seconds + sample.worker_seconds for sample in late.values()]
    slope = statistics.linear_regression(list(late), used).slope
    print(f"\nSlope of the processors' time from the 100th on: {1e6 * slope:+.2f} microseconds a fold.\n")
    _draw(samples)


def _processor_seconds(daemon: Daemon) -> tuple[float, float]:
    assert daemon.worker is not None
    used = [process.cpu_times() for process in (psutil.Process(daemon.pid), daemon.worker)]
    first, second = (times.user + times.system for times in used)
    return first, second


def _resources(daemon: Daemon) -> tuple[float, float, float, float]:
    process, worker = psutil.Process(daemon.pid), daemon.worker
    assert worker is not None
    disk = int(
        subprocess.run(["du", "-sk", daemon.state], capture_output=True, text=True, check=True).stdout.split()[0]
    )
    return (
        process.memory_info().rss / 2**20,
        worker.memory_info().rss / 2**20,
        process.num_fds() + worker.num_fds(),
        disk / 1024,
    )


def _draw(samples: dict[int, Sample]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "foldin"  # the same figures give the same file
    figure, places = plt.subplots(2, 4, figsize=(14, 5), layout="constrained")
    for place, (field, label) in zip(places.flat, LABELS.items(), strict=False):
        place.plot(list(samples), [getattr(sample, field) for sample in samples.values()])
        place.set_title(label)
        place.set_ylim(bottom=0)
        place.set_xlabel("folds")
    places.flat[-1].axis("off")
    figure.savefig(PLOT, metadata={"Date": None})
