"""Statistics that must not be merged with a sound checkpoint, each the work of a small builder."""

from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from tests.checkpoints.folding import EMBEDDING
from tests.checkpoints.statistics import fishers, grams
from tests.hostile.checkpoints import QUERY, Tensors

STATISTICS = "statistics.safetensors"

Build = Callable[[Tensors], bytes]

_MAKE = {"fisher": fishers, "regmean": grams}
_NO_GRAM = f"{QUERY!r} is not symmetric and positive semi-definite, and so no Gram matrix"
_NO_FISHER = f"{QUERY!r} has negative or enormous values, and is no diagonal Fisher"


def good(rule: str, base: Tensors) -> dict[str, Tensor]:
    """Sound ones of all tensors."""
    return _MAKE[rule](base, torch.Generator().manual_seed(0))


def changed(rule: str, change: Callable[[dict[str, Tensor]], Tensors]) -> Build:
    """Sound ones with some tensors changed."""
    return lambda base: save({name: tensor.contiguous() for name, tensor in change(good(rule, base)).items()})


def value(rule: str, number: float, place: tuple[int, int] = (0, 1), name: str = QUERY) -> Build:
    """Sound ones with one value changed."""

    def change(tensors: dict[str, Tensor]) -> Tensors:
        tensors[name][place] = number
        return tensors

    return changed(rule, change)


def without(rule: str, *names: str) -> Build:
    """Sound ones but for some tensors."""
    return changed(rule, lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names})


def instead(rule: str, tensor: Tensor, name: str = QUERY) -> Build:
    """Sound ones with a tensor in the place of another."""
    return changed(rule, lambda tensors: tensors | {name: tensor})


ATTACKS: Mapping[str, tuple[str, Build, str]] = {
    # Names, shapes and dtypes: refused before anything is read.
    "a Fisher missing": ("fisher", without("fisher", EMBEDDING), f"lacks {EMBEDDING}, which the submission changes"),
    "a Gram matrix missing": ("regmean", without("regmean", QUERY), f"lacks {QUERY}, which the submission changes"),
    "nothing": ("fisher", lambda _: save({}), "and 3 more, which the submission changes"),
    "a Fisher for a Gram matrix": (
        "regmean",
        lambda base: save(good("fisher", base)),
        "has shape [48, 24], which is not that of the statistics of a parameter of [48, 24]",
    ),
    "a Gram matrix for a Fisher": (
        "fisher",
        lambda base: save(good("fisher", base) | good("regmean", base)),
        "which is not that of the statistics of a parameter of",
    ),
    "a row too many": ("fisher", instead("fisher", torch.ones(41, 24), EMBEDDING), "has shape [41, 24]"),
    "an empty tensor": ("regmean", instead("regmean", torch.ones(0, 24)), "has shape [0, 24]"),
    "float64": ("fisher", instead("fisher", torch.ones(24, 24).double()), f"{QUERY!r} has dtype F64"),
    "8-bit integers": ("regmean", instead("regmean", torch.ones(24, 24).char()), f"{QUERY!r} has dtype I8"),
    "another checkpoint": ("fisher", lambda _: save({"conv.weight": torch.ones(3)}), "statistics.safetensors lacks"),
    "enormous metadata": ("fisher", lambda base: save(dict(base), {"notes": "x" * 3_000_000}), "states a header of"),
    # Values: refused by the merge.
    "NaN in a Fisher": ("fisher", value("fisher", float("nan")), f"{QUERY!r} has NaN or infinite values"),
    "infinity in a Fisher": ("fisher", value("fisher", float("inf")), f"{QUERY!r} has NaN or infinite values"),
    "a negative Fisher": ("fisher", value("fisher", -1e-30), _NO_FISHER),
    "a Fisher that would overflow": ("fisher", value("fisher", 3e38), _NO_FISHER),
    "NaN in a scalar": (
        "fisher",
        instead("fisher", torch.tensor(float("nan")), "logit_scale"),
        "'logit_scale' has NaN or infinite values",
    ),
    "NaN in a Gram matrix": ("regmean", value("regmean", float("nan")), f"{QUERY!r} has NaN or infinite values"),
    "infinity in a Gram matrix": ("regmean", value("regmean", float("-inf")), f"{QUERY!r} has NaN or infinite values"),
    "an asymmetric Gram matrix": ("regmean", value("regmean", 0.0), _NO_GRAM),
    "a negative diagonal": ("regmean", value("regmean", -1.0, (5, 5)), _NO_GRAM),
    "a zero on the diagonal": ("regmean", value("regmean", 0.0, (5, 5)), _NO_GRAM),
    "a Gram matrix that would overflow": ("regmean", instead("regmean", torch.eye(24) * 3e38), _NO_GRAM),
    "negative eigenvalues": ("regmean", instead("regmean", torch.ones(24, 24).mul(-1).fill_diagonal_(1)), _NO_GRAM),
    "the negative of a Gram matrix": ("regmean", changed("regmean", lambda t: t | {QUERY: -t[QUERY]}), _NO_GRAM),
}
"""What -> the rule that it attacks, the file, and the words that its sender must be told."""
