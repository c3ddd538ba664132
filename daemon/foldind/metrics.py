"""What the daemon counts while it happens; everything that can be derived instead is in serving/collector.py."""

import time
from collections.abc import Mapping
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.registry import Collector

Door = Literal["grpc", "path", "inbox"]
"""The ways in: uploaded in chunks, copied from a path, dropped into the watched folder."""
Stage = Literal["wait", "fold", "publish", "commit"]
"""Of a merge: in the queue, making the new state, writing the merged model, making it a version."""
Outcome = Literal["passed", "failed"]
"""Of the gate."""

_STAGE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


class Metrics:
    """Counters and histograms on a registry of their own, beside the figures of this process."""

    def __init__(self) -> None:
        disable_created_metrics()  # when a counter began is when the process did, which process_start_time_seconds says
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        received = Counter(
            "foldin_received_bytes",
            "Bytes of checkpoints that were written to the state folder, by the door they came through.",
            ["door"],
            unit="bytes",
            registry=self.registry,
        )
        self.received: Mapping[Door, Counter] = {door: received.labels(door) for door in get_args(Door)}
        """By door, bytes."""
        filed = Counter(
            "foldin_inbox_filed",
            "Drops in the watched folder that were settled, by the folder they lie in now.",
            ["folder"],
            registry=self.registry,
        )
        self.filed: Mapping[str, Counter] = {folder: filed.labels(folder) for folder in ("accepted", "rejected")}
        """By folder of the inbox, drops."""
        self.sent = Counter(
            "foldin_sent_bytes",
            "Bytes of snapshots that were sent to clients.",
            unit="bytes",
            registry=self.registry,
        )
        stages = Histogram(
            "foldin_merge_stage_seconds",
            "Durations of the stages of merges that became versions: wait (in the queue), fold (the new state), "
            "publish (the merged model), commit (making it a version).",
            ["stage"],
            unit="seconds",
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._stages: Mapping[Stage, Histogram] = {stage: stages.labels(stage) for stage in get_args(Stage)}

        runs = Counter(
            "foldin_gate_runs",
            "Runs of the gate's command that ended, by what they said.",
            ["outcome"],
            registry=self.registry,
        )
        self._gate_runs = {verdict: runs.labels(verdict) for verdict in get_args(Outcome)}
        self._gate_seconds = Histogram(
            "foldin_gate_seconds",
            "Durations of runs of the gate's command.",
            unit="seconds",
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )

    def add(self, collector: Collector) -> None:
        """Expose what a collector derives, too."""
        self.registry.register(collector)

    def observe_gate(self, outcome: Outcome, seconds: float) -> None:
        """Record a run of the gate's command."""
        self._gate_runs[outcome].inc()
        self._gate_seconds.observe(seconds)

    def observe_merge(self, stages: "MergeStages") -> None:
        """Record the stages of one merge, once it is a version."""
        for stage, seconds in stages.end().items():
            self._stages[stage].observe(seconds)


class MergeStages:
    """The clock of one merge.

    Args:
      waited: seconds in the queue, by the wall clock.
    """

    def __init__(self, waited: float):
        self._stage: Stage = "fold"
        self._since = time.monotonic()
        self._seconds: dict[Stage, float] = {"wait": max(0.0, waited)}

    def begin(self, stage: Stage) -> None:
        """Enter a stage, unless it is the present one."""
        if stage != self._stage:
            self.end()
            self._stage = stage

    def end(self) -> Mapping[Stage, float]:
        """Leave the present stage, and return the seconds of each so far."""
        now = time.monotonic()
        self._seconds[self._stage] = now - self._since
        self._since = now
        return self._seconds
