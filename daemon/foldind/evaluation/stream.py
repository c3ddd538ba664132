"""One order through one rule: a checkpoint after the other is folded, and only the newest state is kept."""

import time
from dataclasses import dataclass
from pathlib import Path

from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.config import ServeSettings
from foldind.errors import CheckpointRefused
from foldind.evaluation.rules import NamedRule
from foldind.evaluation.tasks import Task
from foldind.merging.catalog import CATALOG
from foldind.merging.record import Record
from foldind.state.durable import copy_file, remove
from foldind.state.snapshots import companion_files
from foldind.worker.messages import FoldRequest, FoldResult, Job, Report
from foldind.worker.supervisor import Supervisor, WorkFailed

MEMORY_BUDGET: int = ServeSettings.model_fields["memory_budget"].default
"""Of the worker, in bytes."""


@dataclass(frozen=True)
class Merged:
    """What a fold made."""

    model: Path
    """Folder of the merged model, if it was to be published; it lasts until the next fold."""
    seconds: float
    """That the fold took, publishing and bases included."""
    state_bytes: int
    """Of the accumulated state, on disk."""


class Stream:
    """Folds one checkpoint after the other, as the daemon does, into folders of its own.

    Args:
      base: folder of the base.
      plan: file of its plan.
      rule: how it merges.
      supervisor: whose worker folds.
      place: folder for the state and the merged model; what is in it is removed.
    """

    def __init__(self, base: Path, plan: Path, rule: NamedRule, supervisor: Supervisor, place: Path):
        self._base = base.absolute()
        self._plan = plan.absolute()
        self._rule = rule
        self._supervisor = supervisor
        self._place = place.absolute()
        self._last: FoldResult | None = None
        self._state = Path()
        self._bases = self._place
        remove(self._place)
        self._place.mkdir(parents=True)

    async def fold(self, task: Task, publish: bool, report: Report) -> Merged:
        """Fold a task's checkpoint.

        Args:
          task: whose.
          publish: whether a merged model is wanted.
          report: told how far it is.

        Raises:
          CheckpointRefused: its values cannot be merged.
          WorkFailed, WorkerDied: something else is wrong.
          OSError: a disk is full or failing.
        """
        last = self._last
        place = self._place / f"{last.record.submissions + 1 if last else 1}"
        state, bases, snapshot = place / "state", place / "bases", place / "model"
        for folder in (state, bases, snapshot):
            folder.mkdir(parents=True)
        settings, publication = self._rule.settings, self._rule.publication
        if not publish and CATALOG[settings.rule].own is None:
            publication = "mean"  # the state is the same, and nothing has to be decomposed
        job = Job(
            base=str(self._base),
            plan=str(self._plan),
            rule=settings.rule,
            hyper_parameters=settings.hyper_parameters,
            publication=publication,
            backend=settings.backend,
            threads=settings.threads,
            memory_budget=MEMORY_BUDGET,
            # What a rule of its own publication merges is known by its norm only once it is there.
            publish=("model",) if publish or CATALOG[settings.rule].own is not None else (),
            adapter_rank=0,
        )
        request = FoldRequest(
            job=job,
            record=last.record if last else Record(0, 0.0, 0.0),
            max_rank=settings.max_rank,
            submission=str(task.checkpoint.absolute()),
            vocab=VocabPolicy.SAME,
            seed=task.digest,
            take_out=False,
            accumulated=str(self._state) if last else "",
            bases=str(self._bases),
            state_folder=str(state),
            new_bases=str(bases),
            snapshot_folder=str(snapshot),
        )
        await self._supervisor.start()  # so that its imports are no part of the fold
        started = time.perf_counter()
        try:
            result = await self._supervisor.fold(request, report)
        except CheckpointRefused as error:
            raise CheckpointRefused(f"task {task.name}: {error.reason}", error.hint) from error
        except WorkFailed as error:
            raise WorkFailed(f"task {task.name} could not be folded: {error.reason}") from error
        seconds = time.perf_counter() - started
        if publish:
            for path in companion_files(self._base):
                copy_file(path, snapshot / path.name)
        if last:
            remove(self._state.parent)
        self._last, self._state, self._bases = result, state, bases
        return Merged(snapshot, seconds, sum(path.stat().st_size for path in state.iterdir()))
