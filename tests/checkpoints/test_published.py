"""How the merged model is rounded to the dtype of the base: once, to nearest even. By the worker, on real files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import make_plan
from foldind.errors import CheckpointRefused
from foldind.merging.record import Record
from foldind.state.layout import ACCUMULATED
from foldind.worker.messages import Job, PublishRequest
from foldind.worker.publish import publish
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import DIGITS, write
from tests.support.models import load_model

NAME = "layer.weight"
HALVES = (torch.bfloat16, torch.float16)


def published(root: Path, base: Tensor, accumulated: Tensor, lambda_: float = 1.0) -> Tensor:
    """What the worker makes of the base and S / lambda."""
    folder = write(root / "base", {NAME: base})
    plan = root / "plan.json"
    plan.write_text(make_plan(open_checkpoint(folder)).to_json())
    (root / "state").mkdir()
    save_file({NAME: accumulated}, root / "state" / ACCUMULATED)
    (root / "snapshot").mkdir()
    job = Job(
        base=str(folder),
        plan=str(plan),
        rule="opcm",
        hyper_parameters={},
        publication="norm",
        backend="torch",
        threads=1,
        memory_budget=2**30,
        publish=("model",),
        adapter_rank=0,
    )
    request = PublishRequest(
        job=job,
        record=Record(1, 1.0, lambda_),
        accumulated=str(root / "state"),
        bases=(str(root),),
        snapshot_folder=str(root / "snapshot"),
    )
    assert publish(request, lambda _: None).lambda_ == lambda_
    merged = load_model(root / "snapshot")[NAME]
    assert (merged.shape, merged.dtype) == (base.shape, base.dtype)
    return merged


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, on the bits of finite float32."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("lambda_", [1.0, 0.3, 2.7])
def test_rounds_once_to_nearest_even(dtype: torch.dtype, lambda_: float, generator: Generator, tmp_path: Path) -> None:
    base = torch.randn(60, 50, generator=generator).to(dtype)
    accumulated = torch.randn(60, 50, generator=generator) * 0.02
    merged = published(tmp_path, base, accumulated, lambda_)
    total = base.float().numpy() + accumulated.numpy() / np.float32(lambda_)
    assert total.dtype == np.float32
    expected = {
        torch.float32: total,
        torch.bfloat16: round_to_bfloat16(total),
        torch.float16: total.astype(np.float16).astype(np.float32),
    }[dtype]
    if dtype is torch.float32:
        np.testing.assert_array_max_ulp(merged.numpy(), expected, 1)
    else:
        assert np.mean(merged.float().numpy() != expected) <= 1e-3  # a division an ulp off may cross a tie
    exact = base.double().numpy() + accumulated.double().numpy() / lambda_
    exponent = np.maximum(np.floor(np.log2(np.abs(exact))), -14 if dtype is torch.float16 else -126)
    half_ulp = 2.0 ** (exponent - DIGITS[dtype])
    slack = 2.0 if dtype is torch.float32 else 1.001  # float32 also rounds the quotient
    error = np.abs(merged.double().numpy() - exact)
    assert (error <= slack * half_ulp + 2e-7 * np.abs(accumulated.numpy() / lambda_)).all()


@pytest.mark.parametrize("dtype", DIGITS)
def test_ties_go_to_even(dtype: torch.dtype, tmp_path: Path) -> None:
    half_ulp = 2.0 ** -DIGITS[dtype]
    base = torch.tensor([1.0, 1 + 2 * half_ulp, 1 + 4 * half_ulp, -1.0], dtype=dtype)
    accumulated = 3 * torch.tensor([half_ulp, half_ulp, half_ulp, -half_ulp])
    merged = published(tmp_path, base, accumulated, 3.0)
    expected = torch.tensor([1.0, 1 + 4 * half_ulp, 1 + 4 * half_ulp, -1.0], dtype=torch.float64)
    assert torch.equal(merged.double(), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_ties_and_what_is_close_to_them(dtype: torch.dtype, tmp_path: Path) -> None:
    step = 2.0 ** (1 - DIGITS[dtype])  # between neighbours in [1, 2)
    base = torch.tensor([1, 1 + step, 1, 1 + step, -1, -1 - step], dtype=dtype)
    halves = torch.tensor([0.5, 0.5, 0.501, 0.499, -0.5, -0.5]) * step
    expected = torch.tensor([1, 1 + 2 * step, 1 + step, 1 + step, -1, -1 - 2 * step], dtype=dtype)
    assert torch.equal(published(tmp_path, base, halves), expected)


def test_bfloat16_snapshot_loses_what_the_state_keeps(tmp_path: Path) -> None:
    base, step = torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 2.0**-10)
    assert torch.equal(published(tmp_path / "one", base, step), base)
    total = sum((step for _ in range(8)), torch.zeros(3))
    assert torch.equal(published(tmp_path / "eight", base, total).float(), torch.full((3,), 1 + 2.0**-7))


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("shape", [(7, 5), (6, 3, 4, 4), (0, 5), (9,), ()])
def test_nothing_merged_publishes_the_base(
    shape: tuple[int, ...], dtype: torch.dtype, generator: Generator, tmp_path: Path
) -> None:
    base = torch.randn(shape, generator=generator).to(dtype)
    assert torch.equal(published(tmp_path, base, torch.zeros(shape), 1.0), base)


def test_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    base = torch.tensor([60000.0, 1.0], dtype=torch.float16)
    with pytest.raises(CheckpointRefused, match=r"'layer\.weight' would leave the range of .* torch\.float16"):
        published(tmp_path, base, torch.tensor([10000.0, 0.0]))


def test_large_values_that_fit_are_not_refused(tmp_path: Path) -> None:
    """Though their sum does not."""
    base = torch.full((300,), 60000.0, dtype=torch.float16)
    base[0] = -60000.0
    merged = published(tmp_path, base, torch.full((300,), 32.0))
    assert torch.equal(merged, (base.float() + 32).half())
