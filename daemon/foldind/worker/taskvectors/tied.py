"""Tensors that are one in the base, and may come under any of their names."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.errors import CheckpointRefused


def names_of(plan: Plan, tensor: PlannedTensor, present: Collection[str]) -> list[str]:
    """Return the names under which a submission has a folded tensor.

    Args:
      plan: of the base.
      tensor: the folded one.
      present: names of the submission's tensors.
    """
    return [name for name in (tensor.name, *plan.tied_names.get(tensor.name, ())) if name in present]


def read_tied(names: Sequence[str], read: Callable[[str], Tensor]) -> Tensor | None:
    """Return what a submission has for a folded tensor; None: nothing.

    Args:
      names: that it has it under.
      read: a tensor of the submission by its name.

    Raises:
      CheckpointRefused: tensors that are one in the base differ.
    """
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
