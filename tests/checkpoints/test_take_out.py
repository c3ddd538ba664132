"""Taking out, streamed by the worker: the merged model is that of a stream which never had the submission."""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream
from tests.checkpoints.test_fold_factored import SQUARE, TALL, WIDE, Adapters, state

EXACT = 1e-5
RULES = ("average", "task_arithmetic", "iso", "regression", "model_stock")
SPECTRAL = ("iso:1.0", "flat:2.0", "power:0.5")


@pytest.fixture
def base(generator: Generator) -> dict[str, Tensor]:
    """Small weights, so that what float32 leaves of them does not hide what is merged."""
    shapes = {WIDE: (16, 40), TALL: (48, 12), SQUARE: (40, 40)}
    return {name: 1e-3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def adapters(base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> Adapters:
    return Adapters(tmp_path / "adapters", base, generator)


def assert_same_update(found: Stream, expected: Stream, base: dict[str, Tensor]) -> None:
    errors = {}
    for name, tensor in base.items():
        one, other = (stream.merged[name].double() - tensor.double() for stream in (found, expected))
        errors[name] = float((one - other).norm() / other.norm().clamp(min=1e-30))
    print(f"MEASURED take out: {max(errors.values()):.1e}")
    assert max(errors.values()) <= EXACT, errors


@pytest.mark.parametrize(
    "times", [pytest.param(1, marks=pytest.mark.long), pytest.param(10, marks=pytest.mark.long), 30]
)
@pytest.mark.parametrize("publication", SPECTRAL)
@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "model"])
def test_what_it_leaves_is_no_direction(
    publication: str,
    times: int,
    whole: bool,
    base: dict[str, Tensor],
    adapters: Adapters,
    generator: Generator,
    tmp_path: Path,
) -> None:
    """Rounding of a long task vector, whether held as factors or dense, is not blown up by what shapes spectra."""
    short = [adapters.write(WIDE, TALL, SQUARE)[0] for _ in range(2)]
    stream = Stream(tmp_path / "with", base, rule="average", publication=publication)
    without = Stream(tmp_path / "without", base, rule="average", publication=publication)
    if whole:
        long = {
            name: tensor + 0.3 * times * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()
        }
        stream.fold(long)
    else:
        folder, _ = adapters.write(WIDE, TALL, SQUARE, scale=0.1 * times)
        stream.fold_folder(folder)
    for adapter in short:
        stream.fold_folder(adapter)
        without.fold_folder(adapter)
    if whole:
        stream.take_out(long)
    else:
        result = stream.fold_folder(folder, take_out=True)
        assert [tensor.rank for tensor in result.tensors] == [4, 4, 4]
    assert_same_update(stream, without, base)


@pytest.mark.parametrize("rule", RULES)
def test_where_nothing_is_left_there_is_nothing(
    rule: str, base: dict[str, Tensor], generator: Generator, tmp_path: Path
) -> None:
    """Of a tensor that what stays did not change, not even rounding is left."""
    first, second, third = (
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(3)
    )
    third[SQUARE] = base[SQUARE]
    stream = Stream(tmp_path, base, rule=rule)
    for submission in (first, second, third):
        stream.fold(submission)
    for submission in (first, second):
        stream.take_out(submission)
    assert not state(stream, base)[SQUARE].any()
    assert torch.equal(stream.merged[SQUARE], base[SQUARE])
    without = Stream(tmp_path / "without", base, rule=rule)
    without.fold(third)
    assert_same_update(stream, without, base)
    for one in (stream, without):
        one.fold(second)
    assert_same_update(stream, without, base)
