"""What another process prints, line by line, however long its lines are."""

import asyncio
from collections.abc import Callable

LONGEST_LINE = 4096
"""Bytes; what is beyond them in a line is left out."""


class Lines:
    """Tells every line of a stream of bytes that is not empty, without what ends it.

    Args:
      tell: is told each.
    """

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell
        self._line = b""

    def feed(self, block: bytes) -> None:
        """Take what comes next in the stream."""
        *ended, rest = block.split(b"\n")
        for end in ended:
            self._line += end
            self.end()
        self._line = (self._line + rest)[: LONGEST_LINE + 1]

    def end(self) -> None:
        """Tell what there is of the last line."""
        line, self._line = self._line, b""
        if text := line[:LONGEST_LINE].decode(errors="replace").rstrip():
            self._tell(text + ("..." if len(line) > LONGEST_LINE else ""))


async def each_line(stream: asyncio.StreamReader, tell: Callable[[str], None]) -> None:
    """Tell every line of a stream until it ends, see Lines."""
    lines = Lines(tell)
    while block := await stream.read(LONGEST_LINE):
        lines.feed(block)
    lines.end()
