import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import INDEX, MAX_INDEX_BYTES, SINGLE, Limits, check_file_names, open_checkpoint
from foldind.checkpoints.header import read_header
from foldind.errors import CheckpointRefused
from safetensors.torch import load_file, save_file

from tests.support.models import base_tensors, make_base, shard

SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return shard(tmp_path / "sharded", base_tensors(), 3)


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, names: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


def sorted_names(value: object) -> str:
    return str(sorted(value)) if isinstance(value, set) else str(value)


def refusal(folder: Path, **limits: int) -> str:
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(folder, Limits(**limits))
    assert refused.value.hint
    assert len(str(refused.value)) <= 2000  # it goes through a gRPC trailer and into the ledger
    return refused.value.reason


class TestOpen:
    def test_single(self, base: Path) -> None:
        checkpoint = open_checkpoint(base)
        assert checkpoint.files == (SINGLE,)
        assert checkpoint.folder == base
        assert checkpoint.headers == {SINGLE: read_header(base / SINGLE)}
        tensors = load_file(base / SINGLE)
        assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }

    def test_single_goes_before_an_index(self, sharded: Path, base: Path) -> None:
        (base / INDEX).write_bytes((sharded / INDEX).read_bytes())
        assert open_checkpoint(base).files == (SINGLE,)

    def test_sharded(self, sharded: Path, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(sharded)
        assert checkpoint.files == (INDEX, *SHARDS)
        assert tuple(checkpoint.headers) == SHARDS
        assert {name: tensor.file for name, tensor in checkpoint.tensors.items()} == weight_map(sharded)
        single = open_checkpoint(make_base(tmp_path / "single")).tensors
        assert {(name, tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()} == {
            (name, tensor.dtype, tensor.shape) for name, tensor in single.items()
        }

    def test_one_shard_of_any_name(self, tmp_path: Path) -> None:
        tmp_path.joinpath("weights").mkdir()
        save_file(base_tensors(), tmp_path / "weights" / "a_b-c.1.safetensors")
        write_index(tmp_path / "weights", dict.fromkeys(base_tensors(), "a_b-c.1.safetensors"))
        assert open_checkpoint(tmp_path / "weights").files == (INDEX, "a_b-c.1.safetensors")

    def test_other_files_are_not_looked_at(self, sharded: Path) -> None:
        for name in ("pytorch_model.bin", "tokenizer.json", "training_args.bin", "README.md"):
            (sharded / name).write_bytes(b"\xff")
        assert open_checkpoint(sharded).files == (INDEX, *SHARDS)

    def test_nothing(self, tmp_path: Path) -> None:
        assert "holds neither model.safetensors nor model.safetensors.index.json" in refusal(tmp_path)

    def test_folder_in_the_place_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / SINGLE).mkdir()
        assert "holds neither" in refusal(tmp_path)

    def test_malformed_shard(self, sharded: Path) -> None:
        with (sharded / SHARDS[1]).open("ab") as file:
            file.write(b"x")
        assert refusal(sharded).startswith(f"{SHARDS[1]} is followed by bytes")


class TestIndexAndShardsDisagree:
    def test_missing_shard(self, sharded: Path) -> None:
        (sharded / SHARDS[1]).unlink()
        assert f"names {SHARDS[1]}, which is missing (1 of 3 shards are)" in refusal(sharded)

    def test_all_shards_missing(self, sharded: Path) -> None:
        for name in SHARDS:
            (sharded / name).unlink()
        assert f"names {SHARDS[0]}, which is missing (3 of 3 shards are)" in refusal(sharded)

    @pytest.mark.parametrize("name", ["model-00004-of-00004.safetensors", "consolidated.safetensors"])
    def test_stray_shard(self, name: str, sharded: Path) -> None:
        save_file({"extra": torch.zeros(2)}, sharded / name)
        assert f"{name} is not named by {INDEX}" in refusal(sharded)

    def test_tensor_that_the_index_does_not_name(self, sharded: Path) -> None:
        names = weight_map(sharded)
        del names["logit_scale"]
        write_index(sharded, names)
        assert "holds tensor 'logit_scale', which model.safetensors.index.json does not name" in refusal(sharded)

    def test_tensor_that_no_shard_holds(self, sharded: Path) -> None:
        write_index(sharded, weight_map(sharded) | {"ghost.weight": SHARDS[0]})
        assert f"names tensor 'ghost.weight', which {SHARDS[0]} does not hold" in refusal(sharded)

    def test_tensor_in_another_shard(self, sharded: Path) -> None:
        names = weight_map(sharded)
        lies, told = names["logit_scale"], next(name for name in SHARDS if name != names["logit_scale"])
        write_index(sharded, names | {"logit_scale": told})
        assert f"tensor 'logit_scale' lies in {lies}, and {INDEX} says {told}" in refusal(sharded)

    def test_tensor_in_two_shards(self, sharded: Path) -> None:
        tensors = load_file(sharded / SHARDS[0])
        twice = next(name for name, file in weight_map(sharded).items() if file == SHARDS[1])
        save_file(tensors | {twice: base_tensors()[twice]}, sharded / SHARDS[0])
        assert f"tensor {twice!r} lies in {SHARDS[0]}, and {INDEX} says {SHARDS[1]}" in refusal(sharded)

    def test_shards_of_another_model(self, sharded: Path) -> None:
        save_file({"other.weight": torch.zeros(2, 2)}, sharded / SHARDS[2])
        assert f"{SHARDS[2]} holds tensor 'other.weight', which {INDEX} does not name" in refusal(sharded)

    def test_absurdly_long_name_of_a_tensor(self, sharded: Path) -> None:
        write_index(sharded, weight_map(sharded) | {"n" * 1_000_000: SHARDS[0]})
        assert "names tensor 'nnn" in refusal(sharded)


class TestHostileIndex:
    @pytest.mark.parametrize(
        "name",
        [
            "../../etc/passwd",
            "../model.safetensors",
            "/tmp/model.safetensors",
            "sub/model.safetensors",
            "sub\\model.safetensors",
            "..",
            ".",
            "",
            ".hidden.safetensors",
            "-rf.safetensors",
            "model.safetensors\n",
            "model\0.safetensors",
            "modél.safetensors",
            "model 1.safetensors",
            "pytorch_model-00001-of-00002.bin",
            "model.safetensors.index.json",
            "n" * 10_000 + ".safetensors",
            7,
            None,
            True,
            ["model-00001-of-00003.safetensors"],
            {"file": "model-00001-of-00003.safetensors"},
        ],
        ids=lambda name: repr(name)[:40],
    )
    def test_shard_names(self, name: object, sharded: Path) -> None:
        write_index(sharded, weight_map(sharded) | {"logit_scale": name})
        assert "puts tensor 'logit_scale' into" in refusal(sharded)

    def test_a_shard_outside_of_the_folder_is_never_opened(self, sharded: Path) -> None:
        save_file({"logit_scale": torch.zeros(())}, sharded.parent / "outside.safetensors")
        write_index(sharded, {"logit_scale": "../outside.safetensors"})
        assert "which is not a plain file name" in refusal(sharded)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "is not valid JSON"),
            (b"{", "is not valid JSON"),
            (b"\xff\xff", "is not valid JSON"),
            (b"[" * 200_000, "is not valid JSON"),
            (b'{"weight_map":' * 200_000, "is not valid JSON"),
            (b"[]", "has no weight_map"),
            (b"null", "has no weight_map"),
            (b"{}", "has no weight_map"),
            (b'{"weight_map": {}}', "has no weight_map"),
            (b'{"weight_map": null}', "has no weight_map"),
            (b'{"weight_map": ["model.safetensors"]}', "has no weight_map"),
            (b'{"weight_map": "model.safetensors"}', "has no weight_map"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    def test_content(self, content: bytes, sentence: str, sharded: Path) -> None:
        (sharded / INDEX).write_bytes(content)
        assert sentence in refusal(sharded)

    def test_too_large(self, sharded: Path) -> None:
        with (sharded / INDEX).open("r+b") as file:
            file.truncate(MAX_INDEX_BYTES + 1)  # sparse: takes no room
        assert f"is larger than {MAX_INDEX_BYTES} bytes" in refusal(sharded)

    def test_larger_than_asked_for(self, sharded: Path) -> None:
        size = (sharded / INDEX).stat().st_size
        assert f"is larger than {size - 1} bytes" in refusal(sharded, index_bytes=size - 1)
        open_checkpoint(sharded, Limits(index_bytes=size))


def test_a_header_larger_than_asked_for(sharded: Path) -> None:
    lengths = [int.from_bytes((sharded / name).read_bytes()[:8], "little") for name in SHARDS]
    assert f"states a header of {max(lengths)} bytes" in refusal(sharded, header_bytes=max(lengths) - 1)
    open_checkpoint(sharded, Limits(header_bytes=max(lengths)))


def test_shards_are_read_one_at_a_time(sharded: Path) -> None:
    (sharded / SHARDS[2]).write_bytes(b"not looked at")
    names = weight_map(sharded)
    write_index(sharded, {name: file for name, file in names.items() if name != next(iter(names))})
    assert "does not name" in refusal(sharded)


class TestFileNames:
    @pytest.mark.parametrize("names", [{SINGLE}, {INDEX, *SHARDS}, {INDEX, "a.safetensors"}], ids=sorted_names)
    def test_checkpoints(self, names: set[str]) -> None:
        check_file_names(names)
        check_file_names(sorted(names))

    @pytest.mark.parametrize(
        "name",
        [
            "../model.safetensors",
            "a/model.safetensors",
            "/model.safetensors",
            "a\\b.safetensors",
            "..",
            "a..safetensors",
            "",
            ".safetensors",
            "-model.safetensors",
            "model.safetensors\n",
            "model\0.safetensors",
            "model 1.safetensors",
            "modèle.safetensors",
            "n" * 201,
            "~root",
            "con:aux",
        ],
        ids=lambda name: repr(name)[:30],
    )
    def test_names_that_are_no_plain_file_names(self, name: str) -> None:
        with pytest.raises(CheckpointRefused, match="is not a plain file name") as refused:
            check_file_names({SINGLE, name})
        assert len(str(refused.value)) <= 300

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            ({"pytorch_model.bin"}, "pytorch_model.bin is a pickle file"),
            ({SINGLE, "training_args.bin"}, "training_args.bin is a pickle file"),
            ({"model.pt"}, "model.pt is a pickle file"),
            ({"model.pth"}, "model.pth is a pickle file"),
            ({"epoch.ckpt", INDEX}, "epoch.ckpt is a pickle file"),
            ({"weights.pkl"}, "weights.pkl is a pickle file"),
            ({"adapter_model.safetensors"}, "a PEFT adapter is adapter_config.json and adapter_model.safetensors"),
            ({"adapter_config.json"}, "a PEFT adapter is adapter_config.json and adapter_model.safetensors"),
            ({"adapter_config.json", SINGLE}, "a PEFT adapter is"),
            ({"adapter_config.json", "adapter_model.safetensors", SINGLE}, "a PEFT adapter is"),
            ({"adapter_config.json", "adapter_model.bin"}, "adapter_model.bin is a pickle file"),
            ({SINGLE, "tokenizer.json"}, "tokenizer.json is no part of a checkpoint"),
            ({"README.md"}, "README.md is no part of a checkpoint"),
            ({SINGLE, INDEX}, "came together with"),
            ({SINGLE, SHARDS[0]}, f"model.safetensors came together with {SHARDS[0]}"),
            ({SINGLE, INDEX, *SHARDS}, "came together with"),
            (set(SHARDS), "the shards came without model.safetensors.index.json"),
            ({"model.SAFETENSORS"}, "is no part of a checkpoint"),
            (set(), "no weights were sent"),
            ({INDEX}, "no weights were sent"),
        ],
        ids=sorted_names,
    )
    def test_files_that_make_no_checkpoint(self, names: set[str], sentence: str) -> None:
        for collection in (names, sorted(names)):
            with pytest.raises(CheckpointRefused) as refused:
                check_file_names(collection)
            assert sentence in refused.value.reason
            assert refused.value.hint

    @pytest.mark.parametrize("opened", [make_base, lambda folder: shard(folder, base_tensors(), 2)])
    def test_what_was_opened_would_be_let_in(self, opened: Callable[[Path], Path], tmp_path: Path) -> None:
        check_file_names(open_checkpoint(opened(tmp_path / "model")).files)
