"""Time from the start of an upload of 350 MB to its acknowledgement, against cp, sync and sha256sum of the file."""

import statistics
import subprocess
import time
from pathlib import Path

from tests.bench import vit
from tests.bench.settings import Settings
from tests.support.daemon import Daemon

RUNS = 5


def run(folder: Path, settings: Settings) -> None:
    """Measure, and print the figures."""
    base = vit.make_base(folder / "base")
    checkpoint = vit.make_checkpoint(folder / "checkpoint", base, seed=0)
    file = checkpoint / "model.safetensors"
    uploads, copies = [], []
    daemon = Daemon(folder / "state", folder / "base", "--keep-snapshots", "1", "--lease", "0")
    with daemon, daemon.client() as client:
        for _ in range(RUNS):
            started = time.perf_counter()
            submission = client.submit(checkpoint, force=True)
            uploads.append(time.perf_counter() - started)
            client.wait(submission.id)
            daemon.wait_for_bases()
            started = time.perf_counter()
            subprocess.run(["cp", file, folder / "copy"], check=True)
            subprocess.run(["sync", folder / "copy"], check=True)
            subprocess.run(["sha256sum", folder / "copy"], check=True, stdout=subprocess.DEVNULL)
            copies.append(time.perf_counter() - started)
            (folder / "copy").unlink()
    ratio = statistics.median(uploads) / statistics.median(copies)
    print(f"## Upload of {file.stat().st_size / 1e6:.0f} MB, acknowledged durable\n")
    print("| | median | range |\n|---|---|---|")
    for name, seconds in (("foldin submit (hash, send, commit)", uploads), ("cp, sync, sha256sum", copies)):
        print(f"| {name} | {statistics.median(seconds):.2f} s | {min(seconds):.2f} to {max(seconds):.2f} s |")
    print(f"\n{ratio:.2f} times as long.\n")
