"""POST of JSON, with answers and outages as errors that are sentences."""

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from foldin.errors import HookFailed, InvalidArgument

_MOST_BYTES = 64 * 1024
_MOST_SHOWN = 300


class ErrorAnswer(HookFailed):
    """A server answered with an error.

    Attributes:
      status: of the HTTP answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def require_url(url: str) -> str:
    """Return a URL without a slash at its end. Raises InvalidArgument."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"{url!r} is no URL of a server: write http://HOST:PORT.")
    return url.rstrip("/")


def post(url: str, body: bytes, seconds: float, headers: Mapping[str, str]) -> bytes:
    """POST a JSON document and return what came back.

    Args:
      seconds: how long to wait for the answer.

    Raises:
      ErrorAnswer: the answer is an error, or leads elsewhere.
      HookFailed: there is none.
    """
    request = Request(url, body, {"Content-Type": "application/json", **headers}, method="POST")
    try:
        with _opener(url).open(request, timeout=max(seconds, 0.001)) as response:
            answer: bytes = response.read(_MOST_BYTES)
            return answer
    except HTTPError as error:
        with error:
            text = error.read(_MOST_BYTES).decode(errors="replace").strip()
        raise ErrorAnswer(f"{url} answered {error.code} {error.reason}: {text[:_MOST_SHOWN]}", error.code) from None
    except TimeoutError:
        raise HookFailed(f"{url} did not answer within {seconds:.0f} s.") from None
    except (URLError, HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise HookFailed(f"{url} did not answer within {seconds:.0f} s.") from None
        raise HookFailed(f"{url} cannot be reached ({reason}): is the server running?") from None


def post_json(url: str, document: Mapping[str, Any], seconds: float, headers: Mapping[str, str]) -> Any:
    """POST a document and return the JSON that came back; None where it is none. Raises as `post`."""
    answer = post(url, json.dumps(document).encode(), seconds, headers)
    try:
        return json.loads(answer)
    except ValueError:
        return None


class _NoRedirects(HTTPRedirectHandler):
    """They would be followed with the key, whoever they lead to, and by a GET, which carries nothing out."""

    def redirect_request(self, *arguments: object) -> None:
        return None


def _opener(url: str) -> OpenerDirector:
    local = urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
    return build_opener(_NoRedirects, *([ProxyHandler({})] if local else []))
