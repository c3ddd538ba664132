"""A valid submission of every format, of which the mutated ones are made."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG
from safetensors.torch import save
from torch import Generator, Tensor

from tests.checkpoints.folding import fine_tuned
from tests.mutations.bases import BASES, EMBEDDING, EXPERTS, HEAD, LARGE, LM_HEAD, NORM, QUERY, TALL, WIDE
from tests.support.compressed import Parts, coded
from tests.support.wire import SINGLE, sharded, single

Files = dict[str, bytes]

_TASK_VECTOR = {"format": "pt", "foldin.kind": "task_vector"}


class Original(NamedTuple):
    files: Files
    base: str = "F32"
    partial: bool = False


def _generator() -> Generator:
    return Generator().manual_seed(3)


def _noise(*shape: int, scale: float = 0.02) -> Tensor:
    return scale * torch.randn(shape, generator=_generator())


def _model(base: str = "F32") -> dict[str, Tensor]:
    return fine_tuned_tied(BASES[base]())


def fine_tuned_tied(base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = fine_tuned(base, _generator())
    return tensors | ({LM_HEAD: tensors[EMBEDDING].clone()} if LM_HEAD in tensors else {})


def _differences() -> dict[str, Tensor]:
    base = BASES["F32"]()
    return {
        name: tensor - base[name] for name, tensor in _model().items() if tensor.is_floating_point() and name != LM_HEAD
    }


def _partial() -> Files:
    kept = (QUERY + ".weight", LM_HEAD, NORM + ".weight", EXPERTS)
    return single({name: tensor for name, tensor in _model().items() if name in kept} | {HEAD: _noise(3, 24)})


def _task_vector() -> Files:
    differences = _differences()
    differences[TALL + ".weight"] = differences[TALL + ".weight"].bfloat16()
    differences[LM_HEAD] = differences[EMBEDDING].clone()
    del differences[EXPERTS]
    return {SINGLE: save(differences, metadata=_TASK_VECTOR)}


def _sharded_task_vector() -> Files:
    files = sharded(_differences(), shards=3)
    for name in files:
        if name.endswith(".safetensors"):
            files[name] = _with_metadata(files[name], _TASK_VECTOR)
    return files


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    from safetensors.torch import load

    return save(load(content), metadata=metadata)


def _compressed(coding: str) -> Files:
    parts = Parts({}, {})
    for name, shape, scales in (
        (QUERY + ".weight", (24, 24), ()),
        (TALL + ".weight", (48, 24), (48,)),
        (EXPERTS, (2, 8, 12), (2,)),
        (LM_HEAD, (40, 24), (40,)),
    ):
        most = 1 if coding == "ternary" else 127
        symbols = torch.randint(-most, most + 1, shape, generator=_generator(), dtype=torch.int8)
        parts |= coded(name, coding, symbols, _noise(*scales).abs())
    plain = {NORM + ".weight": _noise(24).bfloat16(), "logit_scale": _noise()}
    return {SINGLE: (parts | Parts(plain, {})).file()}


def _two_blocks() -> Files:
    symbols = torch.zeros(1100, 1000, dtype=torch.int8)
    symbols[::7, ::41] = torch.randint(-127, 128, symbols[::7, ::41].shape, generator=_generator(), dtype=torch.int8)
    return {SINGLE: coded(LARGE, "int8", symbols, _noise(1100).abs()).file()}


def _adapter(tensors: Mapping[str, Tensor], **settings: Any) -> Files:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "dense"], "bias": "none"}
    return {
        ADAPTER_CONFIG: json.dumps(config | {"task_type": None, "lora_dropout": 0.1} | settings, indent=2).encode(),
        ADAPTER: save({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, {"format": "pt"}),
    }


def _factors(module: str, into: int, out: int, rank: int = 4) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": _noise(rank, into, scale=0.1), f"{module}.lora_B.weight": _noise(out, rank)}


def _lora() -> Files:
    return _adapter(_factors(QUERY, 24, 24) | _factors(TALL, 24, 48))


def _patterns() -> Files:
    # Of rank 16 the product is held dense.
    return _adapter(
        _factors(QUERY, 24, 24, 16) | _factors(TALL, 24, 48, 2) | _factors(WIDE, 48, 24),
        use_rslora=True,
        rank_pattern={"query": 16, r"layer\.\d+\.intermediate.*": 2},
        alpha_pattern={"output.dense": 3.5, ".*query": 20},
    )


def _dora() -> Files:
    magnitudes = {
        f"{QUERY}.lora_magnitude_vector": _noise(24).abs() + 0.5,
        f"{WIDE}.lora_magnitude_vector": _noise(24).abs() + 0.5,
    }
    # The factors of the first are those of a Conv1D layer: the setting decides, for its matrix is square.
    return _adapter(_factors(QUERY, 24, 24) | _factors(WIDE, 48, 24) | magnitudes, use_dora=True, fan_in_fan_out=True)


def _whole_modules() -> Files:
    values = {f"{NORM}.weight": _noise(24), EXPERTS: _noise(2, 8, 12), HEAD: _noise(3, 24)}
    bias = {f"{QUERY}.lora_B.bias": _noise(24), "logit_scale": _noise()}
    return _adapter(
        _factors(QUERY, 24, 24) | values | bias, modules_to_save=["LayerNorm", "score"], lora_bias=True, bias="all"
    )


def _conv1d() -> Files:
    return _adapter(_factors(TALL, 48, 24) | _factors(WIDE, 24, 48) | _factors(QUERY, 24, 24), fan_in_fan_out=True)


def _embedding() -> Files:
    """Of a base without tied tensors: an adapter cannot change those."""
    factors = {f"{LARGE.removesuffix('.weight')}.lora_embedding_A": _noise(4, 1100)}
    factors |= {f"{LARGE.removesuffix('.weight')}.lora_embedding_B": _noise(1000, 4)}
    factors |= {f"{QUERY}.base_layer.weight": BASES["large"]()[f"{QUERY}.weight"]}
    return _adapter(factors | _factors(QUERY, 24, 24))


FORMATS: Mapping[str, Callable[[], Original]] = {
    "model F32": lambda: Original(single(_model())),
    "model BF16": lambda: Original(single(_model("BF16")), "BF16"),
    "model F16": lambda: Original(single(_model("F16")), "F16"),
    "shards": lambda: Original(sharded(_model())),
    "partial": lambda: Original(_partial(), partial=True),
    "task vector": lambda: Original(_task_vector()),
    "task vector in shards": lambda: Original(_sharded_task_vector()),
    "ternary": lambda: Original(_compressed("ternary")),
    "int8": lambda: Original(_compressed("int8")),
    "two blocks": lambda: Original(_two_blocks(), "large"),
    "LoRA": lambda: Original(_lora()),
    "rsLoRA with patterns": lambda: Original(_patterns()),
    "DoRA": lambda: Original(_dora()),
    "LoRA with whole modules": lambda: Original(_whole_modules()),
    "LoRA of Conv1D": lambda: Original(_conv1d()),
    "LoRA of embeddings": lambda: Original(_embedding(), "large"),
}
