"""What a submission holds: a whole model, or the difference from the base in one of the forms for it."""

from enum import StrEnum

from foldind.checkpoints.checkpoint import Checkpoint
from foldind.errors import CheckpointRefused

KIND = "foldin.kind"
"""The entry of a safetensors file's metadata that says which form its tensors have; without it, a whole model."""


class Form(StrEnum):
    """What the tensors of a submission are."""

    MODEL = "model"
    """Those of the fine-tuned model."""
    TASK_VECTOR = "task_vector"
    """The fine-tuned model minus the base; tensors that are not there are zero."""
    COMPRESSED = "compressed_task_vector"
    """The same, of which most tensors are coded; see README.md in this folder."""
    ADAPTER = "adapter"
    """Factors and such of a PEFT adapter."""


def form_of(checkpoint: Checkpoint) -> Form:
    """Return the form of a submission.

    Raises:
      CheckpointRefused: its files say different things, or name a form that there is not.
    """
    if checkpoint.is_adapter:
        return Form.ADAPTER
    kinds = {header.metadata.get(KIND, Form.MODEL.value) for header in checkpoint.headers.values()}
    if len(kinds) > 1:
        raise CheckpointRefused(
            f"its files differ in {KIND}: {', '.join(repr(kind[:80]) for kind in sorted(kinds))}"[:200],
            "write all of them in one form",
        )
    (kind,) = kinds
    if kind not in (known := [form.value for form in Form if form is not Form.ADAPTER]):
        raise CheckpointRefused(f"its {KIND} is {kind[:80]!r}", f"known ones are {', '.join(known)}")
    return Form(kind)
