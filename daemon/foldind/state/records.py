"""The rows of the ledger, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy
from foldind.merging.record import Record
from foldind.state.durable import FileDigest
from foldind.state.snapshots import MANIFEST


class SubmissionState(StrEnum):
    """Where a submission stands; the names are the contract's."""

    RECEIVING = "RECEIVING"
    QUEUED = "QUEUED"
    MERGING = "MERGING"
    MERGED = "MERGED"
    REJECTED = "REJECTED"
    QUARANTINED = "QUARANTINED"
    WITHDRAWN = "WITHDRAWN"

    @property
    def settled(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self in _SETTLED


_SETTLED = frozenset(
    {SubmissionState.MERGED, SubmissionState.REJECTED, SubmissionState.QUARANTINED, SubmissionState.WITHDRAWN}
)


class VersionState(StrEnum):
    """Where a version stands; the names are the contract's."""

    PUBLISHED = "PUBLISHED"
    WITHDRAWN = "WITHDRAWN"
    PRUNED = "PRUNED"


@dataclass(frozen=True)
class Event:
    """One transition of a submission."""

    at: float
    """Seconds since the epoch."""
    state: SubmissionState
    detail: str


@dataclass(frozen=True)
class Submission:
    """One checkpoint handed in."""

    id: str
    number: int
    """Order of creation, from 1."""
    name: str
    labels: Mapping[str, str]
    state: SubmissionState
    reason: str
    version: int
    """The version that first contains it; 0 until merged."""
    files: Mapping[str, FileDigest]
    """File name -> length and SHA-256 (empty where it is not known yet)."""
    partial: bool
    vocab: VocabPolicy
    common_rows: Mapping[str, RowCounts]
    """Tensors of which only the rows are folded that the base has too; none until they are known."""
    forced: bool
    takes_out: bool
    """Whether it is to be taken out of what is merged."""
    took_out: str
    """The submission that it took out, or is about to; empty before."""
    uploaded: bool
    """Whether its bytes arrive in chunks; else they are copied from the daemon's own file system."""
    attempts: int
    content_digest: str
    created_at: float
    updated_at: float
    """Seconds since the epoch."""
    bytes_kept: bool
    """Whether its files are still in the state folder."""


class GateVerdict(StrEnum):
    """Where a version stands with the gate; the names are the contract's."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    PASSED = "PASSED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Gate:
    """What the operator's gate said of a version."""

    verdict: GateVerdict
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    judged_at: float = 0.0
    """When it passed or failed, in seconds since the epoch; 0: it did neither."""
    seconds: float = 0.0
    """That the command took."""


UNNAMED = "one without a name"
"""How a submission is called that has no name; ids differ between equal merges, which are equal bytes."""


@dataclass(frozen=True)
class Version:
    """One version of the merged model."""

    version: int
    parent: int
    """0: the base."""
    state: VersionState
    submission_id: str
    submission_name: str
    created_at: float
    """Seconds since the epoch."""
    merge_seconds: float
    rule: str
    publication: str
    """How the state was published."""
    variant: bool
    """Whether it is its parent's state, published in another way."""
    submissions: int
    lambda_: float
    accumulated_norm: float
    task_vector_norm: float
    task_vector_norm_sum: float
    state_files: Mapping[str, FileDigest]
    """Of merge/v<N>/."""
    files: Mapping[str, FileDigest]
    """Of snapshots/v<N>/."""
    gate: Gate | None = None
    """None: it was not asked."""
    aliases: tuple[str, ...] = ()
    """Names that point at it now, sorted."""
    took_out: str = ""
    """The submission that it took out; empty if it took none out."""
    took_out_name: str = ""

    @property
    def change(self) -> str:
        """What distinguishes it from its parent, in a few words for people; empty: a submission without a name."""
        if self.variant:
            return f"v{self.parent} as {self.publication}"
        return f"without {self.took_out_name or UNNAMED}" if self.took_out else self.submission_name

    @property
    def record(self) -> Record:
        """What the merge rule knows of its state."""
        return Record(self.submissions, self.task_vector_norm_sum, self.accumulated_norm)

    @property
    def commit_id(self) -> str:
        """40 hexadecimal digits by which clients of the Hugging Face Hub pin it; of its manifest, so of every byte."""
        return self.files[MANIFEST].sha256[:40]
