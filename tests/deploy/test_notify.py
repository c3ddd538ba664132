"""What a service manager is told, over a real notification socket."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from foldind.systemd import READY, WATCHDOG, Systemd

from tests.faults.processes import FaultDaemon
from tests.support.daemon import Daemon, wait_for
from tests.support.http import ask
from tests.support.models import base_tensors, make_base
from tests.support.wire import Daemons, Wire, fine_tuned, single, state

SHORT = 0.1
LONG_SECONDS = 30


class Manager:
    """The receiving end."""

    def __init__(self, address: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.environment = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        self.told: list[str] = []

    def listen(self, seconds: float) -> list[str]:
        """What it is told from now on, for so long."""
        heard, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                heard += self.socket.recv(4096).decode().split("\n")
            except TimeoutError:
                break
        self.told += heard
        return heard

    def wait_for(self, message: str) -> None:
        wait_for(lambda: message in self.listen(SHORT), message, LONG_SECONDS)

    def wait_for_silence(self, seconds: float) -> None:
        wait_for(lambda: WATCHDOG not in self.listen(seconds), "the watchdog to starve", LONG_SECONDS)


@contextmanager
def listening(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    try:
        yield manager
    finally:
        manager.socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening(str(tmp_path / "notify")) as manager:
        yield manager


@pytest.fixture
def start_daemon() -> Iterator[Daemons]:
    daemons = Daemons()
    yield daemons
    daemons.end()


def test_from_ready_to_stopping(manager: Manager, tmp_path: Path, start_daemon: Daemons) -> None:
    base = make_base(tmp_path / "base")
    environment = {**manager.environment, "WATCHDOG_USEC": "400000"}
    daemon = start_daemon(tmp_path / "state", base, environment=environment)
    manager.wait_for(READY)
    manager.wait_for(WATCHDOG)
    with Wire(daemon) as wire:
        assert state(wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)) == "MERGED"
    manager.wait_for("STATUS=waiting for submissions")
    heard = manager.listen(2)
    assert 5 <= heard.count(WATCHDOG) <= 12, "it is fed every 0.2 s"

    process = psutil.Process(daemon.pid)
    process.suspend()
    manager.wait_for_silence(1)
    process.resume()
    manager.wait_for(WATCHDOG)

    process.send_signal(signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    assert daemon.terminate() == 0
    manager.listen(SHORT)
    assert manager.told.count(READY) == 1
    after = manager.told[manager.told.index("STOPPING=1") + 1 :]
    assert READY not in after
    assert WATCHDOG not in after


def test_a_loop_that_hangs_starves_the_watchdog(manager: Manager, tmp_path: Path) -> None:
    mark = tmp_path / "hang"
    Daemon(tmp_path / "state", make_base(tmp_path / "base"))
    daemon = FaultDaemon(
        tmp_path / "state",
        command=(sys.executable, str(Path(__file__).with_name("wedged.py")), str(mark)),
        environment={**manager.environment, "WATCHDOG_USEC": "400000"},
    )
    try:
        daemon.start_warm()
        [address] = re.findall(r"health on http://(\S+)", daemon.text)
        assert ask(f"http://{address}/healthz").status == 200
        assert manager.listen(3).count(WATCHDOG) >= 5, "a loop that idles is no loop that hangs"
        mark.touch()
        manager.wait_for_silence(1)
        # The event loop is alive: it is the merge loop that hangs.
        with Wire(daemon) as wire:
            assert state(wire.upload(single(fine_tuned(base_tensors())))) == "QUEUED"
        assert ask(f"http://{address}/healthz").status == 503, "other service managers see it too"
    finally:
        daemon.kill()


@pytest.mark.long
def test_a_long_fold_does_not(manager: Manager, tmp_path: Path) -> None:
    Daemon(tmp_path / "state", make_base(tmp_path / "base"))
    daemon = FaultDaemon(
        tmp_path / "state",
        command=(sys.executable, str(Path(__file__).with_name("wedged.py")), str(tmp_path / "never")),
        environment={**manager.environment, "WATCHDOG_USEC": "400000"},
    )
    try:
        worker = daemon.start_warm().wait_for_worker()
        worker.suspend()
        with Wire(daemon) as wire:
            submission = wire.upload(single(fine_tuned(base_tensors())))
            wait_for(lambda: state(wire.get(submission.id)) == "MERGING", "the fold to begin")
            manager.listen(2)  # longer than a step of the loop's own may take
            assert manager.listen(1).count(WATCHDOG) >= 3
            worker.resume()
            assert state(wire.settled(submission.id)) == "MERGED"
    finally:
        daemon.kill()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "1000000"}, 0),  # nowhere to send it
        ({"NOTIFY_SOCKET": "/x"}, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000"}, 0.5),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-5"}, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "²"}, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "me"}, 0),
    ],
)
def test_how_often(environment: dict[str, str], seconds: float) -> None:
    assert Systemd(environment).watchdog_seconds == seconds


@pytest.mark.parametrize("address", ["/nobody/listens/here", "@foldin-nobody", "x" * 500, "relative", "a\0b"])
def test_nobody_there_is_a_warning(address: str, caplog: pytest.LogCaptureFixture) -> None:
    Systemd({"NOTIFY_SOCKET": address}).tell(READY)
    assert "systemd could not be told READY=1" in caplog.text


@pytest.mark.parametrize("address", ["{tmp}/notify", "\0foldin-test-{pid}"], ids=["path", "abstract"])
def test_status_is_one_line_and_said_once(tmp_path: Path, address: str) -> None:
    with listening(address.format(tmp=tmp_path, pid=os.getpid())) as manager:
        systemd = Systemd(manager.environment)
        for _ in range(3):
            systemd.tell_status("paused: no room\nREADY=0")
        assert manager.listen(SHORT) == ["STATUS=paused: no room READY=0"]
