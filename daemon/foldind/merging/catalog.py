"""Which merge rules there are, what they take and what they keep: known without torch.

A rule's functions are in registry.py.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

Value = float | str
CrossBlocks = Literal["keep", "drop"]
"""What OPCM does with the blocks between taken and free directions; see opcm.opcm."""
ProjectionKind = Literal["exact", "leading"]
"""Which directions OPCM projects by; see opcm.opcm."""
Statistics = Literal["", "like", "gram"]
"""What submissions have to say about themselves, tensor by tensor: nothing; non-negative values of the tensor's shape;
or, of linear layers of (m, n), the Gram matrix of their inputs, (n, n)."""

ACCUMULATED = "accumulated"
"""The slot that every rule has: a sum of what was folded, S, or what stands for it."""

PUBLICATIONS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "norm": {},
        "mean": {},
        "scale": {"factor": 0.3},
        "tensor_norm": {"factor": 1.0},
        "iso": {"factor": 1.0},
        "flat": {"factor": 2.0},
        "power": {"exponent": 0.5},
        "foldin": {},
    }
)
"""Name of a publication of a sum -> its numbers, in order, and their defaults."""

DIVIDING = frozenset({"norm", "mean", "scale"})
"""Those that divide the sum by a number; only these keep a low rank as it is, and can be published as an adapter."""

RECORDED = frozenset({"tensor_norm", "flat"})
"""Those that need to know how long the task vectors of each tensor were."""

SPECTRAL = frozenset({"iso", "flat", "power", "foldin"})
"""Those that need the singular vectors of the sum."""


class Entry(NamedTuple):
    """What is known of a rule without its functions."""

    options: Mapping[str, Value]
    """What its accumulation takes, and the defaults."""
    publication: str
    """How it publishes by default, as `parse_publication` reads it; one of PUBLICATIONS, or its own."""
    own: Mapping[str, float] | None = None
    """Numbers of its own publication, in order, and their defaults; None: it keeps a sum, and has no own."""
    slots: tuple[str, ...] = ()
    """Kept besides the sum, each as large as the tensor."""
    matrix_slots: tuple[str, ...] = ()
    """Likewise, of linear layers only."""
    square_slots: tuple[str, ...] = ()
    """Of linear layers of (m, n), (n, n) each."""
    doubles: tuple[str, ...] = ()
    """Which are kept in float64, for a submission may weigh a million times what others do, and be taken out again; the
    others are float32."""
    projects: bool = False
    """Whether linear layers are projected, which takes their bases."""
    tables: bool = False
    """Whether the embeddings of tokens are projected too, each by itself, which leaves no low rank in them."""
    whole: bool = False
    """Whether a fold needs whole tensors, and not rows of them."""
    statistics: Statistics = ""
    """What it asks of submissions besides their tensors."""
    additive: bool = True
    """Whether what it keeps is a sum over the submissions, of which any can be taken out again."""

    @property
    def all_slots(self) -> tuple[str, ...]:
        """What is kept besides the sum."""
        return (*self.slots, *self.matrix_slots, *self.square_slots)

    def element_bytes(self, slots: Iterable[str]) -> int:
        """Return what an element of each of these slots takes, together."""
        return sum(8 if slot in self.doubles else 4 for slot in slots)


CATALOG: Mapping[str, Entry] = MappingProxyType(
    {
        "opcm": Entry(
            {"alpha": 0.5, "cross_blocks": "keep", "projection": "exact"}, "norm", projects=True, additive=False
        ),
        "foldin": Entry(
            {"alpha": 0.5, "cross_blocks": "keep"},
            "foldin",
            projects=True,
            tables=True,
            additive=False,
        ),
        "average": Entry({}, "mean"),
        "task_arithmetic": Entry({}, "scale:0.3"),
        "ties": Entry(
            {"density": 0.2},
            "ties",
            {"factor": 1.0},
            ("positive", "positives", "negatives"),
            whole=True,
        ),
        "dare": Entry({"density": 0.5}, "scale:0.3"),
        "breadcrumbs": Entry({"density": 0.9, "outliers": 0.01}, "scale:0.3", whole=True),
        "magmax": Entry({}, "scale:0.5", additive=False),
        "iso": Entry({}, "iso:1.0"),
        "regression": Entry({}, "regression", {"eps": 0.3}, (), ("moment",), ("gram",), whole=True),
        "fisher": Entry({"floor": 1e-6}, "fisher", {}, ("weight",), doubles=(ACCUMULATED, "weight"), statistics="like"),
        "regmean": Entry(
            {"shrink": 0.9},
            "regmean",
            {},
            (),
            ("moment",),
            ("gram",),
            doubles=("moment", "gram"),
            whole=True,
            statistics="gram",
        ),
        "model_stock": Entry({}, "model_stock", {}, ("directions",), whole=True),
    }
)
"""Name of a merge rule -> what is known of it."""

OPTIONS = frozenset(name for entry in CATALOG.values() for name in entry.options)
"""What any rule takes."""


class NamedPublication(NamedTuple):
    """A publication that was asked for."""

    name: str
    numbers: Mapping[str, float]


def parse_publication(text: str, rule: str) -> NamedPublication:
    """Read how a rule is to publish: `norm`, `flat:2.0`, `power:0.5`; empty: its default.

    Raises:
      ValueError: there is no such publication, the rule has none of this kind, or a number is out of range.
    """
    entry = CATALOG[rule]
    name, *given = (text or entry.publication).split(":")
    defaults = entry.own if entry.own is not None and name == rule else PUBLICATIONS.get(name)
    if defaults is None or (entry.own is not None and name != rule):
        known = [rule] if entry.own is not None else list(PUBLICATIONS)
        raise ValueError(f"the rule {rule!r} has no publication {name!r}; it has {', '.join(known)}")
    if len(given) > len(defaults):
        raise ValueError(f"the publication {name!r} takes {len(defaults)} numbers, not {len(given)}")
    try:
        numbers = dict(defaults) | dict(zip(defaults, map(float, given), strict=False))
    except ValueError:
        raise ValueError(f"{text!r} is no publication and its numbers, as in 'flat:2.0'") from None
    for number, value in numbers.items():
        if number == "exponent" and not 0 <= value <= 1:
            raise ValueError(f"the exponent of {name!r} is from 0 to 1, not {value}")
        if number != "exponent" and not 0 < value < math.inf:
            raise ValueError(f"the {number} of {name!r} is above 0, not {value}")
    return NamedPublication(name, numbers)


class Slot(NamedTuple):
    """One of the tensors that a rule keeps of a tensor."""

    shape: tuple[int, ...]
    dtype: Literal["F32", "F64"]


def slots_of(rule: str, shape: Sequence[int], *, matrix: bool) -> dict[str, Slot]:
    """Return what a rule keeps of a tensor that something was merged into.

    Args:
      rule: its name.
      shape: of the tensor.
      matrix: whether it is the weight of a linear layer, or of several, stacked.
    """
    entry, whole = CATALOG[rule], tuple(shape)
    shapes = dict.fromkeys((ACCUMULATED, *entry.slots), whole)
    if matrix:
        shapes |= dict.fromkeys(entry.matrix_slots, whole)
        shapes |= dict.fromkeys(entry.square_slots, (*whole[:-2], whole[-1], whole[-1]))
    return {slot: Slot(size, "F64" if slot in entry.doubles else "F32") for slot, size in shapes.items()}
