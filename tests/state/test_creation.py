import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.plan import Plan, Treatment
from foldind.config import MergeSettings, read_configuration
from foldind.errors import CheckpointRefused, StateError
from foldind.state.creation import create_state, digest_base
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.fsck import check_state
from safetensors.torch import save_file

from tests.support.models import base_tensors, shard

SETTINGS = MergeSettings(alpha=0.25, cross_blocks="drop", threads=3)


def silent(what: str) -> None:
    pass


def test_makes_a_state_folder(tmp_path: Path, base: Path) -> None:
    told: list[str] = []
    root = tmp_path / "deep" / "er" / "state"
    plan = create_state(base, root, SETTINGS, told.append)
    folder = StateFolder(root)
    configuration = read_configuration(folder.configuration)
    assert configuration.merge == SETTINGS
    assert configuration.base_digest == digest_base(base) == digest_base(folder.base)
    assert Plan.from_json(folder.plan.read_bytes()) == plan
    assert {path.name for path in folder.base.iterdir()} == {path.name for path in base.iterdir()}
    for path in base.iterdir():
        assert (folder.base / path.name).read_bytes() == path.read_bytes()
    assert any("model.safetensors" in what for what in told)
    assert check_state(root, silent) == []
    assert [path.name for path in root.parent.iterdir()] == ["state"]


def test_into_an_empty_folder(tmp_path: Path, base: Path) -> None:
    (tmp_path / "state").mkdir()
    create_state(base, tmp_path / "state", SETTINGS, silent)
    assert check_state(tmp_path / "state", silent) == []


def test_the_base_is_a_copy(tmp_path: Path, base: Path) -> None:
    create_state(base, tmp_path / "state", SETTINGS, silent)
    before = (tmp_path / "state" / "base" / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(b"another")
    assert (tmp_path / "state" / "base" / "model.safetensors").read_bytes() == before


def test_a_sharded_base(tmp_path: Path) -> None:
    base = shard(tmp_path / "base", base_tensors(), 3)
    create_state(base, tmp_path / "state", SETTINGS, silent)
    assert {path.name for path in (tmp_path / "state" / "base").iterdir()} == {path.name for path in base.iterdir()}
    assert check_state(tmp_path / "state", silent) == []


def test_a_base_of_links_as_in_the_cache_of_huggingface_hub(tmp_path: Path, base: Path) -> None:
    cached = tmp_path / "snapshots" / "0123abcd"
    cached.mkdir(parents=True)
    for path in base.iterdir():
        (cached / path.name).symlink_to(path)
    create_state(cached, tmp_path / "state", SETTINGS, silent)
    assert not any(path.is_symlink() for path in (tmp_path / "state" / "base").iterdir())
    assert check_state(tmp_path / "state", silent) == []


def test_only_what_belongs_to_the_model_is_copied(tmp_path: Path, base: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "tf_model.h5", "model.onnx", "README.md", ".gitattributes"):
        (base / name).write_text("")
    (base / "runs").mkdir()
    (base / "vocab.txt").write_text("words")
    create_state(base, tmp_path / "state", SETTINGS, silent)
    names = {path.name for path in (tmp_path / "state" / "base").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer_config.json", "vocab.txt"}


@pytest.mark.parametrize(
    "occupy", [lambda path: path.write_text(""), lambda path: (path / "notes").mkdir(parents=True)]
)
def test_never_where_something_is(tmp_path: Path, base: Path, occupy: Callable[[Path], object]) -> None:
    occupy(tmp_path / "state")
    with pytest.raises(StateError, match=r"exists and is not empty.*choose another folder"):
        create_state(base, tmp_path / "state", SETTINGS, silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "state"]


def test_never_twice(tmp_path: Path, base: Path) -> None:
    create_state(base, tmp_path / "state", SETTINGS, silent)
    before = (tmp_path / "state" / "ledger.sqlite").read_bytes()
    with pytest.raises(StateError, match="not empty"):
        create_state(base, tmp_path / "state", SETTINGS, silent)
    assert (tmp_path / "state" / "ledger.sqlite").read_bytes() == before


def broken(tmp_path: Path, how: str) -> Path:
    base = tmp_path / "base"
    base.mkdir()
    match how:
        case "empty":
            pass
        case "cut off":
            save_file(base_tensors(), base / "model.safetensors")
            content = (base / "model.safetensors").read_bytes()
            (base / "model.safetensors").write_bytes(content[:-10])
        case "pickled":
            (base / "pytorch_model.bin").write_bytes(b"")
        case "a shard missing":
            shard(base, base_tensors(), 3)
            (base / "model-00002-of-00003.safetensors").unlink()
        case "integers":
            save_file({"ids": torch.arange(4)}, base / "model.safetensors")
        case "no tensors":
            save_file({}, base / "model.safetensors")
    return base


@pytest.mark.parametrize(
    ("how", "words"),
    {
        "empty": "model.safetensors",
        "cut off": "cut off",
        "pickled": "save_pretrained",
        "a shard missing": "model-00002-of-00003",
        "integers": "no tensor that could be merged",
        "no tensors": "no tensor that could be merged",
    }.items(),
)
def test_a_base_that_is_none(tmp_path: Path, how: str, words: str) -> None:
    base = broken(tmp_path, how)
    with pytest.raises((CheckpointRefused, StateError), match=words):
        create_state(base, tmp_path / "state", SETTINGS, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_interrupted_it_leaves_nothing(tmp_path: Path, base: Path) -> None:
    def interrupt(what: str) -> None:
        if "copying" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_state(base, tmp_path / "state", SETTINGS, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_killed_before_it_starts_anew(tmp_path: Path, base: Path) -> None:
    (tmp_path / ".state.tmp" / "base").mkdir(parents=True)
    (tmp_path / ".state.tmp" / "base" / "half").write_text("")
    create_state(base, tmp_path / "state", SETTINGS, silent)
    assert check_state(tmp_path / "state", silent) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "state"]


def test_the_plan_is_of_the_settings(tmp_path: Path, base: Path) -> None:
    settings = MergeSettings(summed=("*query*",))
    plan = create_state(base, tmp_path / "state", settings, silent)
    treatments = {tensor.name: tensor.treatment for tensor in plan.tensors}
    assert treatments["encoder.layer.0.attention.query.weight"] is Treatment.SUMMED
    assert treatments["embeddings.word_embeddings.weight"] is Treatment.PROJECTED
    assert json.loads((tmp_path / "state" / "plan.json").read_text())["format"] == 1


def test_the_ledger_is_empty(tmp_path: Path, base: Path) -> None:
    create_state(base, tmp_path / "state", SETTINGS, silent)
    with Database(tmp_path / "state" / "ledger.sqlite") as database:
        for table in ("submissions", "versions", "aliases", "events"):
            assert database.query(f"SELECT count(*) FROM {table}")[0][0] == 0
