"""The version that an alias names, known at once when it moves, whatever else is being done."""

from collections.abc import Callable
from threading import Condition, Event, Thread
from types import TracebackType
from typing import NamedTuple, Self

from foldin.client import Client
from foldin.connection import is_outage
from foldin.errors import FoldinError

SECONDS_BETWEEN_TRIES = 1.0


class Aim(NamedTuple):
    """Where an alias is.

    Attributes:
      version: that it names; None: none yet.
      moves: how often it was seen to move; tells a return from a stay.
    """

    version: int | None
    moves: int


class Target:
    """Watches an alias in a thread of its own, through any outage of the daemon; a context manager.

    Args:
      version: that the alias names, as far as is known.
      on_move: called in that thread with each version the alias moves to.
    """

    def __init__(self, server: str, alias: str, version: int | None, on_move: Callable[[int], None]) -> None:
        self._alias = alias
        self._on_move = on_move
        self._client = Client(server, patience=0)
        self._thread = Thread(target=self._watch, name=f"watch of {alias}", daemon=True)
        self._changed = Condition()
        self._closing = Event()
        self._aim = Aim(version, 0)
        self._outage: FoldinError | None = None
        self._recovered = False
        self._end: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._client.close()
        self._thread.join()

    @property
    def aim(self) -> Aim:
        """Where the alias is now."""
        with self._changed:
            if self._end:
                raise self._end
            return self._aim

    def outage(self) -> FoldinError | None:
        """Return why the daemon cannot be reached, once for each outage."""
        with self._changed:
            outage, self._outage = self._outage, None
            return outage

    def recovered(self) -> bool:
        """Tell whether the daemon answers again, once after each outage."""
        with self._changed:
            recovered, self._recovered = self._recovered, False
            return recovered

    def wait(self, known: Aim, seconds: float | None) -> None:
        """Wait until the alias is elsewhere, an outage begins, or some seconds have gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._aim != known or self._outage or self._recovered or self._end, seconds)

    def _watch(self) -> None:
        reachable = True
        while not self._closing.is_set():
            try:
                for snapshot in self._client.watch_snapshots(self._alias):
                    if not reachable:
                        self._answer_again()
                    reachable = True
                    self._move_to(snapshot.version)
            except Exception as error:
                if self._closing.is_set():
                    return
                outage = error if isinstance(error, FoldinError) and is_outage(error) else None
                with self._changed:
                    if outage is None:
                        self._end = error
                    elif reachable:
                        self._outage = outage
                    self._changed.notify_all()
                if outage is None:
                    return
                reachable = False
                self._closing.wait(SECONDS_BETWEEN_TRIES)

    def _answer_again(self) -> None:
        with self._changed:
            self._recovered = True
            self._changed.notify_all()

    def _move_to(self, version: int) -> None:
        with self._changed:
            if version == self._aim.version:  # as after each reconnection
                return
            self._aim = Aim(version, self._aim.moves + 1)
            self._changed.notify_all()
        self._on_move(version)


class Fixed:
    """A target that stays where it is; as Target otherwise."""

    def __init__(self, version: int) -> None:
        self.aim = Aim(version, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def outage(self) -> None:
        """Return that there is none."""

    def recovered(self) -> bool:
        """Return that it was never away."""
        return False

    def wait(self, known: Aim, seconds: float | None) -> None:
        """Return at once."""
