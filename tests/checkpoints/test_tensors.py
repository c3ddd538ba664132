from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.tensors import TORCH_DTYPES, TensorReader
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.models import base_tensors, load_model, shard

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = ((7, 5), (6,), (), (0, 4), (4, 0), (3, 2, 5), (1, 1))


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, for a comparison that sees NaN and the sign of zero."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_dtypes_are_all_covered() -> None:
    assert DTYPES == TORCH_DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
class TestEveryDtype:
    @pytest.fixture
    def folder(self, dtype: torch.dtype, tmp_path: Path) -> Path:
        torch.manual_seed(0)
        tensors = {f"t{number}": torch.randn(shape).to(dtype) for number, shape in enumerate(SHAPES)}
        tensors["special"] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-41]).to(dtype)
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    def test_reads_what_the_library_loads(self, dtype: torch.dtype, folder: Path) -> None:
        expected = load_file(folder / "model.safetensors")
        with TensorReader(folder) as reader:
            for name, tensor in open_checkpoint(folder).tensors.items():
                read = reader.read(tensor)
                assert (read.shape, read.dtype) == (expected[name].shape, dtype)
                assert torch.equal(bits(read), bits(expected[name]))

    def test_row_blocks(self, dtype: torch.dtype, folder: Path) -> None:
        expected = load_file(folder / "model.safetensors")
        with TensorReader(folder) as reader:
            for name, tensor in open_checkpoint(folder).tensors.items():
                rows = tensor.shape[0] if tensor.shape else 0
                for first in range(rows):
                    for last in range(first, rows + 1):
                        read = reader.read(tensor, (first, last))
                        assert (read.shape, read.dtype) == ((last - first, *tensor.shape[1:]), dtype)
                        assert torch.equal(bits(read), bits(expected[name][first:last]))

    def test_is_memory_of_its_own(self, dtype: torch.dtype, folder: Path) -> None:
        tensor = open_checkpoint(folder).tensors["t0"]
        with TensorReader(folder) as reader:
            before = reader.read(tensor)
            before.zero_()
            assert reader.read(tensor).abs().sum() > 0


def test_bytes_of_any_dtype(base: Path) -> None:
    tensor = open_checkpoint(base).tensors["embeddings.position_ids"]
    with TensorReader(base) as reader:
        assert torch.equal(reader.read_bytes(tensor, 0, tensor.nbytes).view(torch.int64), torch.arange(16))
        assert torch.equal(reader.read_bytes(tensor, 8, 24).view(torch.int64), torch.tensor([1, 2]))
        assert reader.read_bytes(tensor, 5, 5).shape == (0,)


def test_shards(tmp_path: Path) -> None:
    folder = shard(tmp_path / "model", base_tensors(), 3)
    expected = load_model(folder)
    with TensorReader(folder) as reader:
        for name, tensor in open_checkpoint(folder).tensors.items():
            if tensor.dtype in DTYPES:
                assert torch.equal(reader.read(tensor), expected[name])


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_file_cut_short_after_its_header_was_read(cut: int, base: Path) -> None:
    path = base / "model.safetensors"
    checkpoint = open_checkpoint(base)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    size = path.stat().st_size
    torn = [tensor for tensor in checkpoint.tensors.values() if tensor.start + tensor.nbytes > size]
    assert torn
    with TensorReader(base) as reader:
        for tensor in torn:
            with pytest.raises(EOFError, match=f"model.safetensors ends inside tensor {tensor.name!r}"):
                reader.read_bytes(tensor, 0, tensor.nbytes)
        for tensor in checkpoint.tensors.values():
            if tensor not in torn:
                assert len(reader.read_bytes(tensor, 0, tensor.nbytes)) == tensor.nbytes


def test_missing_file(base: Path) -> None:
    tensor = open_checkpoint(base).tensors["logit_scale"]
    (base / "model.safetensors").unlink()
    with TensorReader(base) as reader, pytest.raises(FileNotFoundError):
        reader.read(tensor)


def test_files_are_closed(base: Path) -> None:
    def opened() -> int:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return links.count((base / "model.safetensors").resolve())

    tensors = open_checkpoint(base).tensors
    with TensorReader(base) as reader:
        reader.read(tensors["logit_scale"])
        reader.read(tensors["patch.projection.weight"])
        assert opened() == 1
    assert opened() == 0
