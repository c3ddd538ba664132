"""A daemon in which one fault strikes, once, at one step; run as a program in place of `foldind`.

    python striking.py STEP SIDE FAULT MARK serve --state ...

MARK is a file: its existence says that the fault has struck.
"""

import asyncio
import errno
import inspect
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from threading import Event
from typing import Any

from foldind import attempt, sealing, service
from foldind.intake import admission, copies, filing, uploads
from foldind.state import bases, durable, recovery
from foldind.state.durable import DurableFile
from foldind.state.ledger import Ledger
from foldind.state.records import SubmissionState
from foldind.state.versions import Versions
from foldind.worker.supervisor import Supervisor


class Fault(StrEnum):
    KILL = "SIGKILL"
    FULL = "ENOSPC"
    FAILING = "EIO"
    DESCRIPTORS = "EMFILE"
    TERMINATE = "SIGTERM"
    """And the daemon has stopped its worker before it goes on."""


class Side(StrEnum):
    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Spot:
    """Where in the program a step is: the nth call, of those that count, of a function that is looked up at `owner`."""

    owner: object
    name: str
    nth: int = 1
    counts: Callable[..., bool] = lambda *_, **__: True


def _in(folder: str) -> Callable[..., bool]:
    return lambda path, **_: f"/{folder}/" in f"{path}/" and not str(path).endswith(durable.TEMPORARY_SUFFIX)


def _removes(folder: str) -> Callable[..., bool]:
    # Whether under its own name or a temporary one; but no attempt's folder, which is of a later version.
    return lambda path, **_: Path(path).parent.name == folder and not re.match(r"\.?v[2-9]", Path(path).name)


def _new_target(link: Path, target: str) -> bool:
    return not link.is_symlink() or str(link.readlink()) != target


def _stage(stage: str) -> Callable[..., bool]:
    return lambda _service, _id, progress: progress.stage == stage


def _in_a_basis(descriptor: int, *_: object) -> bool:
    return "/bases/" in str(Path(f"/proc/self/fd/{descriptor}").readlink())


class Step(StrEnum):
    """What happens to a submission, in order."""

    ROW_CREATED = "row created"
    FILES_PREALLOCATED = "files preallocated"
    CHUNK_WRITTEN = "chunk written"
    CHUNK_MARKED = "chunk marked"
    UPLOAD_FLUSHED = "upload flushed"
    FOLDER_FLUSHED = "folder flushed"
    FILE_COPIED = "file copied"
    COPY_SEALED = "copy sealed"
    ENQUEUED = "enqueued"
    TAKEN = "taken up"
    OLD_STATE_REMOVED = "old state removed"
    OLD_STATE_HALF_REMOVED = "old state half removed"
    STATE_FOLDER_MADE = "state folder made"
    SNAPSHOT_FOLDER_MADE = "snapshot folder made"
    WORKER_ANSWERED = "worker answered"
    FOLDING = "folding"
    PUBLISHING = "publishing"
    SNAPSHOT_COMPLETED = "snapshot completed"
    SNAPSHOT_SEALED = "snapshot sealed"
    STATE_SEALED = "state sealed"
    VERSION_COMMITTED = "version committed"
    LATEST_POINTED = "latest pointed"
    RECEIPT_WRITTEN = "receipt written"
    DROP_MOVED = "drop moved"
    BYTES_REMOVED = "submission bytes removed"
    BYTES_HALF_REMOVED = "submission bytes half removed"
    PRUNE_MARKED = "prune marked"
    PRUNE_REMOVED = "prune removed"
    PRUNE_HALF_REMOVED = "prune half removed"
    BASIS_SEALED = "basis sealed"
    # In the worker.
    STATE_PREALLOCATED = "worker: state preallocated"
    TENSOR_WRITTEN = "worker: tensor written"
    STATE_FLUSHED = "worker: state flushed"
    SNAPSHOT_PREALLOCATED = "worker: snapshot preallocated"
    SNAPSHOT_FLUSHED = "worker: snapshot flushed"
    BASIS_WRITTEN = "worker: basis written"


SPOTS = {
    Step.ROW_CREATED: Spot(Ledger, "create"),
    Step.FILES_PREALLOCATED: Spot(uploads, "preallocate"),
    Step.CHUNK_WRITTEN: Spot(uploads, "write_at", counts=lambda _, data, __: len(data) > 1),
    Step.CHUNK_MARKED: Spot(uploads, "write_at", counts=lambda _, data, __: len(data) == 1),
    Step.UPLOAD_FLUSHED: Spot(uploads, "sync"),
    Step.FOLDER_FLUSHED: Spot(admission, "sync"),
    Step.FILE_COPIED: Spot(copies, "copy_open_file"),  # only of what is taken from the file system
    Step.COPY_SEALED: Spot(copies, "seal"),
    Step.ENQUEUED: Spot(Ledger, "enqueue"),
    Step.TAKEN: Spot(Ledger, "take_next", counts=lambda ledger: bool(ledger.page(0, 1, [SubmissionState.QUEUED]))),
    Step.OLD_STATE_REMOVED: Spot(attempt, "remove", counts=_in("merge")),
    Step.OLD_STATE_HALF_REMOVED: Spot(os, "rmdir", counts=_removes("merge")),
    Step.STATE_FOLDER_MADE: Spot(attempt, "make_folder"),
    Step.SNAPSHOT_FOLDER_MADE: Spot(attempt, "make_folder", nth=2),
    Step.WORKER_ANSWERED: Spot(Supervisor, "fold"),
    Step.FOLDING: Spot(service.MergeService, "_report", counts=_stage("folding")),
    Step.PUBLISHING: Spot(service.MergeService, "_report", counts=_stage("publishing")),
    Step.SNAPSHOT_COMPLETED: Spot(sealing, "complete_snapshot"),
    Step.SNAPSHOT_SEALED: Spot(sealing, "seal"),
    Step.STATE_SEALED: Spot(attempt, "seal"),
    Step.VERSION_COMMITTED: Spot(Versions, "commit"),
    Step.LATEST_POINTED: Spot(recovery, "replace_symlink", counts=_new_target),
    Step.RECEIPT_WRITTEN: Spot(filing, "write_file"),  # only of what was dropped into the watched folder
    Step.DROP_MOVED: Spot(filing, "move"),
    Step.BYTES_REMOVED: Spot(recovery, "remove", counts=_in("submissions")),
    Step.BYTES_HALF_REMOVED: Spot(os, "rmdir", counts=_removes("submissions")),
    # With two merged beforehand and one snapshot kept, the third is the first to let one go.
    Step.PRUNE_MARKED: Spot(Versions, "prune", counts=lambda versions, *_: versions.last_number() == 3),
    Step.PRUNE_REMOVED: Spot(recovery, "remove", counts=_in("snapshots")),
    Step.PRUNE_HALF_REMOVED: Spot(os, "rmdir", counts=_removes("snapshots")),
    Step.BASIS_SEALED: Spot(bases, "move"),
    Step.STATE_PREALLOCATED: Spot(durable, "preallocate"),
    Step.TENSOR_WRITTEN: Spot(durable, "write_at", nth=5),
    Step.STATE_FLUSHED: Spot(DurableFile, "finish"),
    Step.SNAPSHOT_PREALLOCATED: Spot(durable, "preallocate", nth=2),
    Step.SNAPSHOT_FLUSHED: Spot(DurableFile, "finish", nth=2),
    Step.BASIS_WRITTEN: Spot(durable, "write_at", counts=_in_a_basis),
}

IN_WORKER = frozenset(step for step in Step if step.startswith("worker:"))
IN_LEDGER = frozenset(
    step for step in Step if isinstance(SPOTS[step].owner, type) and SPOTS[step].owner in (Ledger, Versions)
)


def command(step: Step, side: Side, fault: Fault, mark: Path) -> tuple[str, ...]:
    """Return what to run in place of `foldind`."""
    return (sys.executable, __file__, step, side, fault, str(mark))


class Striker:
    """Wraps the function of a step so that the fault strikes at the right call."""

    def __init__(self, step: Step, side: Side, fault: Fault, mark: Path):
        self._step = step
        self._spot = SPOTS[step]
        self._side = side
        self._fault = fault
        self._mark = mark
        self._calls = 0
        self._worker_stopped = Event()

    def install(self) -> None:
        original = getattr(self._spot.owner, self._spot.name)
        wrapper = self._around_coroutine if inspect.iscoroutinefunction(original) else self._around
        setattr(self._spot.owner, self._spot.name, wraps(original)(wrapper(original)))
        if self._fault is Fault.TERMINATE:
            self._watch_the_worker_stop()

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            due = self._is_due(*arguments, **options)
            if due and self._side is Side.BEFORE:
                self._strike()
            result = original(*arguments, **options)
            if due and self._side is Side.AFTER:
                self._strike()
            return result

        return call

    def _around_coroutine(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            due = self._is_due(*arguments, **options)
            if due and self._side is Side.BEFORE:
                self._strike()
            result = await original(*arguments, **options)
            if due and self._side is Side.AFTER:
                self._strike()
            return result

        return call

    def _watch_the_worker_stop(self) -> None:
        original = Supervisor.stop

        async def stop(supervisor: Supervisor) -> None:
            await original(supervisor)
            self._worker_stopped.set()

        Supervisor.stop = stop  # type: ignore[method-assign]

    def _is_due(self, *arguments: Any, **options: Any) -> bool:
        if self._mark.exists() or not self._spot.counts(*arguments, **options):
            return False
        self._calls += 1
        return self._calls == self._spot.nth

    def _strike(self) -> None:
        self._mark.touch()
        if self._fault is Fault.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault is Fault.TERMINATE:
            os.kill(os.getpid(), signal.SIGTERM)
            self._worker_stopped.wait()
            return
        number = getattr(errno, self._fault)
        if self._step not in IN_LEDGER:
            raise OSError(number, os.strerror(number))
        error = sqlite3.OperationalError(os.strerror(number))  # as SQLite reports it
        error.sqlite_errorcode = sqlite3.SQLITE_FULL if self._fault is Fault.FULL else sqlite3.SQLITE_IOERR_WRITE
        raise error


def _main() -> None:
    step, side, fault, mark, *arguments = sys.argv[1:]
    striker = Striker(Step(step), Side(side), Fault(fault), Path(mark))
    if arguments == ["worker"]:
        striker.install()
        from foldind.worker.__main__ import main

        main()
    elif striker._step in IN_WORKER:
        _start_workers_like_this(sys.argv[: -len(arguments)])
        _serve(arguments)
    else:
        striker.install()
        _serve(arguments)


def _start_workers_like_this(command: list[str]) -> None:
    original = asyncio.create_subprocess_exec

    async def start(*_: str, **options: Any) -> asyncio.subprocess.Process:
        return await original(sys.executable, *command, "worker", **options)

    asyncio.create_subprocess_exec = start


def _serve(arguments: list[str]) -> None:
    from foldind.cli import app

    app(arguments)


if __name__ == "__main__":
    _main()
