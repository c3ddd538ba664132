"""Metrics that are derived when they are asked for: from the ledger, the state folder, the loop and the worker."""

import logging
import math
import os
import platform
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from foldind.config import MergeSettings
from foldind.intake.inbox import Inbox
from foldind.pause import PAUSES
from foldind.preparation import Preparation
from foldind.service import MergeService
from foldind.serving.manifests import Manifests
from foldind.state.census import Census
from foldind.state.folder import StateFolder
from foldind.state.records import SubmissionState
from foldind.state.sketches import Sketches, cosine
from foldind.state.versions import Versions
from foldind.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

OUTCOMES = (
    SubmissionState.MERGED,
    SubmissionState.REJECTED,
    SubmissionState.QUARANTINED,
    SubmissionState.WITHDRAWN,
)
"""The states that submissions end in."""

COMPARED = 64
"""With how many of those merged before it the newest submission is compared."""


@dataclass(frozen=True)
class StateCollector(Collector):
    """Everything that is known without counting; `collect` blocks on the disk."""

    folder: StateFolder
    merge: MergeSettings
    census: Census
    versions: Versions
    sketches: Sketches
    service: MergeService
    supervisor: Supervisor
    preparation: Preparation
    manifests: Manifests
    inbox: Inbox | None
    gate_alias: str

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; what cannot be read at the moment is left out."""
        parts: tuple[Callable[[], Iterable[Metric]], ...] = (
            self._process,
            self._inbox,
            self._submissions,
            self._model,
            self._likeness,
            self._gate,
            self._disk,
        )
        for part in parts:
            try:
                yield from list(part())
            except (OSError, sqlite3.Error, ValueError, KeyError) as error:
                log.warning("some metrics are left out: %s", error)

    def _process(self) -> Iterator[Metric]:
        build = {"version": version("foldin"), "python": platform.python_version(), "torch": version("torch")}
        yield InfoMetricFamily("foldin_build", "What is running.", build)
        algebra = {"backend": self.merge.backend, "threads": str(self.merge.threads)}
        yield InfoMetricFamily("foldin_linear_algebra", "Whose products merge, and threads for each.", algebra)
        ready = not self.service.unready_reason
        yield _gauge("foldin_ready", "Whether checkpoints are taken and merged: what /readyz says.", float(ready))
        paused: dict[str, float] = {reason: float(reason == self.service.pause.kind) for reason in PAUSES}
        yield _gauge(
            "foldin_paused", "Whether merging is paused: the disk is full or failing, or an error.", paused, "reason"
        )
        restarts = self.supervisor.restarts
        yield CounterMetricFamily("foldin_worker_restarts", "How often a worker that died was replaced.", restarts)
        peak = self.supervisor.peak_resident_bytes
        yield _gauge(
            "foldin_worker_peak_resident_bytes",
            "Peak resident memory of the worker in the last fold it finished; before the first, what its imports take.",
            float(peak),
        )

    def _inbox(self) -> Iterator[Metric]:
        failing = bool(self.inbox and self.inbox.trouble)
        yield _gauge("foldin_inbox_failing", "Whether the watched folder cannot be looked through.", float(failing))
        there, stuck = self.inbox.drops() if self.inbox else (0, 0)
        yield _gauge("foldin_inbox_drops", "Drops in the watched folder that are not filed yet.", there)
        yield _gauge("foldin_inbox_stuck_drops", "Those of them that cannot be copied or moved at present.", stuck)

    def _submissions(self) -> Iterator[Metric]:
        counts = self.census.submissions()
        by_state = {state.lower(): float(count) for state, count in counts.items()}
        yield _gauge("foldin_submissions", "Submissions by the state they are in.", by_state, "state")
        queued = float(counts[SubmissionState.QUEUED])
        yield _gauge("foldin_queue_length", "Submissions that wait to be merged.", queued)
        since = self.census.queued_since()
        waited = 0.0 if since is None else max(0.0, time.time() - since)
        yield _gauge("foldin_queue_oldest_seconds", "How long the submission that waits longest has waited.", waited)
        outcomes = CounterMetricFamily(
            "foldin_submission_outcomes",
            "How often submissions came to an end, by outcome, since the state folder was made.",
            labels=["outcome"],
        )
        transitions = self.census.transitions()
        for state in OUTCOMES:
            outcomes.add_metric([state.lower()], transitions[state])
        yield outcomes

    def _model(self) -> Iterator[Metric]:
        head = self.versions.head()
        yield _gauge(
            "foldin_version", "Number of the newest version of the model; 0: the base.", head.version if head else 0
        )
        if head is None:
            return
        yield _gauge("foldin_merged_submissions", "Submissions that the newest version contains.", head.submissions)
        yield _gauge("foldin_version_created_timestamp_seconds", "When it was made.", head.created_at)
        yield _gauge(
            "foldin_lambda", "The divisor that turns the accumulated sum into the merged update.", head.lambda_
        )
        yield _gauge("foldin_accumulated_norm", "Norm of the accumulated sum.", head.accumulated_norm)
        yield _gauge(
            "foldin_task_vector_norm_mean", "Mean norm of the task vectors merged.", head.record.mean_task_vector_norm
        )
        yield _gauge("foldin_task_vector_norm_last", "Norm of the task vector merged last.", head.task_vector_norm)
        ready, wanted = self.preparation.ready()
        yield _gauge("foldin_bases_wanted", "Bases that the next merge needs, one for each projected matrix.", wanted)
        yield _gauge("foldin_bases_ready", "Those of them that are there; the merge computes the others.", ready)
        figures = self.manifests.of(head.version)
        yield _gauge(
            "foldin_dropped_ratio",
            "Share of the accumulated norm that max_rank took out of it in the last merge.",
            figures.dropped,
        )
        if adapter := figures.adapter:
            yield _gauge("foldin_adapter_rank", "Rank of the newest version's adapter.", adapter.rank)
            yield _gauge(
                "foldin_adapter_retained_ratio",
                "Share of the squared norm of the merged update that this adapter holds.",
                adapter.retained,
            )
        changed = [tensor for tensor in figures.projected if tensor.norm]
        yield _gauge(
            "foldin_projection_kept_ratio",
            "Share of the last task vector's norm that projection kept, over the projected tensors.",
            _statistics([tensor.kept for tensor in changed]),
            "statistic",
        )
        yield _gauge(
            "foldin_split_rank",
            "Directions that counted as taken in the last merge, over the projected tensors.",
            _statistics([tensor.split_rank for tensor in changed]),
            "statistic",
        )

    def _gate(self) -> Iterator[Metric]:
        yield _gauge("foldin_gate_waiting", "Versions that wait for the gate or are at it.", self.census.gate_waiting())
        scores = GaugeMetricFamily(
            "foldin_gate_score",
            "What the gate measured of the newest version it was asked about, and of the one that its alias names.",
            labels=["score", "of"],
        )
        for of, judged in (("newest", self.versions.judged()), ("named", self.versions.aliased(self.gate_alias))):
            for name, score in (judged.gate.scores if judged and judged.gate else {}).items():
                scores.add_metric([name, of], score)
        if scores.samples:
            yield scores

    def _likeness(self) -> Iterator[Metric]:
        sketches = list(self.sketches.of(self.sketches.newest(1 + COMPARED)).values())
        cosines = [found for sketch in sketches[1:] if math.isfinite(found := abs(cosine(sketches[0], sketch)))]
        if cosines:
            yield _gauge(
                "foldin_task_vector_cosine_max",
                f"Largest |cosine| of the task vector merged last with those of the {COMPARED} before it, estimated "
                "from sketches; 1: it repeats one, above 0.1: it shares some of it.",
                max(cosines),
            )

    def _disk(self) -> Iterator[Metric]:
        folder = self.folder
        parts = {part.name: _disk_bytes(part) for part in (folder.base, folder.merge, folder.bases, folder.submissions)}
        parts |= {"snapshots": _disk_bytes(folder.snapshots), "ledger": _ledger_bytes(folder)}
        yield _gauge("foldin_state_bytes", "What the state folder takes on disk, by part.", parts, "part")
        disk = os.statvfs(folder.root)
        free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        yield _gauge("foldin_state_free_bytes", "What is free on the state folder's file system.", free)
        yield _gauge("foldin_state_capacity_bytes", "Size of the state folder's file system.", size)


def _gauge(name: str, documentation: str, values: float | Mapping[str, float], label: str = "") -> GaugeMetricFamily:
    last = name.rpartition("_")[2]
    family = GaugeMetricFamily(
        name, documentation, labels=[label] if label else [], unit=last if last in ("bytes", "seconds", "ratio") else ""
    )
    for key, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        family.add_metric([key] if label else [], value)
    return family


def _statistics(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else {}


def _disk_bytes(folder: Path) -> float:
    """Return what the files below a folder take on disk; what vanishes meanwhile takes nothing."""
    return float(sum(_allocated(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names))


def _ledger_bytes(folder: StateFolder) -> float:
    return float(
        sum(_allocated(folder.ledger.with_name(folder.ledger.name + suffix)) for suffix in ("", "-wal", "-shm"))
    )


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512  # the unit of st_blocks, whatever the file system's own
    except OSError:
        return 0
