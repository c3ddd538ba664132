"""What the daemon and the client do without."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import Daemon
from tests.support.history import History
from tests.support.models import base_tensors
from tests.support.wire import CHUNK, SINGLE, Wire, fine_tuned, idle_worker, single, state

MEBIBYTE = 2**20
LARGE = 96 * CHUNK


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, past: History) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("light")
    with Daemon(past.copy(root / "state"), None, "--allowed-root", str(root)) as running:
        yield running


@pytest.fixture(scope="module")
def wire(daemon: Daemon) -> Iterator[Wire]:
    with Wire(daemon) as wire:
        yield wire


def libraries(pid: int) -> set[str]:
    """The shared objects that a process has mapped."""
    return set(re.findall(r"[^/\s]+\.so\b", Path(f"/proc/{pid}/maps").read_text()))


def test_torch_is_in_the_worker_alone(daemon: Daemon, wire: Wire) -> None:
    submission = wire.upload(single(fine_tuned(base_tensors())))
    assert state(wire.settled(submission.id)) == "MERGED"
    worker = daemon.worker
    assert worker is not None
    assert any(name.startswith("libtorch") for name in libraries(worker.pid))
    assert not [name for name in libraries(daemon.pid) if name.startswith(("libtorch", "libc10"))]


@pytest.mark.parametrize("arguments", [(), ("--on-server",)])
def test_a_client_at_work_imports_no_torch(daemon: Daemon, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    folder = daemon.state.parent / f"task{len(arguments)}"
    folder.mkdir()
    (folder / SINGLE).write_bytes(single(fine_tuned(base_tensors()))[SINGLE])
    script = """
import sys
import foldin, foldin.cli
from foldin.cli import app
for command in (["submit", sys.argv[2], "--wait", *sys.argv[3:]], ["list"], ["pull", "--to", sys.argv[1] + "/pulled"]):
    try:
        app(command)
    except SystemExit as ended:
        assert not ended.code, ended.code
heavy = {"torch", "foldind", "transformers"} & sys.modules.keys()
assert not heavy, heavy
"""
    command = [sys.executable, "-c", script, tmp_path, folder, *arguments]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env={"FOLDIN_SERVER": daemon.server, "PATH": ""}
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "pulled" / SINGLE).is_file()


def test_imports_of_no_torch() -> None:
    script = "import sys, foldin.cli, foldin.client, foldind.cli, foldind.app, foldind.state.fsck\n"
    script += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_help_waits_for_nothing_heavy() -> None:
    script = (
        "import sys, foldin.cli; assert not {'grpc', 'google.protobuf', 'numpy', 'safetensors'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_memory_of_the_daemon_after_uploads(daemon: Daemon, wire: Wire) -> None:
    # 192 MiB from six senders at once; they are hashed before they are refused.
    content = b"\x07" * LARGE
    with idle_worker(daemon):
        submission_id = wire.create({SINGLE: content}).submission.id

        def send(offset: int) -> None:
            wire.write(submission_id, SINGLE, offset, content[offset : offset + CHUNK])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(send, range(0, LARGE, CHUNK)))
        process = psutil.Process(daemon.pid)
        assert process.memory_info().rss < 150 * MEBIBYTE
        assert state(wire.commit(submission_id, {SINGLE: content})) == "REJECTED"
        assert process.memory_info().rss < 150 * MEBIBYTE


def test_memory_of_the_daemon_while_a_snapshot_is_read(daemon: Daemon, wire: Wire) -> None:
    process = psutil.Process(daemon.pid)
    before = process.memory_info().rss
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: len(wire.read(1, SINGLE)), range(100)))
    assert len(set(sizes)) == 1
    assert process.memory_info().rss < before + 30 * MEBIBYTE
