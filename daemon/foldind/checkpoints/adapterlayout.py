"""The merged update as a PEFT LoRA adapter: which tensors one can hold, under which names, and its configuration.

Matrices go in as factors, other weights of a module and biases whole. What PEFT has no place for is left out.

Source: huggingface/peft, tuners/lora and utils/save_and_load.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from foldind.checkpoints.plan import SUMMED_PATTERNS, Plan, PlannedTensor, Treatment, matches_any
from foldind.checkpoints.vocabulary import vocabulary_sizes

_PREFIX = "base_model.model."
_WEIGHT, _BIAS = ".weight", ".bias"

_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_PATTERNS = ("*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight", "*.q_attn.weight")
"""Models of transformers, and their layers, whose weights are stored transposed."""

_NO_LINEAR_LAYERS = ("*.router.weight", "*.mixer.out_proj.weight")
"""Matrices that transformers does not keep in a linear layer, or (Mamba's) that it reads past one: go in whole."""

_SHARED_PATTERNS = ("shared.weight", "*.shared.weight")
"""Embeddings that encoder and decoder have in common: a factor on one module does not reach the other."""
_WITH_HEAD = ("*ForCausalLM", "*LMHead*", "*ForMaskedLM", "*ForPreTraining", "*ForConditionalGeneration")
"""Architectures whose output layer is the input embedding, unless their configuration says otherwise."""


@dataclass(frozen=True)
class Factors:
    """A matrix that goes in as factors."""

    tensor: PlannedTensor
    up_name: str
    """Of B, (out, r)."""
    down_name: str
    """Of A, (r, in)."""
    transposed: bool
    """Whether the base's tensor is (in, out)."""

    @property
    def in_conv1d(self) -> bool:
        """Whether it is the weight of a linear layer that is stored so; else it may be an embedding."""
        return self.transposed and self.up_name.endswith(_WEIGHT)


@dataclass(frozen=True)
class Whole:
    """A tensor whose merged values go in as they are."""

    tensor: PlannedTensor
    name: str


@dataclass(frozen=True)
class AdapterLayout:
    """What goes where in an adapter, in the order of the plan."""

    entries: tuple[Factors | Whole, ...]
    left_out: tuple[PlannedTensor, ...]
    """Changed tensors that PEFT has no place for."""
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...]

    def configuration(self, rank: int, base_name: str) -> dict[str, Any]:
        """Return adapter_config.json: factors of one rank, whose product is added as it is.

        Args:
          rank: r of all factors.
          base_name: name or path of the base, if it is known; else empty.
        """
        has_biases = any(isinstance(entry, Whole) and entry.name.endswith(_BIAS) for entry in self.entries)
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": base_name or None,
            "bias": "all" if has_biases else "none",
            "fan_in_fan_out": any(isinstance(entry, Factors) and entry.in_conv1d for entry in self.entries),
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "modules_to_save": list(self.modules_to_save) or None,
            "r": rank,
            "target_modules": list(self.target_modules),
            "task_type": None,
            "use_dora": False,
            "use_rslora": False,
        }


def lay_out_adapter(plan: Plan, changed: Collection[str], config: Mapping[str, Any]) -> AdapterLayout:
    """Decide what goes where.

    Args:
      plan: of the base.
      changed: names of the folded tensors that something was merged into.
      config: the base's config.json.
    """
    factors: list[Factors] = []
    others: list[PlannedTensor] = []
    for tensor in plan.folded:
        if tensor.name in changed:
            if _takes_factors(tensor, plan, config):
                factors.append(_factors(tensor, config))
            else:
                others.append(tensor)
    adapted = {_module(entry.tensor) for entry in factors}
    saved = {_module(tensor) for tensor in others if _takes_whole_module(tensor, plan, config)}
    entries: dict[str, Factors | Whole] = {entry.tensor.name: entry for entry in factors}
    for tensor in others:
        if name := _whole_name(tensor, adapted, saved):
            entries[tensor.name] = Whole(tensor, name)
    return AdapterLayout(
        entries=tuple(entries[tensor.name] for tensor in plan.folded if tensor.name in entries),
        left_out=tuple(tensor for tensor in others if tensor.name not in entries),
        target_modules=_shortest_names(adapted, plan),
        modules_to_save=tuple(sorted(saved)),
    )


def _takes_factors(tensor: PlannedTensor, plan: Plan, config: Mapping[str, Any]) -> bool:
    if len(tensor.shape) != 2 or min(tensor.shape) < 2 or not tensor.name.endswith(_WEIGHT):
        return False
    if _is_table(tensor):
        return tensor.name in vocabulary_sizes(plan) and not _is_shared(tensor, plan, config)
    return not matches_any(tensor.name, _NO_LINEAR_LAYERS)


def _is_table(tensor: PlannedTensor) -> bool:
    """Tell whether it is looked up rather than multiplied with: an embedding, or a table of positions."""
    return tensor.treatment is Treatment.SUMMED and matches_any(tensor.name, SUMMED_PATTERNS)


def _is_shared(tensor: PlannedTensor, plan: Plan, config: Mapping[str, Any]) -> bool:
    """Tell whether another module has this table too, which a change of the one would not reach."""
    if tensor.name in plan.tied_names or matches_any(tensor.name, _SHARED_PATTERNS):
        return True
    if tensor.name not in vocabulary_sizes(plan) or False in _settings(config, "tie_word_embeddings"):
        return False
    architectures = config.get("architectures") or ()
    has_head = any(fnmatchcase(str(name), pattern) for name in architectures for pattern in _WITH_HEAD)
    return has_head and not any(name.endswith("lm_head.weight") for name in plan.by_name)


def _settings(config: Mapping[str, Any], name: str) -> list[object]:
    """Return the values that a setting has, in the configuration and in those of its parts."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return [part[name] for part in parts if name in part]


def _is_conv1d(tensor: PlannedTensor, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in _CONV1D_MODELS and matches_any(tensor.name, _CONV1D_PATTERNS)


def _factors(tensor: PlannedTensor, config: Mapping[str, Any]) -> Factors:
    module = _PREFIX + _module(tensor)
    if _is_table(tensor):
        return Factors(tensor, f"{module}.lora_embedding_B", f"{module}.lora_embedding_A", transposed=True)
    return Factors(tensor, f"{module}.lora_B.weight", f"{module}.lora_A.weight", _is_conv1d(tensor, config))


def _takes_whole_module(tensor: PlannedTensor, plan: Plan, config: Mapping[str, Any]) -> bool:
    """Tell whether it is the weight of a norm, a convolution, a table: of a module that PEFT replaces as a whole."""
    if not tensor.name.endswith(_WEIGHT) or (len(tensor.shape) == 3 and "experts" in tensor.name):
        return False
    return not (_is_table(tensor) and _is_shared(tensor, plan, config))


def _whole_name(tensor: PlannedTensor, adapted: Collection[str], saved: Collection[str]) -> str:
    """Return the name of a tensor that goes in whole, or nothing if there is no place for it."""
    module = _module(tensor)
    if module in saved and tensor.name.endswith((_WEIGHT, _BIAS)):
        return _PREFIX + tensor.name
    if module and tensor.name.endswith(_BIAS) and len(tensor.shape) == 1:
        return f"{_PREFIX}{module}.base_layer{_BIAS}" if module in adapted else _PREFIX + tensor.name
    return ""


def _module(tensor: PlannedTensor) -> str:
    return tensor.name.rpartition(".")[0]


def _shortest_names(modules: Collection[str], plan: Plan) -> tuple[str, ...]:
    """Return what names these modules and no others: the last part of their names where that is enough."""
    by_end: dict[str, set[str]] = {}
    for tensor in plan.tensors:
        parts = tensor.name.split(".")[:-1]
        for count, end in enumerate(parts, 1):
            by_end.setdefault(end, set()).add(".".join(parts[:count]))
    ends = {module: module.rpartition(".")[2] for module in modules}
    return tuple(sorted({end if by_end[end] <= set(modules) else module for module, end in ends.items()}))
