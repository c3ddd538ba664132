import json
import random
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.header import ITEM_BYTES, MAX_NAME_LENGTH, Header, read_header
from foldind.errors import CheckpointRefused
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from tests.hostile.files import ATTACKS, DATA, ENTRY, craft

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def assert_is_the_librarys_view(path: Path, header: Header) -> None:
    """The tensors, their bytes and the metadata are those that the real library sees."""
    content = path.read_bytes()
    assert header.length == len(content)
    with safe_open(path, "pt") as file:
        assert dict(header.metadata) == (file.metadata() or {})
        assert {tensor.name for tensor in header.tensors} == set(file.keys())
        for tensor in header.tensors:
            seen = file.get_slice(tensor.name)
            assert (tensor.dtype, list(tensor.shape)) == (seen.get_dtype(), seen.get_shape())
            assert tensor.file == path.name
            if tensor.nbytes:  # the library has no view of the bytes but the tensor itself
                loaded = file.get_tensor(tensor.name).contiguous().reshape(-1).view(torch.uint8)
                assert content[tensor.start : tensor.start + tensor.nbytes] == loaded.numpy().tobytes()


def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.uint8).reshape(shape).to(dtype)


class TestWellFormed:
    def test_dtypes_are_all_covered(self) -> None:
        assert DTYPES.keys() == ITEM_BYTES.keys()

    @pytest.mark.parametrize("name", DTYPES)
    def test_every_dtype(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        dtype = DTYPES[name]
        save_file({"matrix": zeros(dtype, 3, 5), "scalar": zeros(dtype), "none": zeros(dtype, 0, 4)}, path)
        header = read_header(path)
        assert {tensor.dtype for tensor in header.tensors} == {name}
        assert_is_the_librarys_view(path, header)

    def test_all_dtypes_in_one_file(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        tensors = {f"layer.{name}": zeros(dtype, 2, 3, 1) for name, dtype in DTYPES.items()}
        save_file(tensors, path, metadata={"format": "pt", "größe": "λ\n"})
        header = read_header(path)
        assert header.metadata == {"format": "pt", "größe": "λ\n"}
        starts = [tensor.start for tensor in header.tensors]
        assert starts == sorted(starts)
        assert_is_the_librarys_view(path, header)

    # Of no tensors and empty metadata the library makes a file that is no JSON.
    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
    def test_no_tensors(self, metadata: dict[str, str] | None, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(save({}, metadata=metadata))
        header = read_header(path)
        assert header.tensors == ()
        assert_is_the_librarys_view(path, header)

    def test_empty_tensors_between_others(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [24, 24]}
        path.write_bytes(craft({"z": empty, "a": ENTRY, "y": empty, "m": empty | {"data_offsets": [0, 0]}}))
        header = read_header(path)
        assert [tensor.name for tensor in header.tensors][:2] == ["m", "a"]
        assert_is_the_librarys_view(path, header)

    def test_file_of_any_alignment_and_order(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        header = {
            "second": {"data_offsets": [1, 9], "shape": [2], "dtype": "F32"},
            "first": {"shape": [1], "dtype": "U8", "data_offsets": [0, 1]},
        }
        path.write_bytes(craft(json.dumps(header, indent=1) + " " * 3, bytes(9)))
        assert [tensor.name for tensor in read_header(path).tensors] == ["first", "second"]
        assert [tensor.start for tensor in read_header(path).tensors] == [path.stat().st_size - 9 + at for at in (0, 1)]

    def test_longest_name(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(craft({"é" * MAX_NAME_LENGTH: ENTRY}))
        assert_is_the_librarys_view(path, read_header(path))

    @pytest.mark.parametrize("path", ["missing.safetensors", "."])
    def test_what_cannot_be_read_is_not_refused(self, path: str, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="Errno"):
            read_header(tmp_path / path)


class TestHostile:
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_is_refused_with_a_telling_sentence(self, attack: str, tmp_path: Path) -> None:
        build, sentence = ATTACKS[attack]
        path = tmp_path / "model.safetensors"
        path.write_bytes(build())
        with pytest.raises(CheckpointRefused) as refused:
            read_header(path)
        assert refused.value.reason.startswith("model.safetensors ")
        assert sentence in refused.value.reason
        assert refused.value.hint
        # It goes through a gRPC trailer and into the ledger.
        assert len(str(refused.value)) <= 2000
        assert str(refused.value).isprintable()

    def test_the_file_they_are_made_from_is_well_formed(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(craft({"a": ENTRY}))
        assert_is_the_librarys_view(path, read_header(path))

    @pytest.mark.timeout(10)
    def test_many_names_and_one_twice_take_no_quadratic_time(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        names = [f'"{number:06}":0' for number in range(100_000)]
        path.write_bytes(craft("{" + ",".join([*names, names[-1]]) + "}"))
        with pytest.raises(CheckpointRefused, match="'099999' stands in it twice"):
            read_header(path)

    def test_what_the_library_refuses_is_refused(self, seed: int, tmp_path: Path) -> None:
        """Bytes of a well-formed file changed at random: the same view as the library's, or a refusal."""
        choose = random.Random(seed)
        path = tmp_path / "model.safetensors"
        second = {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30]}
        good = craft({"__metadata__": {"format": "pt"}, "a": ENTRY, "b": second}, DATA + bytes(6))
        accepted = 0
        for _ in range(1500):
            content = bytearray(good)
            for _ in range(choose.choice((1, 1, 2, 3))):
                at = choose.randrange(len(content))
                match choose.randrange(4):
                    case 0:
                        content[at] = choose.choice(b'0123456789{}[]",:-.eE abFUI\\\0\xff')
                    case 1:
                        del content[at : at + choose.randrange(1, 6)]
                    case 2:
                        content[at:at] = content[at : at + choose.randrange(1, 9)]
                    case 3:
                        content[at] ^= 1 << choose.randrange(8)
            path.write_bytes(content)
            try:
                header = read_header(path)
            except CheckpointRefused:
                continue
            accepted += 1
            try:
                assert_is_the_librarys_view(path, header)
            except SafetensorError as error:
                pytest.fail(f"accepted {bytes(content)!r}, which the library refuses: {error}")
        assert accepted > 20  # changes within the data and the names are well-formed too
