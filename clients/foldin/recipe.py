"""How a submission is to be compressed, checked before anything is read."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from foldin.errors import InvalidArgument

DENSITY = 0.1


class Coding(StrEnum):
    """How the task vector's elements are written."""

    TERNARY = "ternary"
    """The largest by their signs, and one scale a tensor."""
    INT8 = "int8"
    """All in 255 steps, and one scale a row."""


@dataclass(frozen=True)
class Recipe:
    """What is made of a model.

    Attributes:
      coding: of the larger tensors.
      base: the base that it was fine-tuned from: a .safetensors file or a folder.
      density: share of each tensor's elements that ternary keeps, in (0, 1].
    """

    coding: Coding
    base: Path
    density: float = DENSITY


def read_recipe(compress: str | None, base: str | Path | None, density: float | None) -> Recipe | None:
    """Return how to compress; None: not at all.

    Args:
      compress: name of a coding.
      base: where the base lies.
      density: for ternary; None: 0.1.

    Raises:
      InvalidArgument: they do not go together.
    """
    if compress is None:
        if base is not None or density is not None:
            raise InvalidArgument("a base and a density are for compressed submissions: give --compress too.")
        return None
    if compress not in list(Coding):
        raise InvalidArgument(f"{compress!r} is no coding: the codings are {', '.join(Coding)}.")
    if base is None:
        raise InvalidArgument(
            "to compress means to send what differs from the base: give the base that it was fine-tuned from "
            "(--base DIR)."
        )
    coding = Coding(compress)
    if coding is not Coding.TERNARY and density is not None:
        raise InvalidArgument(f"{coding} keeps every element: a density is for {Coding.TERNARY}.")
    if density is not None and not 0 < density <= 1:
        raise InvalidArgument(f"the density is {density}: it is above 0, and 1 at the most.")
    return Recipe(coding, Path(base), DENSITY if density is None else density)
