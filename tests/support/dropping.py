"""Dropping checkpoints into a watched folder, and reading what came of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, wait_for

SETTLE = 0.2
STALE = 0.6
POLL = 1.0
SETTINGS = {"FOLDIN_INBOX_SETTLE": str(SETTLE), "FOLDIN_INBOX_STALE": str(STALE), "FOLDIN_INBOX_POLL": str(POLL)}


@dataclass(frozen=True)
class Box:
    """A watched folder."""

    path: Path
    daemon: Daemon

    def write(self, name: str, content: bytes) -> Path:
        """Drop a file."""
        (path := self.path / name).write_bytes(content)
        return path

    def write_folder(self, name: str, files: Mapping[str, bytes]) -> Path:
        """Drop a folder."""
        (path := self.path / name).mkdir()
        for file, content in files.items():
            (path / file).write_bytes(content)
        return path

    def receipt(self, name: str, seconds: float = 30) -> dict[str, Any]:
        """Wait until a drop is filed under a name, and return its receipt; what was dropped lies beside it."""

        def filed() -> Path | None:
            found = [path for path in self.receipts() if path.name == f"{name}.json"]
            return found[0] if found and is_there(found[0].with_suffix("")) else None

        path = wait_for(filed, f"{name} to be filed; the log is {self.daemon.log}", seconds)
        receipt = read_receipt(path)
        assert (path.parent.name == "accepted") == (receipt["state"] == "MERGED")
        return receipt

    def accepted(self, name: str) -> dict[str, Any]:
        """As `receipt`, of a drop that is to be accepted."""
        receipt = self.receipt(name)
        assert receipt["state"] == "MERGED", receipt
        assert receipt["version"] > 0
        assert receipt["reason"] == ""
        return receipt

    def rejected(self, name: str, *words: str) -> dict[str, Any]:
        """As `receipt`, of a drop that is to be rejected with a sentence that has these words."""
        receipt = self.receipt(name)
        assert receipt["state"] == "REJECTED", receipt
        for word in words:
            assert word in receipt["reason"], receipt["reason"]
        assert receipt["reason"].isprintable()
        assert len(receipt["reason"]) > 20
        return receipt

    def receipts(self) -> list[Path]:
        """All receipts there are."""
        return [path for place in ("accepted", "rejected") for path in receipts_in(self.path / place)]

    def of(self, drop: str) -> dict[str, Any] | None:
        """The receipt of a drop of a name, whatever it is filed under."""
        found = [receipt for receipt in map(read_receipt, self.receipts()) if receipt["drop"] == drop]
        return found[0] if found else None

    def waiting(self) -> set[str]:
        """What was dropped and is not filed."""
        return {path.name for path in self.path.iterdir()} - {"accepted", "rejected"}


def receipts_in(place: Path) -> Sequence[Path]:
    """The receipts in a folder; a receipt has all that is said here."""
    return [path for path in place.glob("*.json") if path.is_file() and b'"request_id"' in path.read_bytes()]


def read_receipt(path: Path) -> dict[str, Any]:
    """Read a receipt."""
    receipt = json.loads(path.read_bytes())
    assert receipt.keys() == {
        *("drop", "request_id", "submission", "state", "version"),
        *("reason", "note", "received_at", "settled_at", "common_rows"),
    }
    assert receipt["received_at"] <= receipt["settled_at"]
    return receipt


def is_there(path: Path) -> bool:
    """Whether an entry exists, be it a link that leads nowhere."""
    return path.is_symlink() or path.exists()
