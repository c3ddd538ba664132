"""A daemon as a real process."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self, TypeVar

import psutil
from foldin import Client, NotFound

BIN = Path(sys.executable).parent
START_SECONDS = 60
ANY_PORTS = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")

T = TypeVar("T")


class Daemon:
    """`foldind serve` on a free port; the state folder is made from `base` where it does not exist."""

    def __init__(
        self,
        state: Path,
        base: Path | None = None,
        *flags: str,
        init_flags: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ):
        self.state = state
        self.log = state.with_name(f"{state.name}.log")
        self.server = ""
        self.http = ""
        """What its URLs over HTTP begin with; empty: it has none."""
        self._flags = flags
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        if not state.exists():
            assert base is not None
            shutil.copytree(new_state(base, init_flags), state)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> Self:
        """Start it and wait until it serves."""
        seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "foldind", "serve", "--state", self.state, *ANY_PORTS, *self._flags],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
            )
        wait_for(lambda: self._serving_line(seen), f"the daemon to serve; its log is {self.log}", START_SECONDS)
        messages = [_message(line) for line in self.log.read_bytes()[seen:].decode().splitlines()]
        self.server = next(message.split()[-1] for message in messages if " serving " in f" {message}")
        self.http = next((message.split()[-1] for message in messages if "health on http://" in message), "")
        return self

    @property
    def pid(self) -> int:
        """Of the daemon process."""
        assert self._process is not None
        return self._process.pid

    @property
    def worker(self) -> psutil.Process | None:
        """The worker process, if one runs."""
        daemon = psutil.Process(self.pid)
        for child in daemon.children():
            with suppress(psutil.NoSuchProcess):
                # Stopped between fork and exec, it would stop the daemon too, which waits for the exec.
                if child.is_running() and child.cmdline() != daemon.cmdline():
                    return child
        return None

    def client(self) -> Client:
        """A client of it."""
        return Client(self.server)

    def terminate(self, seconds: float = 60) -> int:
        """Send SIGTERM and return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)

    def wait_for_bases(self) -> None:
        """Wait until the worker has nothing to do for the next merge."""
        with self.client() as client, suppress(NotFound):
            wait_for(
                lambda: f"the bases of v{client.show('latest').version} are ready" in self.log.read_text(),
                "the bases to be ready",
                120,
            )

    def kill(self) -> None:
        """kill -9 the daemon; its worker goes with it."""
        if self._process is None:
            return
        worker = self.worker if self._process.poll() is None else None
        self._process.kill()
        self._process.wait()
        self._process = None
        if worker is not None:
            wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the worker to go")

    def _serving_line(self, seen: int) -> str:
        assert self._process is not None
        text = self.log.read_bytes()[seen:].decode()
        assert self._process.poll() is None, f"the daemon ended: {text}"
        return next((line for line in text.splitlines() if " serving " in f" {_message(line)}"), "")


def _message(line: str) -> str:
    """What a line of the log says, in either format."""
    return str(json.loads(line)["message"]) if line.startswith("{") and line.endswith("}") else line


def new_state(base: Path, flags: tuple[str, ...]) -> Path:
    """A state folder as `foldind init` makes it of a base, once for each content and set of flags; to be copied."""
    content = sha256(repr(flags).encode())
    for path in sorted(base.iterdir()):
        content.update(f"{path.name} {path.stat().st_size}".encode() + path.read_bytes())
    state = _new_states() / content.hexdigest()
    if not state.exists():
        foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(state), *flags)
    return state


@cache
def _new_states() -> Path:
    folder = Path(mkdtemp(prefix="foldin-new-states-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def foldind(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of the daemon's."""
    return subprocess.run([BIN / "foldind", *arguments], check=check, capture_output=True, text=True, timeout=120)


def foldin(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of the client's."""
    return subprocess.run([BIN / "foldin", *arguments], check=check, capture_output=True, text=True, timeout=300)


def wait_for(condition: Callable[[], T], what: str, seconds: float = 30) -> T:
    """Wait until a condition is true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s in vain for {what}")
