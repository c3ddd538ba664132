"""The frame of every command: how errors end."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from foldind.errors import FoldinError

errors = Console(stderr=True, highlight=False, soft_wrap=True)


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
