"""Records as tables for people."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from foldin.cli.session import printable
from foldin.models import Snapshot, Submission
from foldin.vocabulary import VocabPolicy

# Where stdout is no terminal rich would assume 80 columns and cut ids off.
WIDTH_OF_PIPES = 200

_COLOURS = {"MERGED": "green", "PUBLISHED": "green", "MERGING": "cyan", "REJECTED": "red", "QUARANTINED": "red"}


def print_submissions(submissions: list[Submission]) -> None:
    """Print a table with one row per submission."""
    if not submissions:
        _print(Text("no submissions"))
        return
    rows = [
        (
            submission.id,
            submission.name,
            _state(submission.state),
            _version(submission.version),
            _moment(submission.created_at),
            _headline(submission.reason),
        )
        for submission in submissions
    ]
    _print(_table(("id", "name", "state", "version", "created (UTC)", "reason"), rows))


def print_submission(submission: Submission) -> None:
    """Print one submission and its history."""
    lines: list[tuple[str, str | Text]] = [
        ("id", submission.id),
        ("name", submission.name),
        ("state", _state(submission.state)),
        ("version", _version(submission.version)),
        ("reason", submission.reason),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(submission.labels.items()))),
        ("partial", "yes" if submission.partial else ""),
        ("vocab", submission.vocab if submission.vocab != VocabPolicy.SAME else ""),
        ("takes out", submission.took_out or ("what has its content" if submission.takes_out else "")),
        ("attempts", str(submission.attempts or "")),
        ("created (UTC)", _moment(submission.created_at)),
        ("updated (UTC)", _moment(submission.updated_at)),
        ("content", submission.content_digest),
    ]
    lines += [
        ("rows folded", f"{rows.tensor}  {rows.folded} in common (it has {rows.submission}, the base {rows.base})")
        for rows in submission.common_rows
    ]
    if progress := submission.progress:
        lines.append(("progress", f"{progress.stage} {progress.done} of {progress.total}: {progress.item}"))
    lines += [("file", f"{file.name}  {decimal(file.size)}") for file in submission.files]
    lines += [
        ("history", Text.assemble(_moment(event.at), "  ", _state(event.state), "  ", printable(event.detail)))
        for event in submission.history
    ]
    _print(_sheet(lines))


def print_snapshots(snapshots: list[Snapshot]) -> None:
    """Print a table with one row per snapshot."""
    if not snapshots:
        _print(Text("no snapshots: nothing has been merged yet"))
        return
    rows = [
        (
            _version(snapshot.version),
            _state(snapshot.state),
            ", ".join(snapshot.aliases),
            str(snapshot.submissions),
            f"v{snapshot.parent} as {snapshot.publication}"
            if snapshot.variant
            else snapshot.submission_name or snapshot.submission_id,
            f"{snapshot.lambda_:.4g}",
            decimal(snapshot.size) if snapshot.files else "",
            _moment(snapshot.created_at),
        )
        for snapshot in snapshots
    ]
    headings = ("version", "state", "aliases", "contains", "added", "lambda", "size", "created (UTC)")
    _print(_table(headings, rows))


def print_snapshot(snapshot: Snapshot) -> None:
    """Print one snapshot and its files."""
    added = f"{snapshot.submission_name} ({snapshot.submission_id})"
    lines: list[tuple[str, str | Text]] = [
        ("version", _version(snapshot.version)),
        ("state", _state(snapshot.state)),
        ("aliases", ", ".join(snapshot.aliases)),
        ("made from", _version(snapshot.parent) or "the base"),
        ("added", "" if snapshot.variant else added if snapshot.submission_name else snapshot.submission_id),
        ("contains", f"{snapshot.submissions} submission{'' if snapshot.submissions == 1 else 's'}"),
        ("rule", f"{snapshot.rule}, published as {snapshot.publication}" if snapshot.publication else snapshot.rule),
        ("lambda", f"{snapshot.lambda_:.6g}"),
        ("accumulated norm", f"{snapshot.accumulated_norm:.6g}"),
        ("task vector norm", f"{snapshot.task_vector_norm:.6g} (mean {snapshot.mean_task_vector_norm:.6g})"),
        ("merge took", f"{snapshot.merge_seconds:.1f} s"),
        ("created (UTC)", _moment(snapshot.created_at)),
    ]
    lines += [("file", f"{file.name}  {decimal(file.size)}") for file in snapshot.files]
    _print(_sheet(lines))


def _print(content: Any) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_PIPES)
    console.print(content)


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str | Text, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in {"id", "version"}, overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _sheet(lines: list[tuple[str, str | Text]]) -> Table:
    sheet = Table.grid(padding=(0, 2))
    for heading, content in lines:
        if content:
            sheet.add_row(Text(heading, style="bold"), _text(content))
    return sheet


def _text(content: str | Text) -> Text:
    return content if isinstance(content, Text) else Text(printable(content))


def _state(state: str) -> Text:
    return Text(printable(state), style=_COLOURS.get(state, ""))


def _version(version: int | None) -> str:
    return f"v{version}" if version else ""


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _headline(reason: str) -> str:
    return reason.splitlines()[0] if reason else ""
