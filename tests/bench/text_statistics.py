"""What the merge rules that weigh by statistics need of a suite of text tasks that has no training data.

    python -m tests.bench.text_statistics SUITE fisher|regmean OUT

copies the suite and divides each task's test items: the first half gives the statistics, in the place of training
data, and only the second half is left to score on. Scores of OUT compare with each other, not with those of SUITE.
The recipes are those of daemon/foldind/checkpoints/README.md.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

BATCH = 50


class Items(NamedTuple):
    """Tokenised texts of a task."""

    input_ids: Tensor
    """(items, tokens) int64."""
    attention_mask: Tensor
    """Likewise; 1 where there is a token."""
    labels: Tensor
    """(items,) int64."""

    def batches(self, size: int) -> Iterator["Items"]:
        """Yield them, so many at a time, without columns that are padding throughout."""
        for first in range(0, len(self.labels), size):
            ids, mask, labels = (values[first : first + size] for values in self)
            tokens = int(mask.sum(1).max())
            yield Items(ids[:, :tokens], mask[:, :tokens], labels)


Forward = Callable[[Items], Tensor]
"""Items -> logits, (items, classes)."""


def fisher(model: nn.Module, logits: Forward, items: Items) -> dict[str, Tensor]:
    """Return the mean square of the gradients of single items' losses, by parameter: the diagonal empirical Fisher."""
    found = {name: torch.zeros_like(values) for name, values in model.named_parameters()}
    for item in items.batches(1):
        model.zero_grad()
        functional.cross_entropy(logits(item), item.labels).backward()
        for name, values in model.named_parameters():
            assert values.grad is not None
            found[name].addcmul_(values.grad, values.grad, value=1 / len(items.labels))
    return found


def grams(model: nn.Module, logits: Forward, items: Items) -> dict[str, Tensor]:
    """Return X^T X / tokens of the inputs X of each linear layer, padding left out, by the name of its weight."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found = {f"{name}.weight": torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()}
    tokens: list[Tensor] = []

    def watch(gram: Tensor) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0][tokens[-1]]
            gram.addmm_(rows.mT, rows)

        return keep

    hooks = [layer.register_forward_pre_hook(watch(found[f"{name}.weight"])) for name, layer in layers.items()]
    with torch.no_grad():
        for batch in items.batches(BATCH):
            tokens.append(batch.attention_mask.bool())
            logits(batch)
    for hook in hooks:
        hook.remove()
    total = sum(int(mask.sum()) for mask in tokens)
    return {name: gram / total for name, gram in found.items()}


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
        return functional.linear((hidden * mask).sum(1) / mask.sum(1), weight, bias)

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
