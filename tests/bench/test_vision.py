"""The vision suite, built with hardly any training: its files, and what its scorer says of its own models."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import make_plan
from foldind.checkpoints.statistics import Kind, check_statistics
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.bench.vision.__main__ import main
from tests.bench.vision.demo import Head, from_weights
from tests.bench.vision.images import STRIP, photograph_patches
from tests.bench.vision.tasks import make_suite

TASKS = ("has-a-loop", "rotated")
BRIEFLY = ("--pretraining-steps", "20", "--epochs", "1")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = tmp_path_factory.mktemp("vision") / "suite"
    main(["build", str(suite), "--tasks", ",".join(TASKS), *BRIEFLY])
    return suite


def scored(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    main(["score", *map(str, words)])
    return json.loads(capsys.readouterr().out)


def meta(suite: Path, task: str) -> dict[str, float]:
    return json.loads((suite / "tasks" / task / "meta.json").read_text())


def test_an_expert_is_a_checkpoint_of_the_base_with_all_weights_trained(built: Path) -> None:
    base = load_file(built / "base" / "model.safetensors")
    for task in TASKS:
        expert = load_file(built / "tasks" / task / "model.safetensors")
        assert expert.keys() == base.keys()
        for name, tensor in base.items():
            assert (expert[name].shape, expert[name].dtype) == (tensor.shape, torch.float32), name
            assert not torch.equal(expert[name], tensor), name
    assert (built / "base" / "config.json").read_text() == (built / "tasks" / task / "config.json").read_text()


def test_the_base_keeps_nothing_of_the_gain(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scored(capsys, built, built / "base")
    assert found["accuracy"] == {task: meta(built, task)["base_accuracy"] for task in TASKS}
    assert found["kept"] == 0


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_keeps_all_of_it(built: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (built / "tasks" / task, built / "tasks" / task / "model.safetensors"):
        found = scored(capsys, built, model, "--tasks", task)
        best = meta(built, task)["finetuned_accuracy"]
        assert found == {"accuracy": {task: best}, "ACC": best, "kept": 1, "normalised": 1}
    assert best > meta(built, task)["base_accuracy"]


def test_the_score_of_any_other_model(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_file(built / "base" / "model.safetensors")
    expert = load_file(built / "tasks" / "rotated" / "model.safetensors")
    half = {name: ((tensor + expert[name]) / 2).bfloat16() for name, tensor in base.items()}
    save_file(half, tmp_path / "half.safetensors")
    found = scored(capsys, built, tmp_path / "half.safetensors")
    metas = [meta(built, task) for task in TASKS]
    accuracy = [found["accuracy"][task] for task in TASKS]
    of_base, of_experts = ([one[key] for one in metas] for key in ("base_accuracy", "finetuned_accuracy"))
    assert accuracy not in (of_base, of_experts)
    assert found["ACC"] == pytest.approx(sum(accuracy) / 2)
    assert found["kept"] == pytest.approx((sum(accuracy) - sum(of_base)) / (sum(of_experts) - sum(of_base)))
    assert found["normalised"] == pytest.approx((accuracy[0] / of_experts[0] + accuracy[1] / of_experts[1]) / 2)


def test_a_task_is_the_same_whichever_others_are_built(built: Path, tmp_path: Path) -> None:
    main(["build", str(tmp_path), "--tasks", "rotated", *BRIEFLY])
    for file in sorted(tmp_path.rglob("*.*")):
        assert file.read_bytes() == (built / file.relative_to(tmp_path)).read_bytes(), file
    assert (tmp_path / "tasks" / "rotated" / "model.safetensors").exists()


def test_another_seed_is_another_suite() -> None:
    ours, theirs = (make_suite(torch.Generator().manual_seed(seed))[1] for seed in (0, 1))
    for one, other in zip(ours, theirs, strict=True):
        assert not torch.equal(one.test.images, other.test.images), one.name


def test_a_suite_is_not_built_over_another(built: Path) -> None:
    with pytest.raises(SystemExit, match="has a suite already"):
        main(["build", str(built)])


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such task: upside-down; there are halves-swapped, "):
        main(["build", str(tmp_path), "--tasks", "upside-down"])
    assert not list(tmp_path.iterdir())


def test_twelve_tasks_with_images_and_labels_in_range() -> None:
    _, tasks = make_suite(torch.Generator().manual_seed(0))
    assert len({task.name for task in tasks}) == 12
    for task in tasks:
        for examples in (task.train, task.test):
            assert examples.images.shape == (len(examples), 8, 8), task.name
            assert examples.images.min() >= 0, task.name
            assert examples.images.max() <= 1, task.name
        classes = task.train.labels.unique()
        assert torch.equal(classes, task.test.labels.unique()), task.name
        assert classes.tolist() == list(range(len(classes))), task.name


def test_photographs_share_no_pixel_between_training_and_test(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (torch.arange(16 * STRIP) / (16 * STRIP)).expand(2, 40, 16 * STRIP)
    monkeypatch.setattr("tests.bench.vision.images._photographs", lambda: columns)
    seen = [
        set(photograph_patches(500, of_test=of_test, generator=torch.Generator()).images.flatten().tolist())
        for of_test in (False, True)
    ]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 16 * STRIP


@pytest.mark.long
def test_the_scorer_decides_at_a_gate(built: Path) -> None:
    gate = Path(__file__).parents[2] / "deploy" / "gate" / "accuracy.py"
    scorer = [sys.executable, "-m", "tests.bench.vision", "score", str(built)]
    best = meta(built, TASKS[0])["finetuned_accuracy"]
    environment = {**os.environ, "FOLDIN_SNAPSHOT": str(built / "tasks" / TASKS[0])}
    ended = subprocess.run(
        [sys.executable, gate, "--at-least", "1.01", "--", *scorer],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "1.01 is the least" in ended.stderr
    assert 0 < json.loads(ended.stdout)["ACC"] <= max(best, 1)


@pytest.mark.parametrize(("rule", "kind"), [("fisher", "like"), ("regmean", "gram")])
def test_statistics_of_training_images_beside_every_expert(
    built: Path, tmp_path: Path, rule: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.bench.vision.statistics.EVERY", 60)
    copy = tmp_path / "copy"
    main(["statistics", str(built), rule, str(copy)])
    for file in built.rglob("*.*"):
        assert (copy / file.relative_to(built)).read_bytes() == file.read_bytes(), file
    plan = make_plan(open_checkpoint(copy / "base"))
    train = {task.name: task.train for task in make_suite(torch.Generator().manual_seed(0))[1]}
    for task in TASKS:
        folder = copy / "tasks" / task
        check_statistics(open_checkpoint(folder), plan, kind)
        found = load_file(folder / "statistics.safetensors")
        images, labels = train[task].images, train[task].labels
        if rule == "fisher":
            head = Head(**load_file(folder / "head.safetensors"))
            features = from_weights(load_file(folder / "model.safetensors"))(images[::60]).detach().requires_grad_()
            functional.cross_entropy(head(features), labels[::60], reduction="sum").backward()
            assert features.grad is not None
            expected, name = features.grad.square().mean(dim=0), "norm.bias"  # which is added to the features
        else:
            patches = (2 * images - 1).reshape(-1, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 16)
            expected, name = patches.mT @ patches / len(patches), "patch_embedding.weight"
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_statistics_of_a_suite_of_another_seed_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has-a-loop was not built from seed 1: say with --seed from which it was"):
        main(["statistics", str(built), "regmean", str(tmp_path / "copy"), "--seed", "1"])
    with pytest.raises(SystemExit, match="is there already"):
        main(["statistics", str(built), "regmean", str(built)])
    assert not list(tmp_path.iterdir())
