"""The twelve tasks: the demo's seven, and five more."""

import torch
from torch import Tensor

from tests.bench.vision.demo import Examples, Task, load_images, make_tasks
from tests.bench.vision.images import draw, photograph_patches

TEST_DIGITS = 797
"""Of 1,797. The other thousand are for training."""
TIMES = 3
"""How often each digit is drawn."""


def make_suite(generator: torch.Generator) -> tuple[Examples, list[Task]]:
    """Return the digits that are for training, and the tasks, in the order of their names."""
    train, test = (draw(digits, TIMES, generator) for digits in load_images(generator, TEST_DIGITS))
    seven = make_tasks(train, test, generator)
    to_train, to_test = _further(train, False, generator), _further(test, True, generator)
    five = [Task(name, to_train[name], to_test[name]) for name in to_train]
    return train, sorted([*seven, *five], key=lambda task: task.name)


def _further(digits: Examples, of_test: bool, generator: torch.Generator) -> dict[str, Examples]:
    images, labels = digits.images, digits.labels
    patches = photograph_patches(len(labels), of_test=of_test, generator=generator)
    backdrop = photograph_patches(len(labels), of_test=of_test, generator=generator).images
    turns = torch.randint(4, labels.shape, generator=generator)
    has_loop = torch.tensor([digit in (0, 6, 8, 9) for digit in range(10)])
    return {
        "has-a-loop": Examples(images, has_loop[labels].long()),
        "occluded": Examples(_occlude(images, generator), labels),
        "on-photographs": Examples(images + (1 - images) * 0.8 * backdrop, labels),
        "which-photograph": patches,
        "which-way-up": Examples(_turn(images, turns), turns),
    }


def _occlude(images: Tensor, generator: torch.Generator) -> Tensor:
    """Paint two rows or two columns of each image grey."""
    count, size, _ = images.shape
    start = torch.randint(size - 1, (count, 1, 1), generator=generator)
    upright = torch.randint(2, (count, 1, 1), generator=generator) == 1
    pixel = torch.arange(size)
    band = (pixel >= start) & (pixel < start + 2)  # (count, 1, size)
    return torch.where(torch.where(upright, band, band.mT), 0.5, images)


def _turn(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each image by its number of quarter turns."""
    views = torch.stack([images.rot90(quarters, (1, 2)) for quarters in range(4)])
    return views[turns, torch.arange(len(turns))]
