"""Programs of the user's that are run: to their end, within their time, with all that they started."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import IO, Any, NamedTuple

from foldind.lines import LONGEST_LINE, Lines

LAST_WORDS = 600
"""Bytes."""

_LAST_WORDS_SECONDS = 1


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
    hear: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Run a program; in the end all that it started is ended too, as it is when its time is up, and when cancelled.

    Args:
      arguments: its name, and what it is told.
      seconds: that it may take; 0: any time.
      most_output: bytes of its standard output that are returned; once it has printed as many it is ended.
      environment: its environment variables; None: those of this process.
      held: whether its standard input is a pipe that stays open as long as this process lives; else it is empty.
      hear: is told every line of its standard error, as it is printed.

    Raises:
      OSError: it cannot be run.
    """
    printed, last_words = bytearray(), bytearray()
    async with _pipe() as (output, output_end), _pipe() as (errors, errors_end):
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE if held else asyncio.subprocess.DEVNULL,
            stdout=output_end,
            stderr=errors_end,
            start_new_session=True,  # so that it is ended with all that it started
            env=environment,
        )
        output_end.close()
        errors_end.close()

        async def collect() -> None:
            while block := await output.read(most_output - len(printed)):
                printed.extend(block)
            if len(printed) == most_output:
                _end_all(process.pid)

        async def listen() -> None:
            lines = Lines(hear)
            while block := await errors.read(LONGEST_LINE):
                lines.feed(block)
                last_words.extend(block)
                del last_words[:-LAST_WORDS]
            lines.end()

        reading = [asyncio.create_task(task) for task in (collect(), listen())]
        status: int | None = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds or None):
                    status = await process.wait()
        finally:
            _end_all(process.pid)
            await process.wait()
            await asyncio.wait(reading, timeout=_LAST_WORDS_SECONDS)  # what left the group may hold the pipes open
            for task in reading:
                task.cancel()
        return Ended(status, bytes(printed), last_words.decode(errors="replace").strip())


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


@asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[asyncio.StreamReader, IO[bytes]]]:
    """A pipe of our own: with those of asyncio a program has not ended before all that holds them has."""
    read, write = os.pipe()
    reader = asyncio.StreamReader()
    with os.fdopen(write, "wb", 0) as end:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", 0)
        )
        try:
            yield reader, end
        finally:
            transport.close()


def _end_all(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
