"""Files that are no safetensors files, each the work of a small builder, and what the sender must be told."""

import json
from collections.abc import Callable, Mapping
from typing import Any

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
DATA = bytes(range(24))


def craft(header: str | bytes | Mapping[str, Any], data: bytes = DATA, length: int | None = None) -> bytes:
    """A file of a header as it is given, valid or not; `length` is what its prefix lies."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(**changes: Any) -> bytes:
    """A file of one tensor `a`, with some fields of its entry changed."""
    return craft({"a": ENTRY | changes})


def without(field: str) -> bytes:
    return craft({"a": {key: value for key, value in ENTRY.items() if key != field}})


def two(first: tuple[int, int], second: tuple[int, int], data: int) -> bytes:
    """A file of two tensors of bytes at given offsets."""
    header = {
        name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        for name, (start, stop) in (("a", first), ("b", second))
    }
    return craft(header, bytes(data))


ATTACKS: Mapping[str, tuple[Callable[[], bytes], str]] = {
    # Lengths.
    "empty": (lambda: b"", "is 0 bytes long, too short"),
    "truncated in the prefix": (lambda: craft({"a": ENTRY})[:7], "is 7 bytes long, too short"),
    "truncated after the prefix": (lambda: craft({"a": ENTRY})[:8], "ends inside its header (8 of"),
    "truncated in the header": (lambda: craft({"a": ENTRY})[:40], "ends inside its header (40 of"),
    "truncated in the data": (lambda: craft({"a": ENTRY})[:-1], "is cut off: its header describes"),
    "no data at all": (lambda: craft({"a": ENTRY}, b""), "is cut off"),
    "trailing bytes": (lambda: craft({"a": ENTRY}, DATA + b"x"), "followed by bytes that belong to no tensor"),
    "bytes and no tensor": (lambda: craft({}, b"x"), "followed by bytes that belong to no tensor"),
    "header bomb": (lambda: craft({"a": ENTRY}, length=2**63), "states a header of 9223372036854775808 bytes"),
    "header of all ones": (lambda: b"\xff" * 64, "states a header of 18446744073709551615 bytes"),
    "header just too long": (lambda: craft({"a": ENTRY}, length=2**24 + 1), "more than the 16777216 allowed"),
    "header of no bytes": (lambda: craft(""), "header that is not valid JSON"),
    "header length too small": (lambda: craft({"a": ENTRY}, length=20), "header that is not valid JSON"),
    "header length too large": (lambda: craft({"a": ENTRY}, length=80), "header that is not valid JSON"),
    # JSON.
    "a pickle": (lambda: b"PK\x03\x04\x00\x00\x08\x08" + bytes(100), "states a header of"),
    "not JSON": (lambda: craft("import os"), "header that is not valid JSON"),
    "not UTF-8": (lambda: craft(b'{"\xff": 1}'), "header that is not valid JSON"),
    "UTF-16": (lambda: craft(json.dumps({"a": ENTRY}).encode("utf-16")), "header that is not valid JSON"),
    "byte order mark": (lambda: craft(b"\xef\xbb\xbf{}", b""), "header that is not valid JSON"),
    "JSON cut off": (lambda: craft('{"a": {"dtype": "F32", "shape"'), "header that is not valid JSON"),
    "two JSON values": (lambda: craft("{}{}", b""), "header that is not valid JSON"),
    "NUL after the JSON": (lambda: craft("{}\0", b""), "header that is not valid JSON"),
    "JSON list": (lambda: craft("[]", b""), "header that is not a JSON object"),
    "JSON null": (lambda: craft("null", b""), "header that is not a JSON object"),
    "JSON string": (lambda: craft('"a"', b""), "header that is not a JSON object"),
    "NaN": (lambda: craft('{"a": NaN}'), "NaN is no JSON"),
    "Infinity in a shape": (
        lambda: craft('{"a": {"dtype": "F32", "shape": [-Infinity], "data_offsets": [0, 24]}}'),
        "-Infinity is no JSON",
    ),
    "deep lists": (lambda: craft("[" * 200_000), "header that is not valid JSON"),
    "deep objects": (lambda: craft('{"a":' * 200_000), "header that is not valid JSON"),
    "deep shape": (
        lambda: craft('{"a": {"dtype": "F32", "data_offsets": [0, 24], "shape": ' + "[" * 5000 + "]" * 5000 + "}}"),
        "header that is not valid JSON",
    ),
    "integer of 5000 digits": (
        lambda: craft('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 24]}}'),
        "header that is not valid JSON",
    ),
    "the same tensor twice": (
        lambda: craft(f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'),
        "'a' stands in it twice",
    ),
    "the same tensor twice, escaped": (
        lambda: craft(f'{{"a": {json.dumps(ENTRY)}, "\\u0061": {json.dumps(ENTRY)}}}'),
        "'a' stands in it twice",
    ),
    "the same field twice": (
        lambda: craft('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'),
        "'dtype' stands in it twice",
    ),
    "two __metadata__": (
        lambda: craft('{"__metadata__": {}, "__metadata__": {}}', b""),
        "'__metadata__' stands in it twice",
    ),
    "a long name twice": (
        lambda: craft('{"' + "n" * 1_000_000 + '": 1, "' + "n" * 1_000_000 + '": 2}'),
        "stands in it twice",
    ),
    # Offsets.
    "overlap": (lambda: two((0, 16), (8, 24), 24), "tensor 'b' overlaps the tensor before it"),
    "the same bytes twice": (lambda: two((0, 24), (0, 24), 24), "tensor 'b' overlaps the tensor before it"),
    "one inside the other": (lambda: two((0, 24), (8, 16), 24), "tensor 'b' overlaps the tensor before it"),
    "gap": (lambda: two((0, 8), (9, 24), 24), "tensor 'b' leaves a gap before it"),
    "gap at the front": (lambda: two((1, 8), (8, 24), 24), "tensor 'a' leaves a gap before it"),
    "out of range": (lambda: two((0, 8), (8, 2**40), 24), "is cut off: its header describes"),
    "empty tensor out of range": (
        lambda: craft({"a": ENTRY, "b": {"dtype": "F32", "shape": [0], "data_offsets": [2**40, 2**40]}}),
        "tensor 'b' leaves a gap before it",
    ),
    "empty tensor inside another": (
        lambda: craft({"a": ENTRY, "b": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}}),
        "tensor 'b' overlaps the tensor before it",
    ),
    "descending offsets": (lambda: entry(data_offsets=[24, 0]), "data_offsets that are not an ascending pair"),
    "negative offsets": (lambda: entry(data_offsets=[-24, 0]), "data_offsets that are not an ascending pair"),
    "one offset": (lambda: entry(data_offsets=[24]), "data_offsets that are not an ascending pair"),
    "three offsets": (lambda: entry(data_offsets=[0, 24, 48]), "data_offsets that are not an ascending pair"),
    "offsets as booleans": (
        lambda: craft({"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}}, b"x"),
        "data_offsets that are not an ascending pair",
    ),
    "offsets as floats": (lambda: entry(data_offsets=[0.0, 24.0]), "data_offsets that are not an ascending pair"),
    "offsets as strings": (lambda: entry(data_offsets=["0", "24"]), "data_offsets that are not an ascending pair"),
    "offsets as an object": (lambda: entry(data_offsets={"0": 24}), "data_offsets that are not an ascending pair"),
    "offsets beyond 64 bits": (
        lambda: entry(data_offsets=[2**64, 2**64 + 24]),
        "data_offsets that are not an ascending pair",
    ),
    "no offsets": (lambda: entry(data_offsets=None), "data_offsets that are not an ascending pair"),
    # Shapes and dtypes.
    "unknown dtype": (lambda: entry(dtype="F31"), "the dtype 'F31'"),
    "lower-case dtype": (lambda: entry(dtype="f32"), "the dtype 'f32'"),
    "dtype as a list": (lambda: entry(dtype=["F32"]), "the dtype"),
    "dtype as a number": (lambda: entry(dtype=32), "the dtype '32'"),
    "very long dtype": (lambda: entry(dtype="F" * 1_000_000), "the dtype 'FFFFFFFFFFFFFFFFFFFF'"),
    "lying shape": (lambda: entry(shape=[2, 4]), "takes 32 bytes, its data_offsets span 24"),
    "lying dtype": (lambda: entry(dtype="F64"), "takes 48 bytes, its data_offsets span 24"),
    "shape of petabytes": (lambda: entry(shape=[2**40, 2**40]), "its data_offsets span 24"),
    "shape that wraps 64 bits": (lambda: entry(shape=[2**62, 2**62, 6]), "its data_offsets span 24"),
    "0-d that is not one element": (lambda: entry(shape=[]), "takes 4 bytes, its data_offsets span 24"),
    "shape as a number": (lambda: entry(shape=6), "a shape that is not a list"),
    "shape as a string": (lambda: entry(shape="23"), "a shape that is not a list"),
    "shape as an object": (lambda: entry(shape={"2": 3}), "a shape that is not a list"),
    "shape of booleans": (lambda: entry(shape=[True, 6]), "a shape that is not a list"),
    "shape of floats": (lambda: entry(shape=[2.0, 3.0]), "a shape that is not a list"),
    "shape of lists": (lambda: entry(shape=[[2], [3]]), "a shape that is not a list"),
    "negative sizes": (lambda: entry(shape=[-2, -3]), "a shape that is not a list"),
    "a size of minus zero": (
        lambda: craft('{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}', b""),
        "a shape that is not a list",
    ),
    "an offset of minus zero": (
        lambda: craft('{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [-0, 24]}}'),
        "data_offsets that are not an ascending pair",
    ),
    "sizes beyond 63 bits": (lambda: entry(shape=[2**63]), "a shape that is not a list"),
    "a size as an exponent": (
        lambda: craft('{"a": {"dtype": "F32", "shape": [6e0], "data_offsets": [0, 24]}}'),
        "a shape that is not a list",
    ),
    "17 dimensions": (lambda: entry(shape=[1] * 16 + [6]), "a shape that is not a list of up to 16 sizes"),
    # Entries.
    "entry as a list": (lambda: craft({"a": ["F32", [2, 3], [0, 24]]}), "something else than dtype, shape and"),
    "entry as null": (lambda: craft({"a": None}), "something else than dtype, shape and data_offsets"),
    "no dtype": (lambda: without("dtype"), "something else than dtype, shape and data_offsets"),
    "no shape": (lambda: without("shape"), "something else than dtype, shape and data_offsets"),
    "no data_offsets": (lambda: without("data_offsets"), "something else than dtype, shape and data_offsets"),
    "one key more": (lambda: entry(strides=[3, 1]), "something else than dtype, shape and data_offsets"),
    # Metadata and names.
    "metadata as a list": (lambda: craft({"__metadata__": ["pt"], "a": ENTRY}), "not a map of strings"),
    "metadata as a string": (lambda: craft({"__metadata__": "pt", "a": ENTRY}), "not a map of strings"),
    "metadata of numbers": (lambda: craft({"__metadata__": {"n": 1}, "a": ENTRY}), "not a map of strings"),
    "metadata of objects": (lambda: craft({"__metadata__": {"n": {}}, "a": ENTRY}), "not a map of strings"),
    "metadata with half a surrogate": (lambda: craft({"__metadata__": {"n": "\ud800"}}, b""), "not a map of strings"),
    "metadata named half a surrogate": (lambda: craft({"__metadata__": {"\ud800": "n"}}, b""), "not a map of strings"),
    "metadata as a tensor": (lambda: craft({"__metadata__": ENTRY}), "not a map of strings"),
    "empty name": (lambda: craft({"": ENTRY}), "names a tensor ''"),
    "name with a newline": (lambda: craft({"a\nb": ENTRY}), r"names a tensor 'a\nb'"),
    "name with NUL": (lambda: craft({"a\0": ENTRY}), r"names a tensor 'a\x00'"),
    "name with an escape sequence": (lambda: craft({"\x1b[2J": ENTRY}), r"names a tensor '\x1b[2J'"),
    "name written right to left": (lambda: craft({"a\u202eb": ENTRY}), r"names a tensor 'a\u202eb'"),
    "name with half a surrogate": (lambda: craft({"\ud800": ENTRY}), r"names a tensor '\ud800'"),
    "raw control character": (lambda: craft(b'{"a\x01": 1}'), "header that is not valid JSON"),
    "name of 501 characters": (lambda: craft({"n" * 501: ENTRY}), "names a tensor 'nnn"),
    "name of a million characters": (lambda: craft({"n" * 1_000_000: ENTRY}), "names a tensor 'nnn"),
}
