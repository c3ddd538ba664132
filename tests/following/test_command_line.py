"""`foldin follow` as a process: its hooks, its signals, its metrics, its exit status."""

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from foldin import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.following.running import Alias, Following, current, record, require_whole, wait_for_target
from tests.following.stand_ins import StandIn, Vllm
from tests.support.daemon import Daemon, foldin, wait_for


def samples(file: Path, alias: str) -> dict[str, float]:
    """Name, and the outcome in brackets where there is one -> value."""
    found = {}
    for family in text_string_to_metric_families(file.read_text()):
        for sample in family.samples:
            assert sample.labels.pop("alias") == alias
            found[sample.name + "".join(f"({outcome})" for outcome in sample.labels.values())] = sample.value
    return found


def test_a_command_is_told_of_the_swap(daemon: Daemon, client: Client, alias: Alias, to: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = (
        f'echo "$FOLDIN_ALIAS $FOLDIN_VERSION <$FOLDIN_PREVIOUS_VERSION> $FOLDIN_SNAPSHOT $FOLDIN_CURRENT" >> {told}'
    )
    with Following(daemon.server, alias.name, to, "--exec", f"{command}; echo spoken") as following:
        following.wait_for("applied", 1)
        alias.move(2)
        following.wait_for("applied", 2)
        assert following.stop() == 0
        assert "spoken" in following.log.read_text(), "stdout holds events only"
    assert told.read_text().splitlines() == [
        f"{alias.name} 1 <> {to}/versions/v1 {to}/current",
        f"{alias.name} 2 <1> {to}/versions/v2 {to}/current",
    ]


def test_a_command_that_takes_too_long(daemon: Daemon, alias: Alias, to: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"[ $FOLDIN_VERSION = 1 ] || {{ sleep 1000 & echo $! >> {pids}; sleep 1000; }}"
    foldin("follow", "--server", daemon.server, "--alias", alias.name, "--to", str(to), "--once", "--exec", command)
    alias.move(2)
    flags = ("--once", "--exec", command, "--hook-timeout", "0.5")
    ended = foldin("follow", "--server", daemon.server, "--alias", alias.name, "--to", str(to), *flags, check=False)
    assert ended.returncode == 1
    assert "v2 failed, and v1 is applied again: the command took longer than 0.5 s and was killed." in ended.stderr
    assert ended.stdout.splitlines() == ["pulling v2.", "current is v2."]
    assert current(to) == "versions/v1"
    pid = int(pids.read_text())
    wait_for(lambda: not psutil.pid_exists(pid), "what it started in the background to be gone")


def test_once_says_by_its_exit_status_how_it_ended(daemon: Daemon, alias: Alias, to: Path) -> None:
    common = ("follow", "--server", daemon.server, "--alias", alias.name, "--to", str(to), "--once")
    failed = foldin(*common, "--exec", "exit 3", "--json", check=False)
    assert failed.returncode == 1
    events = [json.loads(line) for line in failed.stdout.splitlines()]
    assert [event["event"] for event in events] == ["pulling", "swapped", "failed"]
    assert "the command ended with exit status 3." in failed.stderr
    assert foldin(*common).stdout.splitlines() == ["pulling v1.", "current is v1.", f"{alias.name} is v1: applied."]
    assert foldin(*common).stdout == "v1 is applied already.\n"
    alias.move(None)
    missing = foldin(*common, "--json", check=False)
    assert (missing.returncode, json.loads(missing.stdout)["error"]["code"]) == (1, "NOT_FOUND")


def test_metrics_tell_the_lag_while_a_hook_blocks(daemon: Daemon, alias: Alias, to: Path, tmp_path: Path) -> None:
    metrics, gate = tmp_path / "foldin.prom", tmp_path / "gate"
    command = (
        f"[ $FOLDIN_VERSION = 1 ] || [ $FOLDIN_VERSION = 4 ] || {{ until [ -e {gate} ]; do sleep 0.05; done; exit 1; }}"
    )
    flags = ("--exec", command, "--metrics-file", str(metrics))
    with Following(daemon.server, alias.name, to, *flags) as following:
        following.wait_for("applied", 1)
        first = samples(metrics, alias.name)
        assert first["foldin_follow_version"] == first["foldin_follow_target_version"] == 1
        assert first["foldin_follow_version_lag"] == 0
        assert first["foldin_follow_swaps_total(applied)"] == 1
        assert first["foldin_follow_swaps_total(rolled_back)"] == first["foldin_follow_swaps_total(failed)"] == 0
        alias.move(3)
        following.wait_for("swapped", 3)
        blocked = samples(metrics, alias.name)
        assert (blocked["foldin_follow_version"], blocked["foldin_follow_version_lag"]) == (1, 2)
        alias.move(4)
        wait_for_target(metrics, 4)
        assert samples(metrics, alias.name)["foldin_follow_version_lag"] == 3
        gate.touch()
        following.wait_for("applied", 4)
        last = samples(metrics, alias.name)
        assert (last["foldin_follow_version"], last["foldin_follow_version_lag"]) == (4, 0)
        assert last["foldin_follow_swaps_total(applied)"] == 2
        assert last["foldin_follow_swaps_total(rolled_back)"] == 1
        assert last["foldin_follow_last_swap_timestamp_seconds"] > first["foldin_follow_last_swap_timestamp_seconds"]
        assert metrics.stat().st_mode & 0o777 == 0o644, "another user collects it"
        assert following.stop() == 0
    alias.move(2)
    with Following(daemon.server, alias.name, to, "--metrics-file", str(metrics)) as following:
        following.wait_for("applied", 2)
        assert samples(metrics, alias.name)["foldin_follow_swaps_total(applied)"] == 3, "counted on"
    refused = foldin(
        "follow",
        "--server",
        daemon.server,
        "--to",
        str(tmp_path / "other"),
        "--metrics-file",
        "/nowhere/x",
        check=False,
    )
    assert "cannot write /nowhere/x: No such file or directory." in refused.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it(daemon: Daemon, alias: Alias, to: Path, number: int, status: int) -> None:
    with Following(daemon.server, alias.name, to) as following:
        following.wait_for("applied", 1)
        assert following.stop(number) == status
        assert "Traceback" not in following.log.read_text()


def test_a_signal_waits_for_the_hooks(daemon: Daemon, client: Client, alias: Alias, to: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Following(daemon.server, alias.name, to, "--exec", f"until [ -e {gate} ]; do sleep 0.05; done") as following:
        following.wait_for("swapped", 1)
        following.process.terminate()
        wait_for(lambda: "ending once the hooks are through" in following.log.read_text(), "it to say so")
        gate.touch()
        assert following.process.wait(30) == 0
        assert following.events[-1]["event"] == "applied"
    assert record(to)["loaded"] == 1


def test_a_second_signal_breaks_a_hook_off(daemon: Daemon, alias: Alias, to: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Following(daemon.server, alias.name, to, "--exec", f"sleep 1000 & echo $! > {pids}; wait") as following:
        pid = int(wait_for(lambda: pids.exists() and pids.read_text().strip(), "the command to run"))
        following.process.send_signal(signal.SIGINT)
        wait_for(lambda: "again to break them off" in following.log.read_text(), "it to say so")
        assert following.stop(signal.SIGINT) == 130
        wait_for(lambda: not psutil.pid_exists(pid), "the command to be gone")
    assert (record(to)["loaded"], current(to)) == (None, "versions/v1")
    with Following(daemon.server, alias.name, to, "--exec", "true") as following:
        following.wait_for("applied", 1)


def test_servers_and_a_webhook(daemon: Daemon, client: Client, alias: Alias, to: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    with Vllm() as one, Vllm() as other, StandIn() as receiver:
        receiver.faults["/"] = [(200, "ok")]
        flags: tuple[Any, ...] = ("--vllm", one.url, "--vllm", other.url, "--once")
        webhook = ("--webhook", f"{receiver.url}/", "--webhook-secret-file", secret)
        environment = {"FOLDIN_INFERENCE_API_KEY": "key"}
        with Following(daemon.server, alias.name, to, *flags, *webhook, environment=environment) as following:
            assert following.process.wait(60) == 0, following.log.read_text()
        assert one.model == other.model == str(to / "versions" / "v1")
        assert one.requests[0].headers["Authorization"] == "Bearer key"
        assert receiver.requests[0].document["event"] == "applied"
    assert require_whole(client, to) == 1


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("--as", "lora"), 2, "neither model nor adapter"),
        (("--rank", "4"), 2, "add --as adapter"),
        (("--webhook", "http://localhost:1/"), 2, "FOLDIN_WEBHOOK_SECRET"),
        (("--webhook", "http://localhost:1/", "--webhook-secret-file", "/nowhere"), 2, "cannot read it"),
        (("--vllm", "localhost:8000"), 1, "write http://HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(
    daemon: Daemon, to: Path, flags: tuple[str, ...], code: int, sentence: str
) -> None:
    refused = foldin("follow", "--server", daemon.server, "--to", str(to), *flags, check=False)
    assert refused.returncode == code
    assert sentence in refused.stderr
    assert not to.exists()
