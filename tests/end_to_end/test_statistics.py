"""Statistics as the README says to make them, from a real model to the merged one, through a daemon over gRPC."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from foldin import InvalidArgument
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from tests.checkpoints.folding import relative_error
from tests.checkpoints.statistics import STATISTICS, fisher_average, regmean
from tests.support.daemon import Daemon, foldind

README = Path(__file__).parents[2] / "daemon" / "foldind" / "checkpoints" / "README.md"
SINGLE = "model.safetensors"
ORACLE = {"fisher": fisher_average, "regmean": regmean}
LENGTH, BATCH = 9, 8


def snippet(rule: str) -> str:
    """The Python that the README gives for a rule."""
    (found,) = re.findall(rf"```python\n(# {rule}\n.*?)```", README.read_text(), re.DOTALL)
    return str(found)


def bert(seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=60, max_position_embeddings=16, num_labels=3, **sizes))


def batch(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(60, (size, LENGTH), generator=generator)
    return {"input_ids": ids, "labels": ids.sum(1) % 3}


def fine_tuned(seed: int) -> BertForSequenceClassification:
    """A few real steps on a task of its own."""
    model, generator = bert(0), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(5):
        optimizer.zero_grad()
        model(**batch(BATCH, generator)).loss.backward()
        optimizer.step()
    return model


def run(rule: str, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a model as task-a in a folder, and do there what the README says."""
    model, generator = fine_tuned(seed), torch.Generator().manual_seed(100 + seed)
    model.save_pretrained(folder / "task-a")
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {
        "model": model,
        "examples": [batch(1, generator) for _ in range(12)],
        "batches": [batch(BATCH, generator) for _ in range(4)],
    }
    exec(snippet(rule), scope)


def test_the_snippets_are_short() -> None:
    assert max(len(snippet(rule).strip().splitlines()) for rule in ORACLE) <= 20


@pytest.mark.parametrize("rule", ORACLE)
def test_from_the_readme_to_the_merged_model(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(0).save_pretrained(tmp_path / "base")
    places = [tmp_path / f"site-{number}" for number in range(3)]
    for seed, place in enumerate(places):
        place.mkdir()
        run(rule, seed, place, monkeypatch)
    models, statistics = ([load_file(place / "task-a" / name) for place in places] for name in (SINGLE, STATISTICS))
    with (
        Daemon(
            tmp_path / "state", tmp_path / "base", "--allowed-root", str(tmp_path), init_flags=("--rule", rule)
        ) as daemon,
        daemon.client() as client,
    ):
        with pytest.raises(InvalidArgument, match=f"comes without {STATISTICS}"):
            client.submit(places[0] / "task-a" / SINGLE)
        first = client.submit(places[0] / "task-a", wait=True)
        alone = load_file(daemon.state / "snapshots" / "v1" / SINGLE)
        assert relative_error(alone, float64(models[0])) <= 1e-5
        assert {file.name for file in first.files} == {SINGLE, STATISTICS}
        for place in places[1:]:
            client.submit_path(str(place / "task-a"), wait=True)
        client.pull("latest", to=tmp_path / "merged")
    base = load_file(tmp_path / "base" / SINGLE)
    merged = load_file(tmp_path / "merged" / SINGLE)
    expected = ORACLE[rule](base, models, statistics)
    assert relative_error(merged, expected) <= 1e-5
    updates = {name: merged[name] - tensor for name, tensor in base.items() if name in expected}
    wanted = {name: expected[name] - base[name].double().numpy() for name in updates}
    assert relative_error(updates, wanted) <= 1e-5
    mean = {name: sum(model[name] for model in models) / 3 for name in base}
    assert relative_error(merged, float64(mean)) > 1e-3, "it is not the mean"
    foldind("fsck", "--state", str(daemon.state))


def float64(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}
