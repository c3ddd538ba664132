"""Checkpoints whose vocabulary has another size than the base's: what is done with them, and what was done."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class VocabPolicy(StrEnum):
    """What is done with a checkpoint whose vocabulary has another size than the base's."""

    SAME = "same"
    """It is refused."""
    COMMON = "common"
    """The rows that both have are folded."""


@dataclass(frozen=True)
class CommonRows:
    """A tensor of which only the rows are folded that a checkpoint and the base both have.

    Attributes:
      tensor: its name in the base.
      folded: how many rows are folded: the first ones.
      submission: how many the checkpoint has.
      base: how many the base has.
    """

    tensor: str
    folded: int
    submission: int
    base: int

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {"tensor": self.tensor, "folded": self.folded, "submission": self.submission, "base": self.base}
