"""The worker dies and the daemon lives, or the other way round."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from foldin import Client

from tests.faults import evidence
from tests.faults.processes import FaultDaemon, is_gone
from tests.faults.reference import Prepared, Reference
from tests.support.daemon import wait_for

MakeDaemon = Callable[..., FaultDaemon]
ATTEMPTS = 3


def test_three_deaths_quarantine_and_retry_merges_at_its_turn(
    slow: Prepared, tmp_path: Path, fault_daemon: MakeDaemon
) -> None:
    daemon = fault_daemon(slow.copy(tmp_path)).start_warm()
    poison, following, last = slow.checkpoints
    with daemon.client() as client:
        poison_id = client.submit(poison).id
        wait_for(lambda: client.status(poison_id).progress, "the fold to be under way", 60)
        killed = 0
        for _ in range(ATTEMPTS):  # the first one folds, the next are still starting
            killed = _kill_worker(daemon, other_than=killed)
        quarantined = wait_for(lambda: _in_state(client, poison_id, "QUARANTINED"), "the quarantine")
        assert "3 attempts at folding it failed" in quarantined.reason
        assert "the worker died by SIGKILL, probably out of memory" in quarantined.reason
        assert quarantined.attempts == ATTEMPTS

        following_id = client.submit(following).id
        wait_for(lambda: client.status(following_id).progress, "the next one to be folded", 60)
        worker = daemon.wait_for_worker(other_than=killed)
        worker.suspend()  # that one is not done before the others wait
        last_id = client.submit(last).id
        client.retry(poison_id)
        worker.resume()
        merged = [client.wait(one) for one in (following_id, poison_id, last_id)]
    assert [one.version for one in merged] == [2, 3, 4], "the retried one did not come at its turn"
    assert [one.attempts for one in merged] == [0, 0, 0]
    assert daemon.terminate() == 0
    evidence.check_stopped(daemon.state)


@pytest.mark.faults
def test_death_while_idle_counts_for_nobody(reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon) -> None:
    daemon = fault_daemon(reference.two_merged.copy(tmp_path)).start_warm()
    worker = daemon.wait_for_worker()
    _kill_worker(daemon)
    wait_for(lambda: not psutil.pid_exists(worker.pid), "the daemon to notice")
    with daemon.client() as client:
        merged = client.submit(reference.two_merged.checkpoints[0], wait=True)
    assert (merged.version, merged.attempts) == (3, 0)


def test_death_while_it_starts_does_not_end_the_daemon(
    reference: Reference, tmp_path: Path, fault_daemon: MakeDaemon
) -> None:
    daemon = fault_daemon(reference.two_merged.copy(tmp_path)).start()
    _kill_worker(daemon)
    with daemon.client() as client:
        assert client.submit(reference.two_merged.checkpoints[0], wait=True).version == 3


@pytest.mark.parametrize("starting", [pytest.param(True, marks=pytest.mark.faults), False], ids=["starting", "folding"])
def test_a_stopped_worker_does_not_outlive_the_daemon(
    slow: Prepared, tmp_path: Path, fault_daemon: MakeDaemon, starting: bool
) -> None:
    daemon = fault_daemon(slow.copy(tmp_path)).start()
    if not starting:
        with daemon.client() as client:
            submission_id = client.submit(slow.checkpoints[0]).id
            wait_for(lambda: client.status(submission_id).progress, "the fold to be under way", 60)
    worker = daemon.wait_for_worker()
    worker.suspend()
    process = psutil.Process(daemon.pid)
    process.kill()
    daemon.wait_for_end()
    if not is_gone(worker):
        worker.resume()
    wait_for(lambda: is_gone(worker), "the worker to go")
    evidence.check_stopped(daemon.state)
    daemon.start()
    evidence.check_no_leftovers(daemon.state)


def _kill_worker(daemon: FaultDaemon, other_than: int = 0) -> int:
    worker = daemon.wait_for_worker(other_than)
    worker.kill()
    wait_for(lambda: is_gone(worker), "the worker to die")
    return worker.pid


def _in_state(client: Client, submission_id: str, state: str) -> object:
    submission = client.status(submission_id)
    return submission if submission.state == state else None
