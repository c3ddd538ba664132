"""One fold: a submission streamed through a merge rule, block by block, in constant memory.

Two passes: accumulate.py writes the new state, and then publish.py what is published of it.
"""

import base64
import math
from collections.abc import Callable
from pathlib import Path

from foldind.checkpoints.checkpoint import Checkpoint, open_checkpoint
from foldind.checkpoints.plan import Plan
from foldind.checkpoints.statistics import open_statistics
from foldind.errors import CheckpointRefused, StateError
from foldind.merging.backend import BACKENDS
from foldind.merging.catalog import CATALOG
from foldind.merging.record import Record
from foldind.merging.registry import make_rule
from foldind.worker.accumulate import accumulate
from foldind.worker.messages import FoldRequest, FoldResult, PublishRequest, Report
from foldind.worker.ordered import parallelism_of
from foldind.worker.publish import open_base, publish


def fold_submission(request: FoldRequest, report: Report) -> FoldResult:
    """Fold a submission and publish the merged model into the request's folders; every file written is durable.

    Raises:
      CheckpointRefused: its values cannot be merged (NaN, infinite, zero task vector, out of the dtype's range).
      OSError: a disk is full or failing, or a file is gone.
    """
    job = request.job
    parallelism = parallelism_of(job.threads, job.memory_budget)
    plan = Plan.from_json(Path(job.plan).read_bytes())
    rule = make_rule(job.rule, job.hyper_parameters, job.publication, BACKENDS[job.backend])
    base = open_base(Path(job.base))
    submission = _open_admitted(open_checkpoint, Path(request.submission))
    kind = CATALOG[rule.name].statistics
    statistics = _open_admitted(open_statistics, Path(request.submission)) if kind else None

    accumulation = accumulate(request, plan, rule, base, submission, statistics, parallelism, report)
    task_vector_norm = math.hypot(*(tensor.task_vector_norm for tensor in accumulation.tensors))
    if task_vector_norm == 0:
        raise CheckpointRefused("it equals the base: there is nothing to merge", "submit the fine-tuned checkpoint")
    before, sign = request.record, -1 if request.take_out else 1
    record = Record(before.submissions + sign, before.task_vector_norm_sum + sign * task_vector_norm, accumulation.norm)
    published = publish(
        PublishRequest(job, record, request.state_folder, (request.new_bases,), request.snapshot_folder), report
    )
    return FoldResult(
        record=record,
        task_vector_norm=task_vector_norm,
        lambda_=published.lambda_,
        dropped=accumulation.dropped_norm / accumulation.norm if accumulation.norm else 0.0,
        tensors=accumulation.tensors,
        bases_computed=accumulation.bases_computed,
        adapter=published.adapter,
        sketch=base64.b64encode(accumulation.sketch.numpy().astype("<f4").tobytes()).decode(),
        state_files=accumulation.files,
        snapshot_files=published.snapshot_files,
        peak_resident_bytes=0,
    )


def _open_admitted(read: Callable[[Path], Checkpoint], folder: Path) -> Checkpoint:
    try:
        return read(folder)
    except CheckpointRefused as error:  # it was in order when it was acknowledged: no reason to forget it
        raise StateError(f"the daemon's copy of it is damaged: {error.reason}", "see `foldind fsck`") from error
