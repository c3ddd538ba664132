"""Compressed task vectors: what is decoded, and what is refused before and while it is."""

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.coding import Coding, decode_block, most_coded_bytes
from foldind.checkpoints.match import check_against_plan
from foldind.checkpoints.plan import Plan, make_plan
from foldind.errors import CheckpointRefused
from foldind.worker.blocks import row_blocks
from foldind.worker.taskvectors import open_task_vectors
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import EMBEDDING, QUERY, Stream, assert_same
from tests.support.compressed import Parts, coded, of_blocks, pack
from tests.support.models import base_tensors

LARGE = "large.weight"
EXPERTS = "layer.experts.up"
SHAPES = {LARGE: (3000, 900), EXPERTS: (4, 20, 24)}
LM_HEAD = "lm_head.weight"


def base_of_tests() -> dict[str, Tensor]:
    large = {name: torch.randn(shape, generator=Generator().manual_seed(0)) for name, shape in SHAPES.items()}
    return base_tensors() | large | {LM_HEAD: base_tensors()[EMBEDDING].clone()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_file(base_of_tests(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def plan(base: Path) -> Plan:
    return make_plan(open_checkpoint(base))


class Door:
    """Checks and reads compressed task vectors as the daemon does."""

    def __init__(self, folder: Path, base: Path, plan: Plan):
        self.folder, self.base, self.plan = folder, base, plan

    def write(self, parts: Parts) -> Path:
        (self.folder / "model.safetensors").write_bytes(parts.file())
        return self.folder

    def check(self, parts: Parts, ignore: tuple[str, ...] = ()) -> None:
        check_against_plan(open_checkpoint(self.write(parts)), self.plan, ignore=ignore, partial=False)

    def refusal(self, parts: Parts) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            self.check(parts)
        assert refused.value.hint
        assert str(refused.value).isprintable()
        return str(refused.value)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self.plan.by_name[name]
        with open_task_vectors(self.plan, open_checkpoint(self.base), open_checkpoint(self.folder)) as task_vectors:
            return task_vectors.read(tensor, rows if rows or not tensor.shape else (0, tensor.shape[0]))

    def reading_refusal(self, parts: Parts) -> str:
        self.check(parts)
        with pytest.raises(CheckpointRefused) as refused:
            self.read(QUERY)
        assert refused.value.hint
        return str(refused.value)


@pytest.fixture
def door(tmp_path: Path, base: Path, plan: Plan) -> Door:
    return Door(tmp_path, base, plan)


def symbols(shape: tuple[int, ...], coding: str, generator: Generator) -> Tensor:
    largest = 1 if coding == "ternary" else 127
    return torch.randint(-largest, largest + 1, shape, generator=generator)


class TestDecoding:
    @pytest.mark.parametrize(
        ("coding", "scales"),
        [("ternary", ()), ("ternary", (3000,)), ("int8", (3000,)), ("int8", ()), ("int8", (3000, 900))],
    )
    def test_any_rows_of_several_blocks(
        self, coding: str, scales: tuple[int, ...], door: Door, generator: Generator
    ) -> None:
        values, scale = symbols(SHAPES[LARGE], coding, generator), torch.rand(scales, generator=generator)
        door.check(coded(LARGE, coding, values, scale))
        expected = values.float() * scale.reshape(*scale.shape, *[1] * (2 - scale.dim()))
        for rows in [(0, 3000), (0, 1), (2999, 3000), (1164, 1167), (1165, 1166), *row_blocks(SHAPES[LARGE])]:
            assert rows is not None
            assert torch.equal(door.read(LARGE, rows), expected[rows[0] : rows[1]])

    @pytest.mark.parametrize("scales", [(), (4,), (4, 20)])
    def test_stacked_matrices(self, scales: tuple[int, ...], door: Door, generator: Generator) -> None:
        values, scale = symbols(SHAPES[EXPERTS], "int8", generator), torch.rand(scales, generator=generator)
        door.check(coded(EXPERTS, "int8", values, scale))
        expected = values.float() * scale.reshape(*scale.shape, *[1] * (3 - scale.dim()))
        assert torch.equal(door.read(EXPERTS), expected)
        assert torch.equal(door.read(EXPERTS, (2, 3)), expected[2:3])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_plain_tensors_beside_coded_ones(self, dtype: torch.dtype, door: Door, generator: Generator) -> None:
        bias, norm = torch.randn(24, generator=generator).to(dtype), torch.tensor(0.5, dtype=dtype)
        plain = Parts({"encoder.layer.0.LayerNorm.weight": bias, "logit_scale": norm}, {})
        door.check(coded(QUERY, "ternary", symbols((24, 24), "ternary", generator), torch.tensor(0.1)) | plain)
        assert torch.equal(door.read("encoder.layer.0.LayerNorm.weight"), bias.float())
        assert torch.equal(door.read("logit_scale"), norm.float())
        assert not door.read(LARGE, (0, 5)).any()

    def test_tied_tensors(self, door: Door, generator: Generator) -> None:
        values = symbols((40, 24), "ternary", generator)
        one = coded(LM_HEAD, "ternary", values, torch.tensor(2.0))
        door.check(one)
        assert torch.equal(door.read(EMBEDDING), 2.0 * values)
        door.check(one | coded(EMBEDDING, "int8", 2 * values, torch.tensor(1.0)))
        assert torch.equal(door.read(EMBEDDING), 2.0 * values)
        door.check(one | coded(EMBEDDING, "ternary", -values, torch.tensor(2.0)))
        with pytest.raises(CheckpointRefused, match="are one in the base, and differ in it"):
            door.read(EMBEDDING)

    def test_every_ternary_byte(self) -> None:
        for byte in range(3**5):
            digits = [byte // 3**place % 3 for place in range(5)]
            expected = [-1 if digit == 2 else digit for digit in digits]
            assert decode_block(Coding.TERNARY, zlib.compress(bytes([byte])), 5, "it").tolist() == expected

    def test_ignored_tensors(self, door: Door) -> None:
        head = coded("head.weight", "ternary", torch.ones(3, 3), torch.tensor(1.0))
        query = coded(QUERY, "ternary", torch.ones(24, 24), torch.tensor(1.0))
        door.check(query | head, ignore=("head.*",))
        assert "lacks: head.weight" in door.refusal(query | head)

    def test_a_fold_of_it_is_that_of_what_it_decodes_to(self, door: Door, tmp_path: Path, generator: Generator) -> None:
        streams = [Stream(tmp_path / name, base_tensors()) for name in ("compressed", "dense")]
        for number in range(2):
            values, scale = symbols((24, 24), "int8", generator), torch.rand(24, generator=generator)
            results = [
                streams[0].fold_folder(door.write(coded(QUERY, "int8", values, scale))),
                streams[1].fold_folder(
                    _task_vector(tmp_path / f"dense{number}", {QUERY: values.float() * scale[:, None]})
                ),
            ]
            assert results[0] == results[1]
            assert torch.equal(streams[0].merged[QUERY], streams[1].merged[QUERY])


def _task_vector(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"foldin.kind": "task_vector"})
    return folder


def good(coding: str = "ternary", shape: tuple[int, ...] = (24, 24)) -> Parts:
    return coded(QUERY, coding, torch.ones(shape), torch.tensor(0.5))


def changed(**changes: Tensor | str | None) -> Callable[[], Parts]:
    """A good one with a part put in place of another, or taken away: codes, lengths, scales, coding."""

    def build() -> Parts:
        parts = good()
        for ending, change in changes.items():
            where = parts.metadata if ending == "coding" else parts.tensors
            if change is None:
                del where[f"{QUERY}:{ending}"]
            else:
                where[f"{QUERY}:{ending}"] = change  # type: ignore[assignment]
        return parts

    return build


def with_lengths(*lengths: int) -> Callable[[], Parts]:
    return changed(lengths=torch.tensor(lengths).to(torch.uint32))


def as_long_as(length: int) -> Callable[[], Parts]:
    """Codes and their length agree, and are what no compressor writes."""
    return changed(codes=torch.zeros(length, dtype=torch.uint8), lengths=torch.tensor([length]).to(torch.uint32))


CODE_BYTES = good().tensors[f"{QUERY}:codes"].numel()
LONGEST = most_coded_bytes(Coding.TERNARY, 24 * 24)

AT_THE_DOOR: dict[str, tuple[Callable[[], Parts], str]] = {
    # What it says of itself.
    "no coding": (changed(coding=None), "without 'encoder.layer.0.attention.query.weight:coding' in its metadata"),
    "unknown coding": (changed(coding="golomb 24,24"), "is 'golomb 24,24'; it is one of ternary, int8"),
    "coding without a shape": (changed(coding="ternary"), "is 'ternary'; it is one of"),
    "a scalar": (changed(coding="ternary "), "is 'ternary '; it is one of"),
    "a size of zero": (changed(coding="ternary 0,24"), "is 'ternary 0,24'"),
    "a negative size": (changed(coding="ternary -24,-24"), "is 'ternary -24,-24'"),
    "a size with leading zeros": (changed(coding="ternary 024,24"), "is 'ternary 024,24'"),
    "digits of another script": (changed(coding="ternary \u0662\u0664,24"), "it is one of"),
    "a size of 5000 digits": (changed(coding="ternary " + "9" * 5000), "it is one of"),
    "17 dimensions": (changed(coding="ternary " + ",".join(["1"] * 17)), "it is one of"),
    "a newline": (changed(coding="ternary 24,24\n"), "is 'ternary 24,24\\n'"),
    "an enormous shape": (changed(coding=f"ternary {','.join(['9' * 18] * 16)}"), "elements make"),
    "another shape": (changed(coding="ternary 24,25"), "has shape [24, 25] and the base's has [24, 24]"),
    "more rows": (changed(coding="ternary 25,24"), "has 25 rows and the base's has 24"),
    "transposed": (
        lambda: coded("encoder.layer.0.output.dense.weight", "ternary", torch.ones(48, 24), torch.tensor(1.0)),
        "has shape [48, 24] and the base's has [24, 48]",
    ),
    "coding of nothing": (
        lambda: Parts(good().tensors, good().metadata | {"ghost:coding": "ternary 3"}),
        "of tensor 'ghost' are missing",
    ),
    "coding of no name": (lambda: Parts(good().tensors, good().metadata | {":coding": "ternary 3"}), "are missing"),
    # Its parts.
    "no codes": (changed(codes=None), "the codes, the lengths or the scales of tensor"),
    "no lengths": (changed(lengths=None), "the codes, the lengths or the scales of tensor"),
    "no scales": (changed(scales=None), "the codes, the lengths or the scales of tensor"),
    "codes of another dtype": (changed(codes=torch.zeros(9, dtype=torch.int8)), "has dtype I8 in place of U8"),
    "lengths of another dtype": (changed(lengths=torch.tensor([CODE_BYTES])), "has dtype I64 in place of U32"),
    "scales of another dtype": (changed(scales=torch.tensor(0.5).bfloat16()), "has dtype BF16 in place of F32"),
    "codes of two dimensions": (changed(codes=torch.zeros(3, 3, dtype=torch.uint8)), "codes have one dimension"),
    "coded and plain": (lambda: good() | Parts({QUERY: torch.ones(24, 24)}, {}), f"tensor {QUERY!r} is in it twice"),
    "a plain one of another shape": (lambda: Parts({QUERY: torch.ones(3)}, {}), "has shape [3] and the base's has"),
    "a plain one of another dtype": (lambda: Parts({QUERY: torch.ones(24, 24).char()}, {}), "has dtype I8"),
    "of another base": (
        lambda: coded("other", "ternary", torch.ones(3, 3), torch.tensor(1.0)),
        "in common with the base",
    ),
    "nothing": (lambda: Parts({}, {}), "no tensor in common with the base"),
    # Counts.
    "more blocks than elements need": (with_lengths(CODE_BYTES, 1), "its 576 elements make 1 blocks"),
    "no blocks": (changed(lengths=torch.zeros(0).to(torch.uint32)), "has lengths of shape [0], and its 576 elements"),
    "lengths of two dimensions": (
        changed(lengths=torch.tensor([[CODE_BYTES]]).to(torch.uint32)),
        "has lengths of shape [1, 1]",
    ),
    "a block of no bytes": (as_long_as(0), f"is 0 bytes long, and 1 to {LONGEST} are possible"),
    "a block beyond the codes": (with_lengths(CODE_BYTES + 1), f"take {CODE_BYTES + 1} bytes, and it has {CODE_BYTES}"),
    "a block of fewer bytes": (with_lengths(CODE_BYTES - 1), f"take {CODE_BYTES - 1} bytes, and it has {CODE_BYTES}"),
    "a block of four gigabytes": (with_lengths(2**32 - 1), f"is 4294967295 bytes long, and 1 to {LONGEST}"),
    "a block longer than any": (as_long_as(LONGEST + 1), f"is {LONGEST + 1} bytes long, and 1 to {LONGEST}"),
    # Scales.
    "scales of columns": (changed(scales=torch.ones(25)), "has scales of shape [25], which is no leading part"),
    "more dimensions of scales": (changed(scales=torch.ones(24, 24, 1)), "has scales of shape [24, 24, 1]"),
    "one scale with a dimension": (changed(scales=torch.ones(1)), "has scales of shape [1]"),
    **{
        f"scale of {value}": (changed(scales=torch.tensor(value)), "has a scale that is negative, infinite or NaN")
        for value in (float("nan"), float("inf"), float("-inf"), -0.5, -1e-45)
    },
    "one bad scale of many": (
        changed(scales=torch.ones(24).index_fill(0, torch.tensor(23), float("nan"))),
        "negative, infinite or NaN",
    ),
}


@pytest.mark.parametrize("name", AT_THE_DOOR)
def test_refused_at_the_door(name: str, door: Door) -> None:
    build, words = AT_THE_DOOR[name]
    assert words in door.refusal(build())


def block(coding: str, stream: bytes) -> Parts:
    return of_blocks(QUERY, coding, (24, 24), torch.tensor(0.5), [stream])


def packed(coding: str = "ternary", elements: int = 576) -> bytes:
    return pack(coding, np.ones(elements))


def raw(content: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return made.compress(content) + made.flush()


def with_dictionary(content: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY, content)
    return made.compress(content) + made.flush()


WHEN_READ: dict[str, tuple[str, bytes, str]] = {
    "a bomb": (
        "int8",
        zlib.compress(bytes(600_000), 9)[: most_coded_bytes(Coding.INT8, 576)],
        "more than the 576 bytes",
    ),
    "one element more": ("int8", zlib.compress(packed("int8", 577)), "more than the 576 bytes"),
    "one byte more": ("ternary", zlib.compress(packed() + b"\0"), "more than the 116 bytes"),
    "one element fewer": (
        "int8",
        zlib.compress(packed("int8", 575)),
        "decodes to 575 bytes, and its elements take 576",
    ),
    "one byte fewer": ("ternary", zlib.compress(packed()[:-1]), "decodes to 115 bytes"),
    "nothing": ("ternary", zlib.compress(b""), "decodes to 0 bytes"),
    "cut off by a byte": ("ternary", zlib.compress(packed())[:-1], "ends before its zlib stream does"),
    "cut off in the middle": ("int8", zlib.compress(bytes(range(100)) * 6)[:60], "ends before its zlib stream does"),
    "one byte": ("ternary", b"\x78", "ends before its zlib stream does"),
    "a byte after it": ("ternary", zlib.compress(packed()) + b"\0", "has 1 bytes after its zlib stream"),
    "two streams": ("ternary", zlib.compress(packed()) * 2, "bytes after its zlib stream"),
    "no zlib stream": ("ternary", b"\xff" * 40, "is no zlib stream or a damaged one"),
    "gzip": ("ternary", b"\x1f\x8b\x08" + bytes(30), "is no zlib stream or a damaged one"),
    "raw deflate": ("ternary", raw(packed()), "is no zlib stream or a damaged one"),
    "a dictionary": ("ternary", with_dictionary(packed()), "is no zlib stream or a damaged one"),
    "a wrong checksum": ("ternary", zlib.compress(packed())[:-1] + b"\x99", "is no zlib stream or a damaged one"),
    "a byte of no digits": ("ternary", zlib.compress(packed()[:-1] + b"\xf3"), "has the byte 243"),
    "bytes of no digits": ("ternary", zlib.compress(b"\xff" * 116), "has the byte 255"),
    "digits after the last": ("ternary", zlib.compress(packed()[:-1] + bytes([1 + 3])), "has elements after its last"),
    "the symbol -128": ("int8", zlib.compress(packed("int8", 575) + b"\x80"), "has the symbol -128"),
}


@pytest.mark.parametrize("name", WHEN_READ)
def test_refused_when_it_is_read(name: str, door: Door) -> None:
    coding, stream, words = WHEN_READ[name]
    sentence = door.reading_refusal(block(coding, stream))
    assert f"block 0 of tensor {QUERY!r}" in sentence
    assert words in sentence


def test_empty_deflate_blocks_without_end() -> None:
    made = zlib.compressobj()
    stream = made.compress(packed()) + b"".join(made.flush(zlib.Z_FULL_FLUSH) for _ in range(5)) + made.flush()
    assert decode_block(Coding.TERNARY, stream, 576, "it").all(), "what the limit of a block's length is for"


def test_a_bomb_takes_no_memory() -> None:
    bomb = zlib.compress(bytes(2**30 // 4), 9)
    tracemalloc.start()
    with pytest.raises(CheckpointRefused, match="more than the 576 bytes"):
        decode_block(Coding.INT8, bomb, 576, "it")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(bomb) + 2**20


def test_a_fold_that_meets_a_bad_block_leaves_the_stream_as_it_was(tmp_path: Path, door: Door) -> None:
    disturbed, undisturbed = Stream(tmp_path / "disturbed", base_tensors()), Stream(tmp_path / "not", base_tensors())
    disturbed.fold_folder(door.write(good()))
    with pytest.raises(CheckpointRefused, match="has the byte 255"):
        disturbed.fold_folder(door.write(block("ternary", zlib.compress(b"\xff" * 116))))
    undisturbed.fold_folder(door.write(good()))
    for stream in (disturbed, undisturbed):
        stream.fold_folder(door.write(good("int8")))
    assert_same(disturbed.merged, undisturbed.merged)


def test_damage_at_random(door: Door, seed: int) -> None:
    """Whatever bit is flipped, it is refused or reads as finite values of the right shape."""
    whole = (coded(QUERY, "ternary", torch.ones(24, 24), torch.tensor(0.5)) | good_embedding()).file()
    random = np.random.default_rng(seed)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        (door.folder / "model.safetensors").write_bytes(damaged)
        try:
            check_against_plan(open_checkpoint(door.folder), door.plan, ignore=(), partial=False)
            for name in (QUERY, EMBEDDING):
                assert door.read(name).shape == door.plan.by_name[name].shape
        except CheckpointRefused as error:
            assert error.hint
            refused += 1
    assert refused > 100


def good_embedding() -> Parts:
    return coded(EMBEDDING, "int8", torch.arange(960).remainder(255).sub(127).reshape(40, 24), torch.ones(40))
