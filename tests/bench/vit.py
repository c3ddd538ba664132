"""A model with the shapes of CLIP's ViT-B/32 vision tower: 87.5 million float32 parameters, random."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, PATCHES = 768, 12, 50
CONFIG = {
    # Not CLIPVisionModel: mergekit would take the names of its tensors from transformers 5, which dropped their prefix,
    # and silently merge nothing. Of a class that it does not know it merges the names in the files.
    "architectures": ["CLIPVisionTower"],
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "torch_dtype": "float32",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape."""
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (PATCHES, WIDTH),
    }
    for layer in range(LAYERS):
        prefix = f"vision_model.encoder.layers.{layer}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found[f"{prefix}self_attn.{name}.weight"] = (WIDTH, WIDTH)
            found[f"{prefix}self_attn.{name}.bias"] = (WIDTH,)
        found |= {
            f"{prefix}mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"{prefix}mlp.fc1.bias": (4 * WIDTH,),
            f"{prefix}mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            f"{prefix}mlp.fc2.bias": (WIDTH,),
        }
        for norm in ("layer_norm1", "layer_norm2"):
            found |= {f"{prefix}{norm}.weight": (WIDTH,), f"{prefix}{norm}.bias": (WIDTH,)}
    for norm in ("pre_layrnorm", "post_layernorm"):
        found |= {f"vision_model.{norm}.weight": (WIDTH,), f"vision_model.{norm}.bias": (WIDTH,)}
    return found


def make_base(folder: Path) -> dict[str, Tensor]:
    """Write the base, and return its tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).mul_(0.02) for name, shape in shapes().items()}
    _write(folder, tensors)
    return tensors


def make_checkpoint(folder: Path, base: dict[str, Tensor], seed: int) -> Path:
    """Write a checkpoint whose task vectors have a decaying spectrum, as fine-tuning leaves."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in base.items():
        update = torch.randn(tensor.shape, generator=generator).mul_(5e-4)
        if tensor.ndim == 2:
            rank = min(64, *tensor.shape)
            left = torch.randn(tensor.shape[0], rank, generator=generator)
            right = torch.randn(rank, tensor.shape[1], generator=generator)
            update += left @ (right * torch.linspace(1, 0.05, rank)[:, None]) * 2e-4
        tensors[name] = tensor + update
    return _write(folder, tensors)


def _write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
