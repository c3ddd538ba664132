"""`foldind evaluate` by rules that weigh checkpoints by the statistics beside them."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Generator

from tests.checkpoints.statistics import fisher_average, fishers, grams, put, regmean
from tests.evaluation.conftest import SCORER, TASKS, Suite
from tests.evaluation.test_evaluate import agreement, measured
from tests.support.commands import command
from tests.support.models import load_model


@pytest.mark.parametrize(("rule", "oracle", "make"), [("fisher", fisher_average, fishers), ("regmean", regmean, grams)])
def test_a_rule_that_weighs_by_statistics(
    small_suite: Suite, tmp_path: Path, rule: str, oracle: Callable[..., Mapping[str, Any]], make: Callable[..., Any]
) -> None:
    for task in TASKS:
        shutil.copytree(small_suite.models[task], tmp_path / "tasks" / task)
    out = tmp_path / "results"
    evaluate = (
        *("evaluate", "--base", small_suite.base, "--tasks", tmp_path / "tasks", "--backend", "numpy", "--out", out),
        *(f"--rule={rule}", "--no-experts", "--score", "final"),
        *("--command", f"'{sys.executable}' {SCORER} {small_suite.truth} {{model}} {{tasks}} {tmp_path / 'log'}"),
    )
    refused = command(*evaluate)
    assert refused.status == 1
    assert "task blue: it comes without statistics.safetensors" in refused.stderr
    models = [load_model(small_suite.models[task]) for task in TASKS]
    statistics = [make(model, Generator().manual_seed(number)) for number, model in enumerate(models)]
    for task, found in zip(TASKS, statistics, strict=True):
        put(tmp_path / "tasks" / task, found)
    assert (ended := command(*evaluate)).status == 0, ended.stderr
    base = load_model(small_suite.base)
    merged = oracle(base, models, statistics)
    update = {name: values - base[name].double().numpy() for name, values in merged.items()}
    (final,) = (entry for entry in measured(out) if entry["kind"] == "step")
    assert final["accuracy"] == {task: pytest.approx(agreement(small_suite, task, update), abs=2e-3) for task in TASKS}
    assert command(*evaluate).status == 0, "nothing is left to do"
    put(tmp_path / "tasks" / "blue", statistics[0])
    assert f"holds results of {rule} with another statistics" in command(*evaluate).stderr
