"""The frame of every command: a client, and how errors and interrupts end."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from foldin.errors import FoldinError

if TYPE_CHECKING:
    from foldin.client import Client

INTERRUPTED = 130


@contextmanager
def explained(as_json: bool, after_interrupt: str = "") -> Iterator[None]:
    """End the command with a sentence, never a traceback, where it fails.

    Args:
      after_interrupt: what to tell who presses Ctrl-C, unless the interrupt itself says it.
    """
    try:
        yield
    except FoldinError as error:
        _end(str(error), error.code, as_json, 1)
    except KeyboardInterrupt as interrupt:
        advice = interrupt.args[0] if interrupt.args else after_interrupt
        _end(f"interrupted. {advice}".rstrip(), "CANCELLED", as_json, INTERRUPTED)


@contextmanager
def connected(server: str | None, as_json: bool, after_interrupt: str = "") -> Iterator["Client"]:
    """Open a client for a command that ends as `explained` says."""
    with explained(as_json, after_interrupt):
        from foldin.client import Client

        with Client(server) as client:
            yield client


def complain(sentence: str) -> None:
    """Print a sentence on stderr."""
    typer.echo(f"foldin: {printable(sentence)}", err=True)


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    complain(f"warning: {sentence}")


def emit(document: Any, one_line: bool = False) -> None:
    """Print a JSON document on stdout."""
    typer.echo(json.dumps(document, indent=None if one_line else 2))


def printable(text: str) -> str:
    """Return a text without control characters: names and labels are other people's, the terminal is ours."""
    return "".join(mark if mark.isprintable() or mark == "\n" else "\N{REPLACEMENT CHARACTER}" for mark in text)


def _end(sentence: str, code: str, as_json: bool, status: int) -> NoReturn:
    if as_json:
        emit({"error": {"code": code, "message": sentence}}, one_line=True)
    complain(sentence)
    raise typer.Exit(status)
