"""Progress on standard error: a bar with an estimate on a terminal, elsewhere one line for each piece of work."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn

_WHOLE_RUN = 10.0**9  # seconds: pieces of work may take hours, and the estimate is of all of them


class Display:
    """Shows what is being done, and how much of all is done.

    Args:
      console: of standard error.
    """

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            RemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=_WHOLE_RUN,
        )
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, total: int, done: int) -> None:
        """Say how much work there is, in units of any kind, and how much of it an earlier run has done."""
        if done:
            self._console.print(f"going on: {100 * done / total:.0f} % is done already", markup=False)
        self._bar = self._bars.add_task("", total=total, completed=done)

    def doing(self, what: str) -> None:
        """Say what is being done."""
        if self._bar is not None:
            self._bars.update(self._bar, description=what)
        elif not self._console.is_terminal:
            self._console.print(what, markup=False)

    def done(self, work: int, what: str) -> None:
        """Say that some units of the work are done, and what came of them."""
        if self._bar is not None:
            self._bars.advance(self._bar, work)
        if not self._console.is_terminal:
            self._console.print(what, markup=False)
