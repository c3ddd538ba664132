"""The demo's images and the tasks over them.

The images are the 1,797 handwritten digits that come with scikit-learn (test set of the UCI "Optical Recognition of
Handwritten Digits" data set). A task shows them in its own way, asks its own question, or both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

TEST_IMAGES = 500


@dataclass(frozen=True)
class Examples:
    """Images (n, 8, 8) float32 in [0, 1] with their labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """One thing to fine-tune for: its name, and what it is trained and judged on."""

    name: str
    train: Examples
    test: Examples


def load_images(generator: torch.Generator, test_images: int = TEST_IMAGES) -> tuple[Examples, Examples]:
    """Return the digits as they are, shuffled: (for training, for testing)."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    images = torch.tensor(digits.images, dtype=torch.float32)[order] / 16  # 17 grey levels
    labels = torch.tensor(digits.target, dtype=torch.int64)[order]
    cut = len(labels) - test_images
    return Examples(images[:cut], labels[:cut]), Examples(images[cut:], labels[cut:])


def make_tasks(train: Examples, test: Examples, generator: torch.Generator) -> list[Task]:
    """Return the tasks, in the order in which the demo submits them."""

    def noisy(images: Tensor) -> Tensor:
        return (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1)

    def task(
        name: str, view: Callable[[Tensor], Tensor], question: Callable[[Tensor], Tensor] = lambda digit: digit
    ) -> Task:
        train_examples, test_examples = (Examples(view(e.images), question(e.labels)) for e in (train, test))
        return Task(name, train_examples, test_examples)

    return [
        task("rotated", lambda images: images.rot90(1, (1, 2))),
        task("negative", lambda images: 1 - images),
        task("mirrored", lambda images: images.flip(2)),
        task("halves-swapped", lambda images: images.roll(4, 1)),
        task("odd-or-even", lambda images: images, lambda digit: digit % 2),
        task("noisy", noisy),
        task("shifted", lambda images: images.roll((2, 2), (1, 2))),
    ]
