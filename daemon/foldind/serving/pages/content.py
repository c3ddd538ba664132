"""What the status page shows, as values: no HTML here. Methods block on the disk: call them off the event loop."""

from collections.abc import Mapping
from dataclasses import dataclass

from foldind.service import MergeService
from foldind.serving.downloads import Downloads
from foldind.serving.manifests import Manifests
from foldind.serving.pages.heatmap import HeatMap, heat_map
from foldind.serving.pages.likeness import Alike, Likenesses
from foldind.state.census import Census
from foldind.state.durable import FileDigest
from foldind.state.ledger import Ledger
from foldind.state.records import Submission, SubmissionState, Version, VersionState
from foldind.state.versions import Versions
from foldind.worker.messages import Progress

PAGE = 25
"""Versions on a page of the timeline."""
_QUEUE = 30
_TROUBLES = 5
_LINEAGE = 50
_WAITING = (SubmissionState.MERGING, SubmissionState.QUEUED, SubmissionState.RECEIVING)


@dataclass(frozen=True)
class Status:
    """The daemon, and what it serves."""

    state: str
    """`ready`, `paused` or `not ready`."""
    reason: str
    """Why it is not ready, a sentence; empty: it is."""
    head: Version | None
    """The newest version."""
    aliases: tuple[tuple[str, Version], ...]


@dataclass(frozen=True)
class Waiting:
    """A submission that is on its way."""

    submission: Submission
    size: int
    """Bytes."""
    progress: Progress | None
    """Of its merge, once that runs."""


@dataclass(frozen=True)
class Queue:
    """What is on its way, and what did not get through."""

    waiting: tuple[Waiting, ...]
    """The first of them."""
    counts: Mapping[SubmissionState, int]
    troubles: tuple[Submission, ...]
    """The most recent that were refused or quarantined, newest first."""

    @property
    def more(self) -> int:
        """How many are on their way besides those listed."""
        return sum(self.counts[state] for state in _WAITING) - len(self.waiting)

    @property
    def sentence(self) -> str:
        """The same in short, for who hears it."""
        merging = [item.submission.name or item.submission.id for item in self.waiting if item.progress]
        now = f"merging {merging[0]}, " if merging else ""
        queued, receiving = self.counts[SubmissionState.QUEUED], self.counts[SubmissionState.RECEIVING]
        return f"{now}{queued} waiting, {receiving} arriving"


@dataclass(frozen=True)
class VersionFigures:
    """A version, and what belongs to it."""

    version: Version
    submission: Submission
    kept: float | None
    """Share of its task vector that the projection kept; None: not known."""
    size: int
    """Bytes of its files."""
    downloads: int
    """Since the daemon started."""

    @property
    def is_kept(self) -> bool:
        """Whether its files are."""
        return self.version.state is not VersionState.PRUNED


@dataclass(frozen=True)
class Timeline:
    """Some versions, newest first."""

    versions: tuple[VersionFigures, ...]
    older: int
    """What to ask for those before these; 0: there are none."""
    newest: bool
    """Whether these are the newest."""

    @property
    def gated(self) -> bool:
        """Whether the gate has or had to do with any of them."""
        return any(figures.version.gate for figures in self.versions)


@dataclass(frozen=True)
class Overview:
    """The page at /."""

    status: Status
    queue: Queue
    timeline: Timeline
    alike: Alike


@dataclass(frozen=True)
class Details:
    """The page of a version."""

    figures: VersionFigures
    files: Mapping[str, FileDigest]
    lineage: tuple[Version, ...]
    """Newest first, from its parent."""
    took_out: Submission | None
    map: HeatMap | None
    """None: its files are no longer kept, or its manifest says nothing of tensors."""


class Content:
    """Gathers what is shown."""

    def __init__(
        self,
        ledger: Ledger,
        versions: Versions,
        census: Census,
        likenesses: Likenesses,
        manifests: Manifests,
        service: MergeService,
        downloads: Downloads,
    ):
        self._ledger = ledger
        self._versions = versions
        self._census = census
        self._likenesses = likenesses
        self._manifests = manifests
        self._service = service
        self._downloads = downloads

    def overview(self, before: int = 0) -> Overview:
        """Return the page at /, with the versions below a number; 0: the newest."""
        return Overview(self._status(), self._queue(), self._timeline(before), self._likenesses.newest())

    def details(self, number: int) -> Details:
        """Return the page of a version. Raises NotFound."""
        version = self._versions.get(number)
        figures = self._figures(version)
        took_out = figures.submission.took_out
        try:
            tensors = () if version.state is VersionState.PRUNED else self._manifests.of(number).projected
        except FileNotFoundError:  # pruned a moment ago
            tensors = ()
        return Details(
            figures=figures,
            files=version.files,
            lineage=tuple(self._versions.lineage(number, 1 + _LINEAGE)[1:]),
            took_out=self._ledger.get(took_out) if took_out and not version.variant else None,
            map=heat_map(tensors) if tensors else None,
        )

    def _status(self) -> Status:
        reason = self._service.unready_reason
        state = "ready" if not reason else "paused" if reason == self._service.pause.reason else "not ready"
        aliases = [(alias, version) for version in self._versions.kept() for alias in version.aliases]
        return Status(state, reason, self._versions.head(), tuple(sorted(aliases, key=lambda item: item[0])))

    def _queue(self) -> Queue:
        progress = dict(self._service.progress)
        first = [submission for state in _WAITING for submission in self._ledger.page(0, _QUEUE, [state])]
        return Queue(
            waiting=tuple(
                Waiting(submission, _size(submission.files), progress.get(submission.id))
                for submission in first[:_QUEUE]
            ),
            counts=self._census.submissions(),
            troubles=tuple(
                self._ledger.newest(_TROUBLES, SubmissionState.REJECTED, SubmissionState.QUARANTINED),
            ),
        )

    def _timeline(self, before: int) -> Timeline:
        found = self._versions.page_before(before, PAGE + 1) if before else self._newest()
        shown = found[:PAGE]
        return Timeline(
            versions=tuple(map(self._figures, shown)),
            older=shown[-1].version if len(found) > PAGE else 0,
            newest=not before or (bool(shown) and shown[0].version >= self._versions.last_number()),
        )

    def _newest(self) -> list[Version]:
        return self._versions.page_before(self._versions.last_number() + 1, PAGE + 1)

    def _figures(self, version: Version) -> VersionFigures:
        known = version.state is not VersionState.PRUNED and not version.variant
        return VersionFigures(
            version=version,
            submission=self._ledger.get(version.submission_id),
            kept=self._manifests.kept_share(version.version) if known else None,
            size=_size(version.files),
            downloads=self._downloads.of(version.version),
        )


def _size(files: Mapping[str, FileDigest]) -> int:
    return sum(digest.size for digest in files.values())
