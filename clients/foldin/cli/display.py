"""Progress on stderr, so that stdout holds results only."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from foldin.cli.session import printable
from foldin.models import Progress, Submission, SubmissionState


class Display:
    """One bar per stage on a terminal; elsewhere one line per stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._stage = ""
        self._bar = TaskID(0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def transfer(self, progress: Progress) -> None:
        """Show how far a transfer is."""
        amount = f"{decimal(progress.done)} of {decimal(progress.total)}"
        self._show(progress.stage, progress.done, progress.total, amount)

    def submission(self, submission: Submission) -> None:
        """Show where a submission is on its way."""
        progress = submission.progress
        if progress and submission.state == SubmissionState.MERGING:
            self._show(progress.stage, progress.done, progress.total, f"{progress.done} of {progress.total} tensors")
        elif not submission.final:
            self._show(submission.state.lower(), 0, None, printable(submission.reason))

    def publication(self, progress: Progress) -> None:
        """Show how far a publication is."""
        self._show(progress.stage, progress.done, progress.total, f"{progress.done} of {progress.total} tensors")

    def _show(self, stage: str, done: int, total: int | None, amount: str) -> None:
        if stage != self._stage:
            self._stage = stage
            if not self._console.is_terminal:
                self._console.print(printable(stage), markup=False)
            self._bar = self._bars.add_task(printable(stage), total=total, amount=amount)
        self._bars.update(self._bar, completed=done, total=total, amount=amount)
