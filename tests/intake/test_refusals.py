"""Checkpoints that cannot be merged: the call succeeds, the submission is REJECTED, the reason names the tensors."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.wire import INDEX, SINGLE, Wire, assert_is_sentence, sharded, single, state

Tensors = dict[str, Tensor]
Files = dict[str, bytes]

QUERY = "encoder.layer.0.attention.query.weight"
BIAS = "encoder.layer.0.attention.query.bias"
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_ids"
SHARD = "model-00001-of-00002.safetensors"


def with_header(entries: object, data: bytes = b"") -> Files:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return {SINGLE: len(text).to_bytes(8, "little") + text + data}


def entry(dtype: str = "F32", shape: tuple[int, ...] = (1,), offsets: tuple[int, ...] = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def truncated(tensors: Tensors) -> Files:
    return {SINGLE: single(tensors)[SINGLE][:-100]}


def prolonged(tensors: Tensors) -> Files:
    return {SINGLE: single(tensors)[SINGLE] + b"\0" * 100}


MALFORMED: dict[str, tuple[Callable[[Tensors], Files], tuple[str, ...]]] = {
    "empty": (lambda _: {SINGLE: b""}, (SINGLE, "0 bytes")),
    "seven bytes": (lambda _: {SINGLE: b"1234567"}, (SINGLE, "7 bytes")),
    "cut off": (truncated, (SINGLE, "cut off")),
    "cut inside the header": (lambda tensors: {SINGLE: single(tensors)[SINGLE][:100]}, (SINGLE, "header")),
    "too long": (prolonged, (SINGLE, "belong to no tensor")),
    "absurd header length": (lambda _: {SINGLE: b"\xff" * 64}, (SINGLE, str(2**64 - 1))),
    "a zip": (lambda _: {SINGLE: b"PK\3\4\0\0\0\0" * 100}, (SINGLE,)),
    "no JSON": (lambda _: with_header(b"{'a': 1}"), (SINGLE, "JSON")),
    "no UTF-8": (lambda _: with_header(b'{"\xff": 1}'), (SINGLE, "JSON")),
    "NaN in JSON": (lambda _: with_header(b'{"a": NaN}'), (SINGLE, "JSON", "NaN")),
    "deeply nested": (lambda _: with_header(b"[" * 100_000), (SINGLE, "JSON")),
    "a list": (lambda _: with_header([]), (SINGLE, "object")),
    "a name twice": (
        lambda _: with_header(b'{"w": {}, "w": {}}'),
        (SINGLE, "'w'", "twice"),
    ),
    "metadata of numbers": (lambda _: with_header({"__metadata__": {"a": 1}}), (SINGLE, "__metadata__")),
    "metadata no map": (lambda _: with_header({"__metadata__": "pt"}), (SINGLE, "__metadata__")),
    "an empty name": (lambda _: with_header({"": entry()}, b"1234"), (SINGLE, "''")),
    "a name of control characters": (lambda _: with_header({"a\x1b[2J": entry()}, b"1234"), (SINGLE, "\\x1b")),
    "an endless name": (lambda _: with_header({"n" * 1000: entry()}, b"1234"), (SINGLE, "nnn")),
    "no dtype": (lambda _: with_header({"w": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"), ("'w'", "dtype")),
    "more than that": (lambda _: with_header({"w": {**entry(), "x": 1}}, b"1234"), ("'w'",)),
    "unknown dtype": (lambda _: with_header({"w": entry("F31")}, b"1234"), ("'w'", "F31")),
    "dtype a number": (lambda _: with_header({"w": {**entry(), "dtype": 3}}, b"1234"), ("'w'", "dtype")),
    "shape no list": (lambda _: with_header({"w": {**entry(), "shape": 1}}, b"1234"), ("'w'", "shape")),
    "negative size": (lambda _: with_header({"w": entry(shape=(-1, -1))}, b"1234"), ("'w'", "shape")),
    "size true": (lambda _: with_header({"w": {**entry(), "shape": [True]}}, b"1234"), ("'w'", "shape")),
    "endless shape": (lambda _: with_header({"w": entry(shape=(1,) * 17)}, b"1234"), ("'w'", "shape")),
    "huge sizes": (lambda _: with_header({"w": entry(shape=(2**62, 2**62, 2**62))}, b"1234"), ("'w'",)),
    "descending offsets": (lambda _: with_header({"w": entry(offsets=(4, 0))}, b"1234"), ("'w'", "data_offsets")),
    "three offsets": (lambda _: with_header({"w": entry(offsets=(0, 2, 4))}, b"1234"), ("'w'", "data_offsets")),
    "offsets off the shape": (lambda _: with_header({"w": entry(offsets=(0, 3))}, b"123"), ("'w'", "4 bytes")),
    "overlap": (
        lambda _: with_header({"v": entry(offsets=(0, 4)), "w": entry(offsets=(2, 6))}, b"123456"),
        ("'w'", "overlaps"),
    ),
    "gap": (
        lambda _: with_header({"v": entry(offsets=(0, 4)), "w": entry(offsets=(8, 12))}, b"0" * 12),
        ("'w'", "gap"),
    ),
}

UNFIT: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "extra tensors": (
        lambda tensors: tensors | {f"pooler.{number}.weight": torch.ones(2) for number in range(8)},
        ("8 tensors", "pooler.0.weight", "and 3 more", "ignore"),
    ),
    "all names have a prefix": (
        lambda tensors: {f"bert.{name}": tensor for name, tensor in tensors.items()},
        ("'bert.'", "save_pretrained"),
    ),
    "missing": (lambda tensors: without(tensors, QUERY, BIAS), ("2 tensors", QUERY, BIAS, "partial")),
    "one missing": (lambda tensors: without(tensors, QUERY), ("1 tensor ", QUERY)),
    "other rows": (lambda tensors: tensors | {WORDS: torch.ones(41, 24)}, (WORDS, "41", "40", "vocabulary")),
    "other columns": (lambda tensors: tensors | {QUERY: torch.ones(24, 25)}, (QUERY, "[24, 25]", "[24, 24]")),
    "transposed": (
        lambda tensors: tensors | {"encoder.layer.0.output.dense.weight": torch.ones(48, 24)},
        ("encoder.layer.0.output.dense.weight", "[48, 24]", "[24, 48]"),
    ),
    "flattened": (lambda tensors: tensors | {QUERY: torch.ones(576)}, (QUERY, "[576]")),
    "frozen of another shape": (lambda tensors: tensors | {POSITIONS: torch.arange(17)}, (POSITIONS, "[17]")),
    "float64": (lambda tensors: tensors | {QUERY: tensors[QUERY].double()}, (QUERY, "F64", "F32")),
    "quantised": (lambda tensors: tensors | {QUERY: tensors[QUERY].char()}, (QUERY, "I8", "quantised")),
    "float8": (lambda tensors: tensors | {QUERY: tensors[QUERY].to(torch.float8_e4m3fn)}, (QUERY, "F8_E4M3")),
    "another model": (lambda _: {"conv.weight": torch.ones(3, 3)}, ("no tensor in common",)),
    "no tensors": (lambda _: {}, ("no tensor in common",)),
}

VALUES: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "NaN": (lambda tensors: tensors | {QUERY: poisoned(tensors[QUERY], torch.nan)}, (QUERY, "NaN")),
    "infinite": (
        lambda tensors: tensors | {name: poisoned(tensors[name], -torch.inf) for name in (BIAS, QUERY)},
        (QUERY, BIAS, "infinite"),
    ),
    "overflowing": (
        lambda tensors: tensors | {QUERY: torch.full((24, 24), 3e38)},
        ("float32",),
    ),
}


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def poisoned(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def assert_rejected(wire: Wire, files: Files, words: tuple[str, ...], **terms: object) -> None:
    submission = wire.upload(files, **terms)
    if state(submission) != "REJECTED":
        submission = wire.settled(submission.id)
    assert state(submission) == "REJECTED"
    assert_is_sentence(submission.reason)
    assert "; " in submission.reason, "it says what to do"
    for word in words:
        assert word in submission.reason
    assert len(submission.reason) < 1500
    told = wire.get(submission.id)
    assert (told.reason, told.version, told.history[-1].detail) == (submission.reason, 0, submission.reason)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(wire: Wire, case: str) -> None:
    make, words = MALFORMED[case]
    assert_rejected(wire, make({"w": torch.ones(4)}), words, force=True)


@pytest.mark.parametrize("case", UNFIT)
def test_checkpoints_of_another_model(wire: Wire, checkpoint: Callable[[], Tensors], case: str) -> None:
    make, words = UNFIT[case]
    assert_rejected(wire, single(make(checkpoint())), words, force=True)


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_merged(wire: Wire, checkpoint: Callable[[], Tensors], case: str) -> None:
    make, words = VALUES[case]
    assert state(wire.settled(wire.upload(single(checkpoint())).id)) == "MERGED", "something to be projected against"
    assert_rejected(wire, single(make(checkpoint())), words)


def test_the_base_itself(wire: Wire, tensors: Tensors) -> None:
    assert_rejected(wire, single(tensors), ("equals the base",))


def test_nothing_in_common_although_partial(wire: Wire) -> None:
    assert_rejected(wire, single({POSITIONS: torch.arange(16)}), ("no tensor in common",), partial=True)


INDEXES: dict[str, tuple[Callable[[Files], Files], tuple[str, ...]]] = {
    "no JSON": (lambda files: files | {INDEX: b"weights"}, (INDEX, "JSON")),
    "no weight_map": (lambda files: files | {INDEX: b"{}"}, (INDEX, "weight_map")),
    "a list": (lambda files: files | {INDEX: b"[]"}, (INDEX, "weight_map")),
    "weight_map a list": (lambda files: files | {INDEX: b'{"weight_map": []}'}, (INDEX, "weight_map")),
    "a shard missing": (lambda files: {INDEX: files[INDEX], SHARD: files[SHARD]}, (INDEX, "missing")),
    "a shard too many": (lambda files: files | {"x.safetensors": single({})[SINGLE]}, ("x.safetensors", INDEX)),
    "a path": (lambda files: files | {INDEX: remapped(files, QUERY, "../x.safetensors")}, (QUERY, "../x")),
    "an absolute path": (lambda files: files | {INDEX: remapped(files, QUERY, "/x.safetensors")}, (QUERY, "/x")),
    "a number": (lambda files: files | {INDEX: remapped(files, QUERY, 3)}, (QUERY, "3")),
    "a pickle": (lambda files: files | {INDEX: remapped(files, QUERY, "x.bin")}, (QUERY, "x.bin")),
    "the wrong shard": (lambda files: files | {INDEX: swapped(files)}, ("lies in", INDEX)),
    "a tensor nowhere": (
        lambda files: files | {INDEX: remapped(files, "ghost", SHARD)},
        ("ghost", "does not hold"),
    ),
    "a tensor unnamed": (lambda files: files | {INDEX: remapped(files, QUERY, None)}, (QUERY, "does not name")),
    "a shard cut off": (lambda files: files | {SHARD: files[SHARD][:-9]}, (SHARD, "cut off")),
}


def remapped(files: Files, tensor: str, shard: object) -> bytes:
    index = json.loads(files[INDEX])
    if shard is None:
        del index["weight_map"][tensor]
    else:
        index["weight_map"][tensor] = shard
    return json.dumps(index).encode()


def swapped(files: Files) -> bytes:
    index = json.loads(files[INDEX])
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"] = {tensor: shards[1 - shards.index(name)] for tensor, name in index["weight_map"].items()}
    return json.dumps(index).encode()


@pytest.mark.parametrize("case", INDEXES)
def test_indexes(wire: Wire, checkpoint: Callable[[], Tensors], case: str) -> None:
    change, words = INDEXES[case]
    assert_rejected(wire, change(sharded(checkpoint())), words)


def test_task_heads_that_the_operator_ignores(wire: Wire, checkpoint: Callable[[], Tensors]) -> None:
    head = {"classifier.weight": torch.ones(3, 24), "classifier.bias": torch.full((3,), torch.nan)}
    submission = wire.upload(single(checkpoint() | head))
    merged = wire.settled(submission.id)
    assert state(merged) == "MERGED"
    published = wire.read(merged.version, SINGLE)
    assert b"classifier" not in published
    assert_rejected(
        wire, single(checkpoint() | head | {"decoder.weight": torch.ones(2)}), ("1 tensor ", "decoder.weight")
    )


def test_partial_checkpoints(wire: Wire, checkpoint: Callable[[], Tensors]) -> None:
    part = single(without(checkpoint(), QUERY, WORDS))
    assert_rejected(wire, part, (QUERY, WORDS, "partial"))
    submission = wire.upload(part, partial=True)
    assert submission.partial
    assert state(wire.settled(submission.id)) == "MERGED"


def test_frozen_tensors_may_be_left_out(wire: Wire, checkpoint: Callable[[], Tensors]) -> None:
    assert state(wire.settled(wire.upload(single(without(checkpoint(), POSITIONS))).id)) == "MERGED"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(wire: Wire, checkpoint: Callable[[], Tensors], dtype: torch.dtype) -> None:
    halved = {name: t.to(dtype) if t.is_floating_point() else t for name, t in checkpoint().items()}
    assert state(wire.settled(wire.upload(single(halved)).id)) == "MERGED"


def test_a_rejected_one_does_not_hold_up_the_next(wire: Wire, checkpoint: Callable[[], Tensors]) -> None:
    bad = wire.upload(single(checkpoint() | {BIAS: torch.full((24,), torch.nan)}))
    good = wire.upload(single(checkpoint()))
    assert state(wire.settled(good.id)) == "MERGED"
    assert state(wire.get(bad.id)) == "REJECTED"
