"""The daemon as a process of its own, stopped when the demo ends however it ends."""

import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from commands import ROOT, program, succeeds

START_SECONDS = 60
STOP_SECONDS = 30


class Daemon:
    """A running `foldind serve`; use it as a context manager.

    Args:
      state: the state folder, relative to the repository.
      inbox: the watched folder, likewise.
      log: file for what the daemon says.

    Raises:
      RuntimeError: on entering, it did not come up; the text has the end of its log.
    """

    def __init__(self, state: str, inbox: str, log: Path) -> None:
        self.address = f"127.0.0.1:{_free_port()}"
        self.http = f"127.0.0.1:{_free_port()}"
        """Where its metrics are."""
        self.keep = False
        """Whether to leave it running at the end."""
        self._log = log
        addresses = ("--grpc", self.address, "--http", self.http)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program("foldind"), "serve", "--state", state, "--inbox", inbox, *addresses],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Out of reach of the terminal's Ctrl-C: it is stopped here, after the client that talks to it.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None or not self.keep:
            self.stop()

    def stop(self) -> None:
        """Ask it to stop and wait until it has, so that the state folder is free."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not succeeds("foldin", "snapshots", "--json", "--server", self.address):
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended with status {self._process.returncode}:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not answer in {START_SECONDS} s:\n{self._log_end()}")
            time.sleep(0.2)

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
