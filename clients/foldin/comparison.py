"""How two versions of the merged model differ, tensor by tensor, read from the daemon piece by piece.

Invariant: what is in memory is a few blocks, however large a tensor is; sums are in float64.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from foldin.differences import Difference, TensorDifference
from foldin.dtypes import STORED
from foldin.errors import FailedPrecondition, listed
from foldin.lineage import lineage_between
from foldin.models import Progress
from foldin.served import ModelReader, ServedTensor, served_tensors
from foldin.tally import Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foldin.client import Client

_Pairs = Mapping[str, tuple[ServedTensor, ServedTensor]]


def diff(client: "Client", a: str, b: str, *, on_progress: Callable[[Progress], None] | None = None) -> Difference:
    """Return how version b differs from version a: what lies between them, and how each tensor changed.

    Both models are read from the daemon in pieces, but for files that are equal in both; nothing is written to disk.

    Args:
      a: version ("v12") or alias.
      b: likewise.
      on_progress: told of `comparing`, in bytes.

    Raises:
      NotFound: no such version or alias, or it is no longer kept, or has no whole model.
      FailedPrecondition: their tensors are not the same.
      DataLoss: a file arrived altered.
    """
    first, second = client.show(a), client.show(b)
    pairs = _pair(
        (served_tensors(client, first), f"v{first.version}"), (served_tensors(client, second), f"v{second.version}")
    )
    lineage = lineage_between(client, first, second)
    to_read = {name: pair for name, pair in pairs.items() if not _in_equal_files(*pair)}
    total = sum(tensor.size for pair in to_read.values() for tensor in pair)
    tally = Tally("comparing", total, on_progress or (lambda progress: None))
    found = []
    with (
        closing(ModelReader(client, first.version, lambda size: tally.add(name, size))) as read_first,
        closing(ModelReader(client, second.version, lambda size: tally.add(name, size))) as read_second,
    ):
        for name, (one, other) in pairs.items():
            sums = None
            if name in to_read:
                sums = _Sums()
                for before, after in zip(read_first.blocks(one), read_second.blocks(other), strict=True):
                    sums.add(before, after)
            found.append(_difference(name, one, sums))
    found.sort(key=lambda tensor: (-tensor.relative, -tensor.difference_norm, tensor.name))
    return Difference(first, second, lineage, tuple(found))


def _pair(first: tuple[Mapping[str, ServedTensor], str], second: tuple[Mapping[str, ServedTensor], str]) -> _Pairs:
    (before, a), (after, b) = first, second
    for tensors, label, others in ((before, a, after), (after, b, before)):
        if lacking := [name for name in others if name not in tensors]:
            raise FailedPrecondition(
                f"{a} and {b} do not hold the same tensors: {label} lacks {listed(lacking)}. Compare "
                "versions of one base."
            )
    for name, one in before.items():
        other = after[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise FailedPrecondition(
                f"tensor {name} is {one.dtype} {list(one.shape)} in {a} and {other.dtype} {list(other.shape)} in {b}: "
                "compare versions of one base."
            )
        if one.dtype not in STORED and not _in_equal_files(one, other):
            raise FailedPrecondition(
                f"tensor {name} has dtype {one.dtype}, which this client cannot read: a newer one may."
            )
    return {name: (one, after[name]) for name, one in before.items()}


def _in_equal_files(one: ServedTensor, other: ServedTensor) -> bool:
    return one.shard.file.sha256 == other.shard.file.sha256


class _Sums:
    """Of one tensor, over its blocks. Elements that are NaN or infinite in either version are in `changed` only."""

    def __init__(self) -> None:
        self.first = self.second = self.product = self.difference = self.largest = 0.0
        self.changed = 0

    def add(self, before: "NDArray[Any]", after: "NDArray[Any]") -> None:
        differ = before != after
        first, second = before.astype(np.float64), after.astype(np.float64)
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            differ &= ~(np.isnan(first) & np.isnan(second))
            first, second = first[finite], second[finite]
        self.changed += int(np.count_nonzero(differ))
        self.first += _inner(first, first)
        self.second += _inner(second, second)
        self.product += _inner(first, second)
        second -= first
        self.difference += _inner(second, second)
        self.largest = max(self.largest, float(second.max(initial=0)), -float(second.min(initial=0)))


def _inner(one: "NDArray[np.float64]", other: "NDArray[np.float64]") -> float:
    return float(np.einsum("i,i->", one, other))  # a dot product of BLAS wakes threads for every block: slower


def _difference(name: str, tensor: ServedTensor, sums: _Sums | None) -> TensorDifference:
    norm = cosine = None
    if sums is not None:
        norm = math.sqrt(sums.first)
        if norm and sums.second:
            cosine = min(1.0, max(-1.0, sums.product / (norm * math.sqrt(sums.second))))
    return TensorDifference(
        name=name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        norm=norm,
        difference_norm=math.sqrt(sums.difference) if sums else 0.0,
        cosine=cosine,
        largest_change=sums.largest if sums else 0.0,
        changed=sums.changed if sums else 0,
    )
