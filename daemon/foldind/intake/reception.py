"""What becomes of one drop: it is handed in as a submission, and filed once that is settled.

A drop is the same as long as it is unchanged; its request id, made of what it is, finds its submission in the ledger
whatever happened in between.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prometheus_client import Counter

from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.documents import common_rows
from foldind.errors import SourceChanged
from foldind.intake.admission import MAX_TEXT
from foldind.intake.copies import Copies
from foldind.intake.drops import ACCEPTED, REJECTED, Ready, Sight, observe, shown
from foldind.intake.filing import Filing, Receipt, iso_time
from foldind.logs import about
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import Submission, SubmissionState

log = logging.getLogger(__name__)


class Reception:
    """Hands in drops, and files them; blocks on the disk."""

    def __init__(
        self,
        inbox: Path,
        roots: Sequence[Path],
        ledger: Ledger,
        copies: Copies,
        vocab: VocabPolicy,
        filed: Mapping[str, Counter],
    ):
        self._inbox = inbox
        self._roots = roots
        self._ledger = ledger
        self._copies = copies
        self._vocab = vocab
        self._filing = Filing(inbox)
        self._filed = filed

    def prepare(self) -> None:
        """Make the folders that drops are filed in, and remove what an interruption left. Raises OSError."""
        self._filing.prepare()

    def find(self, sight: Sight) -> str:
        """Return the id of the submission that decides what becomes of a drop; empty if it was not handed in yet."""
        own = self._ledger.requested(sight.request_id)
        return self._decisive(own).id if own and own.state is not SubmissionState.RECEIVING else ""

    def hand_in(self, sight: Sight, ready: Ready, before_block: Callable[[], None]) -> str:
        """Make a submission of a drop, and return the id of the one that decides what becomes of it.

        Args:
          sight: the drop as it was judged.
          ready: what it was judged to be.
          before_block: called every few megabytes; may raise, to end it.

        Raises:
          InvalidRequest, CheckpointRefused: it cannot be a submission.
          OutOfRoom, SourceChanged, OSError: not now.
        """

        def record(new: NewSubmission) -> Submission:
            if observe(self._inbox / sight.name) != sight:
                raise SourceChanged(f"{sight.name!r} changed while it was being copied")
            # Without the digest it gets a row of its own, which names the one with the same content, if there is one.
            submission = self._ledger.create(replace(new, content_digest=""))
            about(log, submission.id).info("dropped into the inbox as %r", sight.name)
            return submission

        name = shown(sight.name if sight.is_folder else sight.name.removesuffix(".safetensors"))[:MAX_TEXT]
        description = NewSubmission(files={}, name=name, request_id=sight.request_id, vocab=self._vocab)
        return self._decisive(self._copies.take(ready.sources, self._roots, description, record, before_block)).id

    def refuse(self, sight: Sight, reason: str, seen_at: float) -> None:
        """File a drop that no submission can be made of.

        Args:
          sight: the drop as it was judged.
          reason: why not.
          seen_at: when it was first seen as it is, in seconds since the epoch.

        Raises:
          SourceChanged, OSError: it could not be filed.
        """
        receipt = Receipt(
            drop=sight.name,
            request_id=sight.request_id,
            submission=None,
            state=SubmissionState.REJECTED,
            version=None,
            reason=reason,
            note="",
            received_at=iso_time(seen_at),
            settled_at=iso_time(time.time()),
        )
        target = self._file(sight, receipt)
        log.warning("refused %r, it lies in %s now: %s", sight.name, _place(target), reason)

    def settle(self, sight: Sight) -> None:
        """File a drop whose submission is settled. Raises SourceChanged, OSError: it could not be filed."""
        own = self._ledger.requested(sight.request_id)
        assert own is not None
        decisive = self._decisive(own)
        reason, note = decisive.reason, ""
        if decisive.state is SubmissionState.QUARANTINED:
            reason = f"{reason}; it is kept: `foldin retry {decisive.id}` queues it again"
        if decisive.id != own.id:
            note = f"it has the same content as submission {decisive.id}, which was there before"
        receipt = Receipt(
            drop=sight.name,
            request_id=sight.request_id,
            submission=decisive.id,
            state=decisive.state,
            version=decisive.version or None,
            reason=reason,
            note=note,
            received_at=iso_time(own.created_at),
            settled_at=iso_time(max(own.updated_at, decisive.updated_at)),
            common_rows=common_rows(decisive),
        )
        target = self._file(sight, receipt)
        about(log, decisive.id).info("%s, %r lies in %s now", decisive.state, sight.name, _place(target))

    def _file(self, sight: Sight, receipt: Receipt) -> Path:
        target = self._filing.file(sight, receipt)
        self._filed[ACCEPTED if receipt.accepted else REJECTED].inc()
        return target

    def _decisive(self, own: Submission) -> Submission:
        return self._ledger.twin(own) or own


def _place(target: Path) -> str:
    return f"{target.parent.name}/{shown(target.name)}"
