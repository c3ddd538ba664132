"""Events of the watched folder, as hints: they make a look come sooner, and nothing depends on them."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

log = logging.getLogger(__name__)
logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it reports its own orderly end as an error

# Not of what is opened or read, which looking does itself, nor of every write.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
]


class Hints:
    """Calls `hint`, from a thread of its own, when something may have arrived in a folder."""

    def __init__(self, folder: Path, hint: Callable[[], None]):
        self._folder = folder
        self._handler = FileSystemEventHandler()
        self._handler.on_any_event = self._on_event  # type: ignore[method-assign]
        self._hint = hint
        self._observer = Observer()
        self._watched: tuple[int, int] | None = None
        self._warned = ""

    def follow(self) -> None:
        """Watch the folder that has the name now, if that is another than before; where that fails, do without."""
        with suppress(OSError):
            status = self._folder.stat()
            found = (status.st_dev, status.st_ino)
            if found != self._watched:
                self._watch()
                self._watched = found

    def stop(self) -> None:
        """End the thread."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def _watch(self) -> None:
        try:
            if not self._observer.is_alive():
                self._observer.start()
            self._observer.unschedule_all()
            self._observer.schedule(self._handler, str(self._folder), event_filter=_EVENTS)
        except OSError as error:
            if str(error) != self._warned:
                self._warned = str(error)
                log.warning(
                    "no events from the inbox %s (%s; the limits are in /proc/sys/fs/inotify): "
                    "what is dropped is found by looking every few seconds",
                    self._folder,
                    error,
                )
            raise

    def _on_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, DirDeletedEvent) and Path(os.fsdecode(event.src_path)) == self._folder:
            self._watched = None  # another of that name may get the same number
        self._hint()
