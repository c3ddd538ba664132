"""A submission and a base whose vocabularies differ in size, seen as if both had the rows in common only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from foldind.checkpoints.adapter import whole_changes
from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.coding import ANEW
from foldind.checkpoints.compressed import CodedTensor, read_compressed
from foldind.checkpoints.form import Form, form_of
from foldind.checkpoints.header import ITEM_BYTES, TensorInfo
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.vocabulary import (
    RowCounts,
    VocabPolicy,
    is_resized,
    resized_tensors,
    size_is_last,
    with_rows,
)
from foldind.errors import CheckpointRefused


@dataclass(frozen=True)
class CommonRows:
    """The same things with the common rows; nothing is cut where the sizes are the same."""

    plan: Plan
    submission: Checkpoint
    rows: Mapping[str, RowCounts] = field(default_factory=dict)
    """Of the base's tensors that are cut, by name."""
    folded: Mapping[str, RowCounts] = field(default_factory=dict)
    """Of those that the submission has, by the name that they are folded under."""

    def cut_base(self, base: Checkpoint) -> Checkpoint:
        """Return the base with the common rows."""
        return _cut(base, {name: name for name in self.rows}, self.rows, self.plan)

    def cut_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one of the submission's tensors with the common rows.

        Args:
          name: of the tensor in the base.
          shape: that it has.
        """
        return _cut_shape(name, shape, self.rows, self.plan)


def cut_to_common(submission: Checkpoint, plan: Plan, vocab: VocabPolicy) -> CommonRows:
    """Cut a submission and the plan of the base to what they have in common, where that is wanted.

    Raises:
      CheckpointRefused: the submission's tensors do not agree on the size of the vocabulary, or cannot be cut.
      OSError: what describes it cannot be read.
    """
    if vocab is VocabPolicy.SAME:
        return CommonRows(plan, submission)
    form = form_of(submission)
    coded = read_compressed(submission) if form is Form.COMPRESSED else {}
    names = whole_changes(submission) if form is Form.ADAPTER else {name: name for name in submission.tensors}
    shapes = {names[stored]: tensor.shape for stored, tensor in submission.tensors.items() if stored in names}
    shapes |= {name: tensor.shape for name, tensor in coded.items()}
    rows = resized_tensors(shapes, plan)
    if not rows:
        return CommonRows(plan, submission)
    for name in rows:
        if size_is_last(name) and isinstance(coded.get(name), CodedTensor):
            raise CheckpointRefused(f"tensor {name!r} is coded, and cannot be cut to the rows of the base", ANEW)
    cut_plan = Plan(tuple(_cut_planned(tensor, rows) for tensor in plan.tensors))
    folded = {
        tensor.name: rows[tensor.name]
        for tensor in plan.folded
        if tensor.name in rows and _has(shapes, (tensor.name, *plan.tied_names.get(tensor.name, ())))
    }
    return CommonRows(cut_plan, _cut(submission, names, rows, cut_plan), rows, folded)


def _has(present: Collection[str], names: Collection[str]) -> bool:
    return any(name in present for name in names)


def _cut_planned(tensor: PlannedTensor, rows: Mapping[str, RowCounts]) -> PlannedTensor:
    counts = rows.get(tensor.name)
    return replace(tensor, shape=with_rows(tensor.name, tensor.shape, counts.common)) if counts else tensor


def _cut(checkpoint: Checkpoint, names: Mapping[str, str], rows: Mapping[str, RowCounts], cut_plan: Plan) -> Checkpoint:
    """Cut what a checkpoint has of the tensors; `names` tells what its tensors are called in the base."""

    def cut(tensor: TensorInfo) -> TensorInfo:
        # Rows are stored one after the other, so the common ones are the first bytes.
        shape = _cut_shape(names.get(tensor.name, ""), tensor.shape, rows, cut_plan)
        return replace(tensor, shape=shape, nbytes=ITEM_BYTES[tensor.dtype] * prod(shape))

    headers = {
        file: replace(header, tensors=tuple(cut(tensor) for tensor in header.tensors))
        for file, header in checkpoint.headers.items()
    }
    return replace(checkpoint, headers=headers)


def _cut_shape(name: str, shape: tuple[int, ...], rows: Mapping[str, RowCounts], cut_plan: Plan) -> tuple[int, ...]:
    # What differs in more than its rows is left for the check of shapes to refuse.
    if name not in rows or not is_resized(name, shape, cut_plan.by_name[name].shape):
        return shape
    return with_rows(name, shape, rows[name].common)
