"""SIGINT and SIGTERM as interrupts that wait for what must not be broken off."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_STDERR = 2


class Interrupts:
    """While entered, both signals raise KeyboardInterrupt: at once, or when what is `held` has ended.

    Attributes:
      last: the signal that came last; None: none did.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self._holding = False
        self._waiting = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._come) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the first signal back; a second one breaks in."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._waiting:
            raise KeyboardInterrupt

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.last = number
        if not self._holding or self._waiting:
            raise KeyboardInterrupt
        self._waiting = True
        # Not through sys.stderr, which may be in the middle of a write.
        os.write(_STDERR, b"foldin: ending once the hooks are through; again to break them off.\n")
