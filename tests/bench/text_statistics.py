"""What the merge rules that weigh by statistics need of a suite of text tasks that has no training data.

    python -m tests.bench.text_statistics SUITE fisher|regmean OUT

copies the suite and divides each task's test items: the first half gives the statistics, in the place of training
data, and only the second half is left to score on. Scores of OUT compare with each other, not with those of SUITE.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModel, PreTrainedModel

from tests.bench.recipes import input_grams, squared_gradients


class Items(NamedTuple):
    """Tokenised texts of a task."""

    input_ids: Tensor
    """(items, tokens) int64."""
    attention_mask: Tensor
    """Likewise; 1 where there is a token, which is at the beginning."""
    labels: Tensor
    """(items,) int64."""

    def one_by_one(self) -> Iterator["Items"]:
        """Yield each by itself, without padding."""
        for ids, mask, label in zip(*(values.split(1) for values in self), strict=True):
            tokens = int(mask.sum())
            yield Items(ids[:, :tokens], mask[:, :tokens], label)


Forward = Callable[[Items], Tensor]
"""Items -> logits, (items, classes)."""


def fisher(model: nn.Module, logits: Forward, items: Items) -> dict[str, Tensor]:
    """Return the diagonal empirical Fisher."""
    return squared_gradients(model, (cross_entropy(logits(item), item.labels) for item in items.one_by_one()))


def grams(model: nn.Module, logits: Forward, items: Items) -> dict[str, Tensor]:
    """Return the Gram matrices of the inputs of its linear layers."""

    def run() -> None:
        for item in items.one_by_one():
            logits(item)

    return input_grams(model, run)


RECIPES = {"fisher": fisher, "regmean": grams}
"""By the merge rule that weighs by them."""


def write_statistics(suite: Path, rule: str, target: Path) -> None:
    """Copy a suite, with statistics beside each expert, and without the items that they are from.

    Args:
      suite: base/ and tasks/<name>/.
      rule: one of RECIPES.
      target: to make.

    Raises:
      FileExistsError: the target is there.
    """
    shutil.copytree(suite, target)
    for folder in track(sorted((target / "tasks").iterdir()), f"statistics for {rule}", console=Console(stderr=True)):
        items = {name: values.long() for name, values in load_file(folder / "test.safetensors").items()}
        half = len(items["labels"]) // 2
        model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        model.eval()
        head = load_file(folder / "head.safetensors")
        first_half = Items(**{name: items[name][:half] for name in Items._fields})
        found = RECIPES[rule](model, _forward(model, head["weight"], head["bias"]), first_half)
        save_file(found, folder / "statistics.safetensors")
        save_file({name: values[half:].contiguous() for name, values in items.items()}, folder / "test.safetensors")


def _forward(model: PreTrainedModel, weight: Tensor, bias: Tensor) -> Forward:
    def logits(items: Items) -> Tensor:
        hidden = model(input_ids=items.input_ids, attention_mask=items.attention_mask).last_hidden_state
        mask = items.attention_mask[:, :, None].to(hidden.dtype)
        return linear((hidden * mask).sum(1) / mask.sum(1), weight, bias)

    return logits


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.text_statistics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("suite", metavar="SUITE", type=Path, help="with base/ and tasks/<name>/")
    parser.add_argument("rule", choices=RECIPES)
    parser.add_argument("target", metavar="OUT", type=Path, help="to make")
    arguments = parser.parse_args()
    write_statistics(arguments.suite, arguments.rule, arguments.target)


if __name__ == "__main__":
    main()
