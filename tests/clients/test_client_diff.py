"""Comparing versions: every dtype and layout, streams that break off or are altered, and what cannot be compared."""

import json
import math
from itertools import pairwise

import foldin
import numpy as np
import pytest
import torch
from foldin import served
from foldin.dtypes import STORED, decode
from safetensors.torch import save

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECE = 1000


def model(**tensors):
    return {ONE: save(tensors)}


def pieces_of(size):
    return lambda name, offset, data: (data[start : start + size] for start in range(0, len(data), size))


@pytest.fixture
def pair(daemon):
    """Two versions of two tensors, in pieces that end within elements."""
    torch.manual_seed(0)
    first = {"a": torch.randn(70, 30), "b": torch.randn(501)}
    second = {"a": first["a"] + 0.1, "b": first["b"] * 2}
    daemon.snapshots.publish(1, model(**first))
    daemon.snapshots.publish(2, model(**second))
    daemon.snapshots.on_read = pieces_of(PIECE + 1)
    return first, second


def assert_figures(found, first, second):
    for tensor in found.tensors:
        a, b = (tensors[tensor.name].double().flatten() for tensors in (first, second))
        assert tensor.norm == pytest.approx(float(a.norm()), rel=1e-12)
        assert tensor.difference_norm == pytest.approx(float((b - a).norm()), rel=1e-12)
        assert tensor.largest_change == float((b - a).abs().max())
        assert tensor.changed == int((a != b).sum())


def test_blocks_are_smaller_than_tensors(client, pair, monkeypatch):
    monkeypatch.setattr(served, "BLOCK_ELEMENTS", 64)
    steps = []
    found = foldin.diff(client, "v1", "v2", on_progress=steps.append)
    assert_figures(found, *pair)
    assert found.tensors[0].name == "b"
    assert found.tensors[0].relative == pytest.approx(1, rel=1e-12)
    assert found.tensors[0].cosine == pytest.approx(1, rel=1e-12)
    assert {after.done - before.done for before, after in pairwise(steps)} <= {
        4 * count for count in (64, 70 * 30 % 64, 501 % 64)
    }


NUMBERS = {
    torch.float64: [0.0, -1e100, 3.5],
    torch.float32: [0.0, -1e38, 3.5],
    torch.float16: [0.0, -6e4, 3.5],
    torch.bfloat16: [0.0, -1e38, 3.5],
    torch.float8_e4m3fn: [0.0, -448.0, 0.001953125],
    torch.float8_e5m2: [0.0, -57344.0, 1.52587890625e-05],
    torch.int64: [0, -(2**60), 5],
    torch.int32: [0, -(2**31), 5],
    torch.int16: [0, -(2**15), 5],
    torch.int8: [0, -128, 5],
    torch.uint64: [0, 2**60, 5],
    torch.uint32: [0, 2**32 - 1, 5],
    torch.uint16: [0, 2**16 - 1, 5],
    torch.uint8: [0, 255, 5],
    torch.bool: [False, True, True],
}


def test_every_dtype(daemon, client):
    first = {str(dtype): torch.tensor(numbers, dtype=dtype) for dtype, numbers in NUMBERS.items()}
    second = {str(dtype): torch.tensor(numbers[::-1], dtype=dtype) for dtype, numbers in NUMBERS.items()}
    daemon.snapshots.publish(1, model(**first))
    daemon.snapshots.publish(2, model(**second))
    found = foldin.diff(client, "v1", "v2")
    assert {tensor.dtype for tensor in found.tensors} == set(STORED)
    assert_figures(found, first, second)
    assert found.elements == 3 * 6, "of the floating-point ones"


@pytest.mark.parametrize(("kind", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_float8(kind, dtype):
    stored = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(stored.copy()).view(dtype).float().numpy()
    np.testing.assert_array_equal(decode(stored, kind).astype(np.float32), expected)


def test_what_is_not_finite_is_in_no_norm(daemon, client):
    inf, nan = math.inf, math.nan
    daemon.snapshots.publish(1, model(mask=torch.tensor([1.0, -inf, nan, inf, 2.0]), zero=torch.zeros(2)))
    daemon.snapshots.publish(2, model(mask=torch.tensor([1.0, -inf, nan, 1.0, 4.0]), zero=torch.ones(2)))
    zero, mask = foldin.diff(client, "v1", "v2").tensors
    assert (mask.changed, mask.difference_norm, mask.largest_change, mask.norm) == (2, 2, 2, math.sqrt(5))
    assert (zero.relative, zero.cosine, zero.changed_share) == (inf, None, 1)
    assert zero.to_json()["relative"] is None
    json.dumps(foldin.diff(client, "v1", "v2").to_json(), allow_nan=False)


def test_tensors_without_elements(daemon, client):
    daemon.snapshots.publish(1, model(empty=torch.zeros(0, 3), scalar=torch.tensor(1.0)))
    daemon.snapshots.publish(2, model(empty=torch.zeros(0, 3), scalar=torch.tensor(-1.0)))
    scalar, empty = foldin.diff(client, "v1", "v2").tensors
    assert (scalar.relative, scalar.cosine, scalar.shape) == (2, -1, ())
    assert (empty.relative, empty.changed_share, empty.norm) == (0, 0, 0)


def test_another_layout_of_the_same_tensors(daemon, client):
    torch.manual_seed(0)
    first = {name: torch.randn(300) for name in "abcd"}
    second = {name: tensor + 1 for name, tensor in first.items()}
    shards = {"model-1.safetensors": "da", "model-2.safetensors": "cb"}
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    files = {file: save({name: second[name] for name in names}) for file, names in shards.items()}
    unnamed = {"consolidated.safetensors": save({"other": torch.ones(1)})}
    daemon.snapshots.publish(1, model(**first))
    daemon.snapshots.publish(2, {INDEX: json.dumps(index).encode(), **files, **unnamed})
    daemon.snapshots.on_read = pieces_of(PIECE)
    for a, b, before, after in (("v1", "v2", first, second), ("v2", "v1", second, first)):
        found = foldin.diff(client, a, b)
        assert len(found.tensors) == 4
        assert_figures(found, before, after)


@pytest.mark.parametrize("ending", ["outage", "early end"])
def test_goes_on_after_the_stream_broke_off(daemon, client, pair, ending):
    def break_off(name, offset, data):
        yield data[:PIECE]
        if ending == "outage":
            yield b""

    expected = foldin.diff(client, "v1", "v2")
    daemon.snapshots.on_read = break_off
    daemon.snapshots.reads.clear()
    assert foldin.diff(client, "v1", "v2") == expected
    assert len(daemon.snapshots.reads) > len(daemon.snapshots.contents[1][ONE]) / PIECE


def test_altered_bytes_give_no_figures(daemon, client, pair):
    data = daemon.snapshots.contents[2][ONE]
    daemon.snapshots.contents[2][ONE] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(foldin.DataLoss, match=r"model\.safetensors of v2 arrived altered: .* try again"):
        foldin.diff(client, "v1", "v2")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"a": torch.ones(2)}, "v1 and v2 do not hold the same tensors: v2 lacks b. Compare versions of one base"),
        ({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}, "v1 lacks c"),
        ({"a": torch.ones(2), "b": torch.ones(1, 2)}, r"tensor b is F32 \[2\] in v1 and F32 \[1, 2\] in v2"),
        ({"a": torch.ones(2), "b": torch.ones(2).half()}, r"tensor b is F32 \[2\] in v1 and F16 \[2\] in v2"),
    ],
)
def test_models_with_different_tensors(daemon, client, other, sentence):
    daemon.snapshots.publish(1, model(a=torch.zeros(2), b=torch.zeros(2)))
    daemon.snapshots.publish(2, model(**other))
    with pytest.raises(foldin.FailedPrecondition, match=sentence):
        foldin.diff(client, "v1", "v2")


def handmade(header, data=b"", length=None):
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_a_dtype_that_is_not_known(daemon, client):
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    daemon.snapshots.publish(1, {ONE: handmade(header, b"1")})
    daemon.snapshots.publish(2, {ONE: handmade(header, b"2")})
    with pytest.raises(foldin.FailedPrecondition, match="tensor a has dtype F4, which this client cannot read"):
        foldin.diff(client, "v1", "v2")
    (tensor,) = foldin.diff(client, "v1", "v1").tensors
    assert (tensor.norm, tensor.relative) == (None, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        handmade({}, length=2**40),
        handmade([]),
        handmade({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        handmade({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12"),
        handmade({"a": {"dtype": "F32"}}),
    ],
    ids=["empty", "short", "endless", "list", "other length", "beyond the end", "entry"],
)
def test_files_that_are_no_models(daemon, client, content):
    daemon.snapshots.publish(1, {ONE: content})
    with pytest.raises(foldin.DataLoss, match=r"model\.safetensors of v1 is not what it should be"):
        foldin.diff(client, "v1", "v1")


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": 1}'])
def test_an_index_that_is_none(daemon, client, index):
    daemon.snapshots.publish(1, {INDEX: index, "x.safetensors": b""})
    with pytest.raises(foldin.DataLoss, match="of v1 is not what it should be"):
        foldin.diff(client, "v1", "v1")


def test_the_manifest_is_verified(daemon, client):
    tensors = {"w": {"treatment": "projected", "task_vector_norm": 1.5, "kept": 0.5, "split_rank": 2, "rank": 0}}
    daemon.snapshots.publish(1, {"foldin.json": json.dumps({"tensors": tensors}).encode()})
    (found,) = foldin.tensor_statistics(client)
    assert found.to_json() == {"name": "w", **tensors["w"]}
    left = [1]

    def alter(name, offset, data):
        return iter([b" " + data[1:]] if left and left.pop() else [data])

    daemon.snapshots.on_read = alter
    assert foldin.tensor_statistics(client) == (found,)
    left.extend([1, 1])
    with pytest.raises(foldin.DataLoss, match=r"foldin\.json of v1 arrived altered"):
        foldin.tensor_statistics(client)


@pytest.mark.parametrize("manifest", [b"{}", b"[]", b"", b'{"tensors": {"w": {}}}', b'{"tensors": {"w": 1}}'])
def test_a_manifest_without_statistics(daemon, client, manifest):
    daemon.snapshots.publish(1, {"foldin.json": manifest})
    with pytest.raises(foldin.DataLoss, match=r"foldin\.json of v1 has no statistics"):
        foldin.tensor_statistics(client)
