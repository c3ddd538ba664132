"""What a PEFT adapter claims: the formulas of LoRA, in float64, by its configuration.

Source: huggingface/peft, tuners/lora (`get_delta_weight`, `merge`), and utils/other.py (`get_pattern_key`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.mutations.bases import TIED, Base
from tests.mutations.claim import RELATIVE, SMALLEST, Claim, Contradiction, exact, ignored

_PART = re.compile(
    r"(.*)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|base_layer\.weight)"
    r"(?:(?<=lora_magnitude_vector)\.weight)?"
)

Parts = dict[str, np.ndarray]


def of_adapter(tensors: Mapping[str, Tensor], config: Mapping[str, Any], base: Base) -> dict[str, Claim]:
    """The task vector of every tensor that it changes."""
    modules: dict[str, Parts] = defaultdict(dict)
    claims: dict[str, list[Claim]] = defaultdict(list)
    wholes: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if not name.startswith("base_model.model."):
            raise Contradiction(f"{name!r} is no tensor of an adapter")
        inner, values = name.removeprefix("base_model.model."), tensor.double().numpy()
        match = _PART.fullmatch(inner)
        if match and (match[2] != "base_layer.weight" or _has_factors(match[1], tensors)):
            if match[2] in modules[match[1]]:
                raise Contradiction(f"{name!r} is in it twice")
            modules[match[1]][match[2]] = values
            if match[2] == "base_layer.weight":
                _check_base(f"{match[1]}.weight", tensor, base)
            continue
        if ".lora_" in inner or ".token_adapter." in inner:
            raise Contradiction(f"{name!r} is of another kind of adapter")
        target = inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if target in base.tensors:
            _check_shape(target, values, base)
            if target in wholes:
                raise Contradiction(f"{target} has several values")
            wholes[target] = values
            claims[target].append(exact(values - base.values[target]))
        elif not ignored(target):
            raise Contradiction(f"the base has no {target!r}")
    for module, parts in modules.items():
        for target, claim in _of_module(module, parts, config, base):
            if target in base.tensors:
                claims[target].append(claim)
    return _untied(claims, wholes, base)


def _untied(claims: Mapping[str, list[Claim]], wholes: Mapping[str, np.ndarray], base: Base) -> dict[str, Claim]:
    for name, others in TIED.items():
        names = {name, *others}
        if name in base.tensors and names & claims.keys():
            together = names <= wholes.keys() and all(np.array_equal(wholes[name], wholes[other]) for other in others)
            if not together:
                raise Contradiction(f"{names} are one in the base, and were changed apart")
    found = {}
    for target, several in claims.items():
        if len(several) > 1:
            raise Contradiction(f"{target} is changed twice")
        if not base.tensors[target].is_floating_point():
            raise Contradiction(f"{target} cannot be merged")
        if target in base.folded:
            found[target] = several[0]
    return found


def _of_module(module: str, parts: Parts, config: Mapping[str, Any], base: Base) -> list[tuple[str, Claim]]:
    for kinds in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
        if kinds[0] in parts and kinds[1] in parts:
            break
    else:
        raise Contradiction(f"{module} lacks factors")
    down, up = parts.pop(kinds[0]), parts.pop(kinds[1])
    magnitude, bias = parts.pop("lora_magnitude_vector", None), parts.pop("lora_B.bias", None)
    parts.pop("base_layer.weight", None)
    if parts:
        raise Contradiction(f"{module} has {parts.keys()} besides")
    if (magnitude is not None) != bool(config.get("use_dora")) or (bias is not None and not config.get("lora_bias")):
        raise Contradiction(f"{module} has what the configuration denies")
    target = f"{module}.weight"
    if target not in base.tensors:
        if ignored(target):
            return []
        raise Contradiction(f"the base has no {target!r}")
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise Contradiction(f"{module} has factors that make no product")
    scale = _scale(config, module, down.shape[0])
    transposed = kinds[0] == "lora_embedding_A" or _is_transposed(base.values[target], up, down, config)
    if kinds[0] == "lora_embedding_A" and magnitude is not None:
        raise Contradiction("an embedding has magnitudes")
    weight = base.values[target].T if transposed else base.values[target]
    _check_shape(target, (up @ down).T if transposed else up @ down, base)
    if magnitude is not None and magnitude.size != len(up):
        raise Contradiction(f"{module} has {magnitude.size} magnitudes")
    claim = _product(up, down, scale) if magnitude is None else _dora(weight, up, down, scale, magnitude.reshape(-1))
    found = [(target, Claim(claim.values.T, claim.error.T) if transposed else claim)]
    if bias is not None:
        _check_shape(f"{module}.bias", bias, base)
        rounding = RELATIVE * np.abs(scale * bias) + SMALLEST * (1 + np.abs(bias))
        found.append((f"{module}.bias", Claim(scale * bias, rounding)))
    return found


def _product(up: np.ndarray, down: np.ndarray, scale: float) -> Claim:
    magnitudes = np.abs(up) @ np.abs(down) * abs(scale)
    underflow = SMALLEST * (1 + np.abs(up).sum(1, keepdims=True) + np.abs(down).sum(0) + up.shape[1])
    return Claim(up @ down * scale, RELATIVE * magnitudes + underflow)


def _dora(weight: np.ndarray, up: np.ndarray, down: np.ndarray, scale: float, magnitude: np.ndarray) -> Claim:
    """m (W + s B A) / ||W + s B A|| - W."""
    product = _product(up, down, scale)
    total = weight + product.values
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    if not lengths.all():
        raise Contradiction("an output has no direction")
    factor = magnitude[:, None] / lengths
    off = RELATIVE * np.abs(weight) + product.error  # of each term of the sum
    off_lengths = np.linalg.norm(off, axis=1, keepdims=True)
    error = np.abs(factor) * (off + np.abs(total) * (RELATIVE + off_lengths / lengths))
    return Claim(factor * total - weight, error + RELATIVE * np.abs(weight) + SMALLEST)


def _is_transposed(weight: np.ndarray, up: np.ndarray, down: np.ndarray, config: Mapping[str, Any]) -> bool:
    upright, lying = (len(up), down.shape[1]), (down.shape[1], len(up))
    return bool(config.get("fan_in_fan_out")) if upright == lying else weight.shape == lying


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    if _first(config.get("rank_pattern"), module, config.get("r")) != rank or rank < 1:
        raise Contradiction(f"{module} has another rank than the configuration says")
    alpha = _first(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise Contradiction(f"the alpha of {module} is {alpha!r}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _first(patterns: object, module: str, default: object) -> object:
    for pattern, value in dict(patterns or {}).items():  # type: ignore[call-overload]
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, RecursionError, OverflowError) as error:
            raise Contradiction(f"PEFT cannot read the pattern {pattern!r}") from error
        if matches:
            return value  # type: ignore[no-any-return]
    return default


def _has_factors(module: str, tensors: Mapping[str, Tensor]) -> bool:
    endings = ("lora_A.weight", "lora_embedding_A")
    return any(f"base_model.model.{module}.{ending}" in tensors for ending in endings)


def _check_base(target: str, values: Tensor, base: Base) -> None:
    """PEFT saves the matrix beside the factors of an embedding, in the dtype of the adapter."""
    known = base.tensors.get(target)
    if known is not None and not (known.shape == values.shape and torch.equal(known.to(values.dtype), values)):
        raise Contradiction(f"{target} was another when the factors were trained")


def _check_shape(target: str, values: np.ndarray, base: Base) -> None:
    if target not in base.tensors:
        raise Contradiction(f"the base has no {target!r}")
    if values.shape != base.values[target].shape:
        raise Contradiction(f"{target} has another shape in the base")
