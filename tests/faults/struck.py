"""One fault at one step of one submission's life."""

from collections.abc import Callable
from pathlib import Path

from tests.faults import evidence, striking
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Reference
from tests.faults.striking import Fault, Side, Step
from tests.support.daemon import wait_for


class Struck:
    """A state folder with two submissions merged, and a daemon in which a fault will strike at the third."""

    def __init__(
        self,
        reference: Reference,
        folder: Path,
        make_daemon: Callable[..., FaultDaemon],
        step: Step,
        side: Side,
        fault: Fault,
        inbox: Path | None = None,
    ):
        self.state = reference.two_merged.copy(folder)
        self._reference = reference
        self._mark = folder / "struck"
        self._make_daemon = make_daemon
        self._flags = ("--keep-snapshots", "1", "--lease", "0", "--allowed-root", str(reference.base.parent))
        self._environment = {"FOLDIN_RETRY_DISK_EVERY": "0.2"}
        if inbox:
            self._flags += ("--inbox", str(inbox))
            self._environment |= {"FOLDIN_INBOX_SETTLE": "0.2", "FOLDIN_INBOX_POLL": "0.5"}
        self._before = [submission.id for submission in evidence.read_ledger(self.state).submissions]
        self.checkpoint = reference.two_merged.checkpoints[0]
        self.daemon = make_daemon(
            self.state,
            *self._flags,
            command=striking.command(step, side, fault, self._mark),
            environment=self._environment,
        ).start()

    def restart(self) -> None:
        """Start a daemon in which nothing strikes."""
        self.daemon = self._make_daemon(
            self.state, *self._flags, server=self.daemon.server, environment=self._environment
        ).start()

    def check_end(self, submission_id: str, attempts: int | None = None) -> None:
        """Check that it struck, and that it made no difference."""
        wait_for(lambda: not any((self.state / "submissions").iterdir()), "the bytes of what is merged to be removed")
        wait_for(lambda: not (self.state / "snapshots" / "v1").exists(), "what was pruned to be removed")
        wait_for(self._mark.exists, "the fault to strike")
        with self.daemon.client() as client:
            evidence.check_served(client, self.state)
            history = client.status(submission_id).history
        assert "QUARANTINED" not in [event.state for event in history]
        assert self.daemon.terminate() == 0
        evidence.check_all_merged_in_order(self.state, [*self._before, submission_id])
        evidence.check_files_are(self.state, self._reference.digests)
        evidence.check_latest(self.state)
        evidence.check_stopped(self.state)
        assert attempts is None or evidence.read_ledger(self.state).submissions[-1].attempts == attempts
