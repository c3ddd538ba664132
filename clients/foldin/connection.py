"""The connection to one daemon: its address, its deadlines, and what is an outage and what is an answer."""

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
import grpc.experimental

from foldin.backoff import Patience
from foldin.errors import FoldinError, InvalidArgument, error_of
from foldin.v1.snapshots_pb2_grpc import SnapshotServiceStub
from foldin.v1.submissions_pb2_grpc import SubmissionServiceStub

Response = TypeVar("Response")

DEFAULT_PORT = 7070

# Deadlines in seconds. A chunk has two minutes: four of 2 MiB in parallel pass at 70 kB/s. Closing an upload and
# copying a folder on the daemon's machine read every byte of the checkpoint before they are answered.
QUICK = 30.0
CHUNK = 120.0
WHOLE_CHECKPOINT = 3600.0

# A daemon that is stopping answers calls in flight with CANCELLED or UNAVAILABLE, whichever comes first.
_OUTAGE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})

_CHANNEL_OPTIONS = [
    # Streams are read in the thread that iterates, not in one of gRPC's: faster, and safe to interrupt.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    ("grpc.max_receive_message_length", -1),  # a page of submissions with hundreds of shards each
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Finds a dead peer under a silent watch. Servers take more than one ping in five minutes for abuse.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class Connection:
    """A channel to one daemon. Safe to use from several threads.

    Args:
      server: HOST:PORT, HOST or [IPV6]:PORT; None takes FOLDIN_SERVER from the environment, else localhost:7070.
      patience: seconds that a transfer or a watch waits for a daemon that went away. One that has not answered
        anything yet is not waited for.

    Raises:
      InvalidArgument: server is no address.
    """

    def __init__(self, server: str | None, patience: float) -> None:
        self.server = _address(server or os.environ.get("FOLDIN_SERVER") or "localhost")
        self._patience = patience
        self._answered = False
        self._closed = False
        local = self.server.rpartition(":")[0] in {"localhost", "127.0.0.1", "[::1]"}
        options = [*_CHANNEL_OPTIONS, *([("grpc.enable_http_proxy", 0)] if local else [])]
        self._channel = grpc.insecure_channel(self.server, options=options)
        self.submissions: Any = SubmissionServiceStub(self._channel)
        self.snapshots: Any = SnapshotServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; calls in flight end."""
        self._closed = True
        self._channel.close()

    def patience(self) -> Patience:
        """Return how long to wait out an outage, from now on."""
        return Patience(self._patience if self._answered else 0.0)

    def reach(self) -> None:
        """Find out whether something answers at the address, before work is spent on a call.

        Raises:
          ServerUnavailable: nothing does.
        """
        # The standard health call; whatever it is answered with, somebody answers.
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            check(b"", timeout=QUICK)
        except grpc.RpcError as error:
            if is_outage(translated := self.error(error)):
                raise translated from None
        self._answered = True

    def call(self, method: Callable[..., Response], request: object, timeout: float = QUICK) -> Response:
        """Make one unary call, once.

        Args:
          method: a method of `submissions` or `snapshots`.
          timeout: seconds.

        Raises:
          FoldinError: whatever the call was answered with.
        """
        try:
            response = method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self.error(error) from None
        self._answered = True
        return response

    def call_patiently(
        self, method: Callable[..., Response], request: object, timeout: float = QUICK, patience: Patience | None = None
    ) -> Response:
        """Make one unary call that may be repeated without harm, through outages of the daemon.

        Raises:
          FoldinError: an answer that is not an outage, or the outage outlasted the patience.
        """
        patience = patience or self.patience()
        while True:
            try:
                return self.call(method, request, timeout)
            except FoldinError as error:
                if not is_outage(error):
                    raise
                patience.pause(error)

    def pages(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """Yield the pages of a list, of which `request` asks for the first.

        Raises:
          FoldinError: whatever a call was answered with.
        """
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        """Yield the messages of a server stream that has no deadline; leaving the iterator cancels it.

        Raises:
          FoldinError: whatever the stream ended with, if not well.
        """
        call = method(request)
        try:
            for message in call:
                self._answered = True
                yield message
        except grpc.RpcError as error:
            raise self.error(error) from None
        finally:
            call.cancel()

    def error(self, error: grpc.RpcError) -> FoldinError:
        """Return the error that callers get for one of the transport."""
        if self._closed:
            return FoldinError("the client was closed while a call was under way.", "ABORTED")
        return error_of(error.code().name, error.details() or "", self.server)


def is_outage(error: FoldinError) -> bool:
    """Whether the daemon went away or was stopped, so that the same call may succeed later."""
    return error.code in _OUTAGE


def _address(server: str) -> str:
    parts = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\[\]:/\s]+)(:(?P<port>\d{1,5}))?", server.strip())
    if parts is None:
        raise InvalidArgument(
            f"{server!r} is not the address of a daemon: give HOST:PORT, such as localhost:{DEFAULT_PORT}, "
            "without http:// or a path."
        )
    return f"{parts['host']}:{parts['port'] or DEFAULT_PORT}"
