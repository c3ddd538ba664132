"""The frame of every command: how errors end."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from foldind.errors import FoldinError

errors = Console(stderr=True, highlight=False, soft_wrap=True)

_WIDTH_OF_PIPES = 200
"""Where stdout is no terminal rich would assume 80 columns and cut names off."""


def wide_console() -> Console:
    """Return a console on stdout for tables."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_PIPES)


@contextmanager
def sentences() -> Iterator[None]:
    """Let errors end as one sentence and exit status 1."""
    try:
        yield
    except FoldinError as error:
        errors.print(f"foldind: {error}", markup=False)
        raise typer.Exit(1) from error
    except OSError as error:
        errors.print(f"foldind: {error}", markup=False)
        raise typer.Exit(1) from error
