"""Waking everyone who watches, when anything changed."""

import asyncio
from contextlib import suppress


class Changes:
    """A counter of changes that can be waited for; for one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Tell that something changed."""
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, after: int, at_most: float | None = None) -> None:
        """Wait until the count is above `after`, `at_most` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                while self.count == after:
                    await self._changed.wait()
