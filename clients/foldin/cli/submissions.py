"""Commands about submissions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foldin.cli.options import AsJson, Server, SubmissionId, examples, read_labels
from foldin.cli.session import complain, connected, emit, printable
from foldin.models import Submission, SubmissionState
from foldin.recipe import DENSITY, Coding
from foldin.vocabulary import VocabPolicy

if TYPE_CHECKING:
    from foldin.cli.display import Display
    from foldin.client import Client

_SLOW_LINKS = "Slow links"


def submit(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", show_default=False, help="A .safetensors file, or a folder with a model."),
    ],
    name: Annotated[
        str | None, typer.Option(help="A name for people to read; need not be unique. [default: that of PATH]")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A free label; may be repeated.")] = None,
    request_id: Annotated[
        str | None,
        typer.Option(help="The same id always means the same submission. Without an id the content decides."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Treat tensors of the base that the checkpoint lacks as unchanged.")
    ] = False,
    vocab: Annotated[
        VocabPolicy,
        typer.Option(
            help="If the vocabulary has another size than the base's: refuse the checkpoint (same), or fold the rows "
            "of embeddings and output layers that both have (common)."
        ),
    ] = VocabPolicy.SAME,
    force: Annotated[
        bool, typer.Option("--force", help="Submit even if the same content is already queued or merged.")
    ] = False,
    take_out: Annotated[
        bool,
        typer.Option(
            "--take-out",
            help="Remove this already merged checkpoint from the merged model, as if it had never been merged. Not all "
            "merge rules allow this; `foldin rollback` undoes the newest version under any rule.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return once the checkpoint is merged or refused.")
    ] = False,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="Read an absolute PATH on the daemon's machine, and send nothing.")
    ] = False,
    compress: Annotated[
        Coding | None,
        typer.Option(
            rich_help_panel=_SLOW_LINKS,
            show_default=False,
            help="Send the difference from the base instead, with losses: the signs of each tensor's largest elements "
            "(ternary, some 27 times smaller than bfloat16 weights), or all elements in 255 steps (int8, 2 to 4 "
            "times).",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_SLOW_LINKS,
            show_default=False,
            help="With --compress: the base of the checkpoint, as a folder on this machine.",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_SLOW_LINKS,
            show_default=str(DENSITY),
            help="With --compress ternary: the share of each tensor's elements to keep.",
        ),
    ] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Submit a checkpoint that was fine-tuned from the base.

    The command returns once the daemon has the checkpoint safely on disk, and prints the submission's id. Run the same
    command again to resume an upload that broke off. Content that was submitted before is found, and not taken twice.

    On a slow link --compress sends a small file instead of the checkpoint. The command makes this file in TMPDIR, and
    removes it afterwards.
    """
    if on_server and compress:
        raise typer.BadParameter("nothing is sent with --on-server, so there is nothing to compress.")
    if on_server and take_out:
        raise typer.BadParameter("--take-out cannot be combined with --on-server.")
    labels = read_labels(label or [])
    name = _name_of(Path(path)) if name is None else name
    again = "Run the same command again: it goes on where this one stopped."
    with connected(server, as_json, after_interrupt=again) as client:
        from foldin.cli.display import Display

        with Display() as display:
            if on_server:
                submission = client.submit_path(
                    path,
                    name=name,
                    labels=labels,
                    request_id=request_id,
                    partial=partial,
                    vocab=vocab,
                    force=force,
                )
            else:
                submission = client.submit(
                    Path(path),
                    name=name,
                    labels=labels,
                    request_id=request_id,
                    partial=partial,
                    vocab=vocab,
                    force=force,
                    take_out=take_out,
                    compress=compress,
                    base=base,
                    density=density,
                    on_progress=display.transfer,
                )
            # What is new is queued, or refused.
            known = not request_id and submission.state in (SubmissionState.MERGING, SubmissionState.MERGED)
            if wait and not submission.final:
                submission = _follow(client, submission.id, display)
    if known:
        complain(f"this content was handed in before, as {submission.id}; --force takes it once more.")
    if not on_server:
        _tell_of_statistics(Path(path), submission)
    _conclude(submission, as_json)
    if not submission.final and not as_json:
        typer.echo(f"Follow it with: foldin watch {submission.id}", err=True)


def _name_of(path: Path) -> str:
    """Return the name of a checkpoint that was given none: that of its file or folder."""
    path = path.parent if path.name == "model.safetensors" else path
    name = path.absolute().name.removesuffix(".safetensors")[:200]
    return name if name.isprintable() else ""


def _tell_of_statistics(path: Path, submission: Submission) -> None:
    from foldin.checkpoint import STATISTICS

    taken = any(file.name == STATISTICS for file in submission.files)
    if not taken and (path.expanduser() / STATISTICS).is_file():
        complain(f"{STATISTICS} was not sent: the merge rule of this daemon does not read it.")


def status(id: SubmissionId, server: Server = None, as_json: AsJson = False) -> None:
    """Show one submission: its state, the version that contains it or the reason for its refusal, and its history."""
    with connected(server, as_json) as client:
        submission = client.status(id)
    if as_json:
        emit(submission.to_json())
    else:
        from foldin.cli.rendering import print_submission

        print_submission(submission)


def list_submissions(
    state: Annotated[
        list[SubmissionState] | None,
        typer.Option(case_sensitive=False, help="Only submissions in this state; may be repeated."),
    ] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """List submissions, oldest first."""
    with connected(server, as_json) as client:
        submissions = client.list(state or ())
    if as_json:
        emit([submission.to_json() for submission in submissions])
    else:
        from foldin.cli.rendering import print_submissions

        print_submissions(submissions)


def retry(id: SubmissionId, server: Server = None, as_json: AsJson = False) -> None:
    """Queue a QUARANTINED submission again, at its old place in the queue. Its attempts are counted from zero."""
    with connected(server, as_json) as client:
        _show_state(client.retry(id), as_json)


def withdraw(id: SubmissionId, server: Server = None, as_json: AsJson = False) -> None:
    """Withdraw a submission before it is merged. The daemon deletes its bytes."""
    with connected(server, as_json) as client:
        _show_state(client.withdraw(id), as_json)


def watch_submission(id: str, server: str | None, as_json: bool) -> None:
    """Follow a submission to its end; exit status 1 where that is a refusal."""
    with connected(server, as_json) as client:
        from foldin.cli.display import Display

        with Display() as display:
            submission = _follow(client, id, display)
    _conclude(submission, as_json)


def _follow(client: "Client", id: str, display: "Display") -> Submission:
    try:
        for submission in client.watch(id):
            display.submission(submission)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"The submission goes on by itself; follow it with: foldin watch {id}") from None
    return submission


def _conclude(submission: Submission, as_json: bool) -> None:
    _show_state(submission, as_json)
    if submission.refused:
        if as_json:
            complain(submission.verdict)
        raise typer.Exit(1)


def _show_state(submission: Submission, as_json: bool) -> None:
    if as_json:
        emit(submission.to_json())
    elif submission.refused:
        complain(submission.verdict)
    else:
        typer.echo(printable(submission.verdict))


COMMANDS = (
    (
        "submit",
        submit,
        examples(
            "foldin submit runs/task-17 --name task-17 --wait",
            "foldin submit runs/task-18 --label team=vision --label round=4",
            "foldin submit runs/task-19 --compress ternary --density 0.1 --base models/base",
            "foldin submit runs/more-tokens --vocab common",
            "foldin submit /mnt/share/task-17 --on-server",
            "foldin submit runs/task-17 --take-out --wait",
        ),
    ),
    ("status", status, examples("foldin status ID", "foldin status ID --json | jq .version")),
    ("list", list_submissions, examples("foldin list", "foldin list --state queued --state merging")),
    ("retry", retry, examples("foldin retry ID")),
    ("withdraw", withdraw, examples("foldin withdraw ID")),
)
