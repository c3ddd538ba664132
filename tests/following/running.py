"""Followers in this process and in their own, and what may be in their folders."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from foldin import Client, Event, EventKind

from tests.support.daemon import BIN, wait_for


@dataclass(frozen=True)
class Alias:
    """A name that a test moves."""

    client: Client
    name: str

    def move(self, version: int | None) -> None:
        self.client.set_alias(self.name, version)


def until(events: Iterator[Event], kind: EventKind, version: int | None = None) -> Event:
    """Take events up to one of a kind, and return it."""
    for event in events:
        if event.kind == kind and version in (None, event.version):
            return event
    raise AssertionError(f"it ended without {kind}")


def current(to: Path) -> str | None:
    """What the link says."""
    link = to / "current"
    return str(link.readlink()) if link.is_symlink() else None


def wait_for_target(metrics: Path, version: int) -> None:
    """Wait until a follower knows that its alias has moved."""
    wait_for(lambda: f"}} {version}\n" in metrics.read_text().partition("target_version{")[2], "the metrics to say so")


def versions(to: Path) -> list[str]:
    return sorted(path.name for path in (to / "versions").iterdir())


def record(to: Path) -> dict[str, Any]:
    return json.loads((to / "follow.json").read_bytes())


def require_whole(client: Client, to: Path) -> int | None:
    """Make sure that `current` is absent, or a whole version; return which."""
    target = current(to)
    if target is None:
        return None
    version = int(target.removeprefix("versions/v"))
    files = {file.name: file.sha256 for file in client.show(f"v{version}").files if "/" not in file.name}
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in (to / "current").iterdir()}
    assert found == files, f"{to / 'current'} is not whole"
    return version


class Following:
    """`foldin follow --json` as a process; a context manager that kills it."""

    def __init__(self, server: str, alias: str, to: Path, *flags: str, environment: dict[str, str] | None = None):
        self._out = to.with_name(f"{to.name}.events")
        self._seen = self._out.stat().st_size if self._out.exists() else 0
        self.log = to.with_name(f"{to.name}.log")
        with self._out.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "foldin", "follow", "--server", server, "--alias", alias, "--to", to, "--json", *flags],
                stdout=out,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it told so far."""
        lines = self._out.read_bytes()[self._seen :].split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def wait_for(self, kind: str, version: int | None = None) -> dict[str, Any]:
        """Wait until it tells something, and return that."""

        def told() -> dict[str, Any] | None:
            assert self.process.poll() is None or self._find(kind, version), f"it ended: {self.log.read_text()}"
            return self._find(kind, version)

        return wait_for(told, f"{kind} of v{version}; it told {self.events}")  # type: ignore[return-value]

    def _find(self, kind: str, version: int | None) -> dict[str, Any] | None:
        return next((e for e in self.events if e.get("event") == kind and version in (None, e["version"])), None)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
