"""Keeping out of the log what strangers can have libraries write there without end."""

import logging
import time

from aiohttp.http_exceptions import HttpProcessingError

ACCEPT_FAILED = "socket.accept() out of system resource"
"""How asyncio's line begins, which it repeats a hundred times a second while descriptors are used up."""
ONCE_IN_SECONDS = 60


def keep_out_noise() -> None:
    """Leave out malformed HTTP requests, and say once a minute that no connection can be accepted."""
    logging.getLogger("aiohttp.server").setLevel(logging.ERROR)  # not a line for every port scanner
    logging.getLogger("aiohttp.server").addFilter(_is_about_us)
    logging.getLogger("asyncio").addFilter(_Seldom())


def _is_about_us(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


class _Seldom(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(ACCEPT_FAILED):
            return True
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + ONCE_IN_SECONDS
        return True
