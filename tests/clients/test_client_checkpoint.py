"""Which files of a path are sent, and the sentence for every path that holds no checkpoint."""

import json
from pathlib import Path

import pytest
from foldin import CheckpointError
from foldin.checkpoint import find_checkpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def sent(path: Path) -> dict[str, Path]:
    return {file.name: file.path for file in find_checkpoint(path)}


def write_index(folder: Path, names: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.fixture
def sharded(tmp_path, save):
    folder = tmp_path / "sharded"
    for name in SHARDS:
        save(folder / name)
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]})
    return folder


class TestWhatIsSent:
    def test_file_goes_under_the_usual_name(self, tmp_path, save):
        path = save(tmp_path / "epoch3.safetensors")
        assert sent(path) == {"model.safetensors": path}

    def test_folder_with_one_file(self, checkpoint):
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "optimizer.pt").write_bytes(b"...")
        assert sent(checkpoint) == {"model.safetensors": checkpoint / "model.safetensors"}

    def test_one_file_comes_before_an_index(self, sharded, save):
        save(sharded / "model.safetensors")
        assert list(sent(sharded)) == ["model.safetensors"]

    def test_index_and_exactly_its_shards(self, sharded, save):
        save(sharded / "consolidated.safetensors")
        assert list(sent(sharded)) == [INDEX, *SHARDS]

    def test_adapter_comes_before_a_model(self, checkpoint, save):
        save(checkpoint / "adapter_model.safetensors")
        (checkpoint / "adapter_config.json").write_text("{}")
        assert list(sent(checkpoint)) == ["adapter_config.json", "adapter_model.safetensors"]

    def test_links_are_followed(self, tmp_path, checkpoint):
        folder = tmp_path / "snapshot"
        folder.mkdir()
        (folder / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
        assert list(sent(folder)) == ["model.safetensors"]


def missing_path(folder, save):
    return folder / "nowhere", "does not exist"


def empty_folder(folder, save):
    return folder, "holds no checkpoint"


def pickled_folder(folder, save):
    (folder / "pytorch_model.bin").write_bytes(b"...")
    return folder, f"foldin convert {folder} --to FOLDER"


def pickled_file(folder, save):
    (folder / "pytorch_model.bin").write_bytes(b"...")
    return folder / "pytorch_model.bin", "foldin convert"


def other_file(folder, save):
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt", "give a .safetensors file or the folder"


def one_shard(folder, save):
    return save(folder / SHARDS[0]), "submit the folder that holds all of them"


def adapter_alone(folder, save):
    return save(folder / "adapter_model.safetensors"), "submit the folder that holds both"


def adapter_without_configuration(folder, save):
    save(folder / "adapter_model.safetensors")
    return folder, "no adapter_config.json"


def another_name(folder, save):
    save(folder / "epoch3.safetensors")
    return folder, "foldin submit"


def shards_without_index(folder, save):
    save(folder / SHARDS[0])
    return folder, "shards but no model.safetensors.index.json"


def missing_shard(folder, save):
    save(folder / SHARDS[0])
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1]})
    return folder, f"lacks {SHARDS[1]}"


def stray_shard(folder, save):
    for name in (*SHARDS, "model-00001-of-00001.safetensors"):
        save(folder / name)
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1]})
    return folder, "model-00001-of-00001.safetensors, which its model.safetensors.index.json does not name"


def shard_elsewhere(folder, save):
    save(folder / "below" / SHARDS[0])
    write_index(folder, {"a": f"below/{SHARDS[0]}"})
    return folder, "only .safetensors files beside the index"


def shard_above(folder, save):
    write_index(folder, {"a": "../model.safetensors"})
    return folder, "only .safetensors files beside the index"


def index_of_pickles(folder, save):
    (folder / "shard.bin").write_bytes(b"...")
    write_index(folder, {"a": "shard.bin"})
    return folder, "only .safetensors files beside the index"


def broken_index(folder, save):
    (folder / INDEX).write_text("{")
    return folder, "is no index"


def index_of_numbers(folder, save):
    write_index(folder, {"a": 1})
    return folder, "is no index"


def empty_index(folder, save):
    write_index(folder, {})
    return folder, "is no index"


def truncated_file(folder, save):
    path = save(folder / "model.safetensors", 4096)
    path.write_bytes(path.read_bytes()[:-1])
    return folder, "not a whole safetensors file"


def truncated_shard(folder, save):
    save(folder / SHARDS[0])
    (folder / SHARDS[1]).write_bytes(b"")
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1]})
    return folder, f"{SHARDS[1]} is not a whole safetensors file"


@pytest.mark.parametrize(
    "build",
    [
        missing_path,
        empty_folder,
        pickled_folder,
        pickled_file,
        other_file,
        one_shard,
        adapter_alone,
        adapter_without_configuration,
        another_name,
        shards_without_index,
        missing_shard,
        stray_shard,
        shard_elsewhere,
        shard_above,
        index_of_pickles,
        broken_index,
        index_of_numbers,
        empty_index,
        truncated_file,
        truncated_shard,
    ],
)
def test_refused_with_a_sentence(tmp_path, save, build):
    path, sentence = build(tmp_path, save)
    with pytest.raises(CheckpointError) as refusal:
        find_checkpoint(path)
    assert sentence in str(refusal.value)
    assert str(path) in str(refusal.value)
