"""A stream of submissions, and kill -9 at random moments until everything is merged.

What must hold after every kill and at the end is in evidence.py.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from threading import Event, Thread

from foldin import Client, FoldinError, Progress, ServerUnavailable

from tests.faults import evidence
from tests.faults.post_mortem import intake_stage, last_stage, merge_stage
from tests.faults.processes import WORKER_READY, FaultDaemon, is_gone
from tests.faults.reference import SUBMISSIONS, Reference
from tests.support.daemon import wait_for

AHEAD = 2
"""Submissions that are handed in before the first of them is merged, so that uploads and merges go on together."""
POLL_SECONDS = 0.0005


class Victim(StrEnum):
    DAEMON = "daemon"
    DAEMON_AND_WORKER = "daemon and worker"
    WORKER = "worker"


class Moment(StrEnum):
    """After what the random delay before a kill begins."""

    STARTED = "started"
    SERVING = "serving"
    SENDING = "sending"
    SENT = "sent"
    TAKEN = "taken up"
    FOLDING = "folding"
    PUBLISHED = "published"
    MERGED = "merged"


_ODDS = {
    Moment.STARTED: 1,
    Moment.SERVING: 1,
    Moment.SENDING: 2,
    Moment.SENT: 2,
    Moment.TAKEN: 1,
    Moment.FOLDING: 1,
    Moment.PUBLISHED: 3,
    Moment.MERGED: 3,
}
_LONGEST_DELAY = {
    Moment.STARTED: 0.8,
    Moment.SERVING: 2.5,
    Moment.SENDING: 0.02,
    Moment.SENT: 0.03,
    Moment.TAKEN: 0.05,
    Moment.FOLDING: 0.06,
    Moment.PUBLISHED: 0.015,
    Moment.MERGED: 0.015,
}
"""Seconds."""


@dataclass
class Tally:
    """What a run of kills amounted to."""

    kills: Counter[Victim] = field(default_factory=Counter)
    merge_stages: Counter[str] = field(default_factory=Counter)
    intake_stages: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    submissions: int = 0
    versions: int = 0
    worker_attempts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        def listed(counter: Counter[str]) -> str:
            return "".join(f"\n    {count:4d}  {name}" for name, count in counter.most_common())

        uploads = f"\n  uploads at the moment of the kill:{listed(self.intake_stages)}" if self.intake_stages else ""
        return (
            f"{self.kills.total()} kills ({', '.join(f'{count} {victim}' for victim, count in self.kills.items())}), "
            f"{self.restarts} restarts of the daemon, {self.submissions} submissions, {self.versions} versions, "
            f"{self.worker_attempts} attempts counted, {self.seconds:.0f} s"
            f"\n  merges at the moment of the kill:{listed(self.merge_stages)}{uploads}"
        )


class Submitter(Thread):
    """Hands in the submissions one after the other, through every outage, a few ahead of the merges."""

    def __init__(self, server: str, checkpoints: list[Path], parallel: int):
        super().__init__(name="submitter", daemon=True)
        self.acknowledged: list[str] = []
        """Ids, in the order in which the daemon promised to keep them."""
        self.chunks_sent = 0
        self.sent = 0
        self.failure: Exception | None = None
        self._server = server
        self._checkpoints = checkpoints
        self._parallel = parallel
        self._closing = Event()

    def run(self) -> None:
        try:
            with Client(self._server, patience=120, parallel=self._parallel) as client:
                for position, checkpoint in enumerate(self._checkpoints):
                    if position >= AHEAD:
                        self._patiently(lambda: client.wait(self.acknowledged[-AHEAD]))
                    self._patiently(partial(self._submit, client, checkpoint))
                self._patiently(lambda: client.wait(self.acknowledged[-1]))
        except Exception as error:
            self.failure = error

    def end(self) -> None:
        self._closing.set()

    def check(self) -> None:
        if self.failure:
            raise AssertionError("the submitter failed") from self.failure

    def _submit(self, client: Client, checkpoint: Path) -> None:
        submission = client.submit(checkpoint, name=checkpoint.name, on_progress=self._progress)
        assert submission.state in ("QUEUED", "MERGING", "MERGED"), submission.verdict
        self.acknowledged.append(submission.id)

    def _progress(self, progress: Progress) -> None:
        if progress.stage == "uploading":
            self.chunks_sent += 1
            self.sent += progress.done == progress.total

    def _patiently(self, action: Callable[[], object]) -> None:
        while not self._closing.is_set():
            try:
                action()
            except ServerUnavailable:
                self._closing.wait(0.02)  # it did not answer the first question: it is being started again
            else:
                return
        raise FoldinError("the test has ended")


class Round:
    """One state folder, from the first submission to the last, and the kills in between."""

    def __init__(self, reference: Reference, folder: Path, draw: random.Random, tally: Tally, submissions: int):
        self._draw = draw
        self._checkpoints = reference.checkpoints[:submissions]
        self._digests = reference.digests
        self._tally = tally
        self._state = reference.new.copy(folder)
        self._daemon = FaultDaemon(self._state, "--keep-snapshots", "2", "--lease", "0")
        self._submitter = Submitter(self._daemon.server, self._checkpoints, draw.choice((1, 4)))
        self._worker_kills = 0

    def run(self, victims: tuple[Victim, ...], kills: int) -> None:
        """Kill at most so many times, and see to it that everything is merged in the end."""
        try:
            self._daemon.start()
            self._submitter.start()
            for _ in range(kills):
                if not self._strike(self._draw.choice(victims)):
                    break
            self._finish()
        finally:
            self._submitter.end()
            self._daemon.kill()
            self._submitter.join(10)

    def _strike(self, victim: Victim) -> bool:
        worker_only = victim is Victim.WORKER
        if worker_only and not self._wait_until_worker_may_die():
            return False
        odds = {one: count for one, count in _ODDS.items() if not (worker_only and one in _BEFORE_THE_WORKER)}
        [moment] = self._draw.choices(list(odds), list(odds.values()))
        if not self._wait_for(moment):
            return False
        if worker_only:
            self._kill_worker()
        else:
            self._kill_daemon(victim)
        self._submitter.check()
        return True

    def _kill_daemon(self, victim: Victim) -> None:
        acknowledged = list(self._submitter.acknowledged)
        worker = self._daemon.known_worker
        if victim is Victim.DAEMON_AND_WORKER:
            self._daemon.kill_with_worker(worker_first=self._draw.random() < 0.5)
        else:
            os.kill(self._daemon.pid, signal.SIGKILL)
            self._daemon.kill()
            if worker:
                wait_for(lambda: is_gone(worker), "the worker to follow the daemon")
        self._record(victim)
        if self._draw.random() < 0.5:  # looking at the ledger cleans it up; half of the daemons get it as it was left
            evidence.check_stopped(self._state)
        self._check_kept(acknowledged)
        self._daemon.launch()
        self._tally.restarts += 1
        if self._draw.random() < 0.1:
            return  # the next kill may strike while it recovers
        self._check_started(acknowledged)

    def _check_started(self, acknowledged: list[str]) -> None:
        self._daemon.wait_until_serving()
        if WORKER_READY not in self._daemon.text:  # nothing can be merging yet
            evidence.check_no_leftovers(self._state)
            evidence.check_latest(self._state)
        with self._daemon.client() as client:
            evidence.check_served(client, self._state)
            ids = [submission.id for submission in evidence.answer_of(client.list)]
        assert set(acknowledged) <= set(ids), "an acknowledged submission is lost"

    def _check_kept(self, acknowledged: list[str]) -> None:
        """What the ledger holds of what was acknowledged: all of it, in order, each in one version at the most."""
        content = evidence.read_ledger(self._state)
        queue = [submission.id for submission in content.queue]
        assert queue[: len(acknowledged)] == acknowledged
        merged = [version.submission_id for version in content.versions]
        assert merged == queue[: len(merged)]
        assert [version.version for version in content.versions] == list(range(1, len(merged) + 1))

    def _wait_until_worker_may_die(self) -> bool:
        """Wait until no submission can lose the worker twice; False if everything is merged before."""
        self._wait_or_end(lambda: self._daemon.text.count(WORKER_READY) > self._worker_kills)
        if self._worker_kills:
            # The death may have cost the submission that the new worker has now; that has to be merged first.
            merged = self._merged
            self._wait_or_end(lambda: self._merged > merged)
        return self._submitter.is_alive()

    def _wait_or_end(self, condition: Callable[[], bool]) -> None:
        wait_for(lambda: condition() or not self._submitter.is_alive(), "the worker to be of use", 120)
        self._submitter.check()

    def _kill_worker(self) -> None:
        worker = self._daemon.known_worker or self._daemon.wait_for_worker()
        worker.kill()
        self._worker_kills += 1
        self._tally.kills[Victim.WORKER] += 1
        self._tally.merge_stages[last_stage(self._daemon.text)] += 1
        assert not self._daemon.ended

    @property
    def _merged(self) -> int:
        return self._daemon.text.count(": merged in v")

    def _wait_for(self, moment: Moment) -> bool:
        """Wait for a moment and a random while; False if everything is merged before it comes."""
        submitter, daemon = self._submitter, self._daemon
        chunks, sent, seen = submitter.chunks_sent, submitter.sent, len(daemon.text)
        more_chunks = self._draw.randint(1, 6)
        texts = {
            Moment.SERVING: " serving ",
            Moment.TAKEN: " into v",
            Moment.FOLDING: "folding tensor",
            Moment.PUBLISHED: "publishing tensor 10 of 10",
            Moment.MERGED: ": merged in v",
        }

        def arrived() -> bool:
            match moment:
                case Moment.STARTED:
                    return True
                case Moment.SENDING:
                    return submitter.chunks_sent >= chunks + more_chunks
                case Moment.SENT:
                    return submitter.sent > sent
                case Moment.SERVING:
                    return texts[moment] in daemon.text
                case _:
                    return texts[moment] in daemon.text[seen:]

        deadline = time.monotonic() + 60
        while not arrived():
            submitter.check()
            assert time.monotonic() < deadline, f"waited in vain for {moment}: {daemon.text}"
            assert not daemon.ended, f"the daemon ended by itself: {daemon.text}"
            if not submitter.is_alive():
                return False
            time.sleep(POLL_SECONDS)
        time.sleep(self._draw.uniform(0, _LONGEST_DELAY[moment]))
        return True

    def _record(self, victim: Victim) -> None:
        self._tally.kills[victim] += 1
        self._tally.merge_stages[merge_stage(self._state, self._daemon.text)] += 1
        self._tally.intake_stages[intake_stage(self._state)] += 1

    def _finish(self) -> None:
        submitter = self._submitter
        wait_for(lambda: not submitter.is_alive(), f"everything to be merged; the log is {self._daemon.log}", 120)
        submitter.check()
        self._daemon.wait_until_serving()
        with self._daemon.client() as client:
            evidence.check_served(client, self._state)
        assert self._daemon.terminate() == 0
        evidence.check_all_merged_in_order(self._state, submitter.acknowledged)
        evidence.check_files_are(self._state, self._digests)
        evidence.check_latest(self._state)
        evidence.check_with_fsck(self._state)
        content = evidence.read_ledger(self._state)
        attempts = [submission.attempts for submission in content.submissions]
        assert max(attempts) <= 1
        self._tally.submissions += len(content.submissions)
        self._tally.versions += len(content.versions)
        self._tally.worker_attempts += sum(attempts)


_BEFORE_THE_WORKER = (Moment.STARTED, Moment.SERVING)


def strike(
    reference: Reference,
    folder: Path,
    seed: int,
    victims: tuple[Victim, ...],
    kills: int,
    per_round: int = 25,
    submissions: int = SUBMISSIONS,
) -> Tally:
    """Kill so many times, over as many state folders as it takes.

    Args:
      per_round: kills per state folder, at most.
      submissions: handed in per state folder.
    """
    draw, tally, started = random.Random(seed), Tally(), time.monotonic()
    number = 0
    while (left := kills - tally.kills.total()) > 0:
        number += 1
        place = folder / f"round-{number}"
        place.mkdir()
        Round(reference, place, draw, tally, submissions).run(victims, min(left, per_round))
        shutil.rmtree(place)
    tally.seconds = time.monotonic() - started
    return tally
