"""The suite's images: digits, each drawn several times, and patches of photographs."""

import math
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from tests.bench.vision.demo import Examples

SIZE = 8
"""Of every image, in pixels."""
STRIP = 20
"""Width of the strips of a photograph, in pixels."""


def draw(examples: Examples, times: int, generator: torch.Generator) -> Examples:
    """Return each image `times` times in a row, each time a little different.

    It is turned by up to 10 degrees, scaled by up to 10%, and moved by up to half a pixel each way.
    """
    images, labels = (tensor.repeat_interleave(times, dim=0) for tensor in (examples.images, examples.labels))

    def within(limit: float) -> Tensor:
        return limit * (2 * torch.rand(len(labels), generator=generator) - 1)

    angle, scale = within(math.radians(10)), 1 + within(0.1)
    half_a_pixel = 1 / SIZE  # where an image is 2 wide
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack(row, dim=1) for row in ((cos, -sin, within(half_a_pixel)), (sin, cos, within(half_a_pixel)))]
    grid = functional.affine_grid(torch.stack(rows, dim=1), [len(labels), 1, SIZE, SIZE], align_corners=False)
    drawn = functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    return Examples(drawn.clamp(0, 1), labels)


def photograph_patches(count: int, *, of_test: bool, generator: torch.Generator) -> Examples:
    """Return patches of scikit-learn's two photographs, at random places; the label is the photograph.

    Both are cut into upright strips, which are for training and for testing by turns: no pixel is in both.
    """
    photographs = _photographs()
    _, height, width = photographs.shape

    def below(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator)

    photograph, top = below(len(photographs)), below(height - SIZE + 1)
    left = (2 * below(width // (2 * STRIP)) + of_test) * STRIP + below(STRIP - SIZE + 1)
    rows, columns = (start[:, None] + torch.arange(SIZE) for start in (top, left))
    patches = photographs[photograph[:, None, None], rows[:, :, None], columns[:, None, :]]
    return Examples(patches, photograph)


@cache
def _photographs() -> Tensor:
    """Brightness (2, height, width) float32 in [0, 1], at half the size."""
    images = torch.from_numpy(np.stack(load_sample_images().images))
    return functional.avg_pool2d(images.float().mean(dim=-1) / 255, 2)
