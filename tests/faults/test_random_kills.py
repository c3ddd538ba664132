"""kill -9 at random moments: nothing acknowledged is lost or folded twice, and the bytes are those of a calm run."""

from pathlib import Path

import pytest

from tests.faults.kills import Victim, strike
from tests.faults.reference import Reference

DAEMON = (Victim.DAEMON, Victim.DAEMON_AND_WORKER)
WORKER = (Victim.WORKER,)


@pytest.mark.long  # every run has the matrix, which strikes at each step
def test_some_kills_of_the_daemon(reference: Reference, tmp_path: Path, seed: int) -> None:
    print(strike(reference, tmp_path, seed, DAEMON, kills=4, per_round=4, submissions=4))


@pytest.mark.long  # every run has the matrix, which strikes at each step
def test_some_kills_of_the_worker(reference: Reference, tmp_path: Path, seed: int) -> None:
    print(strike(reference, tmp_path, seed, WORKER, kills=2, per_round=2, submissions=3))


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_many_kills_of_the_daemon(
    reference: Reference, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = strike(reference, tmp_path, seed, DAEMON, kills=200)
    with capsys.disabled():
        print(f"\n{tally}")


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_many_kills_of_the_worker(
    reference: Reference, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = strike(reference, tmp_path, seed, WORKER, kills=100)
    with capsys.disabled():
        print(f"\n{tally}")
