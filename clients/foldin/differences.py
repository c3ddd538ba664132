"""What a comparison of two versions finds: frozen records, each with the JSON that the command line prints."""

import math
from dataclasses import dataclass
from typing import Any

from foldin.dtypes import is_floating
from foldin.lineage import Lineage
from foldin.models import Snapshot


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor changed from version a to version b.

    Norms are Frobenius norms, over the elements that are finite in both versions.

    Attributes:
      dtype: as safetensors writes it.
      norm: of the tensor in a; None where it was not read, for it lies in a file that is equal in both versions.
      difference_norm: of b minus a.
      cosine: between the tensor in a and in b; None where it was not read, or one of them is zero.
      largest_change: the largest magnitude among the elements of b minus a.
      changed: how many elements are not the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    norm: float | None
    difference_norm: float
    cosine: float | None
    largest_change: float
    changed: int

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def relative(self) -> float:
        """The norm of the difference over that of the tensor in a; infinite where only the latter is zero."""
        return _ratio(self.difference_norm, self.norm or 0.0)

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not the same."""
        return self.changed / self.elements if self.elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types; null for what is not known or not finite."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "norm": self.norm,
            "difference_norm": self.difference_norm,
            "relative": _finite(self.relative),
            "cosine": self.cosine,
            "largest_change": self.largest_change,
            "changed_share": self.changed_share,
        }


@dataclass(frozen=True)
class Difference:
    """How version b differs from version a.

    The figures of the whole model are over its floating-point tensors.

    Attributes:
      lineage: what lies between the two.
      tensors: all of them, the largest relative change first.
    """

    a: Snapshot
    b: Snapshot
    lineage: Lineage
    tensors: tuple[TensorDifference, ...]

    @property
    def floating(self) -> tuple[TensorDifference, ...]:
        """The tensors of floating-point numbers."""
        return tuple(tensor for tensor in self.tensors if is_floating(tensor.dtype))

    @property
    def unread(self) -> int:
        """How many tensors were not read, for they lie in files that are equal in both versions."""
        return sum(tensor.norm is None for tensor in self.tensors)

    @property
    def norm(self) -> float:
        """Of the model in a; without the tensors that were not read."""
        return math.hypot(*(tensor.norm or 0.0 for tensor in self.floating))

    @property
    def difference_norm(self) -> float:
        """Of b minus a."""
        return math.hypot(*(tensor.difference_norm for tensor in self.floating))

    @property
    def relative(self) -> float:
        """The norm of the difference over that of a."""
        return _ratio(self.difference_norm, self.norm)

    @property
    def largest_change(self) -> float:
        """The largest magnitude among the elements of b minus a."""
        return max((tensor.largest_change for tensor in self.floating), default=0.0)

    @property
    def elements(self) -> int:
        """How many there are."""
        return sum(tensor.elements for tensor in self.floating)

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not the same."""
        return sum(tensor.changed for tensor in self.floating) / self.elements if self.elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "lineage": self.lineage.to_json(),
            "norm": self.norm,
            "difference_norm": self.difference_norm,
            "relative": _finite(self.relative),
            "largest_change": self.largest_change,
            "changed_share": self.changed_share,
            "elements": self.elements,
            "unread": self.unread,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def _ratio(difference: float, norm: float) -> float:
    if not difference:
        return 0.0
    return difference / norm if norm else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
