"""The command `foldind`, as its operator meets it."""

import json
from pathlib import Path

import pytest
from foldind.cli.rules import HOW, RULES
from foldind.merging.catalog import CATALOG, PUBLICATIONS

from tests.support.commands import command
from tests.support.daemon import foldind
from tests.support.models import base_tensors, shard


@pytest.mark.parametrize(
    ("name", "words"),
    {
        (): ("init", "serve", "plan", "fsck", "rules", "evaluate", "fine-tuned checkpoints"),
        ("init",): ("--base", "--state", "--alpha", "--cross-blocks", "--summed", "foldind init --base"),
        ("serve",): (
            "--grpc",
            "--http",
            "--log-format",
            "--ignore",
            "--allowed-root",
            "--keep-snapshots",
            "--lease",
            "FOLDIN_GRPC",
            "[serve]",
        ),
        ("plan",): ("--json", "projected", "summed", "tied", "frozen"),
        ("rules",): ("--json", "foldind init --rule", "foldin publish --as"),
        ("fsck",): ("--state", "foldind fsck --state"),
    }.items(),
)
def test_help_teaches(name: tuple[str, ...], words: tuple[str, ...]) -> None:
    text = command(*name, "--help").stdout
    for word in words:
        assert word in text


def test_version() -> None:
    assert command("--version").stdout.startswith("foldind ")


def test_rules() -> None:
    assert RULES.keys() == CATALOG.keys()
    assert HOW.keys() == PUBLICATIONS.keys()
    text = command("rules").stdout
    document = json.loads(command("rules", "--json").stdout)
    assert all(name in text for name in (*RULES, *HOW))
    assert document["rules"]["ties"]["options"] == {"density": 0.2}
    assert document["publications"]["flat"]["numbers"] == {"factor": 2.0}


def test_plan(base: Path) -> None:
    tensors = json.loads(foldind("plan", "--base", str(base), "--json").stdout)
    assert all(tensor.keys() == {"name", "dtype", "shape", "treatment", "tied_to"} for tensor in tensors)
    treatments = {tensor["name"]: tensor["treatment"] for tensor in tensors}
    assert treatments.keys() == base_tensors().keys()
    assert treatments["encoder.layer.0.attention.query.weight"] == "projected"
    assert treatments["embeddings.word_embeddings.weight"] == "summed"
    assert treatments["embeddings.position_ids"] == "frozen"
    text = command("plan", "--base", base).stdout
    assert "3 projected" in text
    assert "1 frozen" in text


def test_plan_of_other_patterns(base: Path) -> None:
    tensors = json.loads(command("plan", "--base", base, "--summed", "*query*", "--json").stdout)
    treatments = {tensor["name"]: tensor["treatment"] for tensor in tensors}
    assert treatments["encoder.layer.0.attention.query.weight"] == "summed"
    assert treatments["embeddings.word_embeddings.weight"] == "projected"


def test_plan_of_shards(tmp_path: Path, base: Path) -> None:
    folder = shard(tmp_path / "sharded", base_tensors(), 3)
    whole, parts = (json.loads(command("plan", "--base", path, "--json").stdout) for path in (base, folder))
    assert sorted(whole, key=lambda tensor: tensor["name"]) == sorted(parts, key=lambda tensor: tensor["name"])


def test_init_says_what_comes_next(tmp_path: Path, base: Path) -> None:
    ended = foldind(
        "init", "--base", str(base), "--state", str(tmp_path / "state"), "--alpha", "0.3", "--backend", "torch"
    )
    assert "3 projected" in ended.stderr
    assert f"foldind serve --state {tmp_path / 'state'}" in ended.stderr
    assert "alpha = 0.3" in (tmp_path / "state" / "foldin.toml").read_text()
    ended = command("init", "--base", base, "--state", tmp_path / "state")
    assert ended.status == 1
    assert "not empty" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("init", "--base", "{tmp}", "--state", "{tmp}/state"), "model.safetensors"),
        (("init", "--base", "{base}", "--state", "{tmp}/state", "--alpha", "1"), "alpha"),
        (("init", "--base", "{base}", "--state", "{tmp}/state", "--cross-blocks", "some"), "cross_blocks"),
        (("plan", "--base", "{tmp}"), "model.safetensors"),
        (("serve", "--state", "{tmp}"), "foldind init"),
        (("fsck", "--state", "{tmp}/nowhere"), "foldind init"),
    ],
)
def test_errors_are_sentences(tmp_path: Path, base: Path, arguments: tuple[str, ...], word: str) -> None:
    (tmp_path / "empty").mkdir()
    filled = [argument.format(tmp=tmp_path / "empty", base=base) for argument in arguments]
    ended = command(*filled)
    assert ended.status == 1
    assert ended.stdout == ""
    assert word in ended.stderr
    assert list((tmp_path / "empty").iterdir()) == []
