"""The task vectors of a submission, whatever its form: one file for each."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.checkpoints.form import Form, form_of
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.worker.blocks import row_blocks
from foldind.worker.taskvectors.adapter import Adapter
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


def open_task_vectors(plan: Plan, base: Checkpoint, submission: Checkpoint) -> TaskVectors:
    """Open a submission that was admitted; a context manager. Raises OSError."""
    return _FORMS[form_of(submission)](plan, base, submission)


def not_finite(task_vectors: TaskVectors, tensors: Iterable[PlannedTensor]) -> list[str]:
    """Return which of the tensors have NaN or infinite elements."""
    return [
        tensor.name
        for tensor in tensors
        if not all(bool(torch.isfinite(task_vectors.read(tensor, rows)).all()) for rows in row_blocks(tensor.shape))
    ]
