"""Mutations of valid submissions of every format: each is refused with a sentence, or merged as what it claims."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mutations.mutation import mutate
from tests.mutations.originals import FORMATS
from tests.mutations.outcome import Case, Outcome, Verdict
from tests.mutations.process import Judge
from tests.mutations.verdict import judge_case

FEW = 20
MANY = -(-10_000 // len(FORMATS))


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with Judge(tmp_path_factory.mktemp("mutations"), judge_case) as running:
        yield running


def run(process: Judge, format_: str, seed: int, count: int) -> None:
    outcomes: list[Outcome] = []
    failures = []
    for number in range(count):
        case = Case(format_, seed, number)
        outcomes.append(outcome := process.judge(case))
        if outcome.verdict is Verdict.FAILED:
            failures.append(f"FOLDIN_TEST_SEED={seed}, {case}: {mutate(*case).told}\n{outcome.reason}")
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(
        f"{format_}: seed {seed}, {count} mutations, "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
        + f"; at most {max(outcome.seconds for outcome in outcomes):.2f} s"
        + f" and {max(outcome.bytes for outcome in outcomes) / 1e6:.0f} MB a case"
    )
    assert not failures, "\n\n".join([f"{len(failures)} failures", *failures[:20]])


@pytest.mark.parametrize("format_", FORMATS)
def test_some(format_: str, process: Judge, seed: int) -> None:
    run(process, format_, seed, FEW)


@pytest.mark.mutations
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format_", FORMATS)
def test_ten_thousand(format_: str, process: Judge, seed: int) -> None:
    run(process, format_, seed, MANY)
