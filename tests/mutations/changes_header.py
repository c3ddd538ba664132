"""Changes of what a safetensors header says, its data left as they are."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from foldind.checkpoints.header import ITEM_BYTES

from tests.hostile.files import craft
from tests.mutations import oddities
from tests.mutations.originals import Files
from tests.mutations.safefile import header_of

Header = dict[str, Any]


def _entry(rng: Random, header: Header) -> Header | None:
    entries = [entry for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)]
    return rng.choice(entries) if entries else None


def edit_offsets(rng: Random, header: Header) -> None:
    if (entry := _entry(rng, header)) is not None:
        offsets = entry.get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets):
            shift = rng.choice([1, -1, 4, -4, 96, 2**31, 2**63, -(2**63)])
            entry["data_offsets"] = rng.choice(
                [
                    [offsets[0] + shift, offsets[1] + shift],
                    [offsets[0], offsets[1] + shift],
                    [offsets[0] + shift, offsets[1]],
                    offsets[::-1],
                    [0, 0],
                    offsets * 2,
                    [offsets[0], oddities.value(rng)],
                ]
            )


def edit_shape(rng: Random, header: Header) -> None:
    if (entry := _entry(rng, header)) is not None and isinstance(shape := entry.get("shape"), list):
        odd = [[], [*shape, 1], [1, *shape], shape[::-1], shape[:-1], [2**32, 2**32], [2**62] * 16, [*shape, 0]]
        odd += [[1] * 17, [-1, -1], [*shape[:-1], oddities.value(rng)]]
        entry["shape"] = rng.choice(odd)


def edit_dtype(rng: Random, header: Header) -> None:
    if (entry := _entry(rng, header)) is not None:
        entry["dtype"] = rng.choice([*ITEM_BYTES, "F4", "F8_E8M0", "C64", "f32", "", oddities.value(rng)])


def rename(rng: Random, header: Header) -> None:
    name = rng.choice(list(header) or [""])
    entry = header.pop(name, None)
    odd = ["", "a", f"model.{name}", name.upper(), name + ":codes", name + ".", "x" * 501, "\x1b", "\u202e", "\ud800"]
    odd += ["__metadata__", name.replace("0", "1"), "score.bias", rng.choice(list(header) or ["b"])]
    header[rng.choice(odd)] = entry


def swap_names(rng: Random, header: Header) -> None:
    if len(header) > 1:
        one, other = rng.sample(list(header), 2)
        header[one], header[other] = header[other], header[one]


def edit_metadata(rng: Random, header: Header) -> None:
    metadata = header.setdefault("__metadata__", {})
    if not isinstance(metadata, dict):
        return
    key = rng.choice([*metadata, "foldin.kind", "foldin.kind", "format", "x", "\ud800", "a:coding"])
    kinds = ["model", "task_vector", "compressed_task_vector", "adapter", "", "\x1b[2J", "\ud800"]
    metadata[key] = rng.choice(kinds) if key == "foldin.kind" and rng.random() < 0.8 else oddities.value(rng)
    if rng.random() < 0.2:
        del metadata[key]


def replace_metadata(rng: Random, header: Header) -> None:
    header["__metadata__"] = oddities.value(rng)


def remove_entry(rng: Random, header: Header) -> None:
    if header:
        del header[rng.choice(list(header))]


def reorder(rng: Random, header: Header) -> None:
    names = list(header)
    rng.shuffle(names)
    entries = {name: header[name] for name in names}
    header.clear()
    header.update(entries)


def edit_text(rng: Random, text: bytes) -> bytes:
    """Say the same in other words, or what only looks the same."""
    odd: list[Callable[[], bytes]] = [
        lambda: text + rng.choice([b" ", b"\n", b"\t\r\n ", b"\0", b"{}", b"   x"]),
        lambda: rng.choice([b" ", b"\n", b"\t", b"\xef\xbb\xbf", b"[", b"\0"]) + text,
        lambda: oddities.duplicate_key(rng, text),
        lambda: oddities.duplicate_key(rng, text),
        lambda: text.replace(b"0", rng.choice([b"0.0", b"-0", b"00", b"0e0", b"+0"]), 1),
        lambda: text.replace(b"[0,", b"[-0,").replace(b"[0, ", b"[-0, "),
        lambda: text.replace(b"e", b"\\u0065"),
        lambda: text.replace(b",", b",,", 1),
        lambda: text.replace(b'"', b"'"),
        lambda: json.dumps(json.loads(text)).encode(rng.choice(["utf-16", "utf-8-sig", "utf-32"])),
        lambda: text[:-1] + b',"z":' + oddities.dump(oddities.value(rng), rng) + b"}",
    ]
    return rng.choice(odd)()


CHANGES = (
    edit_offsets,
    edit_shape,
    edit_dtype,
    rename,
    swap_names,
    edit_metadata,
    edit_metadata,
    replace_metadata,
    remove_entry,
    reorder,
    oddities.spoil,
    oddities.spoil,
)


def change(rng: Random, files: Files) -> str:
    name = rng.choice([name for name in sorted(files) if name.endswith(".safetensors")])
    if (found := header_of(files[name])) is None:
        return "nothing"
    header, data = found
    if rng.random() < 0.25:
        length = int.from_bytes(files[name][:8], "little")
        files[name] = craft(edit_text(rng, files[name][8 : 8 + length]), data)
        return f"edit_text in {name}"
    how = rng.choice(CHANGES)
    how(rng, header)
    files[name] = craft(oddities.dump(header, rng), data)
    return f"{how.__name__} in {name}"
