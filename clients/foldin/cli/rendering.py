"""Records as tables for people."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from foldin.cli.session import printable
from foldin.lineage import Change, Step, change_of
from foldin.manifest import TensorStatistics
from foldin.models import Snapshot, Submission
from foldin.vocabulary import VocabPolicy

# Where stdout is no terminal rich would assume 80 columns and cut ids off.
WIDTH_OF_PIPES = 200

_COLOURS = {"MERGED": "green", "PUBLISHED": "green", "MERGING": "cyan", "REJECTED": "red", "QUARANTINED": "red"} | {
    "PASSED": "green",
    "RUNNING": "cyan",
    "FAILED": "red",
}


def print_submissions(submissions: list[Submission]) -> None:
    """Print a table with one row per submission."""
    if not submissions:
        print_out(Text("no submissions"))
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
    print_out(table_of(("id", "name", "state", "version", "created (UTC)", "reason"), rows))


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
    print_out(_sheet(lines))


def print_snapshots(snapshots: list[Snapshot]) -> None:
    """Print a table with one row per snapshot."""
    if not snapshots:
        print_out(Text("no snapshots: nothing has been merged yet"))
        return
    gated = any(snapshot.gate for snapshot in snapshots)
    rows = [
        (
            _version(snapshot.version),
            _state(snapshot.state),
            ", ".join(snapshot.aliases),
            str(snapshot.submissions),
            change_of(snapshot),
            f"{snapshot.lambda_:.4g}",
            decimal(snapshot.size) if snapshot.files else "",
            _moment(snapshot.created_at),
            *((_state(snapshot.gate.verdict if snapshot.gate else ""),) if gated else ()),
        )
        for snapshot in snapshots
    ]
    headings = ("version", "state", "aliases", "contains", "change", "lambda", "size", "created (UTC)")
    print_out(table_of((*headings, "gate") if gated else headings, rows))


def print_snapshot(snapshot: Snapshot, lineage: Sequence[Step]) -> None:
    """Print one snapshot, its files and what it came from.

    Args:
      lineage: of the snapshot, which is its first.
    """
    own, *ancestors = lineage
    lines: list[tuple[str, str | Text]] = [
        ("version", _version(snapshot.version)),
        ("state", _state(snapshot.state)),
        ("aliases", ", ".join(snapshot.aliases)),
        ("made from", _version(snapshot.parent) or "the base"),
        (own.change.replace("_", " "), "" if own.change is Change.PUBLISHED else titled(own)),
        ("contains", f"{snapshot.submissions} submission{'' if snapshot.submissions == 1 else 's'}"),
        ("rule", f"{snapshot.rule}, published as {snapshot.publication}" if snapshot.publication else snapshot.rule),
        ("lambda", f"{snapshot.lambda_:.6g}"),
        ("accumulated norm", f"{snapshot.accumulated_norm:.6g}"),
        ("task vector norm", f"{snapshot.task_vector_norm:.6g} (mean {snapshot.mean_task_vector_norm:.6g})"),
        ("merge took", f"{snapshot.merge_seconds:.1f} s"),
        ("created (UTC)", _moment(snapshot.created_at)),
    ]
    if gate := snapshot.gate:
        taken = f" after {gate.seconds:.1f} s, {_moment(gate.judged_at)} UTC" if gate.judged_at else ""
        lines.append(("gate", Text.assemble(_state(gate.verdict), taken)))
        lines += [("", gate.reason)] if gate.reason else []
        lines += [("score", f"{name}  {score:.6g}") for name, score in gate.scores.items()]
    lines += [("file", f"{file.name}  {decimal(file.size)}") for file in snapshot.files]
    lines += [("" if n else "before it", f"v{step.version} {described(step)}") for n, step in enumerate(ancestors)]
    if lineage[-1].parent and ancestors:
        lines.append(("", f"and older ones: foldin show v{snapshot.version} --ancestors {10 * len(ancestors)}"))
    print_out(_sheet(lines))


def print_statistics(statistics: Sequence[TensorStatistics]) -> None:
    """Print a table with what a merge did to each tensor."""
    rows = [
        (
            tensor.name,
            tensor.treatment,
            f"{tensor.task_vector_norm:.4g}",
            f"{100 * tensor.kept:.2f} %",
            str(tensor.split_rank or ""),
            str(tensor.rank or ""),
        )
        for tensor in statistics
    ]
    print_out(table_of(("tensor", "treatment", "task vector norm", "kept", "split rank", "rank"), rows))


def described(step: Step) -> str:
    """What a version did to the one it was made from, as the end of a sentence that begins with its number."""
    match step.change:
        case Change.PUBLISHED:
            return f"published v{step.parent} as {step.publication}"
        case Change.TOOK_OUT:
            return f"took out {titled(step)}"
        case _:
            return f"added {titled(step)}"


def titled(step: Step) -> str:
    """The submission that a version added or took out: its name and its id."""
    return f"{step.submission_name} ({step.submission_id})" if step.submission_name else step.submission_id


def print_out(content: Any) -> None:
    """Print something of rich's on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_PIPES)
    console.print(content)


def table_of(headings: tuple[str, ...], rows: Sequence[tuple[str | Text, ...]]) -> Table:
    """Return a table of texts, which are made printable."""
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
