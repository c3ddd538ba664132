"""What would be noticed: crashes, hangs, memory, errors that are no sentences, and merges of something else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from foldind.errors import CheckpointRefused

from tests.mutations.bases import make
from tests.mutations.broken import CRASH, HANG, SOUND, judge_case
from tests.mutations.comparison import compare
from tests.mutations.mutation import mutate, original
from tests.mutations.oracle import claims
from tests.mutations.originals import FORMATS
from tests.mutations.outcome import Case, Verdict
from tests.mutations.process import Judge
from tests.mutations.safefile import take_apart
from tests.mutations.verdict import attempt, judge
from tests.support.wire import SINGLE, write_files


@pytest.mark.parametrize(("number", "words"), [(CRASH, "ended with -6"), (HANG, "took more than 0.2 s")])
def test_a_case_costs_no_other(number: int, words: str, tmp_path: Path) -> None:
    with Judge(tmp_path, judge_case, longest_seconds=0.2) as process:
        broken = process.judge(Case("any", 0, number))
        assert broken.verdict is Verdict.FAILED
        assert words in broken.reason
        assert process.judge(Case("any", 0, SOUND)).verdict is Verdict.ACCEPTED


def refuse(reason: str, hint: str) -> None:
    raise CheckpointRefused(reason, hint)


@pytest.mark.parametrize(
    ("submit", "words"),
    [
        (lambda: bytearray(300 * 1000**2).count(1), "bytes of memory"),
        (lambda: refuse("it is damaged", ""), "no sentence with a hint"),
        (lambda: refuse("it is \x1b[2J", "send it again"), "no sentence with a hint"),
        (lambda: {}["a"], "KeyError"),
    ],
)
def test_how_it_ends(submit: Callable[[], None], words: str) -> None:
    outcome = attempt(submit, 1000)
    assert outcome.verdict is Verdict.FAILED
    assert words in outcome.reason


@pytest.mark.parametrize("format_", FORMATS)
def test_what_mutations_are_made_of_is_accepted(format_: str, tmp_path: Path) -> None:
    first = original(format_)
    outcome = judge(tmp_path, make(tmp_path, first.base), first.files, partial=first.partial)
    assert outcome.verdict is Verdict.ACCEPTED, outcome.reason


@pytest.mark.parametrize("place", [1, -1])
def test_a_merge_of_something_else(place: int, tmp_path: Path) -> None:
    base, files = make(tmp_path, "F32"), original("task vector").files
    judge(tmp_path, base, files, partial=False)
    file = take_apart(files[SINGLE])
    assert file is not None
    changed = file.tensors[place]
    data = changed.data[:-2] + bytes([changed.data[-2] ^ 0x40]) + changed.data[-1:]
    file.tensors[place] = changed._replace(data=data)
    other = write_files(tmp_path / "other", {SINGLE: file.content()})
    with pytest.raises(AssertionError, match="was claimed"):
        compare(tmp_path, base, claims(other, base, partial=False))


def test_a_mutation_can_be_repeated() -> None:
    for number in range(50):
        assert mutate("DoRA", 7, number) == mutate("DoRA", 7, number)
    assert mutate("DoRA", 7, 0) != mutate("DoRA", 8, 0)
