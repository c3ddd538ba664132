"""A PEFT LoRA adapter: what it changes in the base, tensor by tensor, read from its configuration and its header.

Source: huggingface/peft, tuners/lora (layout of the files, and `merge_and_unload`, which an adapter is folded as).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foldind.checkpoints.adapterconfig import MERGE, PREFIX, SAVE, check_foldable, read_adapter_config, scale_of
from foldind.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint
from foldind.checkpoints.header import TensorInfo
from foldind.checkpoints.plan import FLOAT_DTYPES, Plan, PlannedTensor, Treatment, matches_any
from foldind.checkpoints.vocabulary import check_shape
from foldind.errors import CheckpointRefused, listed

_FACTORS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
_BASE_LAYER = ".base_layer.weight"


@dataclass(frozen=True)
class LowRankChange:
    """scale * up @ down, or its transpose, is added to a matrix."""

    up: TensorInfo
    """B, (out, r)."""
    down: TensorInfo
    """A, (r, in)."""
    scale: float
    transposed: bool
    """Whether the base's tensor is (in, out): Conv1D layers and embeddings."""
    magnitude: TensorInfo | None
    """m, (out,), of a DoRA adapter: each output's row of the sum is then given this length."""
    base: TensorInfo | None = None
    """The matrix that the factors were trained beside, where PEFT saved it: that of the base."""


@dataclass(frozen=True)
class Shift:
    """scale * values is added to a tensor."""

    values: TensorInfo
    scale: float


@dataclass(frozen=True)
class Whole:
    """The values take the tensor's place."""

    values: TensorInfo


Change = LowRankChange | Shift | Whole


def read_adapter(
    adapter: Checkpoint, plan: Plan, ignore: Sequence[str], *, resized: Collection[str] = ()
) -> dict[str, Change]:
    """Return what an adapter changes: name of a tensor of the base -> the change.

    Args:
      adapter: the submission.
      plan: of the base.
      ignore: patterns of tensors that the base lacks and that are left out without complaint (task heads).
      resized: the base's tensors of which only the rows that both have are folded; they can be changed as a whole.

    Raises:
      CheckpointRefused: it cannot be merged, or not correctly; says why.
      OSError: the configuration cannot be read.
    """
    with (adapter.folder / ADAPTER_CONFIG).open("rb") as file:
        config = read_adapter_config(file)
    tensors = adapter.tensors
    check_foldable(config)
    changes, unknown = {}, []
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise CheckpointRefused(f"the adapter's tensor {name!r} does not begin with {PREFIX!r}", SAVE)
        found = _change(config, name, tensor, tensors)
        if found is None or _is_beside_factors(name, tensors):
            continue
        target, change = found
        if target in resized and isinstance(change, LowRankChange):
            raise CheckpointRefused(f"the adapter changes {target!r} by factors, and resizes its vocabulary", MERGE)
        if target in changes:
            raise CheckpointRefused(f"the adapter changes {target!r} twice, by {name!r} and otherwise", MERGE)
        if planned := plan.by_name.get(target):
            changes[target] = _settle(change, planned, plan, config)
        elif not matches_any(target, ignore):
            unknown.append(target)
    if unknown:
        raise CheckpointRefused(
            f"the adapter changes tensors that the base lacks: {listed(unknown)}",
            "check which base it was trained on, or have the operator add a pattern for them to `ignore`",
        )
    _check_tied(changes, plan)
    if not changes:
        raise CheckpointRefused("the adapter changes no tensor of the base", "check which base it was trained on")
    return changes


def _change(
    config: Mapping[str, Any], name: str, tensor: TensorInfo, tensors: Mapping[str, TensorInfo]
) -> tuple[str, Change] | None:
    """Return the base's tensor that a tensor of the adapter is about, and the change; None: it is part of another's."""
    inner = name.removeprefix(PREFIX)
    for down, up in _FACTORS:
        module = inner.removesuffix(down)
        if module != inner:
            if PREFIX + module + up not in tensors:
                raise CheckpointRefused(f"the adapter has {name!r} without its {up.lstrip('.')}", SAVE)
            rank = tensor.shape[0] if tensor.shape else 0
            magnitude = next((tensors[full] for full in _magnitudes(module) if full in tensors), None)
            if bool(config.get("use_dora")) != (magnitude is not None):
                raise CheckpointRefused(f"use_dora and the magnitudes of {module!r} do not go together", SAVE)
            return f"{module}.weight", LowRankChange(
                tensors[PREFIX + module + up],
                tensor,
                scale_of(config, module, rank),
                transposed=down == ".lora_embedding_A",
                magnitude=magnitude,
                base=tensors.get(f"{PREFIX}{module}{_BASE_LAYER}"),
            )
        module = inner.removesuffix(up)
        if module != inner:
            if PREFIX + module + down not in tensors:
                raise CheckpointRefused(f"the adapter has {name!r} without its {down.lstrip('.')}", SAVE)
            return None
    module = inner.removesuffix(".lora_B.bias")
    if module != inner:
        down_tensor = tensors.get(f"{PREFIX}{module}.lora_A.weight")
        if down_tensor is None or not down_tensor.shape:
            raise CheckpointRefused(f"the adapter has {name!r} without its lora_A.weight", SAVE)
        if not config.get("lora_bias"):
            raise CheckpointRefused(f"the adapter has {name!r}, and no lora_bias in {ADAPTER_CONFIG}", SAVE)
        return f"{module}.bias", Shift(tensor, scale_of(config, module, down_tensor.shape[0]))
    if ".lora_magnitude_vector" in inner:
        module = inner.partition(".lora_magnitude_vector")[0]
        if name not in _magnitudes(module) or f"{PREFIX}{module}.lora_A.weight" not in tensors:
            raise CheckpointRefused(f"the adapter's {name!r} belongs to no factors", SAVE)
        return None
    if ".lora_" in inner or ".token_adapter." in inner:
        raise CheckpointRefused(f"the adapter has {name!r}, which cannot be folded", MERGE)
    return _module_name(inner), Whole(tensor)


def whole_changes(adapter: Checkpoint) -> dict[str, str]:
    """Return the names that an adapter has whole tensors under -> their names in the base."""
    inner = {name: name.removeprefix(PREFIX) for name in adapter.tensors}
    return {name: _module_name(rest) for name, rest in inner.items() if ".lora_" not in rest}


def _module_name(inner: str) -> str:
    return inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def _is_beside_factors(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    module = name.removesuffix(_BASE_LAYER)
    return module != name and any(module + down in tensors for down, _ in _FACTORS)


def _magnitudes(module: str) -> tuple[str, str]:
    name = f"{PREFIX}{module}.lora_magnitude_vector"
    return name, f"{name}.weight"


def _settle(change: Change, planned: PlannedTensor, plan: Plan, config: Mapping[str, Any]) -> Change:
    """Check a change against the tensor that it is of."""
    name = planned.name
    parts = (
        [change.up, change.down, change.magnitude, change.base]
        if isinstance(change, LowRankChange)
        else [change.values]
    )
    for tensor in parts:
        if tensor and tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointRefused(
                f"the adapter's tensor {tensor.name!r} has dtype {tensor.dtype}",
                f"save it as one of {', '.join(sorted(FLOAT_DTYPES))}",
            )
    if planned.treatment is Treatment.FROZEN:
        raise CheckpointRefused(f"the adapter changes {name!r}, which cannot be merged ({planned.dtype})", MERGE)
    if not isinstance(change, LowRankChange):
        check_shape(change.values.name, change.values.shape, planned, plan)
        return change
    up, down = change.up.shape, change.down.shape
    if len(up) != 2 or len(down) != 2 or up[1] != down[0] or len(planned.shape) != 2:
        raise CheckpointRefused(
            f"the adapter's factors of {name!r} have shapes {list(up)} and {list(down)}, the base's tensor has "
            f"{list(planned.shape)}",
            "only linear layers and embeddings can be folded; " + MERGE,
        )
    upright, lying = (up[0], down[1]), (down[1], up[0])
    if change.transposed and change.magnitude:
        raise CheckpointRefused(f"{name!r} is an embedding with DoRA, which cannot be folded", MERGE)
    # The setting is one for all layers, and PEFT itself corrects it for each; only a square matrix leaves a doubt.
    transposed = change.transposed or (
        bool(config.get("fan_in_fan_out")) if upright == lying else planned.shape == lying
    )
    _check_shape(lying if transposed else upright, planned)
    if change.base:
        _check_shape(change.base.shape, planned)
    if change.magnitude and math.prod(change.magnitude.shape) != up[0]:
        raise CheckpointRefused(
            f"the adapter has magnitudes of shape {list(change.magnitude.shape)} for {up[0]} outputs of {name!r}", SAVE
        )
    return replace(change, transposed=transposed)


def _check_tied(changes: Mapping[str, Change], plan: Plan) -> None:
    """Check that what is one in the base stays one: it can only be replaced, and under all its names."""
    for first, others in plan.tied_names.items():
        changed = [name for name in (first, *others) if name in changes]
        if changed and not all(isinstance(changes.get(name), Whole) for name in (first, *others)):
            raise CheckpointRefused(
                f"the adapter changes {changed[0]!r}, which is tied to another tensor in the base",
                "leave it out of the adapter",
            )


def _check_shape(shape: Sequence[int], planned: PlannedTensor) -> None:
    if tuple(shape) != planned.shape:
        raise CheckpointRefused(
            f"the adapter's change of {planned.name!r} has shape {list(shape)} and the base's has "
            f"{list(planned.shape)}",
            "check which base it was trained on",
        )
