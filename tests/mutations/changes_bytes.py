"""Changes that know nothing of a file but its bytes; of safetensors files, where the header ends."""

from random import Random

from tests.mutations.originals import Files


def _region(rng: Random, content: bytes) -> tuple[int, int]:
    """A part to strike, [first, last): headers are a small share of a file and would rarely be met."""
    length = min(8 + int.from_bytes(content[:8], "little"), len(content))
    return (
        rng.choice([(0, length), (length, len(content)), (0, len(content))]) if len(content) > 8 else (0, len(content))
    )


def _place(rng: Random, content: bytes) -> int:
    first, last = _region(rng, content)
    return rng.randrange(first, last) if last > first else rng.randrange(len(content))


def _span(rng: Random, content: bytes) -> tuple[int, int]:
    first = _place(rng, content)
    return first, min(len(content), first + rng.choice([1, 2, 4, 8, 64, 512, 4096]))


def flip_bits(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    filled = rng.choice([b"\0", b"\xff", b" ", b"0", b'"', b"}", bytes([rng.randrange(256)])]) * (last - first)
    return content[:first] + rng.choice([filled, rng.randbytes(last - first)]) + content[last:]


def truncate(rng: Random, content: bytes) -> bytes:
    return content[: rng.choice([_place(rng, content), len(content) - 1, rng.randrange(17)])]


def extend(rng: Random, content: bytes) -> bytes:
    length = rng.choice([1, 8, 100, 5000])
    return content + rng.choice([bytes(length), rng.randbytes(length), content[:length]])


def duplicate_block(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:last] + content[first:last] + content[last:]


def remove_block(rng: Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:first] + content[last:]


def swap_blocks(rng: Random, content: bytes) -> bytes:
    """Of one length, so that the header still fits where both are data."""
    (first, last), other = _span(rng, content), _place(rng, content)
    length = min(last - first, len(content) - other, abs(other - first))
    changed = bytearray(content)
    changed[first : first + length] = content[other : other + length]
    changed[other : other + length] = content[first : first + length]
    return bytes(changed)


def edit_header_length(rng: Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    odd = [0, 1, length - 1, length + 1, length + 8, len(content) - 8, len(content), 2**24, 2**31, 2**63, 2**64 - 1]
    return (max(0, rng.choice(odd))).to_bytes(8, "little") + content[8:]


CHANGES = (
    flip_bits,
    flip_bits,
    set_bytes,
    truncate,
    extend,
    duplicate_block,
    remove_block,
    swap_blocks,
    edit_header_length,
)


def change(rng: Random, files: Files) -> str:
    name = rng.choice(sorted(files))
    how = rng.choice(CHANGES)
    files[name] = how(rng, files[name]) if files[name] else rng.randbytes(rng.randrange(20))
    return f"{how.__name__} in {name}"
