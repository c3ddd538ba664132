"""The record of what was measured: what a crash leaves, and what it is not mistaken for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from foldind.errors import StateError
from foldind.evaluation.results import Results, Step, Subject

SUBJECT = Subject("base", {"a": "1", "b": "2"}, "score {model}", parameters=100, backend="numpy")
ORDER = ("b", "a")
STEP = Step({"b": 0.1 + 0.2}, 1.5, 400)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Results(tmp_path / "results.jsonl") as results:
        results.claim(SUBJECT)
        results.add_rule("opcm", {"alpha": 0.5})
        results.add_base({"a": 0.5, "b": 0.25})
        results.add_expert("a", 1.0)
        results.add_step("opcm", ORDER, 1, STEP)
    return tmp_path / "results.jsonl"


def check_all_is_there(results: Results) -> None:
    assert results.subject == SUBJECT
    assert results.rules == {"opcm": {"alpha": 0.5}}
    assert results.base == {"a": 0.5, "b": 0.25}
    assert results.experts == {"a": 1.0}
    assert dict(results.steps) == {("opcm", ORDER): {1: STEP}}


@pytest.mark.parametrize("torn", [b"", b"{", b'{"kind": "expert", "task": "b", "accuracy": 1}', b"\0" * 7, b"\0\0\n"])
def test_a_torn_line_is_taken_away(path: Path, torn: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Results(path) as results:
        check_all_is_there(results)
        assert path.read_bytes() == whole
        results.add_step("opcm", ORDER, 2, STEP)
    assert path.read_bytes().startswith(whole)
    with Results(path) as results:
        assert results.steps["opcm", ORDER] == {1: STEP, 2: STEP}


def test_every_length_of_the_file_can_be_read(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Results(path) as results:
            lines = whole[:length].count(b"\n")
            assert (results.subject is not None, len(results.base), len(results.experts)) == (
                (lines > 0, 2 * (lines > 2), int(lines > 3))
            )
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])


def test_damage_elsewhere_is_told(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"{\n", b"[]\n", b'{"kind": "step"}\n', b'{"kind": "guess"}\n'):
        path.write_bytes(lines[0] + damage + lines[1])
        with pytest.raises(StateError, match=r"line 2 of .* is damaged; name another folder"), Results(path):
            pass
        assert path.read_bytes() == lines[0] + damage + lines[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "other"}, "another base"),
        ({"tasks": {"a": "1", "b": "3"}}, "other tasks or checkpoints"),
        ({"tasks": {"a": "1"}}, "other tasks or checkpoints"),
        ({"command": "guess {model}"}, "another command, 'score {model}'"),
        ({"backend": "torch"}, "the linear algebra of numpy"),
    ],
)
def test_another_subject_is_refused(path: Path, change: dict[str, object], words: str) -> None:
    whole = path.read_bytes()
    with Results(path) as results:
        results.claim(SUBJECT)
        with pytest.raises(StateError, match=f"{words}; name another folder with --out"):
            results.claim(replace(SUBJECT, **change))  # type: ignore[arg-type]
    assert path.read_bytes() == whole


def test_a_rule_that_means_something_else_is_refused(path: Path) -> None:
    with Results(path) as results:
        results.add_rule("opcm", {"alpha": 0.5})
        with pytest.raises(StateError, match="opcm with another alpha, rank"):
            results.add_rule("opcm", {"alpha": 0.4, "rank": 1})


def test_another_format_is_refused(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(lines[0]), "format": 2}), *lines[1:], ""]))
    with pytest.raises(StateError, match="another release"), Results(path):
        pass


def test_one_at_a_time(path: Path) -> None:
    with Results(path), pytest.raises(StateError, match="in use"), Results(path):
        pass
    with Results(path) as results:
        check_all_is_there(results)
