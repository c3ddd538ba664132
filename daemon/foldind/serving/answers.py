"""How calls are answered: to their end, and with errors as gRPC status codes, mapped in one place."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc

from foldind.errors import FoldinError
from foldind.state.durable import is_disk_trouble

log = logging.getLogger(__name__)

Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]

_under_way: set["asyncio.Future[Any]"] = set()
"""An event loop by itself does not keep what nobody awaits any more."""


def unary(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Turn the errors of a unary method into status codes and sentences, and run it to its end.

    Also when the caller goes away meanwhile: what a thread has begun cannot be cut short, and the locks that it was
    begun under must not be released before it is done.
    """

    @wraps(method)
    async def answer(servicer: Servicer, request: Request, context: Context) -> Response:
        call = asyncio.ensure_future(method(servicer, request, context))
        _under_way.add(call)
        call.add_done_callback(_under_way.discard)
        try:
            return await asyncio.shield(call)
        except Exception as error:
            await _abort(context, error)

    return answer


def streaming(
    method: Callable[[Servicer, Request, Context], AsyncIterator[Response]],
) -> Callable[[Servicer, Request, Context], AsyncIterator[Response]]:
    """Turn the errors of a method that streams its answers into status codes and sentences."""

    @wraps(method)
    async def answer(servicer: Servicer, request: Request, context: Context) -> AsyncIterator[Response]:
        try:
            async for response in method(servicer, request, context):
                yield response
        except Exception as error:
            await _abort(context, error)

    return answer


async def _abort(context: Context, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, FoldinError):
        await context.abort(grpc.StatusCode[error.status], str(error))
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        log.error("a call failed: %s", error)
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "the daemon has no file descriptors left; try again later"
        )
    if is_disk_trouble(error):
        log.error("a call failed: %s", error)
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"the daemon's disk is full or failing ({error}); try again later"
        )
    log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "internal error of the daemon; its log has the details")
