"""A suite of real fine-tuned models merged in half precision: how far the merged models are from float32's."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from foldind.worker.messages import FoldResult
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.bench.settings import Settings
from tests.checkpoints.folding import Stream
from tests.support.models import load_model

WEIGHTS = "model.safetensors"


class Variant(NamedTuple):
    """What the base and the submissions are cast to."""

    base: torch.dtype
    submissions: torch.dtype

    @property
    def name(self) -> str:
        """Of the merged model."""
        return f"{_short(self.base)}-base-{_short(self.submissions)}-submissions"


EXACT = Variant(torch.float32, torch.float32)
VARIANTS = (
    EXACT,
    Variant(torch.bfloat16, torch.bfloat16),
    Variant(torch.bfloat16, torch.float32),
    Variant(torch.float16, torch.float16),
    Variant(torch.float16, torch.float32),
)


def run(folder: Path, settings: Settings) -> None:
    """Measure, print the figures, and leave the merged models in settings.keep."""
    if settings.suite is None:
        print("## Half precision: skipped, for no --suite was given\n")
        return
    suite = settings.suite
    tasks = [suite / "tasks" / name for name in settings.order] or sorted((suite / "tasks").iterdir())
    base = load_model(suite / "base")
    print(f"## Half precision ({len(tasks)} tasks)\n")
    print("| base | submissions | published | lambda | mean task-vector norm | merged update, relative difference |")
    print("|---|---|---|---|---|---|")
    exact: dict[str, Tensor] = {}
    for variant in VARIANTS:
        result, merged = _merge(folder / variant.name, suite / "base", tasks, variant, settings.keep)
        exact = exact or merged
        norm = result.record.task_vector_norm_sum / len(tasks)
        told = f"{_dtypes(merged)} | {result.lambda_:.6f} | {norm:.6f}"
        print(
            f"| {_short(variant.base)} | {_short(variant.submissions)} | {told} | {_difference(merged, exact, base)} |"
        )
    for dtype in (torch.bfloat16, torch.float16):  # what rounding alone costs
        difference = _difference(_cast(exact, dtype), exact, base)
        print(f"| float32 | float32 | float32, then cast to {_short(dtype)} | | | {difference} |")
        if settings.keep is not None:
            _write(suite / "base", base, dtype, settings.keep / f"base-{_short(dtype)}")
            _write(suite / "base", exact, dtype, settings.keep / f"{EXACT.name}-cast-to-{_short(dtype)}")


def _merge(
    root: Path, base: Path, tasks: Sequence[Path], variant: Variant, keep: Path | None
) -> tuple[FoldResult, dict[str, Tensor]]:
    _write(base, load_model(base), variant.base, root / "base")
    stream = Stream(root, None)
    for task in tasks:
        submission = _write(task, load_model(task), variant.submissions, root / "submission")
        result = stream.fold_folder(submission)
        shutil.rmtree(submission)
    merged = load_file(stream.snapshot_folder / WEIGHTS)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copytree(stream.snapshot_folder, keep / variant.name)
    shutil.rmtree(root)
    return result, merged


def _write(source: Path, tensors: dict[str, Tensor], dtype: torch.dtype, target: Path) -> Path:
    """Write a model folder whose floating-point tensors have a dtype; its other files are those of another."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(_cast(tensors, dtype), target / WEIGHTS, metadata={"format": "pt"})
    return target


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _dtypes(merged: dict[str, Tensor]) -> str:
    return ", ".join(sorted({_short(tensor.dtype) for tensor in merged.values() if tensor.is_floating_point()}))


def _difference(merged: dict[str, Tensor], exact: dict[str, Tensor], base: dict[str, Tensor]) -> str:
    return f"{math.hypot(*_norms(merged, exact)) / math.hypot(*_norms(exact, base)):.4f}"


def _norms(minuend: dict[str, Tensor], subtrahend: dict[str, Tensor]) -> Iterator[float]:
    for name, tensor in minuend.items():
        if tensor.is_floating_point():
            yield float((tensor.double() - subtrahend[name].double()).norm())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
