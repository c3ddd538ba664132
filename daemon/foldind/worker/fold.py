"""One fold: a submission streamed through a merge rule, tensor by tensor, in constant memory.

Two passes. The first reads the old state, the base and the submission, and writes the new state, whose norm gives
lambda. The second reads the base and the new state, and writes the merged model.
"""

import errno
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import INDEX, Checkpoint, open_checkpoint
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.checkpoints.tensors import TensorReader
from foldind.errors import CheckpointRefused, StateError
from foldind.merging import RULES
from foldind.merging.rule import Record, Rule
from foldind.state.accumulators import ACCUMULATED, AccumulatedState, new_accumulated_file
from foldind.state.durable import FileDigest, copy_file
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from foldind.worker.messages import FoldRequest, FoldResult, Progress, TensorStatistics

BLOCK_ELEMENTS = 2 * 1024 * 1024
"""Tensors that need not be whole are handled in row blocks of about so many elements."""
BLOCK_BYTES = 4 * 1024 * 1024

Report = Callable[[Progress], None]


def fold_submission(request: FoldRequest, report: Report) -> FoldResult:
    """Fold a submission and publish the merged model into the request's folders; every file written is durable.

    Raises:
      CheckpointRefused: its values cannot be merged (NaN, infinite, zero task vector, out of the dtype's range).
      OSError: a disk is full or failing, or a file is gone.
    """
    torch.set_num_threads(request.threads)
    plan = Plan.from_json(Path(request.plan).read_bytes())
    rule = RULES[request.rule](**request.hyper_parameters)
    base = _open_base(Path(request.base))
    submission = _open_admitted(Path(request.submission))
    state_folder, snapshot_folder = Path(request.state_folder), Path(request.snapshot_folder)

    statistics, accumulated_norm, state_file = _accumulate(request, plan, rule, base, submission, report)
    task_vector_norm = math.hypot(*(tensor.task_vector_norm for tensor in statistics))
    if task_vector_norm == 0:
        raise CheckpointRefused("it equals the base: there is nothing to merge", "submit the fine-tuned checkpoint")
    record = Record(request.submissions + 1, request.task_vector_norm_sum + task_vector_norm, accumulated_norm)
    lambda_ = rule.divisor(record)
    snapshot_files = _publish(plan, rule, base, state_folder, lambda_, snapshot_folder, report)
    return FoldResult(
        submissions=record.submissions,
        task_vector_norm_sum=record.task_vector_norm_sum,
        accumulated_norm=record.accumulated_norm,
        task_vector_norm=task_vector_norm,
        lambda_=lambda_,
        tensors=statistics,
        state_files={ACCUMULATED: state_file},
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


class _NotFiniteError(Exception):
    """A task vector has NaN or infinite elements."""


def _accumulate(
    request: FoldRequest, plan: Plan, rule: Rule, base: Checkpoint, submission: Checkpoint, report: Report
) -> tuple[tuple[TensorStatistics, ...], float, FileDigest]:
    statistics, norms = [], []
    with ExitStack() as stack:
        old = stack.enter_context(AccumulatedState(Path(request.accumulated) if request.accumulated else None))
        task_vectors = stack.enter_context(_TaskVectors(plan, base, submission))
        new = stack.enter_context(new_accumulated_file(Path(request.state_folder), plan))
        for done, tensor in enumerate(plan.folded, start=1):
            try:
                tensor_statistics, norm = _fold_tensor(tensor, rule, task_vectors, old, new)
            except _NotFiniteError:
                raise _refusal(task_vectors.not_finite(plan.folded[done - 1 :])) from None
            statistics.append(tensor_statistics)
            norms.append(norm)
            report(Progress("folding", done, len(plan.folded), tensor.name))
        if not math.isfinite(accumulated_norm := math.hypot(*norms)):
            raise CheckpointRefused(
                "its values are so large that merging overflows float32", "check the checkpoint's training run"
            )
        return tuple(statistics), accumulated_norm, new.finish()


def _fold_tensor(
    tensor: PlannedTensor, rule: Rule, task_vectors: "_TaskVectors", old: AccumulatedState, new: TensorFileWriter
) -> tuple[TensorStatistics, float]:
    """Write one tensor of the new state; return the statistics of the fold, and the norm of what was written."""
    task_vector_norms, accumulated_norms, removed_squared, split_rank = [0.0], [0.0], 0.0, 0
    for rows in _blocks(tensor, whole_matrices=True):
        accumulated, task_vector = old.read(tensor, rows), task_vectors.read(tensor, rows)
        task_vector_norms.append(_norm(task_vector))
        if not math.isfinite(task_vector_norms[-1]):
            raise _NotFiniteError
        basis = None
        if tensor.treatment is Treatment.PROJECTED:
            accumulated, task_vector = accumulated.squeeze(0), task_vector.squeeze(0)  # one of stacked experts
            if old.exists and task_vector_norms[-1] > 0:
                basis = rule.decompose(accumulated)
                split_rank = max(split_rank, basis.split_rank)
        folded = rule.fold(accumulated, task_vector, basis)
        removed_squared += folded.removed_squared
        accumulated_norms.append(_norm(folded.accumulated))
        new.write(_bytes(folded.accumulated))
    norm = math.hypot(*task_vector_norms)
    kept = math.sqrt(max(0.0, 1 - removed_squared / norm**2)) if norm else 1.0
    return TensorStatistics(tensor.name, tensor.treatment, norm, kept, split_rank), math.hypot(*accumulated_norms)


def _publish(
    plan: Plan, rule: Rule, base: Checkpoint, state_folder: Path, lambda_: float, folder: Path, report: Report
) -> dict[str, FileDigest]:
    files, done = {}, 0
    with TensorReader(base.folder) as reader, AccumulatedState(state_folder) as state:
        for name, header in base.headers.items():
            specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in header.tensors]
            with TensorFileWriter(folder / name, specs, {"format": "pt"}) as writer:
                for tensor in header.tensors:
                    planned = plan.by_name[tensor.name]
                    if planned.treatment is Treatment.FROZEN:
                        for start in range(0, tensor.nbytes, BLOCK_BYTES):
                            stop = min(start + BLOCK_BYTES, tensor.nbytes)
                            writer.write(_bytes(reader.read_bytes(tensor, start, stop)))
                    else:
                        source = plan.by_name[planned.tied_to] if planned.tied_to else planned
                        for rows in _blocks(planned, whole_matrices=False):
                            merged = rule.publish(reader.read(tensor, rows), state.read(source, rows), lambda_)
                            _check_range(merged, tensor.name)
                            writer.write(_bytes(merged))
                    done += 1
                    report(Progress("publishing", done, len(plan.tensors), tensor.name))
                files[name] = writer.finish()
    if INDEX in base.files:
        files[INDEX] = copy_file(base.folder / INDEX, folder / INDEX)
    return files


def _check_range(merged: Tensor, name: str) -> None:
    if not math.isfinite(_norm(merged)):
        raise CheckpointRefused(
            f"merged, tensor {name!r} would leave the range of the base's dtype, {merged.dtype}",
            "check the checkpoint's training run",
        )


def _refusal(names: Sequence[str]) -> CheckpointRefused:
    more = f" and {len(names) - 5} more tensors" if len(names) > 5 else ""
    return CheckpointRefused(
        f"it has NaN or infinite values in {', '.join(names[:5])}{more}",
        "the training run diverged or overflowed; submit a checkpoint from before that",
    )


class _TaskVectors:
    """tau = submission - base, block by block, float32; zero for tensors that a partial submission lacks."""

    def __init__(self, plan: Plan, base: Checkpoint, submission: Checkpoint):
        self._base_tensors = base.tensors
        self._tensors = submission.tensors
        self._tied_names = plan.tied_names
        self._readers = ExitStack()
        self._base = self._readers.enter_context(TensorReader(base.folder))
        self._submission = self._readers.enter_context(TensorReader(submission.folder))

    def __enter__(self) -> "_TaskVectors":
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.close()

    def not_finite(self, tensors: Iterable[PlannedTensor]) -> list[str]:
        """Return which of the tensors have NaN or infinite elements."""
        return [
            tensor.name
            for tensor in tensors
            if not all(math.isfinite(_norm(self.read(tensor, rows))) for rows in _blocks(tensor, whole_matrices=False))
        ]

    def read(self, tensor: PlannedTensor, rows: tuple[int, int] | None) -> Tensor:
        """Return the rows [first, last) of a task vector, or all of it, float32."""
        base = self._base.read(self._base_tensors[tensor.name], rows).float()
        names = [name for name in (tensor.name, *self._tied_names.get(tensor.name, ())) if name in self._tensors]
        if not names:
            return base.zero_()
        first, *others = (self._submission.read(self._tensors[name], rows) for name in names)
        for name, other in zip(names[1:], others, strict=True):
            if not torch.allclose(first.float(), other.float(), rtol=0, atol=0, equal_nan=True):
                raise CheckpointRefused(
                    f"tensors {names[0]!r} and {name!r} are one in the base, and differ in it",
                    "fine-tune with tied weights, or use a base in which they are not tied",
                )
        return first.float().sub_(base)


def _blocks(tensor: PlannedTensor, *, whole_matrices: bool) -> Iterator[tuple[int, int] | None]:
    """Yield the row ranges in which a tensor is handled; None means all of it."""
    if not tensor.shape:
        yield None
        return
    rows = tensor.shape[0]
    if whole_matrices and tensor.treatment is Treatment.PROJECTED:
        step = rows if len(tensor.shape) == 2 else 1
    else:
        step = max(1, BLOCK_ELEMENTS // max(1, math.prod(tensor.shape[1:])))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data
