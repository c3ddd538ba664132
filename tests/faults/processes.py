"""A daemon that can be caught at any moment, from before it serves until after it was told to stop."""

import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from tests.support.daemon import ANY_PORTS, BIN, START_SECONDS, Daemon, wait_for

WORKER_READY = " is ready, "
_WORKER_PID = re.compile(r"worker (\d+) is ready")


class FaultDaemon(Daemon):
    """`foldind serve` at an address that stays the same when it is started again.

    Args:
      state: the state folder, which exists.
      flags: of `foldind serve`.
      command: what to run in place of `foldind`.
      log: where its log goes; None: beside the state folder.
    """

    def __init__(
        self,
        state: Path,
        *flags: str,
        command: Sequence[str | Path] = (BIN / "foldind",),
        log: Path | None = None,
        environment: dict[str, str] | None = None,
        server: str = "",
    ):
        super().__init__(state, None, *flags, environment=environment)
        self.log = log or self.log
        self.server = server or f"127.0.0.1:{free_port()}"
        self._command = list(command)
        self._seen = 0

    def launch(self) -> Self:
        """Start it, and do not wait."""
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "serve", "--state", self.state, *ANY_PORTS, "--grpc", self.server, *self._flags],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
            )
        return self

    def start(self) -> Self:
        """Start it and wait until it serves."""
        self.launch()
        self.wait_until_serving()
        return self

    def wait_until_serving(self) -> None:
        """Wait until it serves."""
        wait_for(lambda: self._serving_line(self._seen), f"the daemon to serve; its log is {self.log}", START_SECONDS)

    def start_warm(self) -> Self:
        """Start it and wait until its worker is ready, and has nothing to do before the next merge."""
        self.start()
        self.wait_for_line(WORKER_READY)
        self.wait_for_bases()
        return self

    def wait_for_bases(self) -> None:
        """Wait until its worker has nothing to do before the next merge."""
        latest = self.state / "snapshots" / "latest"
        if latest.is_symlink():
            self.wait_for_line(f"the bases of {latest.readlink()} are ready")

    @property
    def text(self) -> str:
        """What it logged since it was last started."""
        return self.log.read_bytes()[self._seen :].decode(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    def wait_for_line(self, text: str, seconds: float = 60, count: int = 1) -> None:
        """Wait until it has logged something so many times since it was last started."""

        def logged() -> bool:
            found = self.text.count(text) >= count
            assert found or not self.ended, f"the daemon ended before it logged {text!r}: {self.text}"
            return found

        wait_for(logged, f"{text!r} in {self.log}", seconds)

    @property
    def known_worker(self) -> psutil.Process | None:
        """The worker that was ready last; found faster than `worker`, which looks through all processes."""
        ready = _WORKER_PID.findall(self.text)
        try:
            return psutil.Process(int(ready[-1])) if ready else self.worker
        except psutil.NoSuchProcess:
            return self.worker

    def wait_for_worker(self, other_than: int = 0) -> psutil.Process:
        """Wait until a worker process runs, and return it."""

        def running() -> psutil.Process | None:
            worker = self.worker
            return worker if worker is not None and worker.pid != other_than else None

        return wait_for(running, "a worker")

    def wait_for_end(self, seconds: float = 60) -> int:
        """Wait until it has ended by itself, and return the exit status."""
        assert self._process is not None
        return self._process.wait(seconds)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill_with_worker(self, worker_first: bool) -> None:
        """kill -9 the daemon and its worker, at once."""
        worker = self.known_worker
        pids = [self.pid] if worker is None else [worker.pid, self.pid] if worker_first else [self.pid, worker.pid]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()
        if worker is not None:
            wait_for(lambda: is_gone(worker), "the worker to go")


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    """Return a free port that no outgoing connection takes while a daemon is away for a moment."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # below the ports that the kernel hands out
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
