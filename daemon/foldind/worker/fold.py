"""One fold: a submission streamed through a merge rule, block by block, in constant memory.

Two passes: accumulate.py writes the new state, whose norm gives lambda, and then publish.py writes the merged model,
merged_adapter.py an adapter of it, or both do.
"""

import errno
import math
import os
from pathlib import Path

import torch

from foldind.checkpoints.checkpoint import Checkpoint, open_checkpoint
from foldind.checkpoints.plan import Plan
from foldind.errors import CheckpointRefused, StateError
from foldind.memory import resident_bytes
from foldind.merging import RULES
from foldind.merging.backend import BACKENDS
from foldind.merging.rule import Record
from foldind.worker.accumulate import accumulate
from foldind.worker.merged_adapter import publish_adapter
from foldind.worker.messages import FoldRequest, FoldResult, Report
from foldind.worker.ordered import Parallelism
from foldind.worker.publish import publish_snapshot


def fold_submission(request: FoldRequest, report: Report) -> FoldResult:
    """Fold a submission and publish the merged model into the request's folders; every file written is durable.

    Raises:
      CheckpointRefused: its values cannot be merged (NaN, infinite, zero task vector, out of the dtype's range).
      OSError: a disk is full or failing, or a file is gone.
    """
    torch.set_num_threads(request.threads)
    parallelism = Parallelism(
        at_once=max(1, len(os.sched_getaffinity(0)) // request.threads),
        threads=request.threads,
        budget=request.memory_budget - resident_bytes("VmRSS"),
        limit=request.memory_budget,
    )
    plan = Plan.from_json(Path(request.plan).read_bytes())
    rule = RULES[request.rule](**request.hyper_parameters, backend=BACKENDS[request.backend])
    base = _open_base(Path(request.base))
    submission = _open_admitted(Path(request.submission))

    accumulation = accumulate(request, plan, rule, base, submission, parallelism, report)
    task_vector_norm = math.hypot(*(tensor.task_vector_norm for tensor in accumulation.tensors))
    if task_vector_norm == 0:
        raise CheckpointRefused("it equals the base: there is nothing to merge", "submit the fine-tuned checkpoint")
    record = Record(request.submissions + 1, request.task_vector_norm_sum + task_vector_norm, accumulation.norm)
    lambda_ = rule.divisor(record)
    snapshot_files, adapter = {}, None
    if "model" in request.publish:
        snapshot_files = publish_snapshot(request, plan, rule, base, lambda_, parallelism, report)
    if "adapter" in request.publish:
        files, adapter = publish_adapter(request, plan, rule, base, lambda_, record, parallelism, report)
        snapshot_files |= files
    return FoldResult(
        submissions=record.submissions,
        task_vector_norm_sum=record.task_vector_norm_sum,
        accumulated_norm=record.accumulated_norm,
        task_vector_norm=task_vector_norm,
        lambda_=lambda_,
        dropped=accumulation.dropped_norm / accumulation.norm if accumulation.norm else 0.0,
        tensors=accumulation.tensors,
        bases_computed=accumulation.bases_computed,
        adapter=adapter,
        state_files=accumulation.files,
        snapshot_files=snapshot_files,
        peak_resident_bytes=0,
    )


def _open_base(folder: Path) -> Checkpoint:
    try:
        return open_checkpoint(folder)
    except CheckpointRefused as error:  # it was in order when it was copied
        raise OSError(
            errno.EIO, f"the base is damaged or gone: {error.reason}; see `foldind fsck`", str(folder)
        ) from error


def _open_admitted(folder: Path) -> Checkpoint:
    try:
        return open_checkpoint(folder)
    except CheckpointRefused as error:  # it was in order when it was acknowledged: no reason to forget it
        raise StateError(f"the daemon's copy of it is damaged: {error.reason}", "see `foldind fsck`") from error
