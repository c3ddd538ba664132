"""Tensors that are one in the base, and may come under any of their names."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.errors import CheckpointRefused


def read_tied(
    plan: Plan, tensor: PlannedTensor, present: Collection[str], read: Callable[[str], Tensor]
) -> Tensor | None:
    """Return what a submission has for a folded tensor under any of its names; None: nothing.

    Args:
      plan: of the base.
      tensor: the folded one.
      present: names of the submission's tensors.
      read: a tensor of the submission by its name.

    Raises:
      CheckpointRefused: tensors that are one in the base differ.
    """
    names = [name for name in (tensor.name, *plan.tied_names.get(tensor.name, ())) if name in present]
    if not names:
        return None
    first, *others = (read(name) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        if not torch.allclose(first.float(), other.float(), rtol=0, atol=0, equal_nan=True):
            raise CheckpointRefused(
                f"tensors {names[0]!r} and {name!r} are one in the base, and differ in it",
                "fine-tune with tied weights, or use a base in which they are not tied",
            )
    return first
