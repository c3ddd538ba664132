"""Compressed task vectors that the client makes, against what they should be, in float64 and written down straight."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from foldin import CheckpointError, InvalidArgument
from foldin.checkpoint import find_checkpoint
from foldin.compression import compress_model
from foldin.models import Progress
from foldin.recipe import Recipe, read_recipe
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.support.compressed import decode
from tests.support.models import shard

ULP = 2**-23

Tensors = dict[str, Tensor]


def write(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata=metadata
    )
    return folder


def base_of(generator: Generator, dtype: torch.dtype = torch.float32) -> Tensors:
    shapes = {
        "embeddings.weight": (90, 70),
        "layer.weight": (70, 71),
        "experts.weight": (3, 40, 70),
        "convolution.weight": (40, 3, 12, 12),
        "small.weight": (8, 8),
        "layer.bias": (5000,),
        "scale": (),
    }
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return tensors | {"positions": torch.arange(7)}


def tuned(base: Tensors, generator: Generator, scale: float = 0.01) -> Tensors:
    return {
        name: tensor + (scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor + 1
        for name, tensor in base.items()
    }


@pytest.fixture
def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


class Compressing:
    """Compresses models of one base in a folder of its own."""

    def __init__(self, root: Path, base: Path | Mapping[str, Tensor]):
        self._root = root
        self.base = base if isinstance(base, Path) else write(root / "base", base)
        self.progress: list[Progress] = []

    def file(
        self, model: Path | Mapping[str, Tensor], coding: str = "ternary", density: float | None = None, **terms: bool
    ) -> Path:
        number = len(list(self._root.iterdir()))
        source = model if isinstance(model, Path) else write(self._root / f"model{number}", model)
        target = self._root / f"compressed{number}"
        target.mkdir()
        recipe = read_recipe(coding, self.base, density)
        assert isinstance(recipe, Recipe)
        partial = terms.get("partial", False)
        made = compress_model(find_checkpoint(source), recipe, partial, target, self.progress.append)
        assert list(target.iterdir()) == [made.path]
        assert made.name == "model.safetensors"
        return made.path

    def refusal(self, model: Path | Mapping[str, Tensor], **terms: bool) -> str:
        with pytest.raises(CheckpointError) as refused:
            self.file(model, **terms)
        return str(refused.value)


def differences(model: Tensors, base: Tensors) -> dict[str, np.ndarray]:
    """Of float32 values, as float32 gives them; what rounding to a smaller dtype left as it was is not among them."""
    floats = [name for name in base if base[name].is_floating_point()]
    return {
        name: (model[name].float() - base[name].float()).numpy() for name in floats if (model[name] != base[name]).any()
    }


def is_plain(task_vector: np.ndarray) -> bool:
    return task_vector.ndim < 2 or task_vector.size < 4096


def ternary(task_vector: np.ndarray, density: float) -> np.ndarray:
    """What is left of a task vector, in float64: a stable sort finds the largest."""
    flat = task_vector.reshape(-1).astype(np.float64)
    order = np.argsort(-np.abs(flat), kind="stable")
    chosen = [place for place in order[: max(1, round(density * flat.size))] if flat[place]]
    left = np.zeros_like(flat)
    left[chosen] = np.sign(flat[chosen]) * np.float32(np.abs(flat[chosen]).mean())
    return left.reshape(task_vector.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.0001, 0.1, 1.0])
def test_ternary(density: float, dtype: torch.dtype, tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator, dtype)
    model = tuned(base, generator)
    found = decode(Compressing(tmp_path, base).file(model, density=density))
    expected = differences(model, base)
    assert found.keys() == expected.keys()
    for name, task_vector in expected.items():
        if is_plain(task_vector):
            np.testing.assert_array_equal(found[name], torch.tensor(task_vector).bfloat16().double().numpy())
        else:
            np.testing.assert_allclose(found[name], ternary(task_vector, density), rtol=ULP, atol=0)


def test_ternary_is_the_best_scale(tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator)
    model = tuned(base, generator)
    found = decode(Compressing(tmp_path, base).file(model))["layer.weight"]
    task_vector = differences(model, base)["layer.weight"].astype(np.float64)
    error = np.square(task_vector - found).sum()
    assert all(np.square(task_vector - factor * found).sum() > error for factor in (0.999, 1.001))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8(dtype: torch.dtype, tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator, dtype)
    model = tuned(base, generator)
    model["layer.weight"][5] = base["layer.weight"][5]
    found = decode(Compressing(tmp_path, base).file(model, "int8"))
    rows = {"embeddings.weight": 1, "layer.weight": 1, "experts.weight": 2, "convolution.weight": 2}
    expected = differences(model, base)
    for name, leading in rows.items():
        task_vector = expected[name].astype(np.float64)
        of_rows = task_vector.reshape(*task_vector.shape[:leading], -1)
        step = np.abs(of_rows).max(axis=-1, keepdims=True) / 127
        error = np.abs(found[name].reshape(of_rows.shape) - of_rows)
        assert np.all(error <= (0.5 + 1e-4) * step), name
    assert not found["layer.weight"][5].any()


def test_tensors_of_several_blocks(tmp_path: Path, generator: Generator) -> None:
    base = {"layer.weight": torch.randn(1500, 1400, generator=generator)}
    model = tuned(base, generator)
    expected = differences(model, base)["layer.weight"]
    compressing = Compressing(tmp_path, base)
    found = decode(compressing.file(model))["layer.weight"]
    np.testing.assert_allclose(found, ternary(expected, 0.1), rtol=ULP, atol=0)
    found = decode(compressing.file(model, "int8"))["layer.weight"]
    assert np.abs(found - expected).max() <= 0.51 * np.abs(expected).max() / 127


def test_of_equal_magnitudes_the_first_are_kept(tmp_path: Path) -> None:
    base = {"layer.weight": torch.zeros(1100, 1000)}
    model = {"layer.weight": torch.ones(1100, 1000)}
    model["layer.weight"][1::2] = -1
    model["layer.weight"][-1, -1] = 3
    found = decode(Compressing(tmp_path, base).file(model, density=0.98))["layer.weight"].reshape(-1)
    kept = round(0.98 * 1_100_000)
    assert np.count_nonzero(found) == kept
    assert found[: kept - 1].all()
    assert found[-1] > 0


def test_fewer_changes_than_the_density_allows(tmp_path: Path) -> None:
    base = {"layer.weight": torch.ones(70, 70)}
    model = {"layer.weight": torch.ones(70, 70)}
    model["layer.weight"][3, 4], model["layer.weight"][9, 9] = 1.5, -1
    found = decode(Compressing(tmp_path, base).file(model, density=0.5))["layer.weight"]
    assert {place: found[place] for place in zip(*np.nonzero(found), strict=True)} == {(3, 4): 1.25, (9, 9): -1.25}


def test_what_did_not_change_is_left_out(tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator)
    model = base | {"layer.weight": base["layer.weight"] + 1, "positions": base["positions"] + 1}
    assert list(decode(Compressing(tmp_path, base).file(model))) == ["layer.weight"]


def test_masks_are_left_out(tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator) | {"mask": torch.full((80, 80), float("-inf")).triu()}
    model = tuned(base_of(generator), generator) | {"mask": base["mask"]}
    assert "mask" not in decode(Compressing(tmp_path, base).file(model))


@pytest.mark.parametrize("coding", ["ternary", "int8"])
def test_equal_inputs_give_equal_bytes_however_they_are_sharded(
    coding: str, tmp_path: Path, generator: Generator
) -> None:
    base = base_of(generator)
    model = tuned(base, generator)
    whole = Compressing(tmp_path, base).file(model, coding).read_bytes()
    backwards = write(tmp_path / "backwards", dict(reversed(model.items())))
    assert Compressing(tmp_path, base_folder := tmp_path / "base").file(backwards, coding).read_bytes() == whole
    sharded = shard(tmp_path / "sharded", model, 3)
    assert Compressing(tmp_path, base_folder).file(sharded, coding).read_bytes() == whole
    other_base = shard(tmp_path / "sharded_base", base, 2)
    assert Compressing(tmp_path, other_base).file(sharded, coding).read_bytes() == whole


def test_tied_tensors_that_the_model_has_once(tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator)
    base["lm_head.weight"] = base["embeddings.weight"].clone()
    model = tuned(base, generator)
    del model["lm_head.weight"]
    found = decode(Compressing(tmp_path, base).file(model))
    np.testing.assert_array_equal(found["lm_head.weight"], found["embeddings.weight"])


def test_progress(tmp_path: Path, generator: Generator) -> None:
    base = base_of(generator)
    compressing = Compressing(tmp_path, base)
    compressing.file(tuned(base, generator))
    floats = sum(4 * tensor.numel() for tensor in base.values() if tensor.is_floating_point())
    assert {progress.stage for progress in compressing.progress} == {"compressing"}
    assert (compressing.progress[-1].done, compressing.progress[-1].total) == (floats, floats)


def test_memory_is_a_few_times_one_tensor(tmp_path: Path, generator: Generator) -> None:
    rows, tensors = 2048, 10
    base = {f"layer.{number}.weight": torch.zeros(rows, rows) for number in range(tensors)}
    model = {name: torch.randn(rows, rows, generator=generator) for name in base}
    script = """if True:
        import resource, sys, pathlib
        from foldin.checkpoint import find_checkpoint
        from foldin.compression import compress_model
        from foldin.recipe import read_recipe
        model, base, target = map(pathlib.Path, sys.argv[1:])
        for coding in ("ternary", "int8"):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            made = compress_model(
                find_checkpoint(model), read_recipe(coding, base, None), False, target, lambda progress: None
            )
            made.path.unlink()
            print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
        assert not {"torch", "safetensors.torch"} & sys.modules.keys()
    """
    (tmp_path / "target").mkdir()
    folders = write(tmp_path / "model", model), write(tmp_path / "base", base), tmp_path / "target"
    done = subprocess.run([sys.executable, "-c", script, *folders], check=True, capture_output=True, text=True)
    of_tensor = 4 * rows * rows
    assert max(map(int, done.stdout.split())) < 4 * of_tensor < tensors * of_tensor / 2


class TestRefusals:
    @pytest.fixture
    def base(self, generator: Generator) -> Tensors:
        return base_of(generator)

    @pytest.fixture
    def compressing(self, tmp_path: Path, base: Tensors) -> Compressing:
        return Compressing(tmp_path, base)

    def test_base_that_lacks_tensors(self, base: Tensors, compressing: Compressing) -> None:
        extra = {f"head.{number}": torch.ones(2) for number in range(5)}
        said = compressing.refusal(base | extra)
        assert "the base lacks 5 tensors of the model: head.0, head.1, head.2 and 2 more. Give the base" in said

    def test_model_that_lacks_tensors(self, base: Tensors, compressing: Compressing, generator: Generator) -> None:
        model = tuned(base, generator)
        del model["layer.weight"], model["positions"]
        assert "the model lacks 1 tensor of the base: layer.weight" in compressing.refusal(model)
        assert "layer.weight" not in decode(compressing.file(model, partial=True))

    def test_other_shapes(self, base: Tensors, compressing: Compressing) -> None:
        model = base | {"layer.weight": torch.ones(71, 70)}
        assert "tensor layer.weight has shape [71, 70] in the model and [70, 71] in" in compressing.refusal(model)

    def test_other_dtypes(self, base: Tensors, compressing: Compressing) -> None:
        model = base | {"layer.weight": torch.ones(70, 71, dtype=torch.int8)}
        assert "has dtype I8 in the model: save it as one of F32, F16, BF16" in compressing.refusal(model)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.4e38])
    def test_values_that_cannot_be_merged(self, value: float, tmp_path: Path) -> None:
        base = {"layer.weight": torch.full((70, 70), 3e38)}
        model = {"layer.weight": torch.full((70, 70), 3e38)}
        model["layer.weight"][69, 69] = value
        assert "tensor layer.weight has NaN or infinite values" in Compressing(tmp_path, base).refusal(model)

    def test_the_base_itself(self, base: Tensors, compressing: Compressing) -> None:
        assert "the model equals the base: there is nothing to submit" in compressing.refusal(base)

    def test_a_base_that_is_not_there(self, base: Tensors, tmp_path: Path) -> None:
        assert "holds no checkpoint" in Compressing(tmp_path, tmp_path).refusal(base)

    def test_what_is_no_model(self, base: Tensors, compressing: Compressing, tmp_path: Path) -> None:
        compressed = compressing.file(base | {"scale": torch.ones(())})
        said = compressing.refusal(compressed.parent)
        assert "holds no model but a compressed_task_vector: submit it as it is, without --compress" in said
        adapter = write(tmp_path / "adapter", base)
        (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
        (adapter / "adapter_config.json").write_text("{}")
        assert "what is submitted is an adapter" in compressing.refusal(adapter)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"compress": "zip", "base": "b"}, "'zip' is no coding: the codings are ternary, int8"),
        ({"compress": "ternary"}, "give the base that it was fine-tuned from"),
        ({"base": "b"}, "give --compress too"),
        ({"density": 0.1}, "give --compress too"),
        ({"compress": "int8", "base": "b", "density": 0.1}, "int8 keeps every element"),
        ({"compress": "ternary", "base": "b", "density": 0.0}, "above 0, and 1 at the most"),
        ({"compress": "ternary", "base": "b", "density": 1.5}, "above 0, and 1 at the most"),
        ({"compress": "ternary", "base": "b", "density": float("nan")}, "above 0, and 1 at the most"),
    ],
)
def test_terms_that_do_not_go_together(client, checkpoint, terms: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        client.submit(checkpoint, **terms)
    assert words in str(refused.value)
