"""A stream of adapters: the state is held as factors, and every fold is that of the same update handed in dense."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foldind.errors import CheckpointRefused
from foldind.state.accumulators import AccumulatedState
from foldind.state.layout import Representation
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream, fine_tuned

WIDE, TALL, SQUARE, EMBEDDING, BIAS = "wide.weight", "tall.weight", "square.weight", "embed.weight", "wide.bias"
RANK = 2


@pytest.fixture
def base(generator: Generator) -> dict[str, Tensor]:
    shapes = {WIDE: (16, 40), TALL: (48, 12), SQUARE: (24, 24), EMBEDDING: (60, 20), BIAS: (16,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class Adapters:
    """Writes adapters, and what they add up to."""

    def __init__(self, root: Path, base: dict[str, Tensor], generator: Generator):
        self._root = root
        self._base = base
        self._generator = generator
        self._written = 0

    def write(self, *names: str, rank: int = RANK, scale: float = 0.1) -> tuple[Path, dict[str, Tensor]]:
        """An adapter on these tensors, and the model that it makes of the base."""
        self._written += 1
        folder = self._root / f"adapter-{self._written}"
        folder.mkdir(parents=True)
        tensors, model = {}, dict(self._base)
        for name in names:
            rows, columns = self._base[name].shape
            left = scale * torch.randn(rows, rank, generator=self._generator)
            right = torch.randn(rank, columns, generator=self._generator)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            if name == EMBEDDING:
                tensors[f"{module}.lora_embedding_A"] = left.mT.contiguous()
                tensors[f"{module}.lora_embedding_B"] = right.mT.contiguous()
            else:
                tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = right, left
            model[name] = (self._base[name].double() + 2 * left.double() @ right.double()).float()
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder, model


@pytest.fixture
def adapters(base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> Adapters:
    return Adapters(tmp_path / "adapters", base, generator)


def state(stream: Stream, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """S, multiplied out."""
    with AccumulatedState(stream.merged_state) as found:
        return {
            name: torch.zeros_like(tensor)
            if found.representation(name) is Representation.ZERO
            else found.read(name, None)
            for name, tensor in base.items()
        }


def representations(stream: Stream, base: dict[str, Tensor]) -> dict[str, str]:
    with AccumulatedState(stream.merged_state) as found:
        return {name: found.representation(name).value for name in base}


@pytest.mark.parametrize("projection", ["exact", "leading"])
@pytest.mark.parametrize("cross_blocks", ["keep", "drop"])
def test_each_fold_is_the_dense_one(
    projection: str, cross_blocks: str, base: dict[str, Tensor], adapters: Adapters, tmp_path: Path
) -> None:
    settings = {"projection": projection, "cross_blocks": cross_blocks}
    stream = Stream(tmp_path / "factored", base, **settings)
    for number, names in enumerate([(WIDE, TALL), (SQUARE, EMBEDDING, TALL), (WIDE, TALL, SQUARE)]):
        folder, model = adapters.write(*names)
        dense = Stream(tmp_path / f"dense-{number}", base, **settings)
        if number:
            dense.start_from(stream, state(stream, base))
        result, expected = stream.fold_folder(folder), dense.fold(model)
        assert result.lambda_ == pytest.approx(expected.lambda_, rel=1e-5)
        assert result.dropped <= 1e-6
        for one, other in zip(result.tensors, expected.tensors, strict=True):
            assert one.task_vector_norm == pytest.approx(other.task_vector_norm, rel=1e-5)
            assert one.kept == pytest.approx(other.kept, abs=1e-5)
        found = state(stream, base)
        for name, tensor in dense.accumulated.items():
            assert (found[name] - tensor).norm() <= 1e-5 * max(float(tensor.norm()), 1e-9), name
        for name, tensor in dense.merged.items():
            torch.testing.assert_close(stream.merged[name], tensor, rtol=0, atol=1e-5)
    assert representations(stream, base) == {name: "zero" if name == BIAS else "factored" for name in base}


def test_dense_once_that_takes_less(base: dict[str, Tensor], adapters: Adapters, tmp_path: Path) -> None:
    stream = Stream(tmp_path / "stream", base)
    found = []
    for _ in range(6):
        stream.fold_folder(adapters.write(SQUARE, TALL)[0])
        found.append(representations(stream, base)[SQUARE])
    # 24 x 24 floats take less than factors of rank 12.
    assert found == ["factored"] * 5 + ["dense"]


def test_a_whole_model_makes_it_dense(
    base: dict[str, Tensor], adapters: Adapters, generator: Generator, tmp_path: Path
) -> None:
    stream = Stream(tmp_path / "stream", base)
    stream.fold_folder(adapters.write(WIDE, TALL)[0])
    before, model = state(stream, base), fine_tuned(base, generator)
    dense = Stream(tmp_path / "dense", base)
    dense.start_from(stream, before)
    result, expected = stream.fold(model), dense.fold(model)
    assert set(representations(stream, base).values()) == {"dense"}
    assert result.lambda_ == pytest.approx(expected.lambda_, rel=1e-6)
    for name, tensor in dense.accumulated.items():
        assert (stream.accumulated[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
    folder, _ = adapters.write(WIDE)
    stream.fold_folder(folder)
    assert set(representations(stream, base).values()) == {"dense"}, "it does not go back"


def test_a_limit_of_the_rank(base: dict[str, Tensor], adapters: Adapters, tmp_path: Path) -> None:
    stream = Stream(tmp_path / "stream", base, max_rank=3)
    results = [stream.fold_folder(adapters.write(WIDE, TALL)[0]) for _ in range(4)]
    assert representations(stream, base)[WIDE] == "factored"
    ranks = [{tensor.name: tensor.rank for tensor in result.tensors} for result in results]
    assert [found[WIDE] for found in ranks] == [2, 3, 3, 3]
    assert results[0].dropped <= 1e-6
    assert all(0.01 < result.dropped < 1 for result in results[1:])


def test_the_same_adapters_give_the_same_bytes(base: dict[str, Tensor], adapters: Adapters, tmp_path: Path) -> None:
    folders = [adapters.write(WIDE, TALL)[0], adapters.write(TALL, EMBEDDING)[0]]
    results = []
    for number in range(2):
        stream = Stream(tmp_path / str(number), base)
        results.append([replace(stream.fold_folder(folder), peak_resident_bytes=0) for folder in folders])
    assert results[0] == results[1]
    assert set(results[0][0].state_files) == {"accumulated.safetensors", "factored.safetensors", "records.json"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value: float, base: dict[str, Tensor], adapters: Adapters, tmp_path: Path) -> None:
    stream = Stream(tmp_path / "stream", base)
    folder, _ = adapters.write(WIDE, TALL)
    stream.fold_folder(folder)
    bad, _ = adapters.write(WIDE, TALL, scale=value)
    with pytest.raises(CheckpointRefused, match="NaN or infinite values in"):
        stream.fold_folder(bad)


def test_nothing_in_it(base: dict[str, Tensor], adapters: Adapters, tmp_path: Path) -> None:
    folder, _ = adapters.write(WIDE, scale=0.0)
    with pytest.raises(CheckpointRefused, match="equals the base"):
        Stream(tmp_path / "stream", base).fold_folder(folder)


def test_twice_the_same_adds_nothing(base: dict[str, Tensor], adapters: Adapters, tmp_path: Path) -> None:
    stream = Stream(tmp_path / "stream", base)
    folder, model = adapters.write(WIDE, TALL)
    stream.fold_folder(folder)
    result = stream.fold_folder(folder)
    assert all(tensor.kept <= 1e-5 for tensor in result.tensors if tensor.task_vector_norm)
    for name, tensor in stream.merged.items():
        torch.testing.assert_close(tensor, model[name], rtol=0, atol=1e-5)
