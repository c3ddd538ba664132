"""How a case ends."""

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    FAILED = "failed"
    """Foldin, not the submission."""


class Outcome(NamedTuple):
    verdict: Verdict
    reason: str
    seconds: float
    bytes: int
    """That memory grew by at its peak."""


class Case(NamedTuple):
    """What repeats a mutation."""

    format: str
    seed: int
    number: int
