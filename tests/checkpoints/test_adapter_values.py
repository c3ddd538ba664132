"""What adapters without PEFT's help come to: tied tensors, and magnitudes beyond the range of squares in float32."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG
from foldind.errors import CheckpointRefused
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import DENSE, EMBEDDING, QUERY, Stream
from tests.support.models import base_tensors

LM_HEAD = "lm_head.weight"
RANK = 4


def write(folder: Path, tensors: Mapping[str, Tensor], **settings: object) -> Path:
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK} | settings))
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / ADAPTER)
    return folder


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path, base_tensors() | {LM_HEAD: base_tensors()[EMBEDDING].clone()})


def test_tied_tensors_that_are_replaced_by_one(stream: Stream, tmp_path: Path) -> None:
    embedding = base_tensors()[EMBEDDING] + 0.25
    stream.fold_folder(write(tmp_path / "adapter", {EMBEDDING: embedding, LM_HEAD: embedding.clone()}))
    torch.testing.assert_close(stream.merged[EMBEDDING], embedding)
    assert torch.equal(stream.merged[LM_HEAD], stream.merged[EMBEDDING])


def test_tied_tensors_that_are_replaced_by_two(stream: Stream, tmp_path: Path) -> None:
    embedding = base_tensors()[EMBEDDING] + 0.25
    with pytest.raises(CheckpointRefused, match="are one in the base, and differ in it"):
        stream.fold_folder(write(tmp_path / "adapter", {EMBEDDING: embedding, LM_HEAD: embedding + 1}))


@pytest.mark.parametrize("name", [QUERY, *DENSE])
@pytest.mark.parametrize("size", [1e25, 1e12, 1.0], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_magnitudes_of_large_factors(
    name: str, size: float, transposed: bool, stream: Stream, generator: Generator, tmp_path: Path
) -> None:
    """The direction of what is so large has its length all the same."""
    base = base_tensors()[name].T if transposed else base_tensors()[name]
    outputs, inputs = base.shape
    module = name.removesuffix(".weight")
    up, down = torch.randn(outputs, RANK, generator=generator), size * torch.randn(RANK, inputs, generator=generator)
    magnitude = 1 + torch.rand(outputs, generator=generator)
    factors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    magnitudes = {f"{module}.lora_magnitude_vector": magnitude}
    stream.fold_folder(write(tmp_path / "adapter", factors | magnitudes, use_dora=True, fan_in_fan_out=transposed))
    total = base.double().numpy() + up.double().numpy() @ down.double().numpy()
    expected = magnitude.double().numpy()[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    expected -= base.double().numpy()
    found = stream.accumulated[name].double().numpy()
    np.testing.assert_allclose(found, expected.T if transposed else expected, rtol=0, atol=1e-5)


class TestTheBaseBesideTheFactors:
    """PEFT saves it where the factors are those of an embedding; in the file, it may stand before or after them."""

    def fold(self, beside: Tensor, rank: int, stream: Stream, generator: Generator, root: Path) -> None:
        module = DENSE[0].removesuffix(".weight")
        rows, columns = base_tensors()[DENSE[0]].shape
        factors = {
            f"{module}.lora_A.weight": torch.randn(rank, columns, generator=generator),
            f"{module}.lora_B.weight": torch.randn(rows, rank, generator=generator),
        }
        stream.fold_folder(write(root / "alone", factors, r=rank))
        alone = stream.merged[DENSE[0]]
        again = Stream(root / "again", base_tensors())
        again.fold_folder(write(root / "beside", factors | {f"{module}.base_layer.weight": beside}, r=rank))
        assert torch.equal(again.merged[DENSE[0]], alone)

    @pytest.mark.parametrize("rank", [4, 24], ids=["factored", "dense"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_same(
        self, rank: int, dtype: torch.dtype, stream: Stream, generator: Generator, tmp_path: Path
    ) -> None:
        self.fold(base_tensors()[DENSE[0]].to(dtype), rank, stream, generator, tmp_path)

    @pytest.mark.parametrize("rank", [4, 24], ids=["factored", "dense"])
    def test_another(self, rank: int, stream: Stream, generator: Generator, tmp_path: Path) -> None:
        beside = base_tensors()[DENSE[0]]
        beside[-1, -1] += 0.01
        with pytest.raises(CheckpointRefused, match="is not the base's"):
            self.fold(beside, rank, stream, generator, tmp_path)
