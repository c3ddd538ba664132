"""What inference servers and webhooks are asked, in which order, and what becomes of their errors."""

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import foldin
import pytest
from foldin import Client, EventKind, SglangAdapter, SglangModel, Swap, VllmAdapter, VllmModel, Webhook

from tests.following.running import Alias, current, until
from tests.following.stand_ins import Sglang, StandIn, Vllm

RELOAD = ["/pause?mode=wait", "/collective_rpc", "/resume"]


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    with Vllm() as server:
        yield server


@pytest.fixture
def sglang() -> Iterator[Sglang]:
    with Sglang() as server:
        yield server


@pytest.fixture
def receiver() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


def swap(version: int, to: Path = Path("/srv/host"), previous: int | None = None) -> Swap:
    return Swap("stable", version, to / "versions" / f"v{version}", to / "current", previous)


def follow_once(client: Client, alias: Alias, to: Path, *hooks: foldin.follower.events.Hook) -> foldin.Event:
    return list(foldin.follow(client, alias=alias.name, to=to, hooks=hooks, once=True))[-1]


def test_vllm_is_paused_reloaded_and_resumed(client: Client, alias: Alias, to: Path, vllm: Vllm) -> None:
    assert follow_once(client, alias, to, VllmModel(vllm.url + "/")).kind == EventKind.APPLIED
    assert vllm.paths == RELOAD
    assert vllm.requests[1].document == {
        "method": "reload_weights",
        "kwargs": {"weights_path": str(to / "versions" / "v1")},
    }
    assert (vllm.model, vllm.paused) == (str(to / "versions" / "v1"), False)


def test_vllm_without_development_mode(client: Client, alias: Alias, to: Path, receiver: StandIn) -> None:
    event = follow_once(client, alias, to, VllmModel(receiver.url))
    assert event.kind == EventKind.FAILED
    assert f"{receiver.url}/pause?mode=wait answered 404" in event.message
    assert receiver.paths == ["/pause?mode=wait", "/resume"], "it is left as it was"
    assert current(to) is None


def test_vllm_that_fails_to_reload_gets_the_version_before(client: Client, alias: Alias, to: Path, vllm: Vllm) -> None:
    follow_once(client, alias, to, VllmModel(vllm.url))
    vllm.requests.clear()
    vllm.faults["/collective_rpc"] = [(500, {"error": {"message": "shapes differ"}})]
    alias.move(2)
    event = follow_once(client, alias, to, VllmModel(vllm.url))
    assert event.kind == EventKind.ROLLED_BACK
    assert "answered 500" in event.message
    assert "shapes differ" in event.message
    assert vllm.paths == ["/pause?mode=wait", "/collective_rpc", *RELOAD], "half loaded, it serves nobody"
    assert (vllm.model, vllm.paused) == (str(to / "versions" / "v1"), False)
    assert current(to) == "versions/v1"


@pytest.mark.parametrize(
    ("status", "paused", "asked"), [(500, True, RELOAD[:2]), (400, False, RELOAD), (404, False, RELOAD)]
)
def test_vllm_stays_paused_only_if_its_weights_may_be_incomplete(
    vllm: Vllm, status: int, paused: bool, asked: list[str]
) -> None:
    vllm.faults["/collective_rpc"] = [(status, "no")]
    with pytest.raises(foldin.HookFailed, match=f"answered {status}") as refused:
        VllmModel(vllm.url)(swap(1))
    assert (vllm.paused, vllm.paths) == (paused, asked)
    assert ("stays paused until a reload succeeds" in str(refused.value)) == paused


def test_vllm_that_never_falls_idle(vllm: Vllm) -> None:
    vllm.held = "/pause?mode=wait"
    with pytest.raises(foldin.HookFailed, match="did not answer within"):
        VllmModel(vllm.url, seconds=0.2)(swap(1))
    assert vllm.paths == ["/pause?mode=wait", "/resume"]


def test_vllm_adapter(vllm: Vllm) -> None:
    hook = VllmAdapter(vllm.url, api_key="k")
    hook(swap(1))
    hook(swap(2, previous=1))
    assert vllm.paths == ["/v1/load_lora_adapter"] * 2
    assert vllm.requests[1].document == {
        "lora_name": "foldin",
        "lora_path": "/srv/host/versions/v2",
        "load_inplace": True,
    }
    assert {request.headers["Authorization"] for request in vllm.requests} == {"Bearer k"}
    vllm.faults["/v1/load_lora_adapter"] = [(404, {"error": {"message": "no adapter there"}})]
    with pytest.raises(foldin.HookFailed, match="no adapter there"):
        hook(swap(3))
    hook.withdraw()
    assert (vllm.requests[-1].path, vllm.requests[-1].document) == ("/v1/unload_lora_adapter", {"lora_name": "foldin"})
    assert vllm.adapters == {}


def test_an_adapter_that_failed_first_is_unloaded(client: Client, alias: Alias, to: Path, vllm: Vllm) -> None:
    def fail(swap: Swap) -> None:
        raise foldin.HookFailed("the other one failed.")

    event = follow_once(client, alias, to, VllmAdapter(vllm.url, "merged"), fail)
    assert (event.kind, vllm.adapters) == (EventKind.FAILED, {})
    assert vllm.paths == ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]


def test_sglang(client: Client, alias: Alias, to: Path, sglang: Sglang) -> None:
    hook = SglangModel(sglang.url)
    follow_once(client, alias, to, hook)
    alias.move(2)
    sglang.faults["/update_weights_from_disk"] = [(400, {"success": False, "message": "shapes differ"})]
    event = follow_once(client, alias, to, hook)
    assert event.kind == EventKind.ROLLED_BACK
    assert "shapes differ" in event.message
    assert sglang.paths == ["/update_weights_from_disk"] * 3
    assert [request.document for request in sglang.requests] == [
        {"model_path": str(to / "versions" / f"v{version}"), "weight_version": f"v{version}"} for version in (1, 2, 1)
    ]
    assert sglang.weight_version == "v1"
    sglang.faults["/update_weights_from_disk"] = [(200, {"success": False, "message": "not now"})]
    with pytest.raises(foldin.HookFailed, match="did not load it: not now"):
        hook(swap(1, to))


def test_sglang_adapter(sglang: Sglang) -> None:
    hook = SglangAdapter(sglang.url, "merged")
    hook(swap(1))
    hook(swap(2, previous=1))
    assert sglang.paths == ["/unload_lora_adapter", "/load_lora_adapter"] * 2, "the first is refused, and no matter"
    assert sglang.requests[-1].document == {"lora_name": "merged", "lora_path": "/srv/host/versions/v2"}
    assert sglang.adapters == {"merged": "/srv/host/versions/v2"}
    sglang.faults["/unload_lora_adapter"] = [(500, "it crashed"), None]
    with pytest.raises(foldin.HookFailed, match="it crashed"):
        hook(swap(3))
    sglang.faults["/load_lora_adapter"] = [(400, {"success": False, "error_message": "rank 99 is too high"})]
    with pytest.raises(foldin.HookFailed, match="rank 99 is too high"):
        hook(swap(3))


@pytest.mark.parametrize("hook", [VllmModel, VllmAdapter, SglangModel, SglangAdapter])
def test_a_server_that_is_not_there(hook: type[VllmModel]) -> None:
    with pytest.raises(foldin.HookFailed, match="is the server running"):
        hook("http://127.0.0.1:1")(swap(1))
    for url in ("localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(foldin.InvalidArgument, match="write http://HOST:PORT"):
            hook(url)


def test_what_leads_elsewhere_is_not_followed(receiver: StandIn) -> None:
    with StandIn() as elsewhere:
        receiver.leads_to = elsewhere.url
        with pytest.raises(foldin.HookFailed, match="answered 302"):
            VllmAdapter(receiver.url, api_key="key")(swap(1))
        assert elsewhere.requests == []


def test_a_webhook_is_signed(client: Client, alias: Alias, to: Path, receiver: StandIn) -> None:
    def fail_for_2(swap: Swap) -> None:
        if swap.version == 2:
            raise foldin.HookFailed("it does not fit.")

    receiver.faults["/hook"] = [(204, ""), (503, "not now"), (200, "ok"), (200, "ok")]
    webhook = Webhook(f"{receiver.url}/hook", b"secret")
    with closing(foldin.follow(client, alias=alias.name, to=to, hooks=[fail_for_2], notify=[webhook])) as events:
        until(events, EventKind.APPLIED, 1)
        alias.move(2)
        until(events, EventKind.ROLLED_BACK, 2)
        alias.move(3)
        until(events, EventKind.APPLIED, 3)
    for request in receiver.requests:
        signature = "sha256=" + hmac.digest(b"secret", request.body, hashlib.sha256).hex()
        assert request.headers["X-Foldin-Signature-256"] == signature
        assert abs(request.document["timestamp"] - time.time()) < 60
    told = [json.loads(request.body) for request in receiver.requests]
    assert [(document["event"], document["version"], document["current"]) for document in told] == [
        ("applied", 1, 1),
        ("rolled_back", 2, 1),  # which is answered with 503
        ("rolled_back", 2, 1),
        ("applied", 3, 3),
    ]
    assert "it does not fit" in told[1]["message"]


def test_a_webhook_that_fails_takes_nothing_back(client: Client, alias: Alias, to: Path, receiver: StandIn) -> None:
    webhook = Webhook(receiver.url, b"secret")
    events = list(foldin.follow(client, alias=alias.name, to=to, notify=[webhook], once=True))
    assert [event.kind for event in events] == ["pulling", "swapped", "applied", "warning"]
    assert "nobody was told that v1 is applied" in events[-1].message
    assert len(receiver.requests) == 3
    with pytest.raises(foldin.InvalidArgument, match="its secret is empty"):
        Webhook(receiver.url, b"")
