"""How versions came from one another: what each one changed, and the way from one to another."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from foldin.models import Snapshot
from foldin.moments import iso

if TYPE_CHECKING:
    from foldin.client import Client


class Change(StrEnum):
    """What a version did to the one it was made from."""

    ADDED = "added"
    TOOK_OUT = "took_out"
    PUBLISHED = "published"
    """Nothing was merged: it is the state of its parent, published in another way."""


@dataclass(frozen=True)
class Step:
    """One version, and what it changed.

    Attributes:
      parent: the version it was made from; 0 for the base.
      state: of the version: PUBLISHED, WITHDRAWN (undone by a rollback) or PRUNED.
      submission_id: the submission that it added or took out; empty where it did neither.
      submissions: how many it contains.
      publication: how it was published; empty from a daemon that does not tell.
    """

    version: int
    parent: int
    state: str
    created_at: datetime
    change: Change
    submission_id: str
    submission_name: str
    submissions: int
    publication: str

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "version": self.version,
            "parent": self.parent,
            "state": self.state,
            "created_at": iso(self.created_at),
            "change": str(self.change),
            "submission_id": self.submission_id,
            "submission_name": self.submission_name,
            "submissions": self.submissions,
            "publication": self.publication,
        }


@dataclass(frozen=True)
class Lineage:
    """The way from one version to another.

    Attributes:
      ancestor: the newest version that both come from, or that one of them is; 0 for the base.
      undone: what is in the first and not in the second, newest first, from the first down to the ancestor.
      done: what is in the second and not in the first, oldest first, from the ancestor up to the second.
    """

    ancestor: int
    undone: tuple[Step, ...]
    done: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "ancestor": self.ancestor,
            "undone": [step.to_json() for step in self.undone],
            "done": [step.to_json() for step in self.done],
        }


def lineage_of(client: "Client", ref: str = "latest", *, most: int | None = None) -> tuple[Step, ...]:
    """Return what a version and its ancestors changed, this version first and the oldest last.

    Args:
      ref: version ("v12") or alias.
      most: no more than so many; None: down to the base.

    Raises:
      NotFound: no such version or alias.
    """
    steps = []
    for step in _steps(client, client.show(ref)):
        steps.append(step)
        if len(steps) == most:
            break
    return tuple(steps)


def lineage_between(client: "Client", first: Snapshot, second: Snapshot) -> Lineage:
    """Return the way from one version to another. Versions are numbered after what they were made from."""
    sides: tuple[list[Step], list[Step]] = ([], [])
    at = [first.version, second.version]
    walks = (_steps(client, first), _steps(client, second))
    while at[0] != at[1]:
        newer = 0 if at[0] > at[1] else 1
        step = next(walks[newer])
        sides[newer].append(step)
        at[newer] = step.parent
    return Lineage(at[0], tuple(sides[0]), tuple(reversed(sides[1])))


def change_of(snapshot: Snapshot) -> str:
    """Return what distinguishes a version from the one it was made from, in a few words."""
    if snapshot.variant:
        return f"v{snapshot.parent} as {snapshot.publication}"
    if snapshot.took_out:
        return f"without {snapshot.took_out_name or snapshot.took_out}"
    return snapshot.submission_name or snapshot.submission_id


def _steps(client: "Client", snapshot: Snapshot) -> Iterator[Step]:
    yield _step(snapshot)
    while snapshot.parent:
        snapshot = client.show(f"v{snapshot.parent}")
        yield _step(snapshot)


def _step(snapshot: Snapshot) -> Step:
    change, id, name = Change.ADDED, snapshot.submission_id, snapshot.submission_name
    if snapshot.variant:
        change, id, name = Change.PUBLISHED, "", ""
    elif snapshot.took_out:
        change, id, name = Change.TOOK_OUT, snapshot.took_out, snapshot.took_out_name
    return Step(
        version=snapshot.version,
        parent=snapshot.parent,
        state=snapshot.state,
        created_at=snapshot.created_at,
        change=change,
        submission_id=id,
        submission_name=name,
        submissions=snapshot.submissions,
        publication=snapshot.publication,
    )
