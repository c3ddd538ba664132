"""Swapping `current` to a version that is whole, running the hooks, and going back where one fails."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from foldin.follower.events import Event, EventKind, Hook, Swap
from foldin.follower.hooks import run_hooks, withdraw
from foldin.follower.metrics import Metrics
from foldin.follower.place import Place
from foldin.follower.record import Record


class Swapper:
    """Carries out the swaps of one follower.

    Args:
      keep: how many of the newest versions to keep.
      notify: called with the event that ends each swap.
    """

    def __init__(
        self,
        place: Place,
        alias: str,
        hooks: Sequence[Hook],
        notify: Sequence[Callable[[Event], object]],
        keep: int,
        metrics: Metrics,
    ) -> None:
        self._place = place
        self._alias = alias
        self._hooks = hooks
        self._notify = notify
        self._keep = keep
        self._metrics = metrics

    def event(self, kind: EventKind, message: str, version: int | None = None) -> Event:
        """Return an event of now."""
        return Event(kind, self._alias, version, self._place.current, message)

    def is_done(self, version: int) -> bool:
        """Whether a version is current and the hooks have succeeded for it."""
        return self._place.current == version == self._place.record.loaded

    def point(self, version: int) -> Event:
        """Point `current` at a version, which is the half of a swap; a version that is current already stays."""
        self._place.point(version)
        return self.event(EventKind.SWAPPED, f"current is v{version}.", version)

    def settle(self, version: int) -> list[Event]:
        """Run the hooks for the current version and, where one fails, go back; the other half of a swap.

        Returns:
          The event that ends the swap, one of OUTCOMES, and warnings.
        """
        before = self._place.record
        # From now on the servers may have either version: if this is killed, the hooks have to run again.
        self._place.save(replace(before, loaded=None))
        trouble = run_hooks(
            self._hooks, self._swap(version, before.good if before.good != version else before.previous)
        )
        if trouble:
            return self._end(*self._take_back(version, before, trouble))
        previous = before.previous if before.good == version else before.good
        done = replace(before, loaded=version, good=version, previous=previous, failed=None, last_swap=time.time())
        return self._end(self.event(EventKind.APPLIED, f"{self._alias} is v{version}: applied.", version), done)

    def prune(self, *kept: int | None) -> list[Event]:
        """Remove old versions, but these; return warnings."""
        try:
            self._place.prune(self._keep, kept)
        except OSError as error:
            return [self.event(EventKind.WARNING, f"cannot remove {error.filename}: {error.strerror or error}.")]
        return []

    def _take_back(self, version: int, before: Record, trouble: str) -> tuple[Event, Record]:
        failed = replace(before, loaded=None, failed=version)
        back = before.good
        if back == version:
            message = f"v{version} was applied before and stays current, but not on the servers: {trouble}"
            return self.event(EventKind.FAILED, message, version), failed
        if back is None or not self._place.path(back).is_dir():
            self._place.clear()
            complaint = withdraw(self._hooks)
            message = f"v{version} failed, and there is no earlier one: current is removed. {trouble} {complaint}"
            return self.event(EventKind.FAILED, message.rstrip(), version), replace(failed, good=None, previous=None)
        self._place.point(back)
        if again := run_hooks(self._hooks, self._swap(back, version)):
            message = (
                f"v{version} failed, and current is v{back} again, but not on the servers: {trouble} Then: {again}"
            )
            return self.event(EventKind.FAILED, message, version), failed
        message = f"v{version} failed, and v{back} is applied again: {trouble}"
        return self.event(EventKind.ROLLED_BACK, message, version), replace(failed, loaded=back)

    def _end(self, event: Event, record: Record) -> list[Event]:
        # Told before it is recorded: who is killed in between tells it twice, not never.
        warnings = [warning for tell in self._notify if (warning := self._told(tell, event))]
        self._place.save(replace(record, swaps=record.counted(event.kind)))
        self._metrics.show(self._place.record)
        return [event, *warnings, *self.prune(event.version)]

    def _told(self, tell: Callable[[Event], object], event: Event) -> Event | None:
        try:
            tell(event)
        except Exception as error:  # a caller's own: nobody being told is no reason to go back
            return self.event(EventKind.WARNING, f"nobody was told that v{event.version} is {event.kind}: {error}")
        return None

    def _swap(self, version: int, previous: int | None) -> Swap:
        return Swap(self._alias, version, self._place.path(version), self._place.current_link, previous)
