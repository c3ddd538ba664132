"""The command `foldin`."""

from typing import Annotated

import typer

from foldin.cli import comparison, conversion, following, snapshots, submissions

app = typer.Typer(
    name="foldin",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        import foldin

        typer.echo(f"foldin {foldin.__version__}")
        raise typer.Exit


@app.callback(
    epilog="Start here:\n\n"
    "$ foldin submit runs/task-17 --wait\n\n"
    "$ foldin pull latest --to models/merged\n\n"
    "The commands look for the daemon at --server HOST:PORT, else at FOLDIN_SERVER, else at localhost:7070."
)
def _foldin(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Submit fine-tuned checkpoints to a Foldin daemon, and use the one model that it merges them into.

    Exit status: 0 done; 1 refused or failed, with a sentence on stderr; 2 wrong usage; 130 interrupted.
    """


_SUBMISSIONS = "Submitting checkpoints"
_SNAPSHOTS = "Using the merged model"

for _panel, _commands in (
    (_SUBMISSIONS, (*submissions.COMMANDS, *conversion.COMMANDS)),
    (_SNAPSHOTS, (*snapshots.COMMANDS, *comparison.COMMANDS, *following.COMMANDS)),
):
    for _name, _command, _examples in _commands:
        app.command(_name, rich_help_panel=_panel, epilog=_examples)(_command)
