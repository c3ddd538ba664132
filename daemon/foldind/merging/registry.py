"""Every merge rule by its name: which accumulation and which publication it is made of."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch

from foldind.merging import (
    breadcrumbs,
    dare,
    fisher,
    foldin,
    magmax,
    model_stock,
    publications,
    regmean,
    regression,
    ties,
)
from foldind.merging.additive import task_vector_sum
from foldind.merging.backend import TORCH, Backend
from foldind.merging.basis import decompose, large_side_rows, small_side
from foldind.merging.catalog import CATALOG, Value, parse_publication, slots_of
from foldind.merging.opcm import opcm
from foldind.merging.rule import Accumulation, Decomposition, Publication, Rule, State

ACCUMULATIONS: Mapping[str, Callable[..., Accumulation]] = MappingProxyType(
    {
        "opcm": opcm,
        "foldin": lambda **options: foldin.with_tables(opcm(**options)),
        "average": task_vector_sum,
        "task_arithmetic": task_vector_sum,
        "ties": ties.accumulation,
        "dare": dare.accumulation,
        "breadcrumbs": breadcrumbs.accumulation,
        "magmax": magmax.accumulation,
        "iso": task_vector_sum,
        "regression": regression.accumulation,
        "fisher": fisher.accumulation,
        "regmean": regmean.accumulation,
        "model_stock": model_stock.accumulation,
    }
)
"""Name of a rule -> the factory of its accumulation, which takes the rule's options, and a backend if it projects."""

PUBLICATIONS: Mapping[str, Callable[..., Publication]] = MappingProxyType(
    {
        "norm": publications.norm,
        "mean": publications.mean,
        "scale": publications.scale,
        "tensor_norm": publications.tensor_norm,
        "iso": publications.iso,
        "flat": publications.flat,
        "power": publications.power,
        "foldin": foldin.publication,
        "ties": ties.publication,
        "regression": regression.publication,
        "fisher": fisher.publication,
        "regmean": regmean.publication,
        "model_stock": model_stock.publication,
    }
)
"""Name of a publication -> its factory, which takes its numbers."""


def make_rule(
    name: str, options: Mapping[str, Value] | None = None, publication: str = "", backend: Backend = TORCH
) -> Rule:
    """Return a merge rule.

    Args:
      name: one of the catalog.
      options: of its accumulation; what is not given has its default.
      publication: as `catalog.parse_publication` reads it.
      backend: whose linear algebra computes it.

    Raises:
      ValueError: an option or a number is out of range, or the rule does not publish so.
    """
    given = dict(options or {})
    named = parse_publication(publication, name)
    if CATALOG[name].projects:
        accumulation = ACCUMULATIONS[name](**given, backend=backend)
    else:
        accumulation = ACCUMULATIONS[name](**given)
    alpha, leading = float(given.get("alpha", 0.5)), given.get("projection") == "leading"
    return Rule(
        name,
        accumulation,
        PUBLICATIONS[named.name](**named.numbers),
        Decomposition(
            partial(decompose, alpha=alpha, leading=leading, backend=backend),
            partial(small_side, alpha=alpha, leading=leading, backend=backend),
            partial(large_side_rows, backend=backend),
        ),
    )


def nothing_merged(rule: str, shape: Sequence[int], *, matrix: bool) -> State:
    """Return what a rule keeps of a tensor before the first fold: zeros.

    Args:
      rule: its name.
      shape: of the tensor.
      matrix: whether it is the weight of a linear layer, or of several, stacked.
    """
    slots = slots_of(rule, shape, matrix=matrix)
    return {name: torch.zeros(slot.shape, dtype=_DTYPES[slot.dtype]) for name, slot in slots.items()}


_DTYPES = {"F32": torch.float32, "F64": torch.float64}
