"""Whether a submission fits the base: names, shapes and dtypes, before any tensor is touched."""

from collections.abc import Collection, Mapping, Sequence

from foldind.checkpoints.adapter import read_adapter
from foldind.checkpoints.checkpoint import MAX_INDEX_BYTES, Checkpoint, Limits
from foldind.checkpoints.common import cut_to_common
from foldind.checkpoints.compressed import CodedTensor, check_numbers, read_compressed
from foldind.checkpoints.form import Form, form_of
from foldind.checkpoints.header import MAX_HEADER_BYTES, TensorInfo
from foldind.checkpoints.plan import FLOAT_DTYPES, Plan, PlannedTensor, Treatment, matches_any
from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy, check_shape
from foldind.errors import CheckpointRefused, listed

_Tensor = TensorInfo | CodedTensor

_SPARE_BYTES = 1024 * 1024
_ENTRY_BYTES = 250
"""What an entry of a header or of an index takes besides the tensor's name, at the most and generously."""


def submission_limits(plan: Plan) -> Limits:
    """Return how much a checkpoint of this base can need: four times as many entries, and room for metadata."""
    needed = _SPARE_BYTES + 4 * sum(len(tensor.name.encode()) + _ENTRY_BYTES for tensor in plan.tensors)
    return Limits(min(needed, MAX_HEADER_BYTES), min(needed, MAX_INDEX_BYTES))


def check_against_plan(
    submission: Checkpoint,
    plan: Plan,
    *,
    ignore: Sequence[str],
    partial: bool,
    vocab: VocabPolicy = VocabPolicy.SAME,
) -> dict[str, RowCounts]:
    """Check that a submission can be folded.

    Args:
      submission: the checkpoint handed in, of any form.
      plan: of the base.
      ignore: patterns of tensors that the base lacks and that are left out without complaint (task heads).
      partial: whether tensors of the base that a whole model lacks count as unchanged.
      vocab: what is done with a vocabulary of another size than the base's.

    Returns:
      The rows of the tensors of which only the common ones are folded, by the names that they are folded under.

    Raises:
      CheckpointRefused: it names the tensors and says what to do.
      OSError: the small numbers that a compressed one is read by cannot be read.
    """
    form = form_of(submission)
    common = cut_to_common(submission, plan, vocab)
    if form is Form.ADAPTER:
        read_adapter(common.submission, common.plan, ignore, resized=common.rows)
        return dict(common.folded)
    tensors: Mapping[str, _Tensor] = read_compressed(submission) if form is Form.COMPRESSED else submission.tensors
    _check_is_related(tensors, plan)
    for name, tensor in tensors.items():
        if planned := common.plan.by_name.get(name):
            check_shape(name, common.cut_shape(name, tensor.shape), planned, common.plan)
            _check_dtype(tensor, planned)
    _check_names(tensors, plan, ignore, partial or form is not Form.MODEL)
    if form is Form.COMPRESSED:
        check_numbers(submission.folder, {name: tensors[name] for name in tensors if name in plan.by_name})
    return dict(common.folded)


def _check_is_related(tensors: Mapping[str, _Tensor], plan: Plan) -> None:
    if prefix := _added_prefix(tensors, plan):
        raise CheckpointRefused(
            f"the names of its tensors are those of the base with {prefix!r} before them",
            f"save the inner model alone, say model.{prefix.rstrip('.')}.save_pretrained(...), and submit that",
        )
    if not any(_is_in(tensor, tensors, plan) for tensor in plan.folded):
        raise CheckpointRefused("it has no tensor in common with the base", "check which base it was fine-tuned from")


def _check_names(tensors: Mapping[str, _Tensor], plan: Plan, ignore: Sequence[str], partial: bool) -> None:
    extra = [name for name in tensors if name not in plan.by_name and not matches_any(name, ignore)]
    missing = [tensor.name for tensor in plan.folded if not _is_in(tensor, tensors, plan)]
    lacks = f"it lacks {_count(missing, 'tensor')} of the base: {listed(missing)}" if missing and not partial else ""
    if extra:
        raise CheckpointRefused(
            f"it has {_count(extra, 'tensor')} that the base lacks: {listed(extra)}{f'; and {lacks}' if lacks else ''}",
            "remove them, or have the operator ignore them (task heads, say): `foldind serve --ignore 'classifier.*'`"
            + ("; if the missing ones are unchanged, submit with --partial" if lacks else ""),
        )
    if lacks:
        raise CheckpointRefused(lacks, "submit the whole model; or with --partial, if these tensors are unchanged")


def _is_in(tensor: PlannedTensor, tensors: Collection[str], plan: Plan) -> bool:
    """Tell whether a tensor of the base is among those of a submission, by its own name or that of a tied one."""
    return tensor.name in tensors or any(other in tensors for other in plan.tied_names.get(tensor.name, ()))


def _check_dtype(tensor: _Tensor, planned: PlannedTensor) -> None:
    if planned.treatment is not Treatment.FROZEN and tensor.dtype not in FLOAT_DTYPES:
        raise CheckpointRefused(
            f"tensor {tensor.name!r} has dtype {tensor.dtype}",
            f"save it as one of {', '.join(sorted(FLOAT_DTYPES))}; quantised checkpoints cannot be merged",
        )


def _added_prefix(tensors: Collection[str], plan: Plan) -> str:
    first = plan.folded[0].name
    for name in tensors:
        prefix = name.removesuffix(first)
        if prefix != name and prefix and all(prefix + tensor.name in tensors for tensor in plan.folded):
            return prefix
    return ""


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"
