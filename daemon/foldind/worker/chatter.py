"""What the worker and its libraries print: into the log, line by line."""

import asyncio
import logging

from foldind.lines import each_line

log = logging.getLogger(__name__)


async def relay_lines(stream: asyncio.StreamReader) -> None:
    """Log every line of a stream as a warning, until it ends."""
    await each_line(stream, lambda line: log.warning("worker: %s", line))
