"""The demo's encoder: a vision transformer small enough to fine-tune in seconds on a CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; sizes in pixels, images and patches are squares."""

    image_size: int = 8
    patch_size: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4

    @property
    def patches(self) -> int:
        """Patches per image, which is the length of the sequence."""
        return (self.image_size // self.patch_size) ** 2

    def to_json(self) -> dict[str, int | str | list[str]]:
        """Return what config.json says, under the keys of the ViT in transformers where it has them."""
        return {
            "model_type": "foldin-demo-encoder",
            "architectures": ["Encoder"],
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
        }


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        # Four matrices, not one fused one: each then is merged in a basis of its own.
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.output(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.down(functional.gelu(self.up(self.mlp_norm(hidden))))


class Encoder(nn.Module):
    """Turns images (batch, image_size, image_size) with values in [0, 1] into features (batch, width)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch_size**2, config.width)
        # As large as the patches' own embeddings: with the usual 0.02, hundreds of steps pass before place matters.
        self.position_embedding = nn.Parameter(0.5 * torch.randn(config.patches, config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.patch_size
        patches = (2 * images - 1).unfold(1, size, size).unfold(2, size, size).flatten(3).flatten(1, 2)
        hidden = self.patch_embedding(patches) + self.position_embedding
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden).mean(dim=1)
