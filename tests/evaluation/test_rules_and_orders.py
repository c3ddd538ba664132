"""What is named on the command line: rules, orders and tasks."""

from pathlib import Path

import pytest
from foldind.config import MergeSettings
from foldind.errors import InvalidRequest
from foldind.evaluation.orders import choose_orders
from foldind.evaluation.rules import NamedRule, parse_rule
from foldind.evaluation.tasks import name_tasks
from foldind.merging.catalog import CATALOG

TASKS = ("a", "b", "c", "d")


def test_a_rule_and_its_options() -> None:
    assert parse_rule("opcm") == NamedRule(MergeSettings(), "norm")
    told = parse_rule("opcm:alpha=0.3, projection=leading,max_rank=8,publication=scale:0.4", backend="numpy")
    settings = told.settings
    assert (settings.rule, settings.alpha, settings.projection, settings.max_rank) == ("opcm", 0.3, "leading", 8)
    assert settings.backend == "numpy"
    assert told.publication == "scale:0.4"
    assert parse_rule("opcm:backend=torch", backend="numpy").settings.backend == "torch"
    assert parse_rule("iso") == parse_rule("iso:publication=iso:1") != parse_rule("iso:publication=flat")
    for name in CATALOG:
        assert parse_rule(name).settings.rule == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ocpm", ("rule 'ocpm'", "opcm, foldin, average")),
        ("", ("rule ''", "opcm, foldin, average")),
        ("average:alpha=0.3", ("not alpha", "options of average are publication")),
        ("opcm:publication=flta", ("no publication 'flta'", "norm")),
        ("opcm:projection=leading,publication=iso", ("singular vectors",)),
        ("opcm:alhpa=0.3", ("alhpa", "no such setting", "alpha, cross_blocks, projection, publication")),
        ("opcm:alpha=1", ("alpha", "less than 1")),
        ("opcm:alpha=nan", ("alpha",)),
        ("opcm:alpha=much", ("alpha", "number")),
        ("opcm:alpha", ("'alpha'", "OPTION=VALUE")),
        ("opcm:", ("OPTION=VALUE",)),
        ("opcm:alpha=0.1,alpha=0.2", ("'alpha=0.2'",)),
        ("opcm:rule=opcm", ("'rule=opcm'",)),
    ],
)
def test_rules_that_make_no_sense(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_rule(text)
    for word in words:
        assert word in str(caught.value)


def test_orders() -> None:
    assert choose_orders(TASKS, (), 0, 0) == (TASKS,)
    assert choose_orders(TASKS, ["d, c,b,a"], 0, 0) == (("d", "c", "b", "a"),)
    five, nine = choose_orders(TASKS, (), 5, 1), choose_orders(tuple(reversed(TASKS)), (), 9, 1)
    assert nine[:5] == five
    assert five != choose_orders(TASKS, (), 5, 2)
    every = choose_orders(TASKS, ["d,c,b,a"], 23, 3)
    assert every[0] == ("d", "c", "b", "a")
    assert len(set(every)) == 24
    assert all(sorted(order) == sorted(TASKS) for order in every)


@pytest.mark.parametrize(
    ("given", "shuffles", "word"),
    [
        (["a,b,c"], 0, "a, b, c, d"),
        (["a,b,c,c"], 0, "a, b, c, d"),
        (["a,b,c,d", "a,b,c,d"], 0, "twice"),
        ([], 25, "24 orders"),
        (["a,b,c,d"], 24, "24 orders"),
    ],
)
def test_orders_that_there_are_not(given: list[str], shuffles: int, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        choose_orders(TASKS, given, shuffles, 0)


def test_tasks(tmp_path: Path) -> None:
    for name in ("green", ".hidden", "red"):
        (tmp_path / name).mkdir()
    (tmp_path / "blue.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    named = name_tasks(["white=./w=hite"], tmp_path)
    assert list(named) == ["white", "blue", "green", "red"]
    assert named["white"] == Path("w=hite")
    assert named["blue"] == tmp_path / "blue.safetensors"


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ([], "no task"),
        (["a"], "NAME=PATH"),
        (["=x"], "no name"),
        (["a,b=x"], "no name"),
        (["a=x", "a=y"], "two tasks a"),
    ],
)
def test_tasks_that_make_no_sense(named: list[str], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        name_tasks(named, None)
