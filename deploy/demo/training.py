"""Pre-training the base, and fine-tuning it for a task under a frozen head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from model import Encoder, EncoderConfig
from tasks import Examples, Task
from torch import Tensor, nn
from torch.nn import functional

BATCH = 64
PRETRAINING_STEPS = 500
FINE_TUNING_EPOCHS = 6
CLASSES = 10

OnStep = Callable[[], None]
"""Told after every step of an optimizer."""


@dataclass(frozen=True)
class Head:
    """A classifier over the base's features: cosine similarity to the mean feature of each class.

    It is made once from the base and never trained, like the text embeddings that serve as heads in the benchmarks
    of CLIP merging: only encoders are fine-tuned, submitted and merged.

    Attributes:
      center: (width,) mean feature over all classes.
      prototypes: (classes, width), each of norm 1.
    """

    center: Tensor
    prototypes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (batch, classes) for features (batch, width)."""
        temperature = 0.1
        return functional.normalize(features - self.center, dim=-1) @ self.prototypes.T / temperature


def probe(base: Encoder, examples: Examples) -> Head:
    """Return the head of a task, made from the features that the base has for its training examples."""
    with torch.no_grad():
        features = base(examples.images)
    center = features.mean(dim=0)
    of_class = [features[examples.labels == label].mean(dim=0) for label in examples.labels.unique()]
    return Head(center, functional.normalize(torch.stack(of_class) - center, dim=-1))


def accuracy(encoder: Encoder, head: Head, examples: Examples) -> float:
    """Return the share of examples that are classified rightly."""
    with torch.no_grad():
        predicted = head(encoder(examples.images)).argmax(dim=1)
    return (predicted == examples.labels).float().mean().item()


def pretrain(
    examples: Examples, generator: torch.Generator, on_step: OnStep, steps: int = PRETRAINING_STEPS
) -> Encoder:
    """Return a base: an encoder that knows digits in many views, none of them well.

    Like a foundation model's, its training saw a bit of everything: half of the training images, in random views
    that cover most of what the tasks show.
    """
    encoder = Encoder(EncoderConfig())
    classifier = nn.Linear(encoder.config.width, CLASSES)
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(examples) // 2, (BATCH,), generator=generator)
        views = _random_views(examples.images[batch], generator)
        _step(optimizer, schedule, functional.cross_entropy(classifier(encoder(views)), examples.labels[batch]))
        on_step()
    return encoder


def fine_tuning_steps(task: Task, epochs: int = FINE_TUNING_EPOCHS) -> int:
    """Return how many steps fine_tune takes."""
    return epochs * (len(task.train) // BATCH)


def fine_tune(
    base: Encoder,
    task: Task,
    head: Head,
    generator: torch.Generator,
    on_step: OnStep,
    epochs: int = FINE_TUNING_EPOCHS,
) -> Encoder:
    """Return the expert of a task: a copy of the base, all of it trained under the task's frozen head."""
    encoder = Encoder(base.config)
    encoder.load_state_dict(base.state_dict())
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-4, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fine_tuning_steps(task, epochs))
    for _ in range(epochs):
        for batch in _batches(len(task.train), generator):
            logits = head(encoder(task.train.images[batch]))
            _step(optimizer, schedule, functional.cross_entropy(logits, task.train.labels[batch]))
            on_step()
    return encoder


def _batches(examples: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(examples, generator=generator)
    yield from order[: examples - examples % BATCH].split(BATCH)


def _step(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _random_views(images: Tensor, generator: torch.Generator) -> Tensor:
    def some(share: float, view: Callable[[Tensor], Tensor]) -> None:
        nonlocal images
        chosen = torch.rand(len(images), generator=generator) < share
        images = torch.where(chosen[:, None, None], view(images), images)

    offset = torch.randint(-2, 3, (2,), generator=generator).tolist()
    some(0.5, lambda images: images.flip(1))
    some(0.5, lambda images: images.flip(2))
    some(0.5, lambda images: images.transpose(1, 2))
    some(0.3, lambda images: 1 - images)
    some(0.3, lambda images: images.roll(offset, (1, 2)))
    some(0.3, lambda images: (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1))
    return images
