"""Model Breadcrumbs: leave out the smallest elements of each task vector, and its outliers too.

Source: Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024.
"""

from torch import Tensor

from foldind.merging.additive import additive
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.rule import Accumulation, State, Step
from foldind.merging.trimming import between


def accumulation(density: float = 0.9, outliers: float = 0.01) -> Accumulation:
    """Return what Breadcrumbs keeps.

    Args:
      density: share of the elements of each tensor that are left, in (0, 1].
      outliers: share of the elements, the largest, that are left out, in [0, 1).

    Raises:
      ValueError: one is out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is above 0 and at most 1, not {density}")
    if not 0 <= outliers < 1:
        raise ValueError(f"outliers is at least 0 and below 1, not {outliers}")

    def contribution(task_vector: Tensor, step: Step) -> State:
        return {ACCUMULATED: between(task_vector, density, outliers)}

    return additive(contribution, whole=True, removes=True)
