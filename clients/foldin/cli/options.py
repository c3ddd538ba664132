"""Options and arguments that several commands share, and how their texts are read."""

import re
from typing import Annotated

import typer

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="FOLDIN_SERVER",
        metavar="HOST:PORT",
        show_default="localhost:7070",
        help="Address of the daemon.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")
]
SubmissionId = Annotated[
    str,
    typer.Argument(metavar="ID", show_default=False, help="The id of a submission, as `submit` and `list` print it."),
]


def read_version(text: str) -> int:
    """Return the number of a version written as v12 or 12.

    Raises:
      typer.BadParameter: it is neither.
    """
    match = re.fullmatch(r"v?([1-9]\d{0,17})", str(text))
    if match is None:
        raise typer.BadParameter(f"{text!r} is no version: write v12 or 12.")
    return int(match[1])


def read_labels(texts: list[str]) -> dict[str, str]:
    """Return the labels written as k=v.

    Raises:
      typer.BadParameter: one has no key or no `=`.
    """
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is no label: write --label key=value.", param_hint="--label")
        labels[key] = value
    return labels


def examples(*lines: str) -> str:
    """Return the end of a help text that shows how a command is used."""
    return "Examples:\n\n" + "\n\n".join(f"$ {line}" for line in lines)
