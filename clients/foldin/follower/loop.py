"""Keeping a folder at the version that an alias names."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from foldin.client import Client
from foldin.errors import FoldinError, InvalidArgument, NotFound, PullError
from foldin.follower.events import OUTCOMES, Event, EventKind, Hook
from foldin.follower.metrics import Metrics
from foldin.follower.place import Place
from foldin.follower.swap import Swapper
from foldin.follower.target import Aim, Fixed, Target
from foldin.models import Progress

FIRST_SECONDS_TO_NEXT_PULL = 1.0
MOST_SECONDS_TO_NEXT_PULL = 30.0


def follow(
    client: Client,
    *,
    to: str | Path,
    alias: str = "latest",
    hooks: Sequence[Hook] = (),
    form: str = "model",
    rank: int | None = None,
    keep: int = 2,
    metrics_file: str | Path | None = None,
    notify: Sequence[Callable[[Event], object]] = (),
    once: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    uninterrupted: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Generator[Event, None, None]:
    """Keep a folder at the version that an alias names, and yield what happens, without end.

    Each version is pulled into `to`/versions/vN; once it is whole and verified the link `to`/current is swapped, and
    the hooks are run. If one fails, `current` goes back to the version before and the hooks run for that.

    Args:
      to: a folder that does not exist, is empty, or was followed into before; for one follower at a time.
      alias: an alias; it may be set later, and move back.
      hooks: called with each Swap, in this order; an exception means failure.
      form: "model", or "adapter" for PEFT adapters of the base.
      rank: with "adapter", its highest rank.
      keep: how many of the newest versions to keep, besides the current one and the one to go back to.
      metrics_file: rewritten with each change, for the textfile collector of node_exporter.
      notify: called with the event that ends each swap; what it raises becomes a warning.
      once: end once the present version is handled.
      on_progress: told of `verifying` and `downloading` in bytes.
      uninterrupted: entered around a swap with its hooks, where an interrupt would leave the servers in between.

    Raises:
      ServerUnavailable: the daemon cannot be reached at the start. Later it is waited for, but with once.
      NotFound: with once, there is no such alias, or the version is no longer kept.
      PullError: the folder is used by another follower, or holds something else, or cannot be written.
      InvalidArgument: form, rank, keep or alias are none.
    """
    if form not in ("model", "adapter"):
        raise InvalidArgument(f"{form!r} is neither model nor adapter.")
    if rank is not None and (form != "adapter" or rank < 1):
        raise InvalidArgument("only an adapter has a rank, and that is at least 1.")
    if keep < 1:
        raise InvalidArgument(f"keep is {keep}: at least one version is kept.")

    def pull(version: int, folder: Path, watched: Callable[[], None]) -> None:
        def tell(progress: Progress) -> None:
            watched()
            if on_progress:
                on_progress(progress)

        if form == "adapter":
            client.pull_adapter(f"v{version}", to=folder, rank=rank, on_progress=tell)
        else:
            client.pull(f"v{version}", to=folder, on_progress=tell)

    def events() -> Generator[Event, None, None]:
        present = _present(client, alias, once)
        try:
            with Place.opened(Path(to), form, rank) as place:
                metrics = _metrics(metrics_file, alias, place, present)
                swapper = Swapper(place, alias, hooks, notify, keep, metrics)
                with (
                    Fixed(present)
                    if once and present
                    else Target(client.server, alias, present, metrics.show_target) as target
                ):
                    yield from _Follower(place, swapper, target, metrics, pull, uninterrupted, once).run()
        except OSError as error:
            raise PullError(f"cannot write {error.filename or to}: {error.strerror or error}.") from None

    return events()


def _present(client: Client, alias: str, once: bool) -> int | None:
    try:
        return client.show(alias).version
    except NotFound:
        if once:
            raise
        return None


def _metrics(file: str | Path | None, alias: str, place: Place, present: int | None) -> Metrics:
    metrics = Metrics(Path(file).expanduser() if file else None, alias, place.record)
    if present:
        metrics.show_target(present)
    else:
        metrics.show(place.record)
    if complaint := metrics.complaint():
        raise PullError(complaint)
    return metrics


class _MovedOn(Exception):
    """The alias names another version than the one that is being pulled."""


class _Follower:
    def __init__(
        self,
        place: Place,
        swapper: Swapper,
        target: Target | Fixed,
        metrics: Metrics,
        pull: Callable[[int, Path, Callable[[], None]], None],
        uninterrupted: Callable[[], AbstractContextManager[object]],
        once: bool,
    ) -> None:
        self._place = place
        self._swapper = swapper
        self._target = target
        self._metrics = metrics
        self._pull = pull
        self._uninterrupted = uninterrupted
        self._once = once
        self._seconds_to_next_pull = FIRST_SECONDS_TO_NEXT_PULL

    def run(self) -> Iterator[Event]:
        """Yield what happens."""
        aim = self._target.aim
        event = self._swapper.event
        yield from self._swapper.prune(aim.version)
        if aim.version is None:
            yield event(EventKind.WAITING, "there is no such alias yet, or it names nothing: waiting for it.")
        elif self._once and self._swapper.is_done(aim.version):
            yield event(EventKind.UNCHANGED, f"v{aim.version} is applied already.", aim.version)
        given_up: Aim | None = None
        while True:
            yield from self._asides()
            aim = self._target.aim
            if aim.version is None or aim == given_up or self._swapper.is_done(aim.version):
                if self._once:
                    return
                self._target.wait(aim, None)
                continue
            if self._place.current != aim.version and not (yield from self._fetched(aim, aim.version)):
                continue
            with self._uninterrupted():
                yield self._swapper.point(aim.version)
                events = self._swapper.settle(aim.version)
                yield from events
            if any(end.kind in OUTCOMES and end.kind != EventKind.APPLIED for end in events):
                given_up = aim

    def _fetched(self, aim: Aim, version: int) -> Generator[Event, None, bool]:
        yield self._swapper.event(EventKind.PULLING, f"pulling v{version}.", version)

        def watched() -> None:
            if self._target.aim != aim:
                raise _MovedOn

        try:
            self._pull(version, self._place.path(version), watched)
            watched()
        except _MovedOn:
            return False
        except FoldinError as error:
            if self._once:
                raise
            seconds = self._seconds_to_next_pull
            self._seconds_to_next_pull = min(2 * seconds, MOST_SECONDS_TO_NEXT_PULL)
            message = f"v{version} could not be pulled, which is tried again in {seconds:g} s: {error}"
            yield self._swapper.event(EventKind.PULL_FAILED, message, version)
            self._target.wait(aim, seconds)
            return False
        self._seconds_to_next_pull = FIRST_SECONDS_TO_NEXT_PULL
        return True

    def _asides(self) -> Iterator[Event]:
        if outage := self._target.outage():
            yield self._swapper.event(EventKind.UNREACHABLE, f"{outage} Waiting for it.")
        if self._target.recovered():
            yield self._swapper.event(EventKind.REACHABLE, "the daemon answers again.")
        if complaint := self._metrics.complaint():
            yield self._swapper.event(EventKind.WARNING, complaint)
