"""What the manifests of versions say about the merges that made them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from foldind.checkpoints.plan import Plan, Treatment
from foldind.state.folder import StateFolder
from foldind.state.snapshots import MANIFEST

_KEPT_SHARES = 1024
_MANIFESTS = 4
"""Whose figures are kept in memory: models of many experts have tens of thousands of tensors."""


@dataclass(frozen=True)
class TensorFigures:
    """What a merge did to one projected tensor."""

    name: str
    norm: float
    """||tau||."""
    kept: float
    """||P(tau)|| / ||tau||."""
    split_rank: int
    rank: int
    """What the split rank is a share of: the rank of what is merged where it is held as factors, else the full one."""


@dataclass(frozen=True)
class AdapterFigures:
    """How much an adapter holds of the merged update."""

    rank: int
    retained: float
    """Share of the squared norm of the merged update."""


@dataclass(frozen=True)
class ManifestFigures:
    """What a manifest says about the merge that made its version."""

    dropped: float
    """Share of the accumulated norm that max_rank took out; earlier releases dropped nothing, and did not say so."""
    adapter: AdapterFigures | None
    projected: tuple[TensorFigures, ...]
    """The projected tensors, in the order of the manifest; none of a variant."""


class Manifests:
    """Reads manifests, and remembers what was asked for last; its methods block on the disk.

    Args:
      folder: where the snapshots lie.
      plan: of the base.
    """

    def __init__(self, folder: StateFolder, plan: Plan):
        self._folder = folder
        self._plan = plan
        self.of = lru_cache(_MANIFESTS)(self._read)
        """Version -> the figures of its manifest. Raises FileNotFoundError where the version was pruned."""
        self._kept = lru_cache(_KEPT_SHARES)(lambda version: kept_share(self._read(version).projected))

    def kept_share(self, version: int) -> float | None:
        """Return how much of a version's task vector the projection kept; None: it had none, or it was pruned."""
        try:
            return self._kept(version)
        except FileNotFoundError:
            return None

    def _read(self, version: int) -> ManifestFigures:
        manifest = json.loads((self._folder.snapshot(version) / MANIFEST).read_bytes())
        adapter = manifest.get("adapter")
        return ManifestFigures(
            dropped=manifest.get("dropped", 0.0),
            adapter=AdapterFigures(adapter["rank"], adapter["retained"][-1]) if adapter else None,
            projected=tuple(
                TensorFigures(
                    name=name,
                    norm=tensor["task_vector_norm"],
                    kept=tensor["kept"],
                    split_rank=tensor["split_rank"],
                    rank=tensor.get("rank") or min(self._plan.by_name[name].shape[-2:]),
                )
                for name, tensor in manifest.get("tensors", {}).items()
                if tensor["treatment"] == Treatment.PROJECTED
            ),
        )


def kept_share(tensors: Iterable[TensorFigures]) -> float | None:
    """Return the share of the norm of some task vectors, taken together, that the projection kept; None: it is 0."""
    norm = kept = 0.0
    for tensor in tensors:
        norm += tensor.norm**2
        kept += (tensor.kept * tensor.norm) ** 2
    return math.sqrt(kept / norm) if norm else None
