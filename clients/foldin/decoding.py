"""From the messages of the contract to the records that callers get."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from foldin.gate import Gate
from foldin.models import File, Progress, Snapshot, Submission, SubmissionEvent
from foldin.v1 import snapshots_pb2, submissions_pb2
from foldin.vocabulary import CommonRows, VocabPolicy


def submission_of(message: submissions_pb2.Submission) -> Submission:
    """Return the record of a submission."""
    progress = message.progress
    return Submission(
        id=message.id,
        name=message.name,
        state=_submission_state(message.state),
        version=message.version or None,
        reason=message.reason,
        labels=dict(message.labels),
        partial=message.partial,
        attempts=message.attempts,
        created_at=_utc(message.created_at),
        updated_at=_utc(message.updated_at),
        progress=Progress(progress.stage, progress.done, progress.total, progress.tensor)
        if message.HasField("progress")
        else None,
        content_digest=message.content_digest,
        files=tuple(File(file.name, file.size, file.sha256) for file in message.files),
        vocab=_vocab_policy(message.vocab),
        common_rows=tuple(
            CommonRows(rows.tensor, rows.folded, rows.submission, rows.base) for rows in message.common_rows
        ),
        takes_out=message.takes_out,
        took_out=message.took_out,
        history=tuple(
            SubmissionEvent(_utc(event.at), _submission_state(event.state), event.detail) for event in message.history
        ),
    )


def vocab_in_contract(policy: VocabPolicy) -> str:
    """Return what a policy is called in the contract."""
    return f"VOCAB_POLICY_{policy.name}"


def snapshot_of(message: snapshots_pb2.Snapshot) -> Snapshot:
    """Return the record of a snapshot."""
    return Snapshot(
        version=message.version,
        parent=message.parent,
        state=_snapshot_state(message.state),
        created_at=_utc(message.created_at),
        aliases=tuple(message.aliases),
        submission_id=message.submission_id,
        submission_name=message.submission_name,
        took_out=message.took_out,
        took_out_name=message.took_out_name,
        submissions=message.submissions,
        lambda_=getattr(message, "lambda"),
        accumulated_norm=message.accumulated_norm,
        mean_task_vector_norm=message.mean_task_vector_norm,
        task_vector_norm=message.task_vector_norm,
        rule=message.rule,
        merge_seconds=message.merge_seconds,
        publication=message.publication,
        variant=message.variant,
        files=tuple(File(file.name, file.size, file.sha256) for file in message.files),
        gate=_gate(message.gate) if message.HasField("gate") else None,
    )


# A newer daemon may send a number that these names do not cover; that must not break an older client.


def _submission_state(number: int) -> str:
    names = submissions_pb2.SubmissionState.DESCRIPTOR.values_by_number
    return names[number].name.removeprefix("SUBMISSION_STATE_") if number in names else f"STATE_{number}"


def _vocab_policy(number: int) -> str:
    if number == submissions_pb2.VOCAB_POLICY_UNSPECIFIED:  # an older daemon's answer
        return VocabPolicy.SAME
    names = submissions_pb2.VocabPolicy.DESCRIPTOR.values_by_number
    return names[number].name.removeprefix("VOCAB_POLICY_").lower() if number in names else f"policy_{number}"


def _snapshot_state(number: int) -> str:
    names = snapshots_pb2.SnapshotState.DESCRIPTOR.values_by_number
    return names[number].name.removeprefix("SNAPSHOT_STATE_") if number in names else f"STATE_{number}"


def _gate(message: snapshots_pb2.Gate) -> Gate:
    names = snapshots_pb2.GateVerdict.DESCRIPTOR.values_by_number
    known = message.verdict in names
    verdict = names[message.verdict].name.removeprefix("GATE_VERDICT_") if known else f"VERDICT_{message.verdict}"
    return Gate(
        verdict,
        message.reason,
        dict(sorted(message.scores.items())),
        _utc(message.judged_at) if message.HasField("judged_at") else None,
        message.seconds,
    )


def _utc(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
