"""Memory over twenty folds of a 350 MB model: the worker's peak of each merge, and the daemon's resident memory."""

import re
import statistics
from pathlib import Path

import psutil

from tests.bench import vit
from tests.bench.settings import Settings
from tests.support.daemon import Daemon

FOLDS = 20


def run(folder: Path, settings: Settings) -> None:
    """Fold FOLDS checkpoints, one after the other, and print the figures."""
    base = vit.make_base(folder / "base")
    with Daemon(folder / "state", folder / "base", "--keep-snapshots", "1", "--lease", "0") as daemon:
        resident = []
        with daemon.client() as client:
            for number in range(FOLDS):
                client.submit(vit.make_checkpoint(folder / "checkpoint", base, seed=number), wait=True)
                resident.append(psutil.Process(daemon.pid).memory_info().rss / 2**20)
        log = daemon.log.read_text()
    imports = int(re.findall(r"ready, (\d+) MB resident", log)[0])
    peaks = [int(peak) for peak in re.findall(r"worker peak (\d+) MB", log)]
    assert len(peaks) == FOLDS
    third_on = peaks[2:]
    print(f"## Memory over {FOLDS} folds (ViT-B/32 shapes, 87.5M float32)\n")
    print("| | MB |\n|---|---|")
    print(f"| worker after its imports | {imports} |")
    print(f"| worker peak of a merge, 1st / 2nd | {peaks[0]} / {peaks[1]} |")
    span = f"{min(third_on)} / {statistics.median(third_on):.0f} / {max(third_on)}"
    print(f"| worker peak, 3rd to {FOLDS}th: min / median / max | {span} |")
    print(f"| above the imports, at most | {max(peaks) - imports} |")
    print(f"| spread from the 3rd on | {100 * (max(third_on) / min(third_on) - 1):.1f} % |")
    print(f"| daemon after each merge: min / max | {min(resident):.0f} / {max(resident):.0f} |")
