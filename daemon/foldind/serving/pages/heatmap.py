"""The geometry of heat maps: which tensor goes into which cell, where the cell is, and what it shows. Pure."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from foldind.serving.manifests import TensorFigures, kept_share

STEPS = 8
"""Colours of a scale, of which the last stands out most."""
CELL_WIDTH = 24
_HEIGHTS = ((24, 18), (64, 12), (160, 8))
_LEAST_HEIGHT = 5
_LABEL_HEIGHT = 12
_LETTER = 6.4
_LONGEST = 26
_MARGIN = 8
_LEAST_SPREAD = 0.9
"""Where a scale of shares that ends at 1 begins at the most, so that little differences look little."""


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs."""

    stack: str
    """What comes before the number of the layer; empty where there is none."""
    layer: int | None
    """None: it is in no layer."""
    kind: str
    """What comes after it, further numbers as `*`; of a tensor in no layer its name."""


@dataclass(frozen=True)
class Cell:
    """Tensors of one kind in one layer."""

    place: Place
    tensors: tuple[TensorFigures, ...]

    @property
    def norm(self) -> float:
        """Of their task vectors, together."""
        return math.hypot(*(tensor.norm for tensor in self.tensors))

    @property
    def kept(self) -> float | None:
        """Share of that norm; None: nothing changed."""
        return kept_share(self.tensors)

    @property
    def rank_share(self) -> float:
        """The largest of their split ranks, relative to the rank."""
        return max(tensor.split_rank / tensor.rank for tensor in self.tensors)

    @property
    def ranks(self) -> str:
        """The same as numbers."""
        tensor = max(self.tensors, key=lambda tensor: tensor.split_rank / tensor.rank)
        return f"{tensor.split_rank} of {tensor.rank}"


@dataclass(frozen=True)
class Square:
    """A cell as it is drawn."""

    x: float
    y: float
    step: int | None
    """Of the scale; None: it has no value."""
    title: str


@dataclass(frozen=True)
class Label:
    """A word at an axis."""

    x: float
    y: float
    text: str
    title: str


@dataclass(frozen=True)
class Grid:
    """One stack of layers, drawn."""

    stack: str
    width: float
    height: float
    cell_height: float
    columns: tuple[Label, ...]
    rows: tuple[Label, ...]
    squares: tuple[Square, ...]


@dataclass(frozen=True)
class Figure:
    """One quantity over all layers."""

    title: str
    explanation: str
    grids: tuple[Grid, ...]
    ends: tuple[str, str]
    """What the scale begins and ends with."""
    legend: tuple[str, ...]
    """What each step stands for, of the first to the last."""


@dataclass(frozen=True)
class HeatMap:
    """A version, layer by layer."""

    figures: tuple[Figure, ...]
    cells: tuple[Cell, ...]
    """Of the layers, in order."""
    outside: tuple[Cell, ...]
    """Of what is in no layer."""


@dataclass(frozen=True)
class _Quantity:
    title: str
    explanation: str
    of: Callable[[Cell], float | None]
    reads: Callable[[float], str]
    low_stands_out: bool = False
    adds: Callable[[Cell], str] = lambda cell: ""


_QUANTITIES = (
    _Quantity(
        "Kept share",
        "How much of each task vector is new: 100 % is orthogonal to what was merged before, less collides with it.",
        lambda cell: cell.kept,
        lambda value: f"{100 * value:.1f} %",
        low_stands_out=True,
    ),
    _Quantity(
        "Split rank",
        "How many directions counted as taken by what was merged before, relative to the rank.",
        lambda cell: cell.rank_share,
        lambda value: f"{100 * value:.1f} %",
        adds=lambda cell: f", {cell.ranks}",
    ),
    _Quantity(
        "Task vector norm",
        "How far the submission moved each matrix away from the base.",
        lambda cell: cell.norm,
        lambda value: f"{value:.3g}",
    ),
)


def heat_map(tensors: Iterable[TensorFigures]) -> HeatMap:
    """Return what there is to draw of the projected tensors of a version."""
    places: dict[Place, list[TensorFigures]] = {}
    for tensor in tensors:
        places.setdefault(place(tensor.name), []).append(tensor)
    cells = [Cell(where, tuple(found)) for where, found in places.items()]
    inside = [cell for cell in cells if cell.place.layer is not None]
    stacks = list(dict.fromkeys(cell.place.stack for cell in inside))
    inside.sort(key=lambda cell: (stacks.index(cell.place.stack), cell.place.layer or 0))
    figures = tuple(_figure(quantity, inside, stacks) for quantity in _QUANTITIES) if inside else ()
    return HeatMap(figures, tuple(inside), tuple(cell for cell in cells if cell.place.layer is None))


def place(name: str) -> Place:
    """Split the name of a tensor at the number of its layer, the first number in it."""
    parts = name.removesuffix(".weight").split(".")
    numbers = [index for index, part in enumerate(parts) if part.isascii() and part.isdigit() and len(part) < 10]
    if not numbers:
        return Place("", None, ".".join(parts))
    first = numbers[0]
    kind = ".".join("*" if index in numbers else part for index, part in enumerate(parts) if index > first)
    return Place(".".join(parts[:first]), int(parts[first]), kind or "weight")


def _figure(quantity: _Quantity, cells: Sequence[Cell], stacks: Sequence[str]) -> Figure:
    values = [value for cell in cells if (value := quantity.of(cell)) is not None and math.isfinite(value)]
    low = min([_LEAST_SPREAD, *values]) if quantity.low_stands_out else 0.0
    width = 1.0 - low if quantity.low_stands_out else max(values, default=0.0) or 1.0

    def step(value: float | None) -> int | None:
        if value is None or not math.isfinite(value):
            return None
        found = min(STEPS - 1, int(STEPS * (value - low) / width))
        return STEPS - 1 - found if quantity.low_stands_out else found

    edges = [low + width * edge / STEPS for edge in range(STEPS + 1)]
    ends = (quantity.reads(low), quantity.reads(low + width))
    legend = [f"{quantity.reads(start)} to {quantity.reads(end)}" for start, end in pairwise(edges)]
    grids = (_grid(quantity, stack, [cell for cell in cells if cell.place.stack == stack], step) for stack in stacks)
    return Figure(
        quantity.title,
        quantity.explanation,
        tuple(grids),
        (ends[1], ends[0]) if quantity.low_stands_out else ends,
        tuple(reversed(legend) if quantity.low_stands_out else legend),
    )


def _grid(quantity: _Quantity, stack: str, cells: Sequence[Cell], step: Callable[[float | None], int | None]) -> Grid:
    kinds = list(dict.fromkeys(cell.place.kind for cell in cells))
    layers = list(dict.fromkeys(cell.place.layer for cell in cells))
    height = next((height for most, height in _HEIGHTS if len(layers) <= most), _LEAST_HEIGHT)
    every = -(-_LABEL_HEIGHT // height)
    left = _MARGIN + _LETTER * len(str(layers[-1]))
    top = _MARGIN + _LETTER * max(len(_shortened(kind)) for kind in kinds)
    across = {kind: left + CELL_WIDTH * column for column, kind in enumerate(kinds)}
    down = {layer: top + height * row for row, layer in enumerate(layers)}
    return Grid(
        stack=stack,
        width=left + CELL_WIDTH * len(kinds) + _MARGIN,
        height=top + height * len(layers) + _MARGIN,
        cell_height=height,
        columns=tuple(Label(x + CELL_WIDTH / 2, top - 6, _shortened(kind), kind) for kind, x in across.items()),
        rows=tuple(
            Label(left - 6, down[layer] + height / 2, str(layer), f"layer {layer}") for layer in layers[::every]
        ),
        squares=tuple(
            Square(
                across[cell.place.kind],
                down[cell.place.layer],
                step(value := quantity.of(cell)),
                f"layer {cell.place.layer}, {cell.place.kind}: {_reads(quantity, cell, value)}",
            )
            for cell in cells
        ),
    )


def _reads(quantity: _Quantity, cell: Cell, value: float | None) -> str:
    text = "unchanged" if value is None else f"{quantity.reads(value)}{quantity.adds(cell)}"
    return f"{text}, {len(cell.tensors)} tensors" if len(cell.tensors) > 1 else text


def _shortened(kind: str) -> str:
    return kind if len(kind) <= _LONGEST else f"…{kind[1 - _LONGEST :]}"
