"""The HTTP port: who gets what, where it listens, and when it says that no work should come."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import Daemon, foldind, wait_for
from tests.support.history import History
from tests.support.http import OPENMETRICS, ask, scrape
from tests.support.models import base_tensors
from tests.support.wire import Daemons, Wire, fine_tuned, idle_worker, single, state

PAGES = ("/metrics", "/healthz", "/readyz")


def readiness(daemon: Daemon) -> tuple[int, str]:
    answer = ask(f"{daemon.http}/readyz")
    return answer.status, answer.text


def wait_until_ready(daemon: Daemon) -> None:
    wait_for(lambda: readiness(daemon) == (200, "ok\n"), "the daemon to be ready", 60)


def suspended_at_once(daemon: Daemon) -> psutil.Process:
    worker = wait_for(lambda: daemon.worker, "the worker to be started")
    worker.suspend()
    return worker


@pytest.mark.parametrize("page", PAGES)
def test_pages(daemon: Daemon, page: str) -> None:
    wait_until_ready(daemon)
    answer = ask(daemon.http + page)
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain")
    head = ask(daemon.http + page, method="HEAD")
    assert (head.status, head.text) == (200, "")
    assert ask(daemon.http + page, method="POST").status == 405


def test_other_pages_are_not_there(daemon: Daemon) -> None:
    for page in ("/nothing", "//", "/healthz/../../etc/passwd", "/%00"):
        assert ask(daemon.http + page).status == 404, page


def test_openmetrics_for_those_who_ask(daemon: Daemon) -> None:
    answer = ask(f"{daemon.http}/metrics", accept=OPENMETRICS)
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize(("address", "start"), [("[::1]:0", "http://[::1]:"), ("localhost:0", "http://")])
def test_addresses(reopened: Callable[..., Wire], address: str, start: str) -> None:
    daemon = reopened("--http", address).daemon
    assert daemon.http.startswith(start)
    assert ask(f"{daemon.http}/healthz").status == 200


def test_none_at_all(reopened: Callable[..., Wire]) -> None:
    daemon = reopened("--http", "").daemon
    assert daemon.http == ""
    listening = [found.laddr.port for found in psutil.Process(daemon.pid).net_connections() if found.status == "LISTEN"]
    assert listening == [int(daemon.server.rpartition(":")[2])]


@pytest.mark.parametrize("address", ["127.0.0.1:{taken}", "nowhere.invalid:7072", "a..b:7072"])
def test_an_address_that_cannot_be_had(daemon: Daemon, past: History, tmp_path: Path, address: str) -> None:
    address = address.format(taken=daemon.http.rpartition(":")[2])
    other = past.copy(tmp_path / "state")
    ended = foldind("serve", "--state", str(other), "--grpc", "127.0.0.1:0", "--http", address, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on {address}" in ended.stderr
    assert "choose one with --http" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_not_ready_while_the_worker_starts(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    daemon = start_daemon(past.copy(tmp_path / "state"))
    worker = suspended_at_once(daemon)
    status, sentence = readiness(daemon)
    assert status == 503
    assert "starting" in sentence
    assert ask(f"{daemon.http}/healthz").status == 200
    assert scrape(daemon.http)("foldin_ready") == 0
    worker.resume()
    wait_until_ready(daemon)
    assert scrape(daemon.http)("foldin_ready") == 1


def test_not_ready_while_it_drains(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    daemon = start_daemon(past.copy(tmp_path / "state"), None, "--shutdown-grace", "60")
    with Wire(daemon) as wire, idle_worker(daemon):
        submission = wire.upload(single(fine_tuned(base_tensors())))
        wait_for(lambda: state(wire.get(submission.id)) == "MERGING", "the merge to begin")
        psutil.Process(daemon.pid).send_signal(signal.SIGTERM)
        wait_for(lambda: readiness(daemon)[0] == 503, "the daemon to drain")
        assert "shutting down" in readiness(daemon)[1]
        assert ask(f"{daemon.http}/healthz").status == 200
        assert scrape(daemon.http)("foldin_submissions", state="merging") == 1
    assert daemon.terminate() == 0
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", int(daemon.http.rpartition(":")[2]))) != 0


def test_not_ready_while_paused(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    daemon = start_daemon(past.copy(tmp_path / "state"), None, environment={"FOLDIN_RETRY_DISK_EVERY": "0.2"})
    wait_until_ready(daemon)
    weights = daemon.state / "base" / "model.safetensors"
    hidden = weights.replace(tmp_path / "hidden")
    with Wire(daemon) as wire:
        submission = wire.upload(single(fine_tuned(base_tensors())))
        wait_for(lambda: readiness(daemon)[0] == 503, "the daemon to pause")
        assert "paused" in readiness(daemon)[1]
        samples = scrape(daemon.http)
        assert (samples("foldin_paused", reason="disk"), samples("foldin_paused", reason="error")) == (1, 0)
        assert samples("foldin_ready") == 0
        hidden.replace(weights)
        assert state(wire.settled(submission.id)) == "MERGED"
    wait_until_ready(daemon)
    assert scrape(daemon.http)("foldin_paused", reason="disk") == 0


def test_an_idle_connection_is_closed(daemon: Daemon) -> None:
    host, port = daemon.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: foldin\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - began < 20


def test_what_is_no_http_is_not_logged(daemon: Daemon) -> None:
    host, port = daemon.http.removeprefix("http://").split(":")
    before = daemon.log.stat().st_size
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert b"400" in connection.recv(4096)
    assert ask(f"{daemon.http}/healthz").status == 200
    assert "HTTP" not in daemon.log.read_bytes()[before:].decode()
