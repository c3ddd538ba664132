"""What the HTTP server does for many at once, and for those who take nothing."""

import asyncio
import logging
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from aiohttp import ClientSession
from aiohttp.web import Request, Response, get
from foldind.serving import http, noise
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file

from tests.support.daemon import Daemon
from tests.support.http import ask
from tests.support.models import base_tensors, make_base

FEW = 3


def test_too_many_at_once_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MOST_AT_ONCE", FEW)

    async def run() -> None:
        arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

        async def slow(request: Request) -> Response:
            arrived.release()
            await go_on.wait()
            return Response(text="done")

        app = http.application(CollectorRegistry(), lambda: True, lambda: "", [get("/slow", slow)], "")
        server = http.HttpServer("127.0.0.1:0")
        await server.start(app)
        url = f"http://{server.address}"
        async with ClientSession() as session:
            waiting = [asyncio.create_task(session.get(f"{url}/slow")) for _ in range(FEW)]
            for _ in range(FEW):
                await arrived.acquire()
            async with session.get(f"{url}/slow") as refused:
                assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            for probe in ("healthz", "readyz", "metrics"):
                async with session.get(f"{url}/{probe}") as answer:
                    assert answer.status == 200
            go_on.set()
            for task in waiting:
                async with await task as answer:
                    assert await answer.text() == "done"
            async with session.get(f"{url}/slow") as answer:
                assert answer.status == 200, "there is room again"
        await server.stop()

    asyncio.run(run())


def test_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Response:
        raise RuntimeError("ours")

    async def run() -> None:
        app = http.application(CollectorRegistry(), lambda: True, lambda: "", [get("/fail", fail)], "")
        server = http.HttpServer("127.0.0.1:0")
        await server.start(app)
        host, _, port = server.address.rpartition(":")
        for sent in (
            b"\x16\x03\x01\n\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /fail HTTP/1.1\r\nHost: a\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            assert await reader.read(100)
            writer.close()
        await server.stop()

    asyncio.run(run())
    assert ["ours" in str(record.exc_info) for record in caplog.records if record.name == "aiohttp.server"] == [True]
    for _ in range(100):
        logging.getLogger("asyncio").error(noise.ACCEPT_FAILED)
    assert sum(record.message == noise.ACCEPT_FAILED for record in caplog.records) == 1


@pytest.mark.long
def test_readers_that_take_nothing_hold_up_nobody(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    wide = {**base_tensors(), "wide.bias": torch.zeros(8_000_000)}
    save_file(wide, base / "model.safetensors", metadata={"format": "pt"})
    with Daemon(tmp_path / "state", base) as daemon, daemon.client() as client:
        save_file({**wide, "wide.bias": torch.ones(8_000_000)}, tmp_path / "task.safetensors")
        client.submit(tmp_path / "task.safetensors", wait=True)
        address = urlsplit(daemon.http)
        stalled = []
        try:
            for _ in range(12):  # more than there are threads that send
                reader = socket.socket()
                stalled.append(reader)
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.connect((address.hostname, address.port))
                reader.sendall(b"GET /foldin/merged/resolve/v1/model.safetensors HTTP/1.1\r\nHost: foldin\r\n\r\n")
                assert reader.recv(12) == b"HTTP/1.1 200"
            assert ask(f"{daemon.http}/healthz").status == 200
            assert len(client.pull("v1", to=tmp_path / "pulled").files) == 5
            content = ask(f"{daemon.http}/foldin/merged/resolve/v1/config.json")
            assert content.text == (base / "config.json").read_text()
        finally:
            for reader in stalled:
                reader.close()
        assert daemon.terminate() == 0
        assert "Traceback" not in daemon.log.read_text()
