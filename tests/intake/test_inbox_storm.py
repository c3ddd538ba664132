"""Drops by the hundred, with and without events, and through kill -9 at random moments."""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from foldind.state.records import SubmissionState
from torch import Tensor

from tests.faults.evidence import check_no_leftovers, check_stopped, check_with_fsck, read_ledger, tensor_digests
from tests.faults.processes import FaultDaemon
from tests.intake.storm import Places, Storm, overflow
from tests.intake.test_inbox_faults import WITHOUT_EVENTS
from tests.support.daemon import BIN, foldind, wait_for
from tests.support.dropping import SETTINGS, Box

MOMENTS = {
    "": 1.5,
    " serving ": 1.0,
    "dropped into the inbox": 0.02,
    ": queued, ": 0.02,
    ": folding '": 0.05,
    "publishing tensor 9 of 9": 0.02,
    ": merged in v": 0.05,
    " lies in accepted/": 0.01,
}
"""After what the daemon logged a kill comes, and within how many seconds."""


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "root").mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as device:
        yield Places(tmp_path / "inbox", tmp_path / "root", Path(device))


@pytest.fixture
def state(tmp_path: Path, base: Path) -> Path:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    return tmp_path / "state"


def watching(state: Path, places: Places, *command: str) -> FaultDaemon:
    """A daemon that watches, not started."""
    flags = ("--inbox", str(places.inbox), "--allowed-root", str(places.root), "--keep-snapshots", "2", "--lease", "0")
    return FaultDaemon(
        state, *flags, command=command or (BIN / "foldind",), environment={**SETTINGS, "FOLDIN_INBOX_STALE": "30"}
    )


@pytest.mark.parametrize(
    ("drops", "events"),
    [
        (27, True),
        pytest.param(1000, True, marks=[pytest.mark.faults, pytest.mark.timeout(1500)]),
        pytest.param(1000, False, marks=[pytest.mark.faults, pytest.mark.timeout(1500)]),
    ],
)
def test_storm(
    state: Path,
    places: Places,
    tensors: dict[str, Tensor],
    seed: int,
    drops: int,
    events: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    daemon = watching(state, places, *(() if events else (sys.executable, "-c", WITHOUT_EVENTS)))
    storm = Storm(tensors, places, seed, drops)
    daemon.start()
    try:
        blowing = Thread(target=storm.blow)
        blowing.start()
        if events:
            wait_for(lambda: len(storm.contents) > drops // 3, "the storm to rise")
            overflow(daemon.pid, places.inbox)
        blowing.join()
        storm.wait(30 + drops)
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
    counts = storm.counts(state)
    with capsys.disabled():
        print(f"\n{'events, with an overflow' if events else 'polling only'}: {counts}")
    assert (counts.accepted, counts.premature, counts.missed, counts.folded_twice) == (drops, 0, 0, 0)
    assert ("no events from the inbox" in daemon.text) != events
    assert Box(places.inbox, daemon).waiting() == set()
    check_with_fsck(state)


@pytest.mark.parametrize(
    ("kills", "drops"),
    [
        pytest.param(3, 9, marks=pytest.mark.long),
        pytest.param(40, 120, marks=[pytest.mark.faults, pytest.mark.timeout(1500)]),
    ],
)
def test_kills(
    state: Path,
    places: Places,
    tensors: dict[str, Tensor],
    base: Path,
    tmp_path: Path,
    seed: int,
    kills: int,
    drops: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw, struck, started = random.Random(seed), Counter[str](), time.monotonic()
    daemon, storm = watching(state, places), Storm(tensors, places, seed, drops)
    gusts: list[Thread] = []
    try:
        daemon.launch()
        for number in range(kills):
            gusts.append(Thread(target=storm.blow, args=(drops * number // kills, drops * (number + 1) // kills)))
            gusts[-1].start()
            struck[kill_at_random(daemon, draw)] += 1
            check_stopped(state)
            daemon.launch()
        daemon.wait_until_serving()
        for gust in gusts:
            gust.join()
        storm.wait(120)
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
        for gust in gusts:
            gust.join()
    counts = storm.counts(state)
    with capsys.disabled():
        moments = ", ".join(f"{count} after {moment.strip() or 'the start'!r}" for moment, count in struck.items())
        print(f"\n{kills} kills ({moments}), {time.monotonic() - started:.0f} s: {counts}")
    assert (counts.accepted, counts.premature, counts.missed, counts.folded_twice) == (drops, 0, 0, 0)
    assert Box(places.inbox, daemon).waiting() == set()
    ledger = read_ledger(state)
    assert {one.state for one in ledger.submissions} == {SubmissionState.MERGED}
    assert len(ledger.submissions) == len(ledger.versions) == drops
    check_no_leftovers(state)
    check_with_fsck(state)
    check_bytes_are_those_of_a_calm_run(state, places.inbox / "accepted", base, tmp_path / "calm")


def kill_at_random(daemon: FaultDaemon, draw: random.Random) -> str:
    """kill -9 the daemon, with or without its worker, a random while after a random moment, which is returned."""
    moment = draw.choice(list(MOMENTS))
    try:
        wait_for(lambda: moment in daemon.text, moment, 8)
    except AssertionError:  # everything is done, or it takes too long today
        moment = ""
    time.sleep(draw.uniform(0, MOMENTS[moment]))
    if draw.random() < 0.5:
        daemon.kill_with_worker(worker_first=draw.random() < 0.5)
    else:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.kill()
    return moment


def check_bytes_are_those_of_a_calm_run(state: Path, accepted: Path, base: Path, calm: Path) -> None:
    """Hand in the same checkpoints in the order in which they were merged, by the other door, without a kill."""
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(calm))
    daemon = FaultDaemon(calm, "--allowed-root", str(accepted.parent.parent)).start()
    try:
        with daemon.client() as client:
            for version in read_ledger(state).versions:
                (path,) = (p for p in accepted.iterdir() if p.stem == version.submission_name and p.suffix != ".json")
                last = client.submit_path(str(path), name=version.submission_name)
            client.wait(last.id)
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
    assert tensor_digests(calm) == tensor_digests(state)
