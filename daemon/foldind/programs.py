"""Programs of the user's that are run: to their end, within their time, with all that they started."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

LAST_WORDS = 600
"""Bytes."""


class Ended(NamedTuple):
    """What came of a program."""

    status: int | None
    """Its exit status, or the signal that ended it as a negative number; None: it took too long, and was ended."""
    output: bytes
    """Its standard output, as much as was asked for."""
    last_words: str
    """The end of its standard error."""


async def run_program(
    arguments: Sequence[str],
    seconds: float,
    most_output: int,
    *,
    environment: Mapping[str, str] | None = None,
    held: bool = False,
) -> Ended:
    """Run a program; cancelled, it is ended with all that it started, as it is when its time is up.

    Args:
      arguments: its name, and what it is told.
      seconds: that it may take; 0: any time.
      most_output: bytes of its standard output that are returned.
      environment: its environment variables; None: those of this process.
      held: whether its standard input is a pipe that stays open as long as this process lives; else it is empty.

    Raises:
      OSError: it cannot be run.
    """
    with TemporaryFile() as output, TemporaryFile() as errors:  # which no process that it leaves behind holds open
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE if held else asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,  # so that it is ended with all that it started
            env=environment,
        )
        status: int | None = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds or None):
                    status = await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        output.seek(0)
        return Ended(status, output.read(most_output), _end_of(errors))


def json_object(answer: bytes) -> dict[str, Any]:
    """Return the JSON object that a program printed, as its last line where others come first: some libraries print.

    Raises:
      ValueError: there is none; says what there is.
    """
    text = answer.decode(errors="replace").strip()
    for candidate in (text, text.rpartition("\n")[2]):
        with suppress(ValueError, RecursionError):
            if isinstance(told := json.loads(candidate), dict):
                return told
    raise ValueError(f"printed no JSON object, but {text[-LAST_WORDS:]!r}" if text else "printed nothing")


def _end_of(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - LAST_WORDS))
    return errors.read(LAST_WORDS).decode(errors="replace").strip()
