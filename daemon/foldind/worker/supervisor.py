"""The daemon's end of the pipe: starts the worker, talks to it, and starts another when it dies."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from foldind.errors import FoldinError
from foldind.worker.messages import Failed, FoldRequest, FoldResult, Progress, Ready, Refused, decode, encode

log = logging.getLogger(__name__)

_LONGEST_LINE = 256 * 1024 * 1024  # statistics of a model with very many tensors


class WorkerDied(FoldinError):
    """The worker ended in the middle of a fold: killed, out of memory, or a native crash."""


class Supervisor:
    """Keeps one worker warm."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self.ready: Ready | None = None
        self._stopped = False

    async def start(self) -> None:
        """Start the worker, unless it runs, and wait until its imports are done.

        Raises:
          WorkerDied: it does not start.
        """
        if self._process and self._process.returncode is None:
            return
        if self._stopped:
            raise WorkerDied("the daemon is stopping")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "foldind.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the daemon, which decides what becomes of a fold
            # Threads that wait for work sleep: spinning, they slow a busy machine down by a factor of thirty.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        answer = await self._receive()
        if not isinstance(answer, Ready):
            raise WorkerDied(f"the worker began with {answer}")
        self.ready = answer
        log.info("worker %d is ready, %d MB resident", self._process.pid, answer.resident_bytes // 2**20)

    async def fold(self, request: FoldRequest, report: Callable[[Progress], None]) -> FoldResult | Refused | Failed:
        """Have a submission folded.

        If the caller is cancelled, the worker is killed: what it was writing has a temporary name.

        Raises:
          WorkerDied: it died before it answered.
        """
        await self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            with suppress(ConnectionError):  # the answer tells
                self._process.stdin.write(encode(request))
                await self._process.stdin.drain()
            while True:
                answer = await self._receive()
                if isinstance(answer, FoldResult | Refused | Failed):
                    return answer
                if isinstance(answer, Progress):
                    report(answer)
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill the worker, if it runs; no other is started."""
        self._stopped = True
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _receive(self) -> object:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line.endswith(b"\n"):
            return decode(line)
        code = await self._process.wait()
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise WorkerDied(f"the worker died {cause}" + (", probably out of memory" if code == -signal.SIGKILL else ""))
