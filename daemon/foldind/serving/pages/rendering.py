"""Values as HTML: the templates, and how numbers, moments and words of strangers are written in them."""

import math
import re
import time
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from foldind.serving.pages.heatmap import CELL_WIDTH, STEPS

LONGEST = 96
"""Letters of what a stranger wrote that are shown."""
_MOST_MARKS = 4
"""Combining marks on one letter that are shown; pointed Hebrew has four."""
_SPANS = ((86400 * 365, "year"), (86400, "day"), (3600, "hour"), (60, "minute"))
_COSINES = (0.05, 0.1, 0.2, 0.4, 0.7)
"""Where the colours of cosines change; below the first, sketches tell nothing apart."""


class Templates:
    """The templates of the pages.

    Args:
      always: what each of them may use.
    """

    def __init__(self, always: Mapping[str, object]):
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "cut": cut,
            "size": size,
            "share": share,
            "number": number,
            "moment": moment,
            "age": age,
            "cosine_class": cosine_class,
            "hundredths": hundredths,
        }
        self._environment.globals |= {"cell_width": CELL_WIDTH, "steps": STEPS, **always}

    def render(self, name: str, **values: object) -> str:
        """Return what a template makes of values."""
        return self._environment.get_template(f"{name}.html.jinja").render(values)


def cut(text: str, most: int = LONGEST) -> str:
    """Return what a stranger wrote on one line, cut, and without what is not to be seen or turns the text round."""
    line = " ".join(text[: 4 * most].split())
    seen = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in _unpiled(line))
    return seen if len(seen) <= most else f"{seen[: most - 1]}…"


def _unpiled(line: str) -> str:
    """Without the marks that would pile up over the lines above and below: no script needs so many on a letter."""
    kinds = "".join("m" if unicodedata.category(letter) in ("Mn", "Me") else "." for letter in line)
    runs = [found.span() for found in re.finditer(r"m+|\.+", kinds)]
    return "".join(
        line[start:end] if kinds[start] == "." else line[start : min(end, start + _MOST_MARKS)] for start, end in runs
    )


def size(count: int) -> str:
    """Return a number of bytes in the unit it is best read in."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    power = sum(count >= 999.5 * 1000**power for power in range(len(units) - 1))
    return f"{count / 1000**power:.3g} {units[power]}"


def share(value: float | None) -> str:
    """Return a share as a percentage."""
    return "\N{EN DASH}" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Return a figure with four digits."""
    return f"{value:.4g}"


def moment(seconds: float) -> str:
    """Return seconds since the epoch as date and time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def age(seconds: float) -> str:
    """Return how long ago a moment was (seconds since the epoch), roughly."""
    passed = time.time() - seconds
    for length, name in _SPANS:
        if passed >= length:
            count = int(passed / length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def cosine_class(value: float) -> str:
    """Return the class of CSS that colours a cosine: c0 for none, then c1 to c5, and n1 to n5 below zero."""
    if not math.isfinite(value):
        return "none"
    level = sum(abs(value) >= edge for edge in _COSINES)
    return f"{'n' if value < 0 and level else 'c'}{level}"


def hundredths(value: float) -> str:
    """Return a cosine in hundredths."""
    return str(round(100 * value)) if math.isfinite(value) else "?"
