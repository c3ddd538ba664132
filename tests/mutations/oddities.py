"""Values that a JSON document has where something else was meant."""

import json
import re
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 5, 24, 0.5, 1.0, 4.0, -0.0, 1e-320, 1e-45, 1e5, 1e38, 1e308, 2**31, 2**32, 2**53, 2**63 - 1)
NUMBERS += (2**63, 2**64, -(2**63), 10**400, float("nan"), float("inf"), -float("inf"), True, False)
TEXTS = ("", "a", "0", "nan", "4", "true", "\0", "\x1b[2J", "\u202e", "\ud800", "é" * 300, "x" * 5000, "../..", "model")
TEXTS += ("task_vector", "compressed_task_vector", "LORA", "model.safetensors", "query", "ternary 24,24")
OTHERS = (None, [], {}, [4], [[4]], {"a": 4}, [None], {"": ""}, ["query"], list(range(3000)))

_DEEP = re.compile(r'"deep (list|object) (\d+)"')
_ENTRY = re.compile(rb'("(?:[^"\\]|\\.)*"\s*:\s*)("[^"]*"|[\d.]+|true|false|null|\[[^\[\]{}]*\])')


def value(rng: Random) -> Any:
    """Any of them; what is deeper than Python can write stands for itself until `dump`."""
    kind = rng.randrange(8)
    if kind == 0:
        depth = rng.choice([2, 30, 130, 500, *range(940, 1000), 20_000])
        return f"deep {rng.choice(['list', 'object'])} {depth}"
    return rng.choice(NUMBERS if kind < 4 else TEXTS if kind < 6 else OTHERS)


def dump(document: Any, rng: Random) -> bytes:
    """JSON of a document, in one of the ways to write it."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    return _DEEP.sub(_written, text).encode("utf-8", "surrogatepass")


def _written(match: re.Match[str]) -> str:
    depth = int(match[2])
    return "[" * depth + "]" * depth if match[1] == "list" else '{"a":' * depth + "1" + "}" * depth


def place(rng: Random, document: Any) -> tuple[Any, Any] | None:
    """A container somewhere in a document, and a key or position in it; None: there is none."""
    found, to_see = [], [document]
    while to_see:
        container = to_see.pop()
        entries = container.items() if isinstance(container, dict) else ()
        entries = enumerate(container) if isinstance(container, list) else entries
        for key, inner in entries:
            found.append((container, key))
            to_see.append(inner)
    return rng.choice(found) if found else None


def spoil(rng: Random, document: Any) -> None:
    """Replace, remove or move one value somewhere in a document."""
    if (found := place(rng, document)) is None:
        return
    container, key = found
    how = rng.randrange(5)
    if how == 0:
        del container[key]
    elif how == 1 and (other := place(rng, document)) is not None and other[0] is not container[key]:
        container[key] = other[0][other[1]] if not isinstance(other[0][other[1]], dict | list) else value(rng)
    elif how == 2 and isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] += rng.choice([1, -1, 4, 8, 0.5, 2**32])
    else:
        container[key] = value(rng)


def duplicate_key(rng: Random, text: bytes) -> bytes:
    """Say something in a JSON text twice: a key and a value after it."""
    if not (entries := list(_ENTRY.finditer(text))):
        return text
    entry, other = rng.choice(entries), rng.choice(entries)
    return text[: entry.end()] + b"," + entry[1] + rng.choice([entry, other])[2] + text[entry.end() :]
