"""What a follower has to know after it was killed; everything else is read from the folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from foldin.errors import PullError
from foldin.follower.durable import write_file

_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """The record of one folder.

    Attributes:
      form: "model" or "adapter".
      rank: highest rank of adapters; None: as published.
      loaded: the version that all hooks last succeeded for, with none begun since; None while they run, or if they
        failed. Where it is not what `current` points at, the hooks have to run.
      good: the version to go back to: the last one that all hooks succeeded for.
      previous: the one before that.
      failed: the last version that a hook failed for, until one succeeds.
      swaps: outcome -> how many swaps ended so, ever.
      last_swap: seconds since the epoch of the last swap that was applied.
    """

    form: str
    rank: int | None
    loaded: int | None = None
    good: int | None = None
    previous: int | None = None
    failed: int | None = None
    swaps: Mapping[str, int] = field(default_factory=dict)
    last_swap: float | None = None
    format: int = _FORMAT

    def counted(self, outcome: str) -> dict[str, int]:
        """Return the swaps with one more that ended so."""
        return {**self.swaps, outcome: self.swaps.get(outcome, 0) + 1}

    def save(self, path: Path) -> None:
        """Write it. Raises OSError."""
        write_file(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Record | None":
        """Read it; None: there is none.

        Raises:
          PullError: it is not one that this release can read.
        """
        try:
            record = cls(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            record = None
        if record is None or record.format != _FORMAT:
            raise PullError(
                f"{path} is no record that this release can read: follow into another folder, or remove it together "
                "with everything beside it."
            )
        return record
