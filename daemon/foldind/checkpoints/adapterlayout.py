"""The merged update as a PEFT LoRA adapter: which tensors one can hold, under which names, and its configuration.

Matrices go in as factors; norms, tables and biases whole. What PEFT has no place for, or would not apply, is left out.

Source: huggingface/peft, tuners/lora and utils/save_and_load.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

from foldind.checkpoints.adapterconfig import PREFIX
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment, matches_any
from foldind.checkpoints.vocabulary import is_output_layer, vocabulary_sizes

_WEIGHT, _BIAS = ".weight", ".bias"

_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_PATTERNS = ("*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight", "*.q_attn.weight")
"""Models of transformers, and their layers, whose weights are stored transposed."""

_READ_DIRECTLY = (
    *("*.router.weight", "*.mixer.out_proj.weight", "*.mixer.dt_proj.weight"),
    *("*.mamba.out_proj.weight", "*.mamba.dt_proj.weight"),
)
"""Matrices that no linear layer holds, or that the model reads without calling it: factors would go unnoticed."""

_RENAMED_MODELS = frozenset({"vit", "deit", "dinov2", "beit"})
_RENAMED = ("embed_out.weight",)
"""Models, and one layer, whose modules have other names in transformers 5 than their saved tensors: PEFT does not find
them."""

_MIXTURE = ("*expert*", "*moe*", "*router*")
_MIXTURE_PARTS = ("*.mlp.*", "*.feed_forward.*", *_MIXTURE)
_KNOWN_MIXTURES = frozenset({"mixtral", "qwen3_moe", "olmoe", "gpt_oss"})
"""Mixtures of experts are fused when they are loaded: PEFT follows these models, and drops parts of others."""

_SHARED = ("shared.weight", "*.shared.weight")
"""Embeddings that encoder and decoder have in common."""
_WITHOUT_HEAD = ("*Model", "*For*Classification", "*ForQuestionAnswering", "*ForMultipleChoice")
_WITH_HEAD = ("*LMHeadModel", "*DoubleHeadsModel", "*MTModel", "*EncoderDecoderModel")
"""Architectures that have an embedding and no output layer for it, and those that only seem to."""


class _Place(Enum):
    FACTORS = auto()
    WHOLE = auto()
    """With the whole module that it is of."""
    BIAS = auto()
    NOWHERE = auto()


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
    """Empty: PEFT loads no such adapter."""
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
    model = _Model(plan, config)
    places = {tensor.name: model.place(tensor) for tensor in plan.folded}
    matrices = [tensor for tensor in plan.folded if places[tensor.name] is _Place.FACTORS]
    # PEFT loads no adapter without factors: one that is zero, then.
    factors = [tensor for tensor in matrices if tensor.name in changed] or matrices[:1]
    adapted = {_module(tensor) for tensor in factors}
    adapted -= model.names_of_others(adapted)
    as_factors = {tensor.name for tensor in factors if _module(tensor) in adapted}
    wanted = {
        _module(tensor) for tensor in plan.folded if tensor.name in changed and places[tensor.name] is _Place.WHOLE
    }
    saved = model.wrapped_by_peft(wanted, adapted) if adapted else set()

    entries: list[Factors | Whole] = []
    for tensor in plan.tensors:
        if tensor.name in as_factors:
            entries.append(model.factors(tensor))
        elif model.is_below(tensor, saved):
            entries.append(Whole(tensor, PREFIX + tensor.name))
        elif adapted and tensor.name in changed and places[tensor.name] is _Place.BIAS:
            inner = ".base_layer" if _module(tensor) in adapted else ""
            entries.append(Whole(tensor, f"{PREFIX}{_module(tensor)}{inner}{_BIAS}"))
    held = {entry.tensor.name for entry in entries}
    return AdapterLayout(
        entries=tuple(entries),
        left_out=tuple(tensor for tensor in plan.folded if tensor.name in changed and tensor.name not in held),
        target_modules=model.shortest_names(adapted),
        modules_to_save=tuple(sorted(saved)),
    )


@dataclass(frozen=True)
class _Model:
    plan: Plan
    config: Mapping[str, Any]

    def place(self, tensor: PlannedTensor) -> _Place:
        name = tensor.name
        if self._is_unknown_to_peft(name):
            return _Place.NOWHERE
        if name.endswith(_BIAS):
            return _Place.BIAS if len(tensor.shape) == 1 and _module(tensor) else _Place.NOWHERE
        if not name.endswith(_WEIGHT) or (len(tensor.shape) == 3 and "experts" in name):
            return _Place.NOWHERE
        if name in self._vocabulary:
            return _Place.NOWHERE if self._is_used_twice(tensor) else _Place.FACTORS
        return self._place_of_layer(tensor)

    def _place_of_layer(self, tensor: PlannedTensor) -> _Place:
        name = tensor.name
        if len(tensor.shape) != 2 or min(tensor.shape) < 2 or tensor.treatment is Treatment.SUMMED:
            return _Place.WHOLE
        if tensor.shape[0] in self._settings("vocab_size"):
            return _Place.NOWHERE  # an embedding or an output layer, and it cannot be seen which
        beside = _module(tensor).rpartition(".")[0] + ".in_proj_weight"
        read_directly = matches_any(name, _READ_DIRECTLY) or beside in self.plan.by_name
        return _Place.WHOLE if read_directly else _Place.FACTORS

    def factors(self, tensor: PlannedTensor) -> Factors:
        module = PREFIX + _module(tensor)
        if tensor.name in self._vocabulary and not is_output_layer(tensor.name):
            return Factors(tensor, f"{module}.lora_embedding_B", f"{module}.lora_embedding_A", transposed=True)
        conv1d = matches_any(tensor.name, _CONV1D_PATTERNS) and self._is_one_of(_CONV1D_MODELS)
        return Factors(tensor, f"{module}.lora_B.weight", f"{module}.lora_A.weight", conv1d)

    def names_of_others(self, modules: Collection[str]) -> set[str]:
        """Those of the modules whose names PEFT would take for the end of another module's, too."""
        found = set()
        for other in self._modules.keys() - modules:
            parts = other.split(".")
            found |= {".".join(parts[first:]) for first in range(1, len(parts))}
        return found & set(modules)

    def wrapped_by_peft(self, wanted: Collection[str], adapted: Collection[str]) -> set[str]:
        """The modules that PEFT replaces as a whole for those wanted; without those that would take others along.

        It replaces whatever ends with one of the names, and needs every tensor of it.
        """
        found: set[str] = set()
        for module in wanted:
            alike = {other for other in self._modules if other.endswith(module)}
            below = [tensor for other in alike for tensor in self._modules[other]]
            if not any(tensor.treatment is Treatment.TIED or _module(tensor) in adapted for tensor in below):
                found |= alike
        return found

    def is_below(self, tensor: PlannedTensor, modules: Collection[str]) -> bool:
        parts = tensor.name.split(".")
        return any(".".join(parts[:count]) in modules for count in range(1, len(parts)))

    def shortest_names(self, modules: Collection[str]) -> tuple[str, ...]:
        """What names these modules and no others: the last part of their names where that is enough."""
        by_end: dict[str, set[str]] = {}
        for module in self._modules:
            by_end.setdefault(module.rpartition(".")[2], set()).add(module)
        enough = {end for end, alike in by_end.items() if alike <= set(modules)}
        ends = {module: module.rpartition(".")[2] for module in modules}
        return tuple(sorted({end if end in enough else module for module, end in ends.items()}))

    def _is_unknown_to_peft(self, name: str) -> bool:
        if self._is_one_of(_RENAMED_MODELS) or matches_any(name, _RENAMED):
            return True
        return self._is_other_mixture and matches_any(name, _MIXTURE_PARTS)

    def _is_used_twice(self, tensor: PlannedTensor) -> bool:
        """Whether another module has this tensor too, which a change of the one would not reach."""
        if tensor.name in self.plan.tied_names or matches_any(tensor.name, _SHARED):
            return True
        kinds = {is_output_layer(name) for name in self._vocabulary if name.endswith(_WEIGHT)}
        if len(kinds) == 2 or False in self._settings("tie_word_embeddings"):
            return False
        architectures = [str(name) for name in self.config.get("architectures") or ()]
        return not architectures or not all(
            matches_any(name, _WITHOUT_HEAD) and not matches_any(name, _WITH_HEAD) for name in architectures
        )

    def _is_one_of(self, model_types: Collection[str]) -> bool:
        return any(model_type in model_types for model_type in self._settings("model_type"))

    def _settings(self, name: str) -> list[Any]:
        """The values that a setting has, in the configuration and in those of its parts."""
        parts = [self.config, *(part for part in self.config.values() if isinstance(part, dict))]
        return [part[name] for part in parts if name in part]

    @cached_property
    def _is_other_mixture(self) -> bool:
        mixture = any(matches_any(tensor.name, _MIXTURE) for tensor in self.plan.tensors)
        return mixture and not self._is_one_of(_KNOWN_MIXTURES)

    @cached_property
    def _vocabulary(self) -> Collection[str]:
        return vocabulary_sizes(self.plan).keys()

    @cached_property
    def _modules(self) -> Mapping[str, list[PlannedTensor]]:
        """Name of a module -> the tensors in it and in those below it."""
        found: dict[str, list[PlannedTensor]] = {}
        for tensor in self.plan.tensors:
            parts = tensor.name.split(".")
            for count in range(1, len(parts)):
                found.setdefault(".".join(parts[:count]), []).append(tensor)
        return found


def _module(tensor: PlannedTensor) -> str:
    return tensor.name.rpartition(".")[0]
