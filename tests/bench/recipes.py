"""What the merge rules `fisher` and `regmean` weigh by, as daemon/foldind/checkpoints/README.md says how to make it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def squared_gradients(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the mean square of the gradients, by parameter: the diagonal empirical Fisher.

    Args:
      model: all of whose parameters the losses depend on.
      losses: of single examples, each computed when it is asked for.
    """
    found = {name: torch.zeros_like(values) for name, values in model.named_parameters()}
    count = 0
    for loss in losses:
        model.zero_grad()
        loss.backward()
        for name, values in model.named_parameters():
            assert values.grad is not None
            found[name].addcmul_(values.grad, values.grad)
        count += 1
    return {name: squares / count for name, squares in found.items()}


def input_grams(model: nn.Module, run: Callable[[], None]) -> dict[str, Tensor]:
    """Return X^T X / rows of the inputs X of each linear layer, a row each, by the name of its weight.

    Args:
      model: the model.
      run: runs it on examples without padding, all or one after the other.
    """
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found = {name: torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()}
    counts = dict.fromkeys(found, 0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].flatten(0, -2)
            found[name].addmm_(rows.mT, rows)
            counts[name] += len(rows)

        return keep

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return {name: gram / counts[name] for name, gram in found.items()}
