"""Bringing running inference servers to a version, through the handlers that they publish.

The folder of the version is named to them, not the link: vLLM keys its prefix cache by the path of an adapter.
README.md tells which handlers of which releases these are.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from foldin.errors import HookFailed
from foldin.follower.events import Swap
from foldin.follower.hooks import DEFAULT_SECONDS
from foldin.follower.posting import ErrorAnswer, post_json, require_url

DEFAULT_ADAPTER_NAME = "foldin"
_BAD_REQUEST = 400
_SERVER_ERROR = 500
_SECONDS_TO_CLEAN_UP = 30.0


class _Server:
    """One server.

    Args:
      url: http://HOST:PORT.
      seconds: how long bringing it to a version may take, all requests together.
      api_key: sent as a bearer token; empty: none is.
    """

    def __init__(self, url: str, seconds: float = DEFAULT_SECONDS, api_key: str = "") -> None:
        self._url = require_url(url)
        self._seconds = seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def _post(self, path: str, document: Mapping[str, Any], deadline: float) -> Any:
        return post_json(self._url + path, document, deadline - time.monotonic(), self._headers)

    def _deadline(self) -> float:
        return time.monotonic() + self._seconds

    def _clean_up(self, path: str) -> None:
        with suppress(HookFailed):
            self._post(path, {}, time.monotonic() + _SECONDS_TO_CLEAN_UP)


class VllmModel(_Server):
    """The weights of a vLLM server: it finishes what it is generating, reloads them in place, and goes on.

    A server whose reload broke off stays paused, for its weights may be half one version's: until a reload succeeds.
    """

    def __call__(self, swap: Swap) -> None:
        """Have it load the version. Raises HookFailed."""
        deadline = self._deadline()
        try:
            self._post("/pause?mode=wait", {}, deadline)  # which empties the prefix cache, too
        except HookFailed:
            self._clean_up("/resume")  # it may have paused after all
            raise
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(swap.snapshot)}}
        try:
            self._post("/collective_rpc", reload, deadline)
        except HookFailed as error:
            if isinstance(error, ErrorAnswer) and error.status < _SERVER_ERROR:  # nothing was loaded
                self._clean_up("/resume")
                raise
            raise HookFailed(
                f"{error} {self._url} stays paused until a reload succeeds, for its weights may be incomplete."
            ) from None
        self._post("/resume", {}, deadline)


class VllmAdapter(_Server):
    """An adapter of a vLLM server, replaced in place under one name."""

    def __init__(
        self, url: str, name: str = DEFAULT_ADAPTER_NAME, seconds: float = DEFAULT_SECONDS, api_key: str = ""
    ) -> None:
        super().__init__(url, seconds, api_key)
        self._name = name

    def __call__(self, swap: Swap) -> None:
        """Have it load the version. Raises HookFailed."""
        adapter = {"lora_name": self._name, "lora_path": str(swap.snapshot), "load_inplace": True}
        self._post("/v1/load_lora_adapter", adapter, self._deadline())

    def withdraw(self) -> None:
        """Have it unload the adapter. Raises HookFailed."""
        self._post("/v1/unload_lora_adapter", {"lora_name": self._name}, self._deadline())


class SglangModel(_Server):
    """The weights of an SGLang server, which itself lets requests finish before it changes them."""

    def __call__(self, swap: Swap) -> None:
        """Have it load the version. Raises HookFailed."""
        model = {"model_path": str(swap.snapshot), "weight_version": f"v{swap.version}"}
        _require_success(self._post("/update_weights_from_disk", model, self._deadline()))


class SglangAdapter(_Server):
    """An adapter of an SGLang server, unloaded and loaded under one name: SGLang replaces none in place."""

    def __init__(
        self, url: str, name: str = DEFAULT_ADAPTER_NAME, seconds: float = DEFAULT_SECONDS, api_key: str = ""
    ) -> None:
        super().__init__(url, seconds, api_key)
        self._name = name

    def __call__(self, swap: Swap) -> None:
        """Have it load the version. Raises HookFailed."""
        deadline = self._deadline()
        try:
            self._post("/unload_lora_adapter", {"lora_name": self._name}, deadline)
        except ErrorAnswer as error:
            if error.status != _BAD_REQUEST:  # so it refuses a name that is not loaded
                raise
        adapter = {"lora_name": self._name, "lora_path": str(swap.snapshot)}
        _require_success(self._post("/load_lora_adapter", adapter, deadline))

    def withdraw(self) -> None:
        """Have it unload the adapter. Raises HookFailed."""
        self._post("/unload_lora_adapter", {"lora_name": self._name}, self._deadline())


def _require_success(answer: Any) -> None:
    if isinstance(answer, dict) and answer.get("success") is False:
        reason = answer.get("message") or answer.get("error_message") or "it gave no reason"
        raise HookFailed(f"the server did not load it: {reason}")
