"""How errors leave the daemon: one place that maps them to gRPC status codes."""

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


def unary(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Turn the errors of a unary method into status codes and sentences."""

    @wraps(method)
    async def answer(servicer: Servicer, request: Request, context: Context) -> Response:
        try:
            return await method(servicer, request, context)
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
    if is_disk_trouble(error):
        log.error("a call failed: %s", error)
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"the daemon's disk is full or failing ({error}); try again later"
        )
    log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "the daemon made a mistake; its log has the details")
