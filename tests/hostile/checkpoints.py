"""Checkpoints that are well-formed files and yet must not be merged, each the work of a small builder."""

import json
import random
import zlib
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from tests.hostile.files import craft
from tests.support.compressed import Parts, block_of_bytes, coded, of_blocks
from tests.support.wire import INDEX, SINGLE, fine_tuned, sharded, single

Tensors = Mapping[str, Tensor]
Files = dict[str, bytes]

QUERY = "encoder.layer.0.attention.query.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def index(content: object) -> Callable[[Tensors], Files]:
    """Sound shards beside an index of our own; bytes are taken as they are."""

    def build(base: Tensors) -> Files:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        return sharded(fine_tuned(base)) | {INDEX: text}

    return build


def mapped(**changes: object) -> Callable[[Tensors], Files]:
    """A sound checkpoint whose index puts some tensors elsewhere; dots in names are written as two underscores."""

    def build(base: Tensors) -> Files:
        files = sharded(fine_tuned(base))
        weight_map = json.loads(files[INDEX])["weight_map"]
        weight_map |= {name.replace("__", "."): place for name, place in changes.items()}
        return files | {INDEX: json.dumps({"weight_map": weight_map}).encode()}

    return build


def led_to(place: object) -> Callable[[Tensors], Files]:
    """An index that puts a tensor into a file that it should not name."""
    return mapped(logit_scale=place)


def changed(change: Callable[[dict[str, Tensor]], Tensors]) -> Callable[[Tensors], Files]:
    """A sound checkpoint with some tensors changed."""
    return lambda base: single(change(fine_tuned(base)))


def poisoned(value: float) -> Callable[[Tensors], Files]:
    def poison(tensors: dict[str, Tensor]) -> Tensors:
        tensors[QUERY][-1, -1] = value
        return tensors

    return changed(poison)


def without_shard(base: Tensors) -> Files:
    files = sharded(fine_tuned(base))
    return {name: content for name, content in files.items() if name != SHARDS[1]}


def with_stray_shard(base: Tensors) -> Files:
    return sharded(fine_tuned(base)) | {"model-00003-of-00002.safetensors": save({"stray": torch.ones(1)})}


def with_shard_of_another_model(base: Tensors) -> Files:
    return sharded(fine_tuned(base)) | {SHARDS[1]: save({"other.weight": torch.ones(3, 3)})}


def tiny_tensors(count: int) -> Callable[[Tensors], Files]:
    def build(_: Tensors) -> Files:
        entries = (
            f'"t{number}":{{"dtype":"U8","shape":[1],"data_offsets":[{number},{number + 1}]}}'
            for number in range(count)
        )
        return {SINGLE: craft(f"{{{','.join(entries)}}}", bytes(count))}

    return build


def big_metadata(base: Tensors) -> Files:
    return {SINGLE: save(fine_tuned(base), metadata={"notes": "x" * 3_000_000})}


def compressed(parts: Parts) -> Callable[[Tensors], Files]:
    return lambda _: {SINGLE: parts.file()}


def bomb(text: bytes) -> bytes:
    """Three megabytes of JSON that take fifty times that when parsed."""
    return b'{"weight_map": [' + b",".join([text] * (3_000_000 // (len(text) + 1))) + b"]}"


ATTACKS: Mapping[str, tuple[Callable[[Tensors], Files], str]] = {
    # Of another base, or of none.
    "another base": (lambda _: single({"conv.weight": torch.ones(3, 3)}), "no tensor in common with the base"),
    "another shape": (
        changed(lambda tensors: tensors | {QUERY: torch.ones(24, 25)}),
        "has shape [24, 25]",
    ),
    "more rows": (
        changed(lambda tensors: tensors | {"embeddings.word_embeddings.weight": torch.ones(41, 24)}),
        "has 41 rows and the base's has 40",
    ),
    "fewer rows": (
        changed(lambda tensors: tensors | {"embeddings.word_embeddings.weight": torch.ones(39, 24)}),
        "--vocab common",
    ),
    "more tensors": (changed(lambda tensors: tensors | {"extra.weight": torch.ones(2)}), "lacks: extra.weight"),
    "fewer tensors": (
        changed(lambda tensors: {name: tensor for name, tensor in tensors.items() if name != QUERY}),
        f"it lacks 1 tensor of the base: {QUERY}",
    ),
    "names with a prefix": (
        changed(lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()}),
        "with 'module.' before them",
    ),
    "quantised": (changed(lambda tensors: tensors | {QUERY: tensors[QUERY].char()}), "has dtype I8"),
    "float64": (changed(lambda tensors: tensors | {QUERY: tensors[QUERY].double()}), "has dtype F64"),
    # Values.
    "NaN": (poisoned(float("nan")), "NaN"),
    "infinity": (poisoned(float("inf")), "infinite"),
    "minus infinity": (poisoned(float("-inf")), "infinite"),
    "overflow": (changed(lambda tensors: tensors | {QUERY: torch.full((24, 24), 3e38)}), "float32"),
    "no update": (single, "it equals the base: there is nothing to merge"),
    # Index and shards.
    "shard missing": (without_shard, f"names {SHARDS[1]}, which is missing (1 of 2 shards are)"),
    "shard not named": (with_stray_shard, f"model-00003-of-00002.safetensors is not named by {INDEX}"),
    "shard of another model": (with_shard_of_another_model, "which model.safetensors.index.json does not name"),
    "index that leads up": (led_to("../model.safetensors"), "not a plain file name"),
    "index that leads to the root": (led_to("/etc/passwd"), "not a plain file name"),
    "index that leads into a folder": (led_to("a/b.safetensors"), "not a plain file name"),
    "index that leads up a backslash": (led_to("..\\..\\m.safetensors"), "not a plain file name"),
    "index that leads to a hidden file": (led_to(".hidden.safetensors"), "not a plain file name"),
    "index that leads to a pickle": (led_to("pytorch_model.bin"), "not a plain file name"),
    "index that leads to NUL": (led_to("model\0.safetensors"), "not a plain file name"),
    "index that leads to control characters": (led_to("\x1b[2J.safetensors"), "not a plain file name"),
    "index that leads to itself": (led_to(INDEX), "not a plain file name"),
    "index with an endless name": (led_to("n" * 5_000 + ".safetensors"), "not a plain file name"),
    "index with a number for a name": (led_to(7), "not a plain file name"),
    "index with the wrong shard": (
        lambda base: (
            mapped(**dict.fromkeys(("logit_scale",), SHARDS[1]))(base)
            if SHARDS[1] not in json.loads(sharded(base)[INDEX])["weight_map"]["logit_scale"]
            else mapped(logit_scale=SHARDS[0])(base)
        ),
        "tensor 'logit_scale' lies in",
    ),
    "index of a tensor that is not there": (mapped(ghost__weight=SHARDS[0]), "names tensor 'ghost.weight'"),
    "index that is empty": (index(b""), "is not valid JSON"),
    "index that is not JSON": (index(b"import os"), "is not valid JSON"),
    "index that is not UTF-8": (index(b'{"weight_map": {"\xff\xfe": "a"}}'), "is not valid JSON"),
    "index that is a list": (index([]), "has no weight_map"),
    "index without a map": (index({"metadata": {}}), "has no weight_map"),
    "index with a list for a map": (index({"weight_map": [1]}), "has no weight_map"),
    "index without an end": (index(b"[" * 200_000), "is not valid JSON"),
    "index that is noise": (index(random.Random(0).randbytes(100_000)), "is not valid JSON"),
    "index bomb of lists": (index(bomb(b"[]")), "is larger than"),
    "index bomb of objects": (index(bomb(b"{}")), "is larger than"),
    # Sheer size.
    "ten thousand tiny tensors": (tiny_tensors(10_000), "no tensor in common with the base"),
    "a million tiny tensors": (tiny_tensors(1_000_000), "states a header of"),
    "enormous metadata": (big_metadata, "states a header of"),
    # Task vectors.
    "task vector of no kind": (
        lambda base: {SINGLE: save(fine_tuned(base), metadata={"foldin.kind": "delta"})},
        "its foldin.kind is 'delta'",
    ),
    "task vector of another shape": (
        lambda _: {SINGLE: save({QUERY: torch.ones(3, 3)}, metadata={"foldin.kind": "task_vector"})},
        "has shape [3, 3]",
    ),
    "compressed, of another base": (
        compressed(coded("conv.weight", "ternary", torch.ones(3, 3), torch.tensor(1.0))),
        "no tensor in common with the base",
    ),
    "compressed, a scale of NaN": (
        compressed(coded(QUERY, "int8", torch.ones(24, 24), torch.tensor(float("nan")))),
        "has a scale that is negative, infinite or NaN",
    ),
    "compressed, a bomb": (compressed(block_of_bytes(QUERY, (24, 24), bytes(50_000))), "decodes to more than the 116"),
    "compressed, no digits": (compressed(block_of_bytes(QUERY, (24, 24), b"\xff" * 116)), "has the byte 255"),
    "compressed, cut off": (
        compressed(of_blocks(QUERY, "int8", (24, 24), torch.tensor(1.0), [zlib.compress(bytes(range(96)) * 6)[:-9]])),
        "ends before its zlib stream does",
    ),
    "compressed, too large": (
        compressed(coded(QUERY, "int8", torch.full((24, 24), 127), torch.tensor(3e38))),
        "NaN or infinite values",
    ),
    # Not what is merged.
    "adapter without a kind": (
        lambda _: {"adapter_config.json": b"{}", "adapter_model.safetensors": save({"lora_A": torch.ones(2, 2)})},
        "its peft_type is 'None', and only LORA adapters can be folded",
    ),
}
