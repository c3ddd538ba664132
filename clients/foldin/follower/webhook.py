"""Telling others how swaps ended."""

import hashlib
import hmac
import json
import socket
import time

from foldin.errors import HookFailed, InvalidArgument
from foldin.follower.events import Event
from foldin.follower.posting import post, require_url

SIGNATURE = "X-Foldin-Signature-256"
_TRIES = 3
_SECONDS = 10.0
_PAUSE = 0.5


class Webhook:
    """POSTs events as JSON, signed.

    The header X-Foldin-Signature-256 is `sha256=` and the HMAC-SHA256 of the body in hexadecimal. The body holds a
    timestamp in seconds since the epoch, by which a receiver can refuse what is old.

    Args:
      url: to POST to.
      secret: shared with the receiver.

    Raises:
      InvalidArgument: the URL or the secret is none.
    """

    def __init__(self, url: str, secret: bytes) -> None:
        self._url = require_url(url)
        if not secret:
            raise InvalidArgument("a webhook is signed: its secret is empty.")
        self._secret = secret

    def __call__(self, event: Event) -> None:
        """Send an event; three times, if need be. Raises HookFailed."""
        for attempt in range(1, _TRIES + 1):
            document = {**event.to_json(), "host": socket.gethostname(), "timestamp": int(time.time())}
            body = json.dumps(document).encode()
            try:
                post(self._url, body, _SECONDS, {SIGNATURE: signature(self._secret, body)})
            except HookFailed:
                if attempt == _TRIES:
                    raise
                time.sleep(_PAUSE * attempt)
            else:
                return


def signature(secret: bytes, body: bytes) -> str:
    """Return what the header has to be for a body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
