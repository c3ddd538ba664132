"""Small models on disk, in the layouts that real ones have."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = {"architectures": ["TinyModel"], "model_type": "tiny", "hidden_size": 24}


def base_tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of every treatment but tied: linear layers (square, tall, wide), embedding, norm, bias, conv, buffer."""
    torch.manual_seed(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (40, 24),
        "encoder.layer.0.attention.query.weight": (24, 24),
        "encoder.layer.0.attention.query.bias": (24,),
        "encoder.layer.0.intermediate.dense.weight": (48, 24),
        "encoder.layer.0.output.dense.weight": (24, 48),
        "encoder.layer.0.LayerNorm.weight": (24,),
        "patch.projection.weight": (6, 3, 4, 4),
        "logit_scale": (),
    }
    tensors = {name: torch.randn(shape).mul(0.1).to(dtype) for name, shape in shapes.items()}
    return tensors | {"embeddings.position_ids": torch.arange(16, dtype=torch.int64)}


def make_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a base model folder: weights, configuration and a tokenizer file."""
    folder.mkdir(parents=True)
    save_file(base_tensors(dtype=dtype), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def make_checkpoint(folder: Path, base: Path, seed: int, scale: float = 0.01) -> Path:
    """Write a checkpoint that was `fine-tuned` from a base: noise on every floating-point tensor."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (tensor.float() + scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in load_model(base).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load_model(folder: Path) -> dict[str, Tensor]:
    """Load a model folder, sharded or not."""
    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    )
    return {name: tensor for file in names for name, tensor in load_file(folder / file).items()}


def shard(folder: Path, tensors: dict[str, Tensor], shards: int) -> Path:
    """Write tensors as a sharded checkpoint with its index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
