"""Foldin beside the plainest ways to merge, as a table."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from tests.bench.vision.score import load_weights, score, task_names
from tests.checkpoints.folding import Stream


def print_table(suite: Path, scales: Iterable[float]) -> None:
    """Merge all experts of a suite, and print as Markdown what each model reaches.

    Args:
      scales: of the sum of all task vectors, each a model of its own. One more has the norm of Foldin's update.
    """
    names = task_names(suite)
    base = load_weights(suite / "base")
    experts = {name: load_weights(suite / "tasks" / name) for name in names}
    total = {key: sum(expert[key] - tensor for expert in experts.values()) for key, tensor in base.items()}
    folded = _fold(suite, names)

    def plain(scale: float) -> dict[str, Tensor]:
        return {key: tensor + scale * total[key] for key, tensor in base.items()}

    same_norm = _norm({key: folded[key] - tensor for key, tensor in base.items()}) / _norm(total)
    models = {
        "base": base,
        "averaging": plain(1 / len(names)),
        **{f"sum x {scale}": plain(scale) for scale in scales},
        f"sum x {same_norm:.3f}": plain(same_norm),
        "Foldin": folded,
    }
    scores = {label: score(suite, weights) for label, weights in models.items()}
    best = {name: score(suite, expert, [name])["ACC"] for name, expert in experts.items()}

    print(f"| | {' | '.join(scores)} | expert |\n|---|{'---|' * (len(scores) + 1)}")
    for name in names:
        _print_row(name, *(found["accuracy"][name] for found in scores.values()), best[name])
    _print_row("**mean**", *(found["ACC"] for found in scores.values()), fmean(best.values()))
    _print_row("gain kept", *(found["kept"] for found in scores.values()), 1.0)


def _fold(suite: Path, names: list[str]) -> dict[str, Tensor]:
    """Return what the daemon's worker makes of the experts, handed in one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(suite / "base", Path(folder) / "base")
        stream = Stream(Path(folder), None)
        for name in names:
            stream.fold_folder(suite / "tasks" / name)
        return stream.merged


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors.values()]).norm())


def _print_row(label: str, *shares: float) -> None:
    print(f"| {label} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
