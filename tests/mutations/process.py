"""Cases in a process of their own, which stays warm: one that crashes or hangs costs itself and no other."""

import faulthandler
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self

from tests.mutations.outcome import Case, Outcome, Verdict

LONGEST_SECONDS = 5
_START_SECONDS = 120
_MOST_BYTES = 4 * 1024**3
"""Of address space, beyond what the process has to begin with: a case that asks for more must not take the machine."""


def _serve(pipe: Connection, root: Path, judge_case: Callable[[Path, Case], Outcome]) -> None:
    faulthandler.enable()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    pipe.send("ready")
    while True:
        pipe.send(judge_case(root, pipe.recv()))


class Judge:
    """The process; a context manager.

    Args:
      root: an existing folder of its own.
      judge_case: what is done with a case.
      longest_seconds: that it may take.
    """

    def __init__(
        self,
        root: Path,
        judge_case: Callable[[Path, Case], Outcome],
        longest_seconds: float = LONGEST_SECONDS,
    ):
        self._longest_seconds = longest_seconds
        self._root = root
        self._judge_case = judge_case
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        folder = Path(mkdtemp(dir=self._root))  # nothing of a process that was killed is in it
        self._process = context.Process(target=_serve, args=(theirs, folder, self._judge_case), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(_START_SECONDS), "the process did not start"
        assert self._pipe.recv() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def judge(self, case: Case) -> Outcome:
        """Judge a case; a new process takes the place of one that it breaks."""
        self._pipe.send(case)
        try:
            if self._pipe.poll(self._longest_seconds):
                outcome: Outcome = self._pipe.recv()
                return outcome
            reason = f"it took more than {self._longest_seconds} s"
        except EOFError:
            self._process.join()
            reason = f"the process ended with {self._process.exitcode}"
        self._end()
        self._start()
        return Outcome(Verdict.FAILED, reason, self._longest_seconds, 0)
