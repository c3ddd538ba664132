"""HTTP: health and metrics, and the routes of others. Runs in the daemon's own event loop."""

import asyncio
import hmac
import resource
import socket
from collections.abc import Callable, Iterable

from aiohttp import BasicAuth, hdrs
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web import (
    AbstractRouteDef,
    Application,
    AppRunner,
    HTTPServiceUnavailable,
    HTTPUnauthorized,
    Request,
    Response,
    SockSite,
    StreamResponse,
    get,
    middleware,
)
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from foldind.errors import StateError
from foldind.serving.noise import keep_out_noise

_MOST_AT_ONCE = 512
"""Requests that are answered at the same time, besides those of probes."""
_KEEP_ALIVE_SECONDS = 15
_REQUESTS_END_SECONDS = 2
_STALLED_SECONDS = 120
"""Without a byte taken after which a client counts as gone."""

_OPEN = frozenset({"/metrics", "/healthz", "/readyz"})
"""What machines that look after machines ask for; it needs no token, and is never too much."""
EVENTS = "/events"
"""Streams that last; their own handler bounds how many there are."""


def application(
    registry: CollectorRegistry,
    gets_on: Callable[[], bool],
    unready_reason: Callable[[], str],
    routes: Iterable[AbstractRouteDef],
    token: str,
) -> Application:
    """Return what answers.

    Args:
      registry: what /metrics exposes; it is read off the event loop, by one request at a time.
      gets_on: whether the daemon is not stuck; if it is, only a restart helps.
      unready_reason: why work should not be sent here at the moment, a sentence; empty: it may be.
      routes: what else is answered.
      token: that is asked for there; empty: none.
    """
    scraping = asyncio.Lock()

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        async with scraping:
            content = await asyncio.to_thread(encode, registry)
        return Response(body=content, headers={hdrs.CONTENT_TYPE: content_type})

    async def healthz(request: Request) -> Response:
        return Response(text="ok\n") if gets_on() else Response(text="stuck\n", status=503)

    async def readyz(request: Request) -> Response:
        reason = unready_reason()
        return Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    app = Application(middlewares=[_within_limits(), *([_with_token(token)] if token else [])])
    app.add_routes([get("/metrics", metrics), get("/healthz", healthz), get("/readyz", readyz), *routes])
    app.on_response_prepare.append(_add_headers)
    return app


async def _add_headers(request: Request, response: StreamResponse) -> None:
    response.headers[hdrs.SERVER] = "foldin"
    response.headers["X-Content-Type-Options"] = "nosniff"


def _within_limits() -> Middleware:
    answering = 0

    @middleware
    async def limit(request: Request, handler: Handler) -> StreamResponse:
        nonlocal answering
        if request.path in _OPEN or request.path == EVENTS:
            return await handler(request)
        if answering >= _MOST_AT_ONCE:
            raise HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: "1"}, text="too many requests at once; try again\n")
        answering += 1
        try:
            return await handler(request)
        finally:
            answering -= 1

    return limit


def _with_token(token: str) -> Middleware:
    @middleware
    async def check(request: Request, handler: Handler) -> StreamResponse:
        brought = _token_of(request).encode(errors="surrogateescape")  # headers may hold any bytes
        if request.path in _OPEN or hmac.compare_digest(brought, token.encode()):
            return await handler(request)
        told = "this needs the daemon's token: set HF_TOKEN, or give it as the password of any user"
        raise HTTPUnauthorized(
            headers={
                hdrs.WWW_AUTHENTICATE: 'Basic realm="foldin"',
                "X-Error-Code": "GatedRepo",
                "X-Error-Message": told,
            },
            text=f"{told}\n",
        )

    return check


def _token_of(request: Request) -> str:
    """What a program brings as a bearer, and a person with a browser as a password."""
    scheme, _, value = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    try:
        return value.strip() if scheme.lower() == "bearer" else BasicAuth.decode(f"{scheme} {value}", "utf-8").password
    except ValueError:
        return ""


class HttpServer:
    """A server that listens from the moment it is made.

    Args:
      address: HOST:PORT; port 0 takes a free one.

    Raises:
      StateError: it cannot listen there.
    """

    def __init__(self, address: str):
        self._socket = _listen(address)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        """Where it listens, HOST:PORT."""
        self._runner: AppRunner | None = None

    async def start(self, app: Application) -> None:
        """Begin to answer."""
        keep_out_noise()
        _allow_open_files()
        self._runner = AppRunner(
            app,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            shutdown_timeout=_REQUESTS_END_SECONDS,
        )
        await self._runner.setup()
        await SockSite(self._runner, self._socket).start()

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        if self._runner:
            await self._runner.cleanup()


def _allow_open_files() -> None:
    """Take as many descriptors as the system gives; its default of 1,024 is too few for so many downloads."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, resolved = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # whatever lingers of a daemon before
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _STALLED_SECONDS)
            listener.bind(resolved)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        raise StateError(
            f"cannot listen on {address} ({getattr(error, 'strerror', None) or error})",
            "another process may use the port; choose one with --http HOST:PORT, or none with --http ''",
        ) from error
    return listener
