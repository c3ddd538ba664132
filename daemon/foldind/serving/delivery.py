"""Sending files over HTTP: whole or a range, from the page cache to the socket without a copy through Python."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from aiohttp import hdrs
from aiohttp.web import HTTPNotModified, HTTPRequestRangeNotSatisfiable, Request, StreamResponse

_CONTENT_TYPES = {".json": "application/json"}
_ANY_BYTES = "application/octet-stream"
_PIECE = 1024 * 1024
"""Bytes after which others have their turn: while its reader keeps up, one call of sendfile would go on to the end."""


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
      on_sent: told how many bytes went out, and whether the last one of the file was among them.

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
            reached = start
            try:
                while reached < end:
                    reached += await _send_piece(request, opened, reached, min(_PIECE, end - reached))
            finally:
                on_sent(reached - start, reached == file.size)
        await response.write_eof()
    return response


async def _send_piece(request: Request, opened: FileIO, offset: int, count: int) -> int:
    if request.transport is None:
        raise ConnectionResetError("the client has gone")
    sent = await asyncio.get_running_loop().sendfile(request.transport, opened, offset, count)
    if not sent:
        raise ConnectionAbortedError(f"{opened.name} ends after {offset} bytes")
    return sent


def _wanted(request: Request, file: SealedFile, headers: Mapping[str, str]) -> slice | None:
    """The range that is asked for; None: the whole file, as where several are asked for, or one of another version."""
    asked = request.headers.get(hdrs.RANGE, "")
    if not asked.startswith("bytes=") or "," in asked:
        return None
    if request.headers.get(hdrs.IF_RANGE, file.sha256).strip('"') != file.sha256:
        return None
    with suppress(ValueError):
        if (wanted := request.http_range).start is None or wanted.start < file.size:
            return wanted
    raise HTTPRequestRangeNotSatisfiable(headers={**headers, hdrs.CONTENT_RANGE: f"bytes */{file.size}"})
