"""The task vectors of a submission, whatever its form: one file for each."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.common import cut_to_common
from foldind.checkpoints.form import Form, form_of
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.worker.blocks import row_blocks
from foldind.worker.taskvectors.adapter import Adapter
from foldind.worker.taskvectors.common import CommonRowsOnly
from foldind.worker.taskvectors.compressed import CompressedFile
from foldind.worker.taskvectors.contract import TaskVectors
from foldind.worker.taskvectors.difference import DifferenceFile
from foldind.worker.taskvectors.model import FineTunedModel

_FORMS: Mapping[Form, Callable[[Plan, Checkpoint, Checkpoint], TaskVectors]] = MappingProxyType(
    {
        Form.MODEL: FineTunedModel,
        Form.TASK_VECTOR: DifferenceFile,
        Form.COMPRESSED: CompressedFile,
        Form.ADAPTER: Adapter,
    }
)


def open_task_vectors(
    plan: Plan, base: Checkpoint, submission: Checkpoint, vocab: VocabPolicy = VocabPolicy.SAME
) -> TaskVectors:
    """Open a submission that was admitted under this policy; a context manager. Raises OSError."""
    common = cut_to_common(submission, plan, vocab)
    opened = _FORMS[form_of(submission)](common.plan, common.cut_base(base), common.submission)
    return CommonRowsOnly(opened, {name: common.plan.by_name[name] for name in common.rows}) if common.rows else opened


def not_finite(task_vectors: TaskVectors, tensors: Iterable[PlannedTensor]) -> list[str]:
    """Return which of the tensors have NaN or infinite elements."""
    return [
        tensor.name
        for tensor in tensors
        if not all(bool(torch.isfinite(task_vectors.read(tensor, rows)).all()) for rows in row_blocks(tensor.shape))
    ]
