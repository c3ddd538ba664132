"""The daemon's end of the pipe: starts the worker, talks to it, and starts another when it dies."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import TypeVar

from foldind.errors import CheckpointRefused, FoldinError
from foldind.worker.chatter import relay_lines
from foldind.worker.messages import (
    BasisDone,
    BasisRequest,
    Failed,
    FoldRequest,
    FoldResult,
    Progress,
    PublishRequest,
    PublishResult,
    Ready,
    Refused,
    Report,
    Request,
    decode,
    encode,
)

log = logging.getLogger(__name__)

_LONGEST_LINE = 256 * 1024 * 1024  # statistics of a model with very many tensors
_LAST_WORDS_SECONDS = 1
_AMPLE_BYTES = 1024**3

Result = TypeVar("Result", FoldResult, PublishResult, BasisDone)


def worker_environment(threads: int, memory_budget: int = _AMPLE_BYTES) -> dict[str, str]:
    """Return the environment variables of a process that computes.

    Args:
      threads: that it may use for a matrix product.
      memory_budget: its resident memory in bytes.
    """
    # Blocks of up to 64 MiB are used again and not given back to the kernel one by one: the page faults of fresh ones
    # would take up to a third of a fold. What is free is given back after each piece of work, and where memory is
    # short at once, which takes 100 to 200 MB off the peak.
    used_again, kept_free = (64, 256) if memory_budget >= _AMPLE_BYTES else (1, 1)
    tunables = {
        "mmap_threshold": used_again * 1024**2,
        "trim_threshold": kept_free * 1024**2,
        "arena_max": 1,  # one pool of them for all threads
        "hugetlb": 1,  # larger ones on large pages, where the kernel has them
    }
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        # Threads that wait for work sleep: spinning, they slow a busy machine down by a factor of thirty.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items()),
    }


class WorkerDied(FoldinError):
    """The worker ended in the middle of its work: killed, out of memory, or a native crash."""


class WorkFailed(FoldinError):
    """The worker failed at what it was asked, and neither the checkpoint nor a disk is to blame."""


class Supervisor:
    """Keeps one worker warm.

    Args:
      threads: that it may use for a matrix product.
      memory_budget: its resident memory in bytes.
    """

    def __init__(self, threads: int, memory_budget: int) -> None:
        self._environment = {**os.environ, **worker_environment(threads, memory_budget)}
        self._process: asyncio.subprocess.Process | None = None
        self._relay: asyncio.Task[None] | None = None
        self.stopped = False
        """Whether it was stopped, and no other worker is started."""
        self.ready: Ready | None = None
        """What the worker said once its imports were done; None before the first time."""
        self.restarts = 0
        """How many workers were started in the place of one that died."""
        self.peak_resident_bytes = 0
        """Of the worker in its last fold; before the first, what its imports take."""

    @property
    def is_running(self) -> bool:
        """Whether there is a worker process."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the worker, unless it runs, and wait until its imports are done.

        Raises:
          WorkerDied: it does not start.
        """
        if self.is_running:
            return
        if self.stopped:
            raise WorkerDied("the daemon is stopping")
        self.restarts += self._process is not None
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "foldind.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the daemon, which decides what becomes of a fold
            env=self._environment,
        )
        assert self._process.stderr is not None
        self._relay = asyncio.create_task(relay_lines(self._process.stderr))
        answer = await self._receive()
        if not isinstance(answer, Ready):
            raise WorkerDied(f"the worker began with {answer}")
        self.ready = answer
        self.peak_resident_bytes = self.peak_resident_bytes or answer.resident_bytes
        log.info("worker %d is ready, %d MB resident", self._process.pid, answer.resident_bytes // 2**20)

    async def fold(self, request: FoldRequest, report: Report) -> FoldResult:
        """Have a submission folded.

        Raises:
          CheckpointRefused: the values of the checkpoint cannot be merged.
          WorkFailed, WorkerDied: something else is wrong.
          OSError: a disk is full or failing.
        """
        result = await self._work(request, FoldResult, report)
        self.peak_resident_bytes = result.peak_resident_bytes
        return result

    async def publish(self, request: PublishRequest, report: Report) -> PublishResult:
        """Have an accumulated state published. Raises as `fold`."""
        return await self._work(request, PublishResult, report)

    async def compute_bases(self, request: BasisRequest) -> None:
        """Have bases computed and written. Raises as `fold`."""
        await self._work(request, BasisDone, lambda _: None)

    async def stop(self) -> None:
        """Kill the worker, if it runs; no other is started."""
        self.stopped = True
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._relay is not None:  # its last words; a descendant of the worker could hold the pipe open
            await asyncio.wait([self._relay], timeout=_LAST_WORDS_SECONDS)
            self._relay.cancel()

    async def _work(self, request: Request, kind: type[Result], report: Report) -> Result:
        await self._ask(request)
        while isinstance(answer := await self._receive(), Progress):
            report(answer)
        match answer:
            case Refused(reason, hint):
                raise CheckpointRefused(reason, hint)
            case Failed(message, 0):
                raise WorkFailed(message)
            case Failed(message, disk_errno):
                raise OSError(disk_errno, f"{os.strerror(disk_errno)} ({message})")
        if not isinstance(answer, kind):
            raise WorkerDied(f"the worker answered {answer}")
        return answer

    async def _ask(self, request: Request) -> None:
        await self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # the answer tells
            self._process.stdin.write(encode(request))
            await self._process.stdin.drain()

    async def _receive(self) -> object:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line.endswith(b"\n"):
            return decode(line)
        code = await self._process.wait()
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise WorkerDied(f"the worker died {cause}" + (", probably out of memory" if code == -signal.SIGKILL else ""))
