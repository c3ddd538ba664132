"""The status page on the wire: pages, what they load, and the stream of events that keeps them new."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from aiohttp import hdrs
from aiohttp.typedefs import Handler
from aiohttp.web import (
    AbstractRouteDef,
    HTTPBadRequest,
    HTTPServiceUnavailable,
    Request,
    Response,
    StreamResponse,
    get,
)

from foldind.changes import Changes
from foldind.errors import NotFound
from foldind.serving.http import EVENTS
from foldind.serving.pages.content import Content, Overview
from foldind.serving.pages.rendering import Templates

MOST_FOLLOWERS = 64
"""Streams of events at the same time."""
_SECONDS_BETWEEN = 0.5
"""Two events, at the least."""
_SECONDS_QUIET = 5
"""After which it is looked whether a follower is still there, and how old things have become."""

_STATIC = Path(__file__).parent / "static"
_CONTENT_TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-cache",
}

FRAGMENTS = ("status", "queue", "timeline", "alike")
"""Parts of the page at / that events replace; each has a template of its own."""


class Pages:
    """The status page.

    Args:
      content: what it shows.
      templates: how.
      changes: of the daemon.
      grpc_port: where checkpoints are submitted.
    """

    def __init__(self, content: Content, templates: Templates, changes: Changes, grpc_port: int):
        self._content = content
        self._templates = templates
        self._changes = changes
        self._grpc_port = grpc_port
        self._followers = 0
        self._stopped = False
        self._rendering = asyncio.Lock()
        self._rendered: Mapping[str, str] = {}
        self._rendered_of = -1
        self._rendered_at = -float(_SECONDS_QUIET)

    def routes(self) -> list[AbstractRouteDef]:
        """Return what it answers."""
        return [
            get("/", self._overview),
            get("/versions/{number:[0-9]{1,18}}", self._version),
            get(EVENTS, self._events, allow_head=False),
            *(get(f"/static/{name}", self._static(name)) for name in _CONTENT_TYPES),
        ]

    def stop(self) -> None:
        """End the streams."""
        self._stopped = True
        self._changes.announce()

    async def _overview(self, request: Request) -> Response:
        before = request.query.get("before", "0")
        if not (before.isascii() and before.isdigit() and len(before) <= 18):
            raise HTTPBadRequest(text="`before` is the number of a version\n", headers=_HEADERS)
        try:
            host = request.url.host or ""
        except ValueError:
            raise HTTPBadRequest(text="the header `Host` is no name of a host\n", headers=_HEADERS) from None
        return await self._page(lambda: self._render_overview(request, host, int(before)))

    async def _version(self, request: Request) -> Response:
        number = int(request.match_info["number"])
        try:
            return await self._page(lambda: self._templates.render("version", details=self._content.details(number)))
        except NotFound:
            return await self._page(lambda: self._templates.render("missing", number=number), 404)

    def _render_overview(self, request: Request, host: str, before: int) -> str:
        return self._templates.render(
            "overview",
            scheme=request.scheme,
            host=request.host,
            server=f"{f'[{host}]' if ':' in host else host}:{self._grpc_port}",
            older_asked=bool(before),
            **_parts(self._content.overview(before)),
        )

    async def _page(self, render: Callable[[], str], status: int = 200) -> Response:
        text = await asyncio.to_thread(render)
        response = Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=_HEADERS)
        response.enable_compression()
        return response

    def _static(self, name: str) -> Handler:
        content = (_STATIC / name).read_bytes()
        tag = sha256(content).hexdigest()[:32]

        async def send(request: Request) -> Response:
            if any(asked.value in ("*", tag) for asked in request.if_none_match or ()):
                response = Response(status=304, headers=_HEADERS)
            else:
                response = Response(body=content, content_type=_CONTENT_TYPES[name], charset="utf-8", headers=_HEADERS)
            response.etag = tag
            return response

        return send

    async def _events(self, request: Request) -> StreamResponse:
        if self._stopped or self._followers >= MOST_FOLLOWERS:
            raise HTTPServiceUnavailable(
                headers={hdrs.RETRY_AFTER: "5", **_HEADERS},
                text="too many follow the events; reload the page instead\n",
            )
        self._followers += 1
        try:
            return await self._follow(request)
        finally:
            self._followers -= 1

    async def _follow(self, request: Request) -> StreamResponse:
        response = StreamResponse(headers=_HEADERS)
        response.content_type = "text/event-stream"
        response.headers["X-Accel-Buffering"] = "no"
        await response.prepare(request)
        sent: Mapping[str, str] = {}
        try:
            while not self._stopped:
                seen, parts = await self._fragments()
                new = {name: html for name, html in parts.items() if sent.get(name) != html}
                await response.write(f"data: {json.dumps(new)}\n\n".encode() if new else b":\n\n")
                sent = parts
                await asyncio.sleep(_SECONDS_BETWEEN)
                await self._changes.wait(seen, _SECONDS_QUIET)
        except ConnectionResetError:  # the reader has gone, which is its right
            response.force_close()
        return response

    async def _fragments(self) -> tuple[int, Mapping[str, str]]:
        """The parts as they are now, and of which change; for all followers, they are made once."""
        async with self._rendering:
            passed = time.monotonic() - self._rendered_at
            stale = self._rendered_of != self._changes.count and passed >= _SECONDS_BETWEEN
            if stale or passed >= _SECONDS_QUIET:
                count = self._changes.count
                self._rendered = await asyncio.to_thread(self._render_fragments)
                self._rendered_of, self._rendered_at = count, time.monotonic()
            return self._rendered_of, self._rendered

    def _render_fragments(self) -> Mapping[str, str]:
        overview = self._content.overview()
        parts = _parts(overview)
        fragments = {name: self._templates.render(name, **parts) for name in FRAGMENTS}
        first = {"first": ""} if overview.status.head else {}  # once there is one, nobody asks how to make it
        return {**fragments, **first, "said": overview.queue.sentence}


def _parts(overview: Overview) -> Mapping[str, object]:
    return {name: getattr(overview, name) for name in FRAGMENTS}
