"""A folder that follows an alias: where it arrives, what stays, and what is refused."""

import re
import socket
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import foldin
import pytest
from foldin import Client, Event, EventKind, Swap

from tests.following.running import Alias, current, record, require_whole, until, versions, wait_for_target
from tests.support.daemon import Daemon
from tests.support.daemon import foldin as foldin_command
from tests.support.history import History

Hook = Callable[[Swap], object]


def follow(client: Client, alias: Alias, to: Path, *hooks: Hook, **terms: object) -> Generator[Event, None, None]:
    return foldin.follow(client, alias=alias.name, to=to, hooks=hooks, **terms)  # type: ignore[arg-type]


def kinds(events: Generator[Event, None, None]) -> list[str]:
    return [str(event.kind) for event in events]


def broken_for(*versions: int) -> Hook:
    def hook(swap: Swap) -> None:
        if swap.version in versions:
            raise RuntimeError(f"v{swap.version} does not fit")

    return hook


def test_forth_and_back(client: Client, alias: Alias, to: Path) -> None:
    swaps: list[Swap] = []
    with closing(follow(client, alias, to, swaps.append)) as events:
        for previous, version in [(None, 1), (1, 3), (3, 2), (2, 3)]:
            alias.move(version)
            event = until(events, EventKind.APPLIED)
            assert (event.alias, event.version, event.current) == (alias.name, version, version)
            assert require_whole(client, to) == version
            assert swaps[-1] == Swap(alias.name, version, to / f"versions/v{version}", to / "current", previous)
    assert current(to) == "versions/v3", "a link that survives a move of the folder"
    assert len(swaps) == 4
    assert kinds(follow(client, alias, to, swaps.append, once=True)) == ["unchanged"]
    assert len(swaps) == 4


def test_an_alias_that_is_set_later_and_deleted(client: Client, alias: Alias, to: Path) -> None:
    alias.move(None)
    with pytest.raises(foldin.NotFound, match=alias.name):
        list(follow(client, alias, to, once=True))
    assert not to.exists()
    with closing(follow(client, alias, to)) as events:
        assert next(events).kind == EventKind.WAITING
        assert current(to) is None
        alias.move(2)
        until(events, EventKind.APPLIED, 2)
        alias.move(None)
        assert require_whole(client, to) == 2, "what is served stays"
        alias.move(4)
        assert [next(events).kind for _ in range(3)] == ["pulling", "swapped", "applied"]
        assert require_whole(client, to) == 4


def test_what_it_missed_is_skipped(client: Client, alias: Alias, to: Path) -> None:
    def move_on(swap: Swap) -> None:
        if swap.version == 1:
            for version in (2, 3, 4):
                alias.move(version)
            wait_for_target(metrics, 4)

    metrics = to.with_name("x.prom")
    with closing(follow(client, alias, to, move_on, metrics_file=metrics)) as events:
        until(events, EventKind.APPLIED, 1)
        assert next(events).version == 4
        until(events, EventKind.APPLIED, 4)
    assert versions(to) == ["v1", "v4"]


def test_a_pull_that_is_overtaken(client: Client, alias: Alias, to: Path) -> None:
    def move_on(progress: foldin.Progress) -> None:
        if progress.done and not moved:
            moved.append(alias.move(2))
            wait_for_target(metrics, 2)

    moved: list[None] = []
    metrics = to.with_name("x.prom")
    events = follow(client, alias, to, on_progress=move_on, metrics_file=metrics)
    with closing(events):
        told = [next(events) for _ in range(4)]
    assert [(event.kind, event.version) for event in told] == [
        ("pulling", 1),
        ("pulling", 2),
        ("swapped", 2),
        ("applied", 2),
    ]
    assert versions(to) == ["v2"], "what was pulled of v1 is removed"


def test_old_versions_are_removed(client: Client, alias: Alias, to: Path) -> None:
    with closing(follow(client, alias, to, keep=1)) as events:
        for version, kept in [
            (1, ["v1"]),
            (2, ["v1", "v2"]),
            (4, ["v2", "v4"]),
            (3, ["v3", "v4"]),
            (1, ["v1", "v3", "v4"]),
        ]:
            alias.move(version)
            until(events, EventKind.APPLIED, version)
            assert versions(to) == kept, "the newest, the current, and the one to go back to"
    stray = to / "versions" / ".v2.removed"
    stray.mkdir()
    (to / "versions" / "mine").mkdir()
    list(follow(client, alias, to, once=True))
    assert versions(to) == ["mine", "v1", "v3", "v4"]


def test_a_failing_hook(client: Client, alias: Alias, to: Path) -> None:
    swaps: list[tuple[int, int | None]] = []
    hooks = (lambda swap: swaps.append((swap.version, swap.previous)), broken_for(2))
    with closing(follow(client, alias, to, *hooks)) as events:
        until(events, EventKind.APPLIED, 1)
        alias.move(2)
        event = until(events, EventKind.ROLLED_BACK)
        assert (event.version, event.current) == (2, 1)
        assert "v1 is applied again: hook failed: RuntimeError: v2 does not fit" in event.message
        assert require_whole(client, to) == 1
        assert swaps == [(1, None), (2, 1), (1, 2)]
        alias.move(3)
        assert next(events).version == 3, "v2 is not tried again"
        until(events, EventKind.APPLIED, 3)
        alias.move(2)
        until(events, EventKind.ROLLED_BACK, 2)
    assert swaps[3:] == [(3, 1), (2, 3), (3, 2)]
    assert (record(to)["failed"], record(to)["loaded"]) == (2, 3)
    assert kinds(follow(client, alias, to, once=True)) == ["pulling", "swapped", "applied"], "it is, started anew"
    assert (record(to)["failed"], current(to)) == (None, "versions/v2")


def test_a_failing_hook_and_nothing_to_go_back_to(client: Client, alias: Alias, to: Path) -> None:
    class Server:
        loaded: int | None = None

        def __call__(self, swap: Swap) -> None:
            self.loaded = swap.version
            raise foldin.HookFailed("it does not fit.")

        def withdraw(self) -> None:
            self.loaded = None

    server = Server()
    event = list(follow(client, alias, to, server, once=True))[-1]
    assert (event.kind, event.version, event.current) == (EventKind.FAILED, 1, None)
    assert event.message == "v1 failed, and there is no earlier one: current is removed. it does not fit."
    assert current(to) is None
    assert server.loaded is None
    until(follow(client, alias, to, once=True), EventKind.APPLIED, 1)


def test_hooks_that_fail_for_both(client: Client, alias: Alias, to: Path) -> None:
    list(follow(client, alias, to, once=True))
    alias.move(2)
    event = list(follow(client, alias, to, broken_for(1, 2), once=True))[-1]
    assert (event.kind, event.version, event.current) == (EventKind.FAILED, 2, 1)
    assert "current is v1 again, but not on the servers" in event.message
    alias.move(1)
    event = list(follow(client, alias, to, broken_for(1), once=True))[-1]
    assert (event.kind, current(to)) == (EventKind.FAILED, "versions/v1"), "v1 was good, so that the server is not"
    swaps: list[Swap] = []
    assert kinds(follow(client, alias, to, swaps.append, once=True)) == ["swapped", "applied"]
    assert [swap.version for swap in swaps] == [1]


@pytest.mark.long
def test_through_a_restart_of_the_daemon(past: History, tmp_path: Path, to: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    daemon = Daemon(past.copy(tmp_path / "state"), None, "--grpc", f"127.0.0.1:{port}")
    with daemon, daemon.client() as client:
        alias = Alias(client, "stable")
        alias.move(1)
        with closing(follow(client, alias, to)) as events:
            until(events, EventKind.APPLIED, 1)
            daemon.kill()
            assert next(events).kind == EventKind.UNREACHABLE
            server = daemon.start().server
            assert next(events).kind == EventKind.REACHABLE
            foldin_command("alias", "stable", "v2", "--server", server)
            until(events, EventKind.APPLIED, 2)
            assert require_whole(client, to) == 2


def test_a_daemon_that_never_answered(to: Path) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(foldin.ServerUnavailable):
        list(foldin.follow(client, to=to))
    assert not to.exists()


def test_what_cannot_be_pulled_is_tried_again(client: Client, alias: Alias, to: Path) -> None:
    blocking = to / "versions" / "v1"
    with closing(follow(client, alias, to)) as events:
        assert next(events).kind == EventKind.PULLING
        blocking.mkdir()
        (blocking / "mine").touch()
        event = next(events)
        assert event.kind == EventKind.PULL_FAILED
        assert "holds files that Foldin did not put there" in event.message
        (blocking / "mine").unlink()
        until(events, EventKind.APPLIED, 1)
        (to / "versions" / "v2").mkdir()
        (to / "versions" / "v2" / "mine").touch()
        alias.move(2)
        until(events, EventKind.PULL_FAILED, 2)
        alias.move(3)
        until(events, EventKind.APPLIED, 3)


def test_adapters(past: History, tmp_path: Path, to: Path) -> None:
    flags = ("--publish", "model", "--publish", "adapter")
    with Daemon(past.copy(tmp_path / "state"), None, *flags) as daemon, daemon.client() as client:
        snapshot = client.publish("norm", alias="stable")
        alias = Alias(client, "stable")
        terms = {"form": "adapter", "rank": 2, "once": True}
        list(follow(client, alias, to, **terms))
        config = (to / "current" / "adapter_config.json").read_text()
        assert re.search(r'"r": 2\b', config)
        assert current(to) == f"versions/v{snapshot.version}"
        with pytest.raises(foldin.PullError, match="holds versions as adapters of rank 2, not as models"):
            list(follow(client, alias, to, once=True))
        alias.move(1)
        with pytest.raises(foldin.NotFound, match="v1 has no adapter"):
            list(follow(client, alias, to, **terms))
        assert current(to) == f"versions/v{snapshot.version}"


def a_file(to: Path) -> str:
    to.write_text("mine")
    return "is a file"


def foreign_files(to: Path) -> str:
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    return "holds 'notes.txt', which `foldin follow` did not put there"


def a_pulled_model(to: Path) -> str:
    to.mkdir()
    (to / "foldin.json").write_text("{}")
    return "did not put there"


def a_record_of_a_later_release(to: Path) -> str:
    to.mkdir()
    (to / "follow.json").write_text('{"format": 2, "form": "model", "rank": null}')
    return "is no record that this release can read"


def a_broken_record(to: Path) -> str:
    to.mkdir()
    (to / "follow.json").write_text("[]")
    return "is no record that this release can read"


@pytest.mark.parametrize("build", [a_file, foreign_files, a_pulled_model, a_record_of_a_later_release, a_broken_record])
def test_what_is_not_ours_is_left_alone(client: Client, alias: Alias, to: Path, build: Callable[[Path], str]) -> None:
    sentence = build(to)
    before = {path.name: path.read_bytes() for path in to.iterdir()} if to.is_dir() else to.read_text()
    with pytest.raises(foldin.PullError, match=re.escape(sentence)):
        list(follow(client, alias, to))
    assert before == ({path.name: path.read_bytes() for path in to.iterdir()} if to.is_dir() else to.read_text())


def test_a_current_that_is_a_folder(client: Client, alias: Alias, to: Path) -> None:
    list(follow(client, alias, to, once=True))
    (to / "current").unlink()
    (to / "current").mkdir()
    with pytest.raises(foldin.PullError, match="is no link: move it away"):
        list(follow(client, alias, to, once=True))


def test_one_follower_at_a_time(client: Client, alias: Alias, to: Path) -> None:
    with closing(follow(client, alias, to)) as events:
        until(events, EventKind.APPLIED)
        with pytest.raises(foldin.PullError, match=f"another `foldin follow` keeps {to}"):
            list(follow(client, alias, to))
    assert kinds(follow(client, alias, to, once=True)) == ["unchanged"]


@pytest.mark.parametrize("terms", [{"form": "lora"}, {"rank": 4}, {"form": "adapter", "rank": 0}, {"keep": 0}])
def test_terms_that_cannot_be(client: Client, alias: Alias, to: Path, terms: dict[str, object]) -> None:
    with pytest.raises(foldin.InvalidArgument):
        follow(client, alias, to, **terms)
