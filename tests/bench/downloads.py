"""Throughput of 64 curl readers of one 350 MB snapshot, from the daemon and from nginx, and of probes meanwhile."""

import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from tests.bench import vit
from tests.bench.settings import Settings
from tests.support.daemon import Daemon, wait_for

READERS = 64
RUNS = 5
PROBE_SECONDS = 0.01

NGINX = """
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def run(folder: Path, settings: Settings) -> None:
    """Measure, and print the figures. Needs nginx and curl."""
    base = vit.make_base(folder / "base")
    checkpoint = vit.make_checkpoint(folder / "checkpoint", base, seed=0)
    with Daemon(folder / "state", folder / "base") as daemon, daemon.client() as client:
        client.submit(checkpoint, wait=True)
        daemon.wait_for_bases()
        size = (daemon.state / "snapshots" / "v1" / "model.safetensors").stat().st_size
        ours = f"{daemon.http}/foldin/merged/resolve/v1/model.safetensors"
        seconds: dict[str, list[float]] = {"foldind": [], "nginx": []}
        latencies: list[float] = []
        with nginx(folder, daemon.state / "snapshots" / "v1") as theirs:
            for _ in range(RUNS):
                with probing(f"{daemon.http}/healthz", latencies):
                    seconds["foldind"].append(download(ours))
                seconds["nginx"].append(download(f"{theirs}/model.safetensors"))
    print(f"## {READERS} curl readers of one snapshot of {size / 1e6:.0f} MB, {RUNS} runs by turns\n")
    print("| | GB/s, median | range |\n|---|---|---|")
    rates = {name: [READERS * size / 1e9 / took for took in found] for name, found in seconds.items()}
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} |")
    ratio = statistics.median(rates["foldind"]) / statistics.median(rates["nginx"])
    p99 = sorted(latencies)[int(0.99 * len(latencies))]
    print(
        f"\n{ratio:.2f} of nginx's throughput; /healthz meanwhile: p99 {1000 * p99:.0f} ms, {len(latencies)} probes.\n"
    )


def download(url: str) -> float:
    """Read a file as often as there are readers, at the same time; return the seconds of all."""
    started = time.perf_counter()
    command = ["curl", "--silent", "--fail", "--output", "/dev/null", url]
    readers = [subprocess.Popen(command) for _ in range(READERS)]
    assert all(reader.wait() == 0 for reader in readers)
    return time.perf_counter() - started


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[str]:
    """Serve a folder by nginx, and yield its URL."""
    found = shutil.which("nginx")
    assert found, "install nginx to compare with"
    port = 7099
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, root=root, port=port))
    for path in (folder, root.parent.parent, root.parent, root):
        path.chmod(0o755)  # its workers are another user's
    server = subprocess.Popen([found, "-c", configuration, "-p", folder])
    try:
        wait_for((folder / "nginx.pid").exists, "nginx to listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def probing(url: str, latencies: list[float]) -> Iterator[None]:
    """Ask for a page again and again, and note the seconds of each answer."""
    over = threading.Event()

    def probe() -> None:
        while not over.wait(PROBE_SECONDS):
            started = time.perf_counter()
            with urlopen(url, timeout=30) as answer:
                answer.read()
            latencies.append(time.perf_counter() - started)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
