"""What a submission says about itself, for the merge rules that weigh by it: a file of tensors beside its checkpoint.

Its tensors have the names of those that they are about. Which there have to be, and of what shape, the rule decides.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

from foldind.checkpoints.adapter import read_adapter
from foldind.checkpoints.checkpoint import STATISTICS, Checkpoint
from foldind.checkpoints.common import CommonRows, cut_to_common
from foldind.checkpoints.compressed import read_compressed
from foldind.checkpoints.form import Form, form_of
from foldind.checkpoints.header import MAX_HEADER_BYTES, read_header
from foldind.checkpoints.plan import FLOAT_DTYPES, Plan, PlannedTensor, Treatment
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import CheckpointRefused, listed

Kind = Literal["like", "gram"]
"""A tensor is shaped like its parameter; or it is (n, n), of a linear layer of (m, n), one a matrix of stacked ones."""

_WHAT = {
    "like": "a diagonal Fisher has the shape of its parameter",
    "gram": "the Gram matrix of a linear layer's inputs has as many rows and columns as the layer has inputs",
}
MAKE = f'"Statistics" in daemon/foldind/checkpoints/README.md says how to make {STATISTICS}'


def open_statistics(folder: Path, max_bytes: int = MAX_HEADER_BYTES) -> Checkpoint:
    """Read the header of the statistics in the folder of a submission; a longer one is refused unread.

    Raises:
      CheckpointRefused: there are none, or the file is malformed.
      OSError: it cannot be read.
    """
    if not (folder / STATISTICS).is_file():
        raise without_statistics()
    header = read_header(folder / STATISTICS, max_bytes)
    return Checkpoint(folder, {STATISTICS: replace(header, metadata={})})


def without_statistics() -> CheckpointRefused:
    """Return the error of a submission that has none, and needs them."""
    return CheckpointRefused(
        f"it comes without {STATISTICS}, and this daemon's merge rule weighs submissions by it",
        f"submit a folder with that file beside the checkpoint; {MAKE}",
    )


def statistics_plan(plan: Plan, kind: Kind) -> Plan:
    """Return a plan of which the folded tensors are those that have statistics, with the shapes of these."""
    return plan if kind == "like" else Plan(tuple(map(_gram, plan.tensors)))


def cut_statistics(statistics: Checkpoint, plan: Plan, kind: Kind, vocab: VocabPolicy) -> CommonRows:
    """Cut statistics and their plan to the rows in common with the base, where that is wanted.

    Raises:
      CheckpointRefused: they do not agree on the size of the vocabulary.
    """
    wanted = statistics_plan(plan, kind)
    return cut_to_common(statistics, wanted, vocab) if kind == "like" else CommonRows(wanted, statistics)


def check_statistics(
    submission: Checkpoint,
    plan: Plan,
    kind: Kind,
    vocab: VocabPolicy = VocabPolicy.SAME,
    max_bytes: int = MAX_HEADER_BYTES,
) -> None:
    """Check that there are statistics of every tensor that a submission changes, and that they can be used.

    Args:
      submission: fits the base.
      plan: of the base.
      kind: what the merge rule asks for.
      vocab: what is done with a vocabulary of another size than the base's.
      max_bytes: a longer header of the statistics is refused unread.

    Raises:
      CheckpointRefused: it names the tensor and says what to do.
      OSError: a file cannot be read.
    """
    statistics = open_statistics(submission.folder, max_bytes)
    common = cut_to_common(submission, plan, vocab)
    changed = _changed(common)
    cut = cut_statistics(statistics, plan, kind, vocab)
    tensors = statistics.tensors
    missing = []
    for tensor in cut.plan.folded:
        names = (tensor.name, *plan.tied_names.get(tensor.name, ()))
        present = [name for name in names if name in tensors]
        if not present and any(name in changed for name in names):
            missing.append(tensor.name)
        for name in present:
            shape, wanted = tensors[name].shape, tensor.shape
            same_rows = kind == "gram" or cut.rows.get(tensor.name) == common.rows.get(tensor.name)
            if cut.cut_shape(name, shape) != wanted or not same_rows:
                base = plan.by_name[tensor.name]
                raise CheckpointRefused(
                    f"in {STATISTICS}, {name!r} has shape {list(shape)}, which is not that of the statistics of "
                    f"a parameter of {list(base.shape)}",
                    _WHAT[kind],
                )
            if tensors[name].dtype not in FLOAT_DTYPES:
                raise CheckpointRefused(
                    f"in {STATISTICS}, {name!r} has dtype {tensors[name].dtype}",
                    f"save it as one of {', '.join(sorted(FLOAT_DTYPES))}",
                )
    if missing:
        raise CheckpointRefused(
            f"{STATISTICS} lacks {listed(missing)}, which the submission changes",
            f"add them, all zero where there is nothing to weigh by; {MAKE}",
        )


def _changed(common: CommonRows) -> Collection[str]:
    """Names of the base's tensors that a submission has something of."""
    match form_of(common.submission):
        case Form.ADAPTER:
            return read_adapter(common.submission, common.plan, ("*",), resized=common.rows)
        case Form.COMPRESSED:
            return read_compressed(common.submission)
        case _:
            return common.submission.tensors


def _gram(tensor: PlannedTensor) -> PlannedTensor:
    if tensor.treatment is Treatment.PROJECTED:
        return replace(tensor, shape=(*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-1]))
    return replace(tensor, treatment=Treatment.FROZEN) if tensor.treatment is Treatment.SUMMED else tensor
