"""Sending files over HTTP: whole or a range, from the page cache to the socket without a copy through Python."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from aiohttp import hdrs
from aiohttp.web import HTTPNotModified, HTTPRequestRangeNotSatisfiable, Request, StreamResponse

_CONTENT_TYPES = {".json": "application/json"}
_ANY_BYTES = "application/octet-stream"
_NOTHING = "bytes=-0"
_PIECE = 4 * 1024 * 1024
"""Bytes that are sent at a time, at the most."""
_SENDERS = ThreadPoolExecutor(4, "sendfile")


@dataclass(frozen=True)
class SealedFile:
    """A file that never changes."""

    path: Path
    size: int
    """Bytes."""
    sha256: str


async def send_file(
    request: Request, file: SealedFile, headers: Mapping[str, str], on_sent: Callable[[int, bool], None]
) -> StreamResponse:
    """Answer with a file, or with the range of it that is asked for.

    Args:
      request: GET or HEAD; Range, If-Range and If-None-Match count.
      file: what is sent; its SHA-256 is the entity tag.
      headers: that the answer carries beside.
      on_sent: told of each piece how many bytes it had, and whether the last one of the file was among them.

    Raises:
      FileNotFoundError: it has gone.
      HTTPException: it is not modified, or has no such range.
    """
    tagged = {**headers, hdrs.ETAG: f'"{file.sha256}"', hdrs.ACCEPT_RANGES: "bytes"}
    if any(tag.value in ("*", file.sha256) for tag in request.if_none_match or ()):
        raise HTTPNotModified(headers=tagged)
    wanted = _wanted(request, file, tagged)
    start, end, _ = (wanted or slice(None)).indices(file.size)
    response = StreamResponse(status=206 if wanted else 200, headers=tagged)
    if wanted:
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{file.size}"
    response.content_type = _CONTENT_TYPES.get(file.path.suffix, _ANY_BYTES)
    response.content_length = end - start
    with await asyncio.to_thread(file.path.open, "rb", buffering=0) as opened:
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD and end > start:
            try:
                async for sent in _send(request.transport, opened, start, end):
                    start += sent
                    on_sent(sent, start == file.size)
            except (ConnectionResetError, BrokenPipeError):  # the client has gone, which is its right
                response.force_close()
    return response


async def _send(transport: asyncio.Transport | None, opened: FileIO, start: int, end: int) -> AsyncIterator[int]:
    """Send bytes of a file, and yield how many after each piece.

    Other than by asyncio's own sendfile, neither a slow disk nor a reader that keeps up holds the event loop: the
    system call runs in a thread, and returns when the socket takes no more.
    """
    if transport is None:
        raise ConnectionResetError("the client has gone")
    loop = asyncio.get_running_loop()
    # The number of the socket's own descriptor could become another connection's while a thread writes to it.
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as connection:
        while transport.get_write_buffer_size():  # the headers
            await _writable(connection)
        while start < end:
            sending = loop.run_in_executor(
                _SENDERS, os.sendfile, connection.fileno(), opened.fileno(), start, min(_PIECE, end - start)
            )
            try:
                sent = await asyncio.shield(sending)
            except BlockingIOError:
                await _writable(connection)
                continue
            finally:
                await asyncio.wait([sending])  # if this is cancelled: both descriptors are in use until then
            if not sent:
                raise OSError(errno.EIO, f"it ends after {start} bytes", opened.name)
            start += sent
            yield sent


async def _writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(connection)


def _settle(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _wanted(request: Request, file: SealedFile, headers: Mapping[str, str]) -> slice | None:
    """The range that is asked for; None: the whole file, as where several are asked for, or one of another version."""
    asked = request.headers.get(hdrs.RANGE, "")
    if not asked.startswith("bytes=") or "," in asked:
        return None
    if request.headers.get(hdrs.IF_RANGE, file.sha256).strip('"') != file.sha256:
        return None
    with suppress(ValueError):
        wanted = request.http_range
        if (wanted.start is None or wanted.start < file.size) and asked != _NOTHING:
            return wanted
    raise HTTPRequestRangeNotSatisfiable(headers={**headers, hdrs.CONTENT_RANGE: f"bytes */{file.size}"})
