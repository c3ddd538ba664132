"""Domain values to messages of the contract."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from foldin.v1 import snapshots_pb2, submissions_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import InvalidRequest
from foldind.state.durable import FileDigest
from foldind.state.records import Event, Gate, Submission, SubmissionState, Version, VersionState
from foldind.worker.messages import Progress

MAX_PAGE = 1000
DEFAULT_PAGE = 100
PAGE_BYTES = 2 * 1024 * 1024
"""A client takes messages of 4 MiB unless it was told otherwise; one entry stays well below 2 MiB."""

Listed = TypeVar("Listed", bound=Message)


def submission_message(
    submission: Submission, *, progress: Progress | None = None, paused_reason: str = "", history: Iterable[Event] = ()
) -> submissions_pb2.Submission:
    """Return a submission; one that waits to be merged gets the reason for which the daemon is paused."""
    waiting = submission.state in (SubmissionState.QUEUED, SubmissionState.MERGING)
    message = submissions_pb2.Submission(
        id=submission.id,
        name=submission.name,
        labels=submission.labels,
        state=_submission_state(submission.state),
        reason=submission.reason or (paused_reason if waiting else ""),
        version=submission.version,
        files=[
            submissions_pb2.FileSpec(name=name, size=digest.size, sha256=digest.sha256)
            for name, digest in submission.files.items()
        ],
        partial=submission.partial,
        attempts=submission.attempts,
        takes_out=submission.takes_out,
        took_out=submission.took_out,
        created_at=_timestamp(submission.created_at),
        updated_at=_timestamp(submission.updated_at),
        content_digest=submission.content_digest,
        vocab=_vocab_policy(submission.vocab),
        common_rows=[
            submissions_pb2.CommonRows(tensor=name, folded=rows.common, submission=rows.submission, base=rows.base)
            for name, rows in submission.common_rows.items()
        ],
        history=[
            submissions_pb2.SubmissionEvent(
                at=_timestamp(event.at), state=_submission_state(event.state), detail=event.detail
            )
            for event in history
        ],
    )
    if progress and submission.state is SubmissionState.MERGING:
        message.progress.CopyFrom(
            submissions_pb2.Progress(
                stage=progress.stage, done=progress.done, total=progress.total, tensor=progress.tensor
            )
        )
    return message


def snapshot_message(version: Version) -> snapshots_pb2.Snapshot:
    """Return a snapshot."""
    kept = version.state is not VersionState.PRUNED
    # `lambda` is a word of Python's; everything else goes by its name.
    return snapshots_pb2.Snapshot(
        **{"lambda": version.lambda_},
        version=version.version,
        parent=version.parent,
        created_at=_timestamp(version.created_at),
        aliases=version.aliases,
        submission_id=version.submission_id,
        submission_name=version.submission_name,
        took_out=version.took_out,
        took_out_name=version.took_out_name,
        submissions=version.submissions,
        accumulated_norm=version.accumulated_norm,
        mean_task_vector_norm=version.record.mean_task_vector_norm,
        task_vector_norm=version.task_vector_norm,
        rule=version.rule,
        files=[
            snapshots_pb2.SnapshotFile(name=name, size=digest.size, sha256=digest.sha256)
            for name, digest in (version.files if kept else {}).items()
        ],
        state=f"SNAPSHOT_STATE_{version.state}",
        merge_seconds=version.merge_seconds,
        publication=version.publication,
        variant=version.variant,
        gate=_gate(version.gate),
    )


def file_digests(files: Iterable[submissions_pb2.FileSpec]) -> Mapping[str, FileDigest]:
    """Return the files of a request by name. Raises InvalidRequest for a name given twice."""
    found: dict[str, FileDigest] = {}
    for file in files:
        if file.name in found:
            raise InvalidRequest(f"file {file.name[:80]!r} was given twice", "announce every file once")
        found[file.name] = FileDigest(file.size, file.sha256)
    return found


def submission_states(values: Sequence[int]) -> list[SubmissionState]:
    """Return the states of a request. Raises InvalidRequest for an unknown one."""
    known = {submissions_pb2.SubmissionState.Value(_submission_state(state)): state for state in SubmissionState}
    if unknown := [value for value in values if value not in known]:
        raise InvalidRequest(f"there is no submission state {unknown[0]}", "see the contract for those there are")
    return [known[value] for value in values]


def vocab_policy(value: int) -> VocabPolicy:
    """Return the policy of a request. Raises InvalidRequest for an unknown one."""
    known = {submissions_pb2.VocabPolicy.Value(_vocab_policy(policy)): policy for policy in VocabPolicy}
    known[submissions_pb2.VOCAB_POLICY_UNSPECIFIED] = VocabPolicy.SAME
    if value not in known:
        raise InvalidRequest(f"there is no vocab policy {value}", "see the contract for those there are")
    return known[value]


def page(size: int, token: str) -> tuple[int, int]:
    """Return the number that a page starts after, and its size. Raises InvalidRequest for a bad token."""
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidRequest(f"{token[:80]!r} is no page token", "pass the next_page_token of the page before")
    return int(token or 0), min(size or DEFAULT_PAGE, MAX_PAGE)


def fill_page(messages: Iterable[Listed], size: int) -> tuple[list[Listed], bool]:
    """Return the first messages, at most `size` of them and no more than fit an answer, and whether more follow."""
    filled: list[Listed] = []
    room = PAGE_BYTES
    for message in messages:
        room -= message.ByteSize()
        if len(filled) == size or (filled and room < 0):
            return filled, True
        filled.append(message)
    return filled, False


def _submission_state(state: SubmissionState) -> str:
    return f"SUBMISSION_STATE_{state}"


def _gate(gate: Gate | None) -> snapshots_pb2.Gate | None:
    if gate is None:
        return None
    return snapshots_pb2.Gate(
        verdict=f"GATE_VERDICT_{gate.verdict}",
        reason=gate.reason,
        scores=gate.scores,
        judged_at=_timestamp(gate.judged_at) if gate.judged_at else None,
        seconds=gate.seconds,
    )


def _vocab_policy(policy: VocabPolicy) -> str:
    return f"VOCAB_POLICY_{policy.name}"


def _timestamp(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromMilliseconds(round(seconds * 1000))
    return moment
