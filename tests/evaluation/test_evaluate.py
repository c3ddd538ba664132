"""`foldind evaluate` from the command line to its files, on small checkpoints and with a real program that scores."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from tests.end_to_end.test_suite import doubled, merge
from tests.evaluation.conftest import SCORER, TASKS, Suite, environment
from tests.support.commands import command
from tests.support.daemon import BIN, wait_for

ORDERS = (("red", "green", "blue"), ("blue", "red", "green"))
FILES = {
    *("results.jsonl", "curves.csv", "summary.csv", "table.md"),
    *("accuracy.svg", "heatmap-opcm.svg", "heatmap-opcm-alpha=0.svg"),
}
SCORES = 1 + 3 + 2 * 2 * 3


class Finished:
    """An evaluation that came to its end."""

    def __init__(self, suite: Suite, out: Path, stdout: str, stderr: str):
        self.suite, self.out, self.stdout, self.stderr = suite, out, stdout, stderr
        self.entries = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        self.runs = suite.log(out).read_text().splitlines()

    def accuracy(self, rule: str, order: tuple[str, ...], step: int) -> dict[str, float]:
        (found,) = (
            entry["accuracy"]
            for entry in self.entries
            if entry["kind"] == "step" and (entry["rule"], entry["order"], entry["step"]) == (rule, [*order], step)
        )
        return dict(found)


@pytest.fixture(scope="module")
def finished(small_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("finished") / "results"
    ended = small_suite.evaluate(out)
    assert ended.returncode == 0, ended.stderr
    return Finished(small_suite, out, ended.stdout, ended.stderr)


def measured(out: Path) -> list[dict[str, Any]]:
    """All results but for times, sorted."""
    entries = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for entry in entries:
        entry.pop("fold_seconds", None)
        entry.pop("command", None)
    return sorted(entries, key=json.dumps)


def agreement(suite: Suite, task: str, update: dict[str, np.ndarray]) -> float:
    wanted = load_file(suite.truth / f"{task}.safetensors")
    agree = [(np.sign(wanted[name]) == np.sign(update[name])).ravel() for name in wanted]
    return float(np.mean(np.concatenate(agree)))


def test_scores_are_those_of_the_merged_models(finished: Finished) -> None:
    suite = finished.suite
    base = doubled(suite.base)
    for order in ORDERS:
        models = merge(base, [suite.models[name] for name in order])
        for step, (_, update) in enumerate(models, 1):
            accuracy = finished.accuracy("opcm", order, step)
            assert list(accuracy) == list(order[:step])
            for task, told in accuracy.items():
                expected = agreement(suite, task, {name: part.numpy() for name, part in update.items()})
                assert told == pytest.approx(expected, abs=2e-3), (order, step, task)
    assert finished.accuracy("opcm", ORDERS[0], 3) != finished.accuracy("opcm:alpha=0", ORDERS[0], 3)


def test_base_and_experts(finished: Finished) -> None:
    (base,) = (entry["accuracy"] for entry in finished.entries if entry["kind"] == "base")
    assert base == dict.fromkeys(sorted(TASKS), 0.0)
    experts = {entry["task"]: entry["accuracy"] for entry in finished.entries if entry["kind"] == "expert"}
    # Of a file of differences it is a merge of it alone: equal up to rounding.
    assert experts == {"blue": 1.0, "green": 1.0, "red": pytest.approx(1, abs=2e-3)}


def test_every_score_is_computed_once(finished: Finished) -> None:
    assert len(finished.runs) == SCORES
    assert finished.runs.count("red,green,blue") == 2, "one a rule"


def test_what_is_written(finished: Finished) -> None:
    assert {path.name for path in finished.out.iterdir()} == FILES
    table = (finished.out / "table.md").read_text()
    assert table.strip() == finished.stdout.strip()
    for word in ("| opcm | 2 |", "| opcm:alpha=0 | 2 |", "ACC", "BWT", " ± ", "1. red, green, blue", "| experts |"):
        assert word in table
    for word in (
        "opcm:alpha=0, order 2 of 2, step 3 of 3: folded green",
        "accuracy",
        "expert of blue: accuracy 100.0 %",
    ):
        assert word in finished.stderr


def test_curves(finished: Finished) -> None:
    with (finished.out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (1 + 2 + 3)
    for row in rows:
        accuracy = finished.accuracy(row["rule"], tuple(row["order"].split(",")), int(row["step"]))
        assert float(row["accuracy"]) == accuracy[row["task"]]


def test_summary(finished: Finished) -> None:
    with (finished.out / "summary.csv").open() as file:
        first, second = csv.DictReader(file)
    last = [finished.accuracy("opcm", order, 3) for order in ORDERS]
    acc = [float(np.mean(list(accuracy.values()))) for accuracy in last]
    others = [float(np.mean(list(finished.accuracy("opcm:alpha=0", order, 3).values()))) for order in ORDERS]
    bwt = [
        float(
            np.mean(
                [
                    final[task] - finished.accuracy("opcm", order, step)[task]
                    for step, task in ((1, order[0]), (2, order[1]))
                ]
            )
        )
        for order, final in zip(ORDERS, last, strict=True)
    ]
    assert float(first["acc_mean"]) == pytest.approx(np.mean(acc))
    assert float(first["acc_std"]) == pytest.approx(np.std(acc, ddof=1))
    assert float(first["bwt_mean"]) == pytest.approx(np.mean(bwt))
    assert first["difference_mean"] == ""
    differences = np.subtract(others, acc)
    assert float(second["difference_mean"]) == pytest.approx(np.mean(differences))
    assert float(second["difference_se"]) == pytest.approx(np.std(differences, ddof=1) / 2**0.5)
    assert float(first["normalised_mean"]) == pytest.approx(np.mean(acc), abs=5e-3)
    assert float(first["gain_kept_mean"]) == pytest.approx(np.mean(acc), abs=5e-3), "the base has none"
    assert float(first["fold_seconds"]) > 0
    assert 3.5 < float(first["state_bytes_per_parameter"]) < 5, "float32, and headers"


def test_plots(finished: Finished) -> None:
    for name in FILES:
        if name.endswith(".svg"):
            text = (finished.out / name).read_text()
            ElementTree.fromstring(text)
            assert "checkpoints merged" in text
            assert "dc:date" not in text
    curves = (finished.out / "accuracy.svg").read_text()
    assert ">opcm:alpha=0<" in curves
    heat = (finished.out / "heatmap-opcm.svg").read_text()
    accuracy = finished.accuracy("opcm", ORDERS[1], 1)["blue"]
    for word in (*TASKS, f"{100 * accuracy:.1f}"):
        assert f">{word}<" in heat


def test_once_more_computes_nothing_and_writes_the_same(finished: Finished) -> None:
    before = {name: (finished.out / name).read_bytes() for name in FILES}
    ended = command(*finished.suite.arguments(finished.out))
    assert ended.status == 0, ended.stderr
    assert "going on: 100 % is done already" in ended.stderr
    assert {name: (finished.out / name).read_bytes() for name in FILES} == before
    assert finished.suite.log(finished.out).read_text().splitlines() == finished.runs


def test_killed_at_any_moment_it_goes_on(finished: Finished, tmp_path: Path) -> None:
    suite, out = finished.suite, tmp_path / "results"
    arguments, log = suite.arguments(out), suite.log(out)
    stop, reached = log.with_suffix(".stop"), log.with_suffix(".reached")
    for runs in (2, 11):  # among the experts, in the middle of an order
        stop.write_text(str(runs))
        process = subprocess.Popen(
            [BIN / "foldind", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        wait_for(reached.exists, f"run {runs} of the command", 60)
        children = psutil.Process(process.pid).children()
        (scorer,) = (child for child in children if str(SCORER) in child.cmdline())
        process.kill()
        process.wait()
        scorer.kill()
        assert len(log.read_text().splitlines()) == runs
        reached.unlink()
        with (out / "results.jsonl").open("ab") as file:
            file.write(b'{"kind": "step", "rule": "opc')  # what a crash of the machine could leave
    stop.unlink()
    ended = suite.evaluate(out)
    assert ended.returncode == 0, ended.stderr
    assert "is done already" in ended.stderr
    assert log.read_text().splitlines() == finished.runs
    assert measured(out) == measured(finished.out)
    assert (out / "curves.csv").read_bytes() == (finished.out / "curves.csv").read_bytes()
    assert (out / "accuracy.svg").read_bytes() == (finished.out / "accuracy.svg").read_bytes()
    assert {path.name for path in out.iterdir()} == FILES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_running(small_suite: Suite, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "results"
    arguments, log = small_suite.arguments(out), small_suite.log(out)
    log.with_suffix(".stop").write_text("0")
    process = subprocess.Popen([BIN / "foldind", *arguments], stderr=subprocess.PIPE, text=True, env=environment())
    wait_for(log.with_suffix(".reached").exists, "the command", 60)
    (scorer,) = psutil.Process(process.pid).children()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.endswith("interrupted; the same command goes on where it was\n")
    assert not scorer.is_running()
    assert not (out / "scratch").exists()


def test_only_the_end_and_no_experts(small_suite: Suite, tmp_path: Path, finished: Finished) -> None:
    out = tmp_path / "results"
    ended = command(*small_suite.arguments(out, "--score", "final", "--no-experts"))
    assert ended.status == 0, ended.stderr
    assert small_suite.log(out).read_text().split() == ["blue,green,red"] + 2 * ["red,green,blue"] + 2 * [
        "blue,red,green"
    ]
    kept = [entry for entry in measured(finished.out) if entry["kind"] == "step" and entry["step"] == 3]
    assert [entry for entry in measured(out) if entry["kind"] == "step"] == kept
    with (out / "summary.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["acc_mean"]
    assert row["bwt_mean"] == row["normalised_mean"] == row["gain_kept_mean"] == ""


def test_other_rules_give_the_same_whether_each_step_is_scored_or_the_last(small_suite: Suite, tmp_path: Path) -> None:
    rules = ("average", "ties", "dare:density=0.3", "regression", "opcm:publication=iso")
    finals = []
    for more in ((), ("--score", "final")):
        out = tmp_path / f"results{len(finals)}"
        arguments = small_suite.arguments(out, "--no-experts", *more)
        named = (f"--rule={rule}" for rule in rules)
        chosen = (*arguments[: arguments.index("--rule")], *named, "--order", "red,green,blue")
        ended = command(*chosen, *arguments[arguments.index("--command") :])
        assert ended.status == 0, ended.stderr
        finals.append({entry["rule"]: entry for entry in measured(out) if entry.get("step") == 3})
    assert finals[0] == finals[1]
    assert finals[0].keys() == set(rules)
    assert len({json.dumps(entry["accuracy"]) for entry in finals[0].values()}) == len(rules)
    updates = [load_file(small_suite.truth / f"{task}.safetensors") for task in TASKS]
    average = {name: sum(update[name].astype(np.float64) for update in updates) / 3 for name in updates[0]}
    expected = {task: pytest.approx(agreement(small_suite, task, average), abs=2e-3) for task in TASKS}
    assert finals[0]["average"]["accuracy"] == expected


def test_without_matplotlib_the_rest_is_there(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    out.mkdir()
    (out / "results.jsonl").write_bytes((finished.out / "results.jsonl").read_bytes())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = command(*_moved(finished, out))
    assert ended.status == 0, ended.stderr
    assert "pip install matplotlib" in ended.stderr
    assert {path.name for path in out.iterdir()} == {name for name in FILES if not name.endswith(".svg")}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--command", "other {model}"), ("results by another command", "name another folder with --out")),
        (("--backend", "torch"), ("linear algebra of numpy",)),
        (("--rule", "opcm:alpha=0.5"), ("'opcm' and 'opcm:alpha=0.5' are the same",)),
        (("--rule", "nonsense"), ("'nonsense'", "there are opcm")),
        (("--order", "red,green"), ("red,green",)),
        (("--command", "score.py"), ("{model}",)),
    ],
)
def test_what_is_refused(finished: Finished, tmp_path: Path, more: tuple[str, ...], words: tuple[str, ...]) -> None:
    out = tmp_path / "results"
    out.mkdir()
    (out / "results.jsonl").write_bytes((finished.out / "results.jsonl").read_bytes())
    ended = command(*_moved(finished, out), *(part.replace("{tmp}", str(tmp_path)) for part in more))
    assert ended.status == 1
    assert ended.stdout == ""
    for word in words:
        assert word in ended.stderr
    assert {path.name for path in out.iterdir()} == {"results.jsonl"}
    assert (out / "results.jsonl").read_bytes() == (finished.out / "results.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("strange", "task odd: it has no tensor in common with the base; check which base it was fine-tuned from"),
        ("nowhere", "does not exist"),
        ("folder", "task odd: "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_done(
    small_suite: Suite, tmp_path: Path, name: str, words: str
) -> None:
    save_file({"strange": np.zeros((2, 2), np.float32)}, tmp_path / "strange.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    ended = command(
        *("evaluate", "--base", small_suite.base, "--tasks", small_suite.folder / "tasks", "--backend", "numpy"),
        *("--task", f"odd={tmp_path / name}.safetensors", "--command", "true {model}", "--out", tmp_path / "results"),
    )
    assert ended.status == 1
    assert words in ended.stderr
    assert (tmp_path / "results" / "results.jsonl").read_bytes() == b""


def test_a_program_that_fails_ends_it_with_a_sentence(small_suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "results"
    program = f"{sys.executable} -c \"raise SystemExit('no such head')\" {{model}}"
    ended = command(
        *("evaluate", "--base", small_suite.base, "--tasks", small_suite.folder / "tasks", "--backend", "numpy"),
        *("--command", program, "--out", out),
    )
    assert ended.status == 1
    assert "ended with status 1; its standard error ends with:\nno such head" in ended.stderr
    assert not (out / "scratch").exists()


def test_help_teaches() -> None:
    text = command("evaluate", "--help").stdout
    for word in ("--base", "--tasks", "--task", "--rule", "--order", "--shuffles", "--score", "final", "--no-experts"):
        assert word in text
    for word in ("{model}", "{tasks}", "ACC", "BWT", "goes on", "foldind evaluate --base", "accuracy"):
        assert word in text


def _moved(finished: Finished, out: Path) -> tuple[str, ...]:
    """The arguments of the finished evaluation, but for the folder."""
    arguments = finished.suite.arguments(finished.out)
    return (*arguments[: arguments.index("--out")], "--out", str(out))
