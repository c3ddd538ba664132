"""A thousand folds of a small model: time of each, resident memory, file descriptors and disk space."""

import statistics
import subprocess
from pathlib import Path

import psutil

from tests.bench.settings import Settings
from tests.support.daemon import Daemon
from tests.support.models import load_model, make_base, make_checkpoint

FOLDS = 1000
SHOWN = (1, 10, 100, 300, 1000)
DIFFERENT = 20


def run(folder: Path, settings: Settings) -> None:
    """Fold, and print the figures."""
    base = make_base(folder / "base")
    checkpoints = [make_checkpoint(folder / f"task-{number}", base, seed=number) for number in range(DIFFERENT)]
    rows: dict[int, tuple[float, ...]] = {}
    seconds: list[float] = []
    daemon = Daemon(folder / "state", folder / "base", "--keep-snapshots", "2", "--lease", "0")
    with daemon, daemon.client() as client:
        for number in range(1, FOLDS + 1):
            submission = client.submit(checkpoints[number % DIFFERENT], force=True, wait=True)
            at = {event.state: event.at for event in client.status(submission.id).history}
            seconds.append((at["MERGED"] - at["QUEUED"]).total_seconds())
            if number in SHOWN:
                rows[number] = (statistics.median(seconds[-50:]), *_resources(daemon))
    parameters = sum(tensor.numel() for tensor in load_model(base).values())
    print(f"## {FOLDS} folds of a small model ({parameters // 1000}k parameters)\n")
    print("| folds | seconds a fold (median of the last 50) | daemon, MB | worker, MB | descriptors | disk, MB |")
    print("|---|---|---|---|---|---|")
    for number, (median, daemon_mb, worker_mb, descriptors, disk_mb) in rows.items():
        print(f"| {number} | {median:.3f} | {daemon_mb:.0f} | {worker_mb:.0f} | {descriptors:.0f} | {disk_mb:.1f} |")
    slope = statistics.linear_regression(range(100, FOLDS), seconds[100:]).slope
    print(f"\nSlope of the time from the 100th on: {1e6 * slope:+.1f} microseconds a fold.\n")


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
