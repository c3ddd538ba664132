"""What the worker and its libraries print: into the log, line by line."""

import asyncio
import logging

log = logging.getLogger(__name__)

LONGEST_LINE = 4096
"""Bytes; what is beyond them in a line is left out."""


async def relay_lines(stream: asyncio.StreamReader) -> None:
    """Log every line of a stream as a warning, until it ends."""
    line = b""
    while block := await stream.read(LONGEST_LINE):
        *ended, rest = block.split(b"\n")
        for end in ended:
            _log(line + end)
            line = b""
        line = (line + rest)[: LONGEST_LINE + 1]
    _log(line)


def _log(line: bytes) -> None:
    if text := line[:LONGEST_LINE].decode(errors="replace").rstrip():
        log.warning("worker: %s%s", text, "..." if len(line) > LONGEST_LINE else "")
