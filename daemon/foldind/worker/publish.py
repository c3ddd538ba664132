"""Publishing an accumulated state: as the merged model, as an adapter of the merged update, or as both."""

import errno
from contextlib import ExitStack
from pathlib import Path

from foldind.checkpoints.checkpoint import Checkpoint, open_checkpoint
from foldind.checkpoints.plan import Plan
from foldind.checkpoints.tensors import TensorReader
from foldind.errors import CheckpointRefused
from foldind.merging.backend import BACKENDS
from foldind.merging.catalog import CATALOG
from foldind.merging.registry import make_rule
from foldind.state.accumulators import AccumulatedState
from foldind.state.durable import FileDigest
from foldind.state.tensorrecords import read_records
from foldind.worker.merged_adapter import publish_adapter
from foldind.worker.merged_model import PublishStep, publish_model
from foldind.worker.messages import AdapterStatistics, PublishRequest, PublishResult, Report
from foldind.worker.ordered import parallelism_of
from foldind.worker.prepare import prepare_missing_bases


def publish(request: PublishRequest, report: Report) -> PublishResult:
    """Publish an accumulated state into the request's folder; every file written is durable.

    Raises:
      CheckpointRefused: the merged model would leave the range of the base's dtype.
      OSError: a disk is full or failing, or a file is gone.
      DecompositionError: the publication needs a basis, and nothing converged.
    """
    job, record = request.job, request.record
    parallelism = parallelism_of(job.threads, job.memory_budget)
    plan = Plan.from_json(Path(job.plan).read_bytes())
    backend = BACKENDS[job.backend]
    rule = make_rule(job.rule, job.hyper_parameters, job.publication, backend)
    base = open_base(Path(job.base))
    files: dict[str, FileDigest] = {}
    norm: float | None = None
    adapter: AdapterStatistics | None = None
    with ExitStack() as stack:
        state = stack.enter_context(AccumulatedState(Path(request.accumulated), CATALOG[rule.name].all_slots))
        reader = stack.enter_context(TensorReader(base.folder))
        bases = [Path(folder) for folder in request.bases]
        if rule.publication.spectrum:
            prepare_missing_bases(plan, rule, state, bases, parallelism, report)
        records = read_records(Path(request.accumulated))
        step = PublishStep(plan, rule, backend.matmul, reader, state, bases, records, record)
        if "model" in job.publish:
            files, norm = publish_model(step, base, Path(request.snapshot_folder), parallelism, report)
        if rule.publication.divisor:
            lambda_ = rule.publication.divisor(record)
        else:
            assert norm is not None, "what no divisor gives is published as a model"
            lambda_ = record.accumulated_norm / norm if norm else 1.0
        if "adapter" in job.publish:
            more, adapter = publish_adapter(step, request, plan, base, state, lambda_, parallelism, report)
            files |= more
    return PublishResult(lambda_, adapter, files, 0)


def open_base(folder: Path) -> Checkpoint:
    """Open the base. Raises OSError."""
    try:
        return open_checkpoint(folder)
    except CheckpointRefused as error:  # it was in order when it was copied
        raise OSError(
            errno.EIO, f"the base is damaged or gone: {error.reason}; see `foldind fsck`", str(folder)
        ) from error
