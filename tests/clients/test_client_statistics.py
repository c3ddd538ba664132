"""The client sends statistics that lie beside a checkpoint along with it."""

from pathlib import Path

import pytest
import torch
from foldin.checkpoint import INDEX, STATISTICS, find_checkpoint
from foldin.errors import CheckpointError
from foldin.preparation import prepared
from foldin.recipe import read_recipe
from safetensors.torch import save_file

from tests.support.models import make_base, make_checkpoint, shard


def names(path: Path) -> list[str]:
    return [file.name for file in find_checkpoint(path)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = make_checkpoint(tmp_path / "model", make_base(tmp_path / "base"), seed=1)
    save_file({"a": torch.ones(3)}, place / STATISTICS)
    return place


def test_of_a_folder(model: Path) -> None:
    assert names(model) == ["model.safetensors", STATISTICS]


def test_not_of_a_file(model: Path) -> None:
    assert names(model / "model.safetensors") == ["model.safetensors"]


def test_beside_shards(tmp_path: Path) -> None:
    place = shard(tmp_path / "sharded", {"a": torch.ones(3), "b": torch.ones(2)}, 2)
    (place / STATISTICS).write_bytes(b"whatever it is: most daemons do not read it")
    assert names(place)[0] == INDEX
    assert names(place)[-1] == STATISTICS
    assert len(names(place)) == 4


def test_an_index_cannot_name_them(tmp_path: Path) -> None:
    place = shard(tmp_path / "sharded", {"a": torch.ones(3)}, 1)
    (place / INDEX).write_text((place / INDEX).read_text().replace("model-00001-of-00001.safetensors", STATISTICS))
    with pytest.raises(CheckpointError, match="no name of a shard"):
        find_checkpoint(place)


def test_beside_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for name in ("adapter_model.safetensors", STATISTICS):
        save_file({"a": torch.ones(3)}, tmp_path / name)
    assert names(tmp_path) == ["adapter_config.json", "adapter_model.safetensors", STATISTICS]


def test_alone_they_are_no_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / STATISTICS)
    with pytest.raises(CheckpointError):
        find_checkpoint(tmp_path)


def test_compression_leaves_them_as_they_are(model: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "base" / STATISTICS)
    recipe = read_recipe("int8", tmp_path / "base", None)
    with prepared(find_checkpoint(model), recipe, False, lambda _: None) as files:
        assert [file.name for file in files] == ["model.safetensors", STATISTICS]
        assert files[0].path != model / "model.safetensors"
        assert files[1].path == model / STATISTICS
