"""Movable names for snapshots."""

from collections.abc import Iterator

import pytest
from foldin.v1 import snapshots_pb2 as pb
from grpc import StatusCode

from tests.support.history import BEYOND, VERSIONS
from tests.support.wire import Wire, refused


@pytest.fixture(autouse=True)
def none_left(wire: Wire) -> Iterator[None]:
    yield
    for alias in ("stable", "canary"):
        wire.point(alias, 0)


def test_set_move_and_remove(wire: Wire) -> None:
    snapshot = wire.point("stable", 2).snapshot
    assert (snapshot.version, list(snapshot.aliases)) == (2, ["stable"])
    assert wire.snapshot("stable") == snapshot
    wire.point("canary", 4)
    assert list(wire.snapshot("v4").aliases) == ["canary", "latest"]
    assert wire.point("stable", 3).snapshot.version == 3
    assert list(wire.snapshot("v2").aliases) == []
    assert wire.point("stable", 0) == pb.SetAliasResponse()
    with refused(StatusCode.NOT_FOUND, "'stable'"):
        wire.snapshot("stable")


def test_what_was_refused_changes_nothing(wire: Wire) -> None:
    wire.point("canary", 1)
    with refused(StatusCode.NOT_FOUND, "v9"):
        wire.point("canary", 9)
    assert wire.snapshot("canary").version == 1


@pytest.mark.parametrize("name", ["s", "0.1", "v1.2", "3-stable", "a" * 100, "x._-"])
def test_names_that_can_be(wire: Wire, name: str) -> None:
    assert list(wire.point(name, 1).snapshot.aliases) == [name]
    assert wire.snapshot(name).version == 1
    wire.point(name, 0)


@pytest.mark.parametrize(
    "name", ["", "Stable", "v2", "2", "007", "a b", "-a", ".a", "_a", "a/b", "ä", "a" * 101, "a\n", "a\0"]
)
def test_names_that_cannot_be(wire: Wire, name: str) -> None:
    for version in (1, 0):
        with refused(StatusCode.INVALID_ARGUMENT, "alias"):
            wire.point(name, version)


@pytest.mark.parametrize("version", [0, 1, 4])
def test_latest_is_the_daemons(wire: Wire, version: int) -> None:
    with refused(StatusCode.PERMISSION_DENIED, "`latest`"):
        wire.point("latest", version)
    assert wire.snapshot("latest").version == VERSIONS


@pytest.mark.parametrize("version", [5, *BEYOND])
def test_no_such_version(wire: Wire, version: int) -> None:
    with refused(StatusCode.NOT_FOUND, f"v{version}"):
        wire.point("stable", version)
