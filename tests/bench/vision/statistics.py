"""What an expert's own training images say of it, for the merge rules that weigh by that: `fisher` and `regmean`.

No test image is used.
"""

import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.bench.recipes import input_grams, squared_gradients
from tests.bench.vision.demo import Encoder, Examples, Head, Task, from_weights
from tests.bench.vision.score import load_weights, task_names
from tests.bench.vision.tasks import TIMES, make_suite

EVERY = 2 * TIMES
"""Fisher information is taken of one training image in so many: one drawing of every other digit."""


def fisher(encoder: Encoder, head: Head, train: Examples) -> dict[str, Tensor]:
    """Return the diagonal empirical Fisher."""
    images, labels = train.images[::EVERY], train.labels[::EVERY]
    pairs = zip(images.split(1), labels.split(1), strict=True)
    return squared_gradients(encoder, (cross_entropy(head(encoder(image)), label) for image, label in pairs))


def grams(encoder: Encoder, _: Head, train: Examples) -> dict[str, Tensor]:
    """Return the Gram matrices of the inputs of its linear layers."""
    return input_grams(encoder, lambda: encoder(train.images))


RECIPES = {"fisher": fisher, "regmean": grams}
"""By the merge rule that weighs by them."""


def write_statistics(suite: Path, rule: str, target: Path, seed: int) -> None:
    """Copy a suite, and put beside each expert the statistics that a merge rule weighs it by.

    Args:
      suite: base/ and tasks/<name>/.
      rule: one of RECIPES.
      target: to make.
      seed: from which the suite was built: its training images are drawn once more.

    Raises:
      FileExistsError: the target is there.
      ValueError: the suite was built from another seed.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already: remove it, or name another folder")
    tasks = {task.name: task for task in make_suite(torch.Generator().manual_seed(seed))[1]}
    names = task_names(suite)
    for name in names:
        _check_seed(suite / "tasks" / name, tasks[name], seed)
    shutil.copytree(suite, target)
    for name in track(names, f"statistics for {rule}", console=Console(stderr=True)):
        folder = target / "tasks" / name
        expert, head = from_weights(load_weights(folder)), Head(**load_file(folder / "head.safetensors"))
        save_file(RECIPES[rule](expert, head, tasks[name].train), folder / "statistics.safetensors")


def _check_seed(folder: Path, task: Task, seed: int) -> None:
    if not torch.equal(load_file(folder / "test.safetensors")["images"], task.test.images):
        raise ValueError(f"{folder} was not built from seed {seed}: say with --seed from which it was")
