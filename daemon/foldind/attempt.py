"""One attempt at merging a submission: what it starts from, what the worker is asked, and how its result is committed.

Everything here blocks on the disk.
"""

import base64
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from foldind.config import Configuration, ServeSettings
from foldind.documents import manifest
from foldind.logs import about
from foldind.merging.record import Record
from foldind.sealing import Sealing
from foldind.state.bases import KeptBases, bases_key
from foldind.state.durable import make_folder, remove, seal
from foldind.state.folder import StateFolder, Temporaries
from foldind.state.records import UNNAMED, Gate, GateVerdict, Submission, Version, VersionState
from foldind.state.recovery import point_latest
from foldind.state.versions import Versions
from foldind.worker.jobs import job_of
from foldind.worker.messages import FoldRequest, FoldResult

log = logging.getLogger(__name__)

NOTICED_DROP = 0.01
"""Share of the accumulated norm that a limit of the rank may take without a warning."""


@dataclass(frozen=True)
class Attempt:
    """Folding one submission onto the head."""

    submission: Submission
    head: Version | None
    number: int
    """Of the version it makes."""
    bases: Path
    """Where the bases of the head's state lie, as far as they are there."""
    temporary: Temporaries
    """Where the worker writes."""
    started: float
    """time.monotonic()."""


class Attempts:
    """What all attempts have in common: the state folder, its settings, and its versions."""

    def __init__(self, folder: StateFolder, configuration: Configuration, settings: ServeSettings, versions: Versions):
        self._folder = folder
        self._configuration = configuration
        self._merge = configuration.merge
        self._settings = settings
        self._publication = configuration.merge.publication(settings.publication)
        self._versions = versions
        self._sealing = Sealing(folder, configuration, settings, versions)

    def begin(self, submission: Submission) -> Attempt:
        """Clear away what earlier attempts left, and make the temporary folders. Raises OSError."""
        started = time.monotonic()
        head, last = self._versions.head(), self._versions.last_number()
        self._folder.discard_unrecorded(last)
        for number in self._folder.accumulated_versions():
            if head is None or number != head.version:
                remove(self._folder.accumulated(number))
        bases = KeptBases(self._folder.bases)
        key = bases_key(head.state_files, self._merge) if head else ""
        bases.keep_only(key)
        temporary = self._folder.temporary(last + 1)
        for path in temporary:
            make_folder(path)
        return Attempt(submission, head, last + 1, bases.folder(key), temporary, started)

    def request(self, attempt: Attempt) -> FoldRequest:
        """Return what the worker is asked."""
        merge, head = self._merge, attempt.head
        return FoldRequest(
            job=job_of(self._folder, merge, self._settings, self._publication),
            record=head.record if head else Record(0, 0.0, 0.0),
            max_rank=merge.max_rank,
            submission=str(self._folder.submission(attempt.submission.id)),
            vocab=attempt.submission.vocab,
            seed=attempt.submission.content_digest,
            take_out=attempt.submission.takes_out,
            accumulated=str(self._folder.accumulated(head.version)) if head else "",
            bases=str(attempt.bases),
            state_folder=str(attempt.temporary.state),
            new_bases=str(attempt.temporary.bases),
            snapshot_folder=str(attempt.temporary.snapshot),
        )

    def commit(self, attempt: Attempt, result: FoldResult) -> None:
        """Complete the snapshot, seal both folders, and record the version. Raises OSError."""
        merge, submission = self._merge, attempt.submission
        parent = attempt.head.version if attempt.head else 0
        change = submission.name
        if submission.takes_out:
            change = f"without {self._versions.submission_name(submission.took_out) or UNNAMED}"
        files = self._sealing.seal_snapshot(
            attempt.temporary.snapshot,
            attempt.number,
            parent,
            result,
            change=change,
            submissions=result.record.submissions,
            publication=self._publication,
            manifest=manifest(
                attempt.number,
                parent,
                submission,
                result,
                base_digest=self._configuration.base_digest,
                merge=merge.to_json(),
                publication=self._publication,
            ),
        )
        seal(attempt.temporary.state, self._folder.accumulated(attempt.number))
        self._versions.commit(
            Version(
                version=attempt.number,
                parent=parent,
                state=VersionState.PUBLISHED,
                submission_id=submission.id,
                submission_name=submission.name,
                created_at=time.time(),
                merge_seconds=time.monotonic() - attempt.started,
                rule=merge.rule,
                publication=self._publication,
                variant=False,
                submissions=result.record.submissions,
                lambda_=result.lambda_,
                accumulated_norm=result.record.accumulated_norm,
                task_vector_norm=result.task_vector_norm,
                task_vector_norm_sum=result.record.task_vector_norm_sum,
                state_files=result.state_files,
                files=files,
                gate=Gate(GateVerdict.WAITING) if self._settings.gate else None,
            ),
            base64.b64decode(result.sketch),
        )
        point_latest(self._folder, self._versions)
        try:
            if any(attempt.temporary.bases.iterdir()) and self._settings.keep_bases:
                KeptBases(self._folder.bases).add(attempt.temporary.bases, bases_key(result.state_files, merge))
            remove(attempt.temporary.bases)
        except OSError as error:  # it is merged, and they are a cache
            log.warning("could not keep the bases of v%d: %s", attempt.number, error)


def log_merged(attempt: Attempt, result: FoldResult) -> None:
    """Say in the log what a merge that became a version did."""
    submission_log = about(log, attempt.submission.id)
    submission_log.info(
        "merged in v%d, lambda %.6f, %.2f s, %d bases computed, worker peak %d MB",
        attempt.number,
        result.lambda_,
        time.monotonic() - attempt.started,
        result.bases_computed,
        result.peak_resident_bytes // 2**20,
    )
    if result.dropped > NOTICED_DROP:
        share = 100 * result.dropped
        submission_log.warning("max_rank dropped %.1f %% of the accumulated update of v%d", share, attempt.number)
    if (adapter := result.adapter) and adapter.rank == 0:
        submission_log.warning("v%d has no adapter: PEFT has no place for anything in it", attempt.number)
    elif adapter:
        left_out = f", without {', '.join(adapter.left_out[:3])}" if adapter.left_out else ""
        submission_log.info(
            "the adapter of v%d has rank %d and %.1f %% of the update's energy%s",
            attempt.number,
            adapter.rank,
            100 * adapter.retained[-1],
            left_out,
        )
