"""What the client returns: frozen records, each with the JSON that the command line prints."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from foldin.gate import Gate
from foldin.moments import iso
from foldin.vocabulary import CommonRows, VocabPolicy


class SubmissionState(StrEnum):
    """Where a submission is in its life."""

    RECEIVING = "RECEIVING"
    QUEUED = "QUEUED"
    MERGING = "MERGING"
    MERGED = "MERGED"
    REJECTED = "REJECTED"
    QUARANTINED = "QUARANTINED"
    WITHDRAWN = "WITHDRAWN"


ADAPTER_FOLDER = "adapter/"
"""What the names of a snapshot's files begin with that are its adapter."""

REFUSED_STATES = frozenset({SubmissionState.REJECTED, SubmissionState.QUARANTINED, SubmissionState.WITHDRAWN})


@dataclass(frozen=True)
class File:
    """One file of a checkpoint or of a snapshot.

    Attributes:
      name: file name; of a snapshot's adapter with a folder before it.
      size: bytes.
      sha256: lower-case hexadecimal; empty where it is not known yet.
    """

    name: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Progress:
    """How far a transfer or a merge is.

    Attributes:
      stage: `converting`, `compressing`, `hashing`, `uploading`, `downloading`, `verifying` or `comparing` (bytes);
        `folding`, `decomposing`, `publishing` or `publishing adapter` (tensors).
      done: bytes or tensors done in this stage.
      total: bytes or tensors of this stage.
      item: the file or tensor being worked on.
    """

    stage: str
    done: int
    total: int
    item: str

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, as it stands in a submission."""
        return {"stage": self.stage, "done": self.done, "total": self.total, "tensor": self.item}


@dataclass(frozen=True)
class SubmissionEvent:
    """A change of state in the history of a submission."""

    at: datetime
    state: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {"at": iso(self.at), "state": self.state, "detail": self.detail}


@dataclass(frozen=True)
class Submission:
    """One checkpoint handed in.

    Attributes:
      state: a name of SubmissionState, or one that a newer daemon knows.
      version: the first version that contains it; None until it is merged.
      reason: why it was refused, or what it is waiting for.
      attempts: attempts at folding it that ended with the death of the worker.
      progress: how far its merge is, while it is MERGING.
      content_digest: SHA-256 over the digests of its files; empty until known.
      vocab: what is done if its vocabulary has another size than the base's; a name of VocabPolicy.
      common_rows: where it has, the tensors of which the common rows are folded; empty until it is QUEUED.
      takes_out: whether it was handed in to be taken out of what is merged.
      took_out: the submission that it took out, or is about to; empty before it is MERGING.
      history: what happened to it, oldest first; only where one submission was asked for.
    """

    id: str
    name: str
    state: str
    version: int | None
    reason: str
    labels: dict[str, str]
    partial: bool
    attempts: int
    created_at: datetime
    updated_at: datetime
    progress: Progress | None
    content_digest: str
    files: tuple[File, ...]
    vocab: str = VocabPolicy.SAME
    common_rows: tuple[CommonRows, ...] = ()
    takes_out: bool = False
    took_out: str = ""
    history: tuple[SubmissionEvent, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether it ended without being merged."""
        return self.state in REFUSED_STATES

    @property
    def final(self) -> bool:
        """Whether a watch ends with this state."""
        return self.refused or self.state == SubmissionState.MERGED

    @property
    def verdict(self) -> str:
        """What became of it, as a sentence."""
        title = f"submission {self.id}" + (f" ({self.name})" if self.name else "")
        match self.state:
            case SubmissionState.MERGED if self.takes_out:
                return f"{title} took out {self.took_out}: v{self.version} and later versions are without it."
            case SubmissionState.MERGED:
                return f"{title} is merged: v{self.version} and later versions contain it."
            case SubmissionState.QUARANTINED:
                return f"{title} was quarantined: {self.reason} To queue it again: foldin retry {self.id}"
            case SubmissionState.REJECTED | SubmissionState.WITHDRAWN:
                return f"{title} was {self.state.lower()}: {self.reason or 'no reason was given.'}"
            case _:
                return f"{title} is {self.state}" + (f": {self.reason}" if self.reason else ".")

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types; `history` is in it only where it is known."""
        document: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "version": self.version,
            "reason": self.reason,
            "labels": dict(self.labels),
            "partial": self.partial,
            "attempts": self.attempts,
            "created_at": iso(self.created_at),
            "updated_at": iso(self.updated_at),
            "progress": self.progress.to_json() if self.progress else None,
            "content_digest": self.content_digest,
            "files": [file.to_json() for file in self.files],
            "vocab": str(self.vocab),
            "common_rows": [rows.to_json() for rows in self.common_rows],
            "takes_out": self.takes_out,
            "took_out": self.took_out,
        }
        if self.history:
            document["history"] = [event.to_json() for event in self.history]
        return document


@dataclass(frozen=True)
class Snapshot:
    """One immutable version of the merged model.

    Attributes:
      parent: the version it was made from; 0 for the base.
      state: PUBLISHED, WITHDRAWN (undone, readable until pruned) or PRUNED (files deleted).
      aliases: names that point at it now.
      submission_id: the submission that made this version: the one it added, or the one that had another taken out.
      submissions: how many submissions it contains.
      lambda_: the divisor of the accumulated task vectors: their norm over that of what is published of them.
      accumulated_norm: Frobenius norm of the accumulated task vectors over the whole model.
      mean_task_vector_norm: mean norm of the task vectors merged so far.
      task_vector_norm: norm of the newest task vector.
      rule: the merge rule that made it.
      merge_seconds: from the start of the fold to the commit.
      publication: how the state was published; empty from a daemon that does not tell.
      variant: whether it is the state of its parent, published in another way.
      files: the files of the model folder, and those of its adapter; empty once pruned.
      gate: what the operator's gate said of it; None if none was asked.
      took_out: the submission that it took out; empty if it took none out.
      took_out_name: the name of that one.
    """

    version: int
    parent: int
    state: str
    created_at: datetime
    aliases: tuple[str, ...]
    submission_id: str
    submission_name: str
    submissions: int
    lambda_: float
    accumulated_norm: float
    mean_task_vector_norm: float
    task_vector_norm: float
    rule: str
    merge_seconds: float
    publication: str
    variant: bool
    files: tuple[File, ...]
    gate: Gate | None = None
    took_out: str = ""
    took_out_name: str = ""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def has_adapter(self) -> bool:
        """Whether it was published as an adapter too, or only."""
        return any(file.name.startswith(ADAPTER_FOLDER) for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "version": self.version,
            "parent": self.parent,
            "state": self.state,
            "created_at": iso(self.created_at),
            "aliases": list(self.aliases),
            "submission_id": self.submission_id,
            "submission_name": self.submission_name,
            "submissions": self.submissions,
            "lambda": self.lambda_,
            "accumulated_norm": self.accumulated_norm,
            "mean_task_vector_norm": self.mean_task_vector_norm,
            "task_vector_norm": self.task_vector_norm,
            "rule": self.rule,
            "merge_seconds": self.merge_seconds,
            "publication": self.publication,
            "variant": self.variant,
            "files": [file.to_json() for file in self.files],
            "gate": self.gate.to_json() if self.gate else None,
            "took_out": self.took_out,
            "took_out_name": self.took_out_name,
        }


@dataclass(frozen=True)
class PulledAdapter:
    """A snapshot that was pulled as a PEFT adapter.

    Attributes:
      snapshot: the snapshot.
      rank: of the adapter in the folder.
      published_rank: of the one that the daemon has.
      retained: share of the squared norm of the merged update that the one in the folder holds.
      left_out: tensors of the merged update that PEFT has no place for.
    """

    snapshot: Snapshot
    rank: int
    published_rank: int
    retained: float
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "snapshot": self.snapshot.to_json(),
            "rank": self.rank,
            "published_rank": self.published_rank,
            "retained": self.retained,
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    Attributes:
      undone: the version that was undone.
      snapshot: the newest snapshot now; None when no version is left.
    """

    undone: int
    snapshot: Snapshot | None

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {"undone": self.undone, "snapshot": self.snapshot.to_json() if self.snapshot else None}
