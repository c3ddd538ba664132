"""64 readers that stream the newest snapshot of 350 MB again and again while ten checkpoints are merged.

Every body is compared with the digest that its commit has, and probes are timed meanwhile. Four more readers are
huggingface_hub's snapshot_download, which writes to the disk. All readers are niced: elsewhere they have machines of
their own, and here they would take the processors from the daemon and the merges.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench import vit
from tests.bench.downloads import probing
from tests.bench.settings import Settings
from tests.support.daemon import Daemon

PROCESSES, THREADS, DOWNLOADERS = 4, 15, 4
MERGES = 10
WEIGHTS = "model.safetensors"
PIECE = 1024 * 1024


def run(folder: Path, settings: Settings) -> None:
    """Measure, and print the figures."""
    base = vit.make_base(folder / "base")
    first, *checkpoints = (vit.make_checkpoint(folder / f"task{n}", base, seed=n) for n in range(MERGES + 1))
    latencies: list[float] = []
    with Daemon(folder / "state", folder / "base") as daemon, daemon.client() as client:
        client.set_alias("stable", client.submit(first, wait=True).version)
        daemon.wait_for_bases()
        alone = time.perf_counter()
        with reading(daemon, folder) as results, probing(f"{daemon.http}/healthz", latencies):
            merges = []
            for checkpoint in checkpoints:
                started = time.perf_counter()
                client.submit(checkpoint, wait=True)
                merges.append(time.perf_counter() - started)
        seconds = time.perf_counter() - alone
        digests = {
            files["foldin.json"][:40]: files[WEIGHTS]
            for files in ({file.name: file.sha256 for file in snapshot.files} for snapshot in client.snapshots())
        }
    streamed = [read for result in results for read in result.get("reads", [])]
    torn = sum(digests[commit] != digest for commit, digest in streamed)
    downloads = sum(result.get("counts", {}).get("snapshot", 0) for result in results)
    faults = [fault for result in results for fault in result["faults"]]
    size = sum((base[name].numel() * base[name].element_size()) for name in base)
    print(f"## {PROCESSES * THREADS + DOWNLOADERS} readers while {MERGES} are merged, 350 MB each\n")
    print(
        f"- {len(streamed)} bodies streamed, {downloads} snapshot_download, in {seconds:.0f} s: "
        f"{len(streamed) * size / 1e9 / seconds:.2f} GB/s, of {len({commit for commit, _ in streamed})} versions"
    )
    print(f"- torn or mixed: {torn + sum('another' in fault for fault in faults)}; errors: {len(faults)} {faults[:3]}")
    print(f"- a submission to its version, median {statistics.median(merges):.1f} s")
    p99 = sorted(latencies)[int(0.99 * len(latencies))]
    print(f"- /healthz: p99 {1000 * p99:.0f} ms, longest {1000 * max(latencies):.0f} ms, {len(latencies)} probes\n")


@contextmanager
def reading(daemon: Daemon, folder: Path) -> Iterator[list[dict]]:
    """Start the readers, and afterwards fill the list with what they say."""
    until = folder / "until"
    results: list[dict] = []
    environment = {**os.environ, "HF_ENDPOINT": daemon.http, "HF_HOME": str(folder / "home"), "TMPDIR": str(folder)}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    hub_reader = Path(__file__).parent.parent / "end_to_end" / "hub_reader.py"
    commands = [[sys.executable, "-m", "tests.bench.fleet", daemon.http, until]] * PROCESSES
    commands.append([sys.executable, hub_reader, until, str(DOWNLOADERS), "snapshot"])
    readers = [
        subprocess.Popen(["nice", *command], stdout=subprocess.PIPE, text=True, env=environment) for command in commands
    ]
    try:
        yield results
    finally:
        until.touch()
        results.extend(json.loads(reader.communicate()[0]) for reader in readers)


def stream(url: str, until: Path, reads: list[tuple[str, str]], faults: list[str]) -> None:
    """Read the newest snapshot until a file appears, and note commit and digest of each body."""
    while not until.exists():
        try:
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
                connection.request("GET", f"/foldin/merged/resolve/main/{WEIGHTS}")
                answer = connection.getresponse()
                assert answer.status == 200, answer.status
                digest, left = sha256(), int(answer.headers["Content-Length"])
                while data := answer.read(PIECE):
                    digest.update(data)
                    left -= len(data)
                assert left == 0, f"{left} bytes are missing"
                reads.append((answer.headers["X-Repo-Commit"], digest.hexdigest()))
        except (OSError, AssertionError, http.client.HTTPException) as error:
            faults.append(repr(error))


def main() -> None:
    url, until = sys.argv[1], Path(sys.argv[2])
    reads: list[tuple[str, str]] = []
    faults: list[str] = []
    threads = [threading.Thread(target=stream, args=(url, until, reads, faults)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"reads": reads, "faults": faults}))


if __name__ == "__main__":
    main()
