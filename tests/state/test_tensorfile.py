import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.header import read_header
from foldind.state.durable import FileDigest
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FileDigest:
    specs = [
        TensorSpec(name, DTYPES[tensor.dtype], tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()
    ]
    with TensorFileWriter(path, specs, metadata) as writer:
        for tensor in tensors.values():
            writer.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return writer.finish()


TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.25),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
    "größe.日本語.🤗": torch.tensor([7], dtype=torch.int64),
    'quotes " and \\ backslashes': torch.ones(3, dtype=torch.float16),
}


def test_safetensors_reads_it(tmp_path: Path) -> None:
    digest = write(tmp_path / "file", TENSORS, {"format": "pt"})
    content = (tmp_path / "file").read_bytes()
    assert digest == FileDigest(len(content), sha256(content).hexdigest())
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_our_own_reader_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "file", TENSORS, {})
    header = read_header(tmp_path / "file")
    assert [tensor.name for tensor in header.tensors] == list(TENSORS), "the order of the tensors is that of the bytes"
    assert header.length == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("length", range(1, 10))
def test_data_begin_at_a_multiple_of_eight(tmp_path: Path, length: int) -> None:
    write(tmp_path / "file", {"n" * length: torch.ones(2)}, {})
    (size,) = memoryview((tmp_path / "file").read_bytes()[:8]).cast("Q")
    assert size % 8 == 0
    assert torch.equal(load_file(tmp_path / "file")["n" * length], torch.ones(2))


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", TENSORS, {"b": "2", "a": "1"})
    write(tmp_path / "two", TENSORS, {"a": "1", "b": "2"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_without_tensors(tmp_path: Path) -> None:
    write(tmp_path / "file", {}, {})
    assert load_file(tmp_path / "file") == {}
    header = (tmp_path / "file").read_bytes()[8:]
    assert json.loads(header) == {}


def test_tensors_may_come_in_pieces(tmp_path: Path) -> None:
    with TensorFileWriter(tmp_path / "file", [TensorSpec("w", "F32", (4,), 16)], {}) as writer:
        for start in range(0, 16, 4):
            writer.write(memoryview(torch.arange(4.0).numpy().tobytes())[start : start + 4])
        writer.finish()
    assert torch.equal(load_file(tmp_path / "file")["w"], torch.arange(4.0))


@pytest.mark.parametrize("count", [0, 15, 17])
def test_a_wrong_number_of_bytes_leaves_no_file(tmp_path: Path, count: int) -> None:
    def attempt() -> None:
        with TensorFileWriter(tmp_path / "file", [TensorSpec("w", "F32", (4,), 16)], {}) as writer:
            writer.write(memoryview(b"\0" * count))
            writer.finish()

    with pytest.raises(ValueError, match="bytes"):
        attempt()
    assert not list(tmp_path.iterdir())


def test_left_by_an_exception_it_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        TensorFileWriter(tmp_path / "file", [TensorSpec("w", "F32", (4,), 16)], {}) as writer,
    ):
        writer.write(memoryview(b"\0" * 16))
        raise KeyError
    assert not list(tmp_path.iterdir())


NAMES = st.text(min_size=1, max_size=30).filter(lambda name: name.isprintable() and name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6))
def test_any_names_shapes_and_dtypes(tmp_path: Path, layout: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, (dtype, shape) in layout.items()
    }
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    write(path, tensors, {})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert {tensor.name for tensor in read_header(path).tensors} == tensors.keys()
