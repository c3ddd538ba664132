"""HTTP: metrics and health for machines that look after machines. Runs in the daemon's own event loop."""

import asyncio
import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn import Config, Server

from foldind.errors import StateError

_MAX_CONNECTIONS = 256
_KEEP_ALIVE_SECONDS = 5
_REQUESTS_END_SECONDS = 2


def application(
    registry: CollectorRegistry, gets_on: Callable[[], bool], unready_reason: Callable[[], str]
) -> Starlette:
    """Return the routes.

    Args:
      registry: what /metrics exposes; it is read off the event loop, by one request at a time.
      gets_on: whether the daemon is not stuck; if it is, only a restart helps.
      unready_reason: why work should not be sent here at the moment, a sentence; empty: it may be.
    """
    scraping = asyncio.Lock()

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        async with scraping:
            content = await asyncio.to_thread(encode, registry)
        return Response(content, headers={"content-type": content_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n") if gets_on() else PlainTextResponse("stuck\n", status_code=503)

    async def readyz(request: Request) -> Response:
        reason = unready_reason()
        return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

    routes = {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()])


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
        self._server: Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, routes: Starlette) -> None:
        """Begin to answer."""
        config = Config(
            routes,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # not a line for every port scanner that speaks no HTTP
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_REQUESTS_END_SECONDS,
        )
        config.load()
        # The steps of Server.serve() but for the signal handlers: the signals are the daemon's.
        self._server = Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup([self._socket])
        self._ticking = asyncio.create_task(self._server.main_loop())

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        if self._server and self._ticking:
            self._server.should_exit = True
            await self._ticking
            await self._server.shutdown([self._socket])


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, resolved = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # whatever lingers of a daemon before
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
