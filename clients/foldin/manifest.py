"""What the manifest of a snapshot says of its merge, tensor by tensor."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foldin.destination import MANIFEST
from foldin.errors import DataLoss, NotFound
from foldin.served import read_whole

if TYPE_CHECKING:
    from foldin.client import Client


@dataclass(frozen=True)
class TensorStatistics:
    """What the merge that made a version did to one tensor.

    Attributes:
      treatment: how it is merged: `projected`, `summed`, `frozen`, ...
      task_vector_norm: Frobenius norm of what the submission changed in it.
      kept: share of that norm that was left by the projection; 1 where nothing is projected.
      split_rank: how many leading directions of what was merged before counted as taken.
      rank: of what is merged, where that is held as factors; else 0.
    """

    name: str
    treatment: str
    task_vector_norm: float
    kept: float
    split_rank: int
    rank: int

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "name": self.name,
            "treatment": self.treatment,
            "task_vector_norm": self.task_vector_norm,
            "kept": self.kept,
            "split_rank": self.split_rank,
            "rank": self.rank,
        }


def tensor_statistics(client: "Client", ref: str = "latest") -> tuple[TensorStatistics, ...]:
    """Return what the merge of a version did to each tensor, in the order of their names.

    Args:
      ref: version ("v12") or alias.

    Raises:
      NotFound: no such version or alias, it is no longer kept, or nothing was merged for it.
      DataLoss: its manifest arrived altered twice, or says nothing of tensors.
    """
    snapshot = client.show(ref)
    if snapshot.variant:
        raise NotFound(
            f"nothing was merged for v{snapshot.version}: it is v{snapshot.parent} published as "
            f"{snapshot.publication}. See: foldin show v{snapshot.parent} --tensors"
        )
    try:
        tensors = json.loads(read_whole(client, snapshot, MANIFEST))["tensors"]
        return tuple(_statistics(name, entry) for name, entry in sorted(tensors.items()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataLoss(f"{MANIFEST} of v{snapshot.version} has no statistics of tensors that can be read.") from None


def _statistics(name: str, entry: dict[str, Any]) -> TensorStatistics:
    return TensorStatistics(
        name=name,
        treatment=entry["treatment"],
        task_vector_norm=entry["task_vector_norm"],
        kept=entry["kept"],
        split_rank=entry["split_rank"],
        rank=entry["rank"],
    )
