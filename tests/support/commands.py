"""The command `foldind` in this process: it ends before it serves anything, or is not meant to."""

from typing import NamedTuple

from foldind.cli import app
from typer.testing import CliRunner


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def command(*arguments: object) -> Ended:
    """Run a command; whatever its status, no exception leaves it."""
    ended = CliRunner().invoke(app, [*map(str, arguments)])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), repr(ended.exception)
    return Ended(ended.exit_code, ended.stdout, ended.stderr)
