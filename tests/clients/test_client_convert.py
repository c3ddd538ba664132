"""Pickles made into safetensors: what comes out, what is refused, and that nothing is run or left over."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from foldin import CheckpointError
from foldin.checkpoint import find_checkpoint
from foldin.cli import app
from foldin.conversion import convert
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

TENSORS = {
    "embed.weight": torch.arange(40, dtype=torch.float32).reshape(10, 4),
    "layer.weight": torch.arange(16, dtype=torch.bfloat16).reshape(4, 4),
    "layer.bias": torch.ones(4, dtype=torch.float16),
    "steps": torch.tensor(7),
    "none": torch.empty(0, 4),
}


def pickled(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def loaded(folder: Path) -> dict[str, Tensor]:
    """The tensors of the files that would be submitted."""
    files = [file.path for file in find_checkpoint(folder) if file.name.endswith(".safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file(tmp_path: Path, zipped: bool) -> None:
    source = pickled(tmp_path / "model.bin", TENSORS, _use_new_zipfile_serialization=zipped)
    steps = []
    converted = convert(source, tmp_path / "new" / "model", on_progress=steps.append)
    assert_same(loaded(converted.folder), TENSORS)
    assert (converted.tensors, converted.size, converted.left_out) == (5, 160 + 32 + 8 + 8, ())
    assert [step.done for step in steps] == [0, source.stat().st_size]
    assert [entry.name for entry in converted.folder.parent.iterdir()] == ["model"]
    assert [entry.name for entry in converted.folder.iterdir()] == ["model.safetensors"]


def test_ties_and_views_become_tensors_of_their_own(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    expected = {"a": whole, "b": whole, "row": whole[1], "turned": whole.T, "part": whole[:, 1:3]}
    convert(pickled(tmp_path / "model.pt", expected), tmp_path / "to")
    assert_same(loaded(tmp_path / "to"), expected)


def test_parameters_of_a_module(tmp_path: Path) -> None:
    expected = dict(torch.nn.Linear(3, 2).named_parameters())
    convert(pickled(tmp_path / "model.pth", expected), tmp_path / "to")
    assert_same(loaded(tmp_path / "to"), {name: tensor.detach() for name, tensor in expected.items()})


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module"])
def test_a_training_checkpoint(tmp_path: Path, wrapper: str) -> None:
    content = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, wrapper: {**TENSORS, "_extra": 1}}
    converted = convert(pickled(tmp_path / "last.ckpt", content), tmp_path / "to")
    assert_same(loaded(tmp_path / "to"), TENSORS)
    assert converted.left_out == ("_extra",)


def test_a_folder_with_what_belongs_to_the_model(tmp_path: Path) -> None:
    source = pickled(tmp_path / "from" / "pytorch_model.bin", TENSORS).parent
    for name in ("config.json", "vocab.txt", "tokenizer.model"):
        (source / name).write_text(name)
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (source / name).write_bytes(b"...")
    convert(source, tmp_path / "to")
    names = {entry.name for entry in (tmp_path / "to").iterdir()}
    assert names == {"config.json", "vocab.txt", "tokenizer.model", "model.safetensors"}
    assert_same(loaded(tmp_path / "to"), TENSORS)


def test_the_only_pickle_of_a_folder(tmp_path: Path) -> None:
    source = pickled(tmp_path / "from" / "epoch3.pt", TENSORS).parent
    (source / "optimizer.pt").write_bytes(b"...")
    convert(source, tmp_path / "to")
    assert_same(loaded(tmp_path / "to"), TENSORS)


def sharded(folder: Path) -> Path:
    names = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(TENSORS)}
    for shard in set(names.values()):
        pickled(folder / shard, {name: TENSORS[name] for name in TENSORS if names[name] == shard})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_shards(tmp_path: Path) -> None:
    convert(sharded(tmp_path / "from"), tmp_path / "to")
    assert_same(loaded(tmp_path / "to"), TENSORS)
    names = sorted(entry.name for entry in (tmp_path / "to").iterdir())
    assert names == [*(f"model-0000{n}-of-00002.safetensors" for n in (1, 2)), "model.safetensors.index.json"]


def test_files_of_a_limited_size(tmp_path: Path) -> None:
    convert(pickled(tmp_path / "model.bin", TENSORS), tmp_path / "to", shard_size=40)
    assert_same(loaded(tmp_path / "to"), TENSORS)
    index = json.loads((tmp_path / "to" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 160 + 32 + 8 + 8}
    assert len(set(index["weight_map"].values())) == 3


def test_an_adapter(tmp_path: Path) -> None:
    source = pickled(tmp_path / "from" / "adapter_model.bin", TENSORS).parent
    (source / "adapter_config.json").write_text("{}")
    convert(source, tmp_path / "to", shard_size=40)
    assert {file.name for file in find_checkpoint(tmp_path / "to")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert_same(load_file(tmp_path / "to" / "adapter_model.safetensors"), TENSORS)


def test_a_prefix(tmp_path: Path) -> None:
    source = pickled(tmp_path / "model.bin", {f"module.{name}": tensor for name, tensor in TENSORS.items()})
    convert(source, tmp_path / "to", strip_prefix="module.")
    assert_same(loaded(tmp_path / "to"), TENSORS)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def malicious(folder: Path) -> tuple[Path, str]:
    return pickled(
        folder / "m.bin", {"a": torch.ones(2), "b": Malicious(folder / "ran")}
    ), "could run code of its maker"


def malicious_legacy(folder: Path) -> tuple[Path, str]:
    content = {"b": Malicious(folder / "ran")}
    return pickled(folder / "m.bin", content, _use_new_zipfile_serialization=False), "could run code of its maker"


def whole_module(folder: Path) -> tuple[Path, str]:
    return pickled(folder / "m.pt", torch.nn.Linear(2, 2)), "could run code of its maker"


def truncated(folder: Path) -> tuple[Path, str]:
    path = pickled(folder / "m.bin", TENSORS)
    path.write_bytes(path.read_bytes()[:-200])
    return path, "m.bin"


def empty(folder: Path) -> tuple[Path, str]:
    (folder / "m.bin").write_bytes(b"")
    return folder / "m.bin", "is broken"


def noise(folder: Path) -> tuple[Path, str]:
    (folder / "m.bin").write_bytes(bytes(range(256)) * 8)
    return folder / "m.bin", "m.bin"


def no_tensors(folder: Path) -> tuple[Path, str]:
    return pickled(folder / "m.bin", {"epoch": 3}), "holds no tensors by name"


def a_list(folder: Path) -> tuple[Path, str]:
    return pickled(folder / "m.bin", [torch.ones(2)]), "holds no tensors by name"


def sparse(folder: Path) -> tuple[Path, str]:
    return pickled(folder / "m.bin", {"a": torch.eye(3).to_sparse()}), "a is sparse"


def nothing(folder: Path) -> tuple[Path, str]:
    return folder / "m.bin", "does not exist"


def empty_folder(folder: Path) -> tuple[Path, str]:
    (folder / "from").mkdir()
    return folder / "from", "holds no pickled checkpoint"


def safetensors_already(folder: Path) -> tuple[Path, str]:
    return folder / "m.safetensors", "submit it as it is"


def two_pickles(folder: Path) -> tuple[Path, str]:
    pickled(folder / "from" / "a.pt", TENSORS)
    return pickled(folder / "from" / "b.pt", TENSORS).parent, "name the one that is the model"


def adapter_without_configuration(folder: Path) -> tuple[Path, str]:
    return pickled(folder / "from" / "adapter_model.bin", TENSORS).parent, "no adapter_config.json"


def index_that_leads_away(folder: Path) -> tuple[Path, str]:
    path = sharded(folder / "from") / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../m.bin"}}))
    return path.parent, "is no index"


def missing_shard(folder: Path) -> tuple[Path, str]:
    (sharded(folder / "from") / "pytorch_model-00002-of-00002.bin").unlink()
    return folder / "from", "pytorch_model-00002-of-00002.bin"


def same_name_twice(folder: Path) -> tuple[Path, str]:
    source = sharded(folder / "from")
    pickled(source / "pytorch_model-00002-of-00002.bin", TENSORS)
    return source, "there are two tensors"


@pytest.mark.parametrize(
    "case",
    [
        malicious,
        malicious_legacy,
        whole_module,
        truncated,
        empty,
        noise,
        no_tensors,
        a_list,
        sparse,
        nothing,
        empty_folder,
        safetensors_already,
        two_pickles,
        adapter_without_configuration,
        index_that_leads_away,
        missing_shard,
        same_name_twice,
    ],
)
def test_what_is_refused(tmp_path: Path, case: Any) -> None:
    source, sentence = case(tmp_path)
    before = {entry.name for entry in tmp_path.iterdir()}
    with pytest.raises(CheckpointError) as refused:
        convert(source, tmp_path / "to")
    assert sentence in str(refused.value)
    assert {entry.name for entry in tmp_path.iterdir()} == before, "nothing was run or left"


def test_a_folder_in_use(tmp_path: Path) -> None:
    source = pickled(tmp_path / "model.bin", TENSORS)
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")
    for taken in (tmp_path / "empty", source):
        with pytest.raises(CheckpointError, match="is there already"):
            convert(source, taken)


def foldin(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    source = pickled(tmp_path / "model.bin", {**TENSORS, "epoch": 1})
    done = foldin(source, "--to", tmp_path / "to")
    assert (done.exit_code, done.stdout) == (0, f"5 tensors are in {tmp_path / 'to'}\n")
    assert "1 entries are no tensors and were left out: epoch." in done.stderr
    assert f"foldin submit {tmp_path / 'to'}" in done.stderr
    again = foldin(source, "--to", tmp_path / "to")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "is there already" in again.stderr
    done = foldin(source, "--to", tmp_path / "other", "--json")
    assert json.loads(done.stdout) == {
        "folder": str(tmp_path / "other"),
        "tensors": 5,
        "size": 208,
        "left_out": ["epoch"],
    }


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pickled(tmp_path / "model.bin", TENSORS)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = foldin(source, "--to", tmp_path / "to")
    assert done.exit_code == 1
    assert "`foldin convert` needs torch, which reads pickles: pip install torch" in done.stderr
