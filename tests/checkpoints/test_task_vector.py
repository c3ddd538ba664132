"""Files that hold a task vector instead of a model."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.match import check_against_plan
from foldind.errors import CheckpointRefused
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import EMBEDDING, FROZEN, QUERY, Stream, assert_same, fine_tuned
from tests.support.models import base_tensors

KIND = "foldin.kind"
TASK_VECTOR = {KIND: "task_vector"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

Tensors = Mapping[str, Tensor]


def write(folder: Path, tensors: Tensors, metadata: dict[str, str] = TASK_VECTOR) -> Path:
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata=metadata
    )
    return folder


def write_shards(folder: Path, tensors: Tensors, kinds: tuple[str, str]) -> Path:
    folder.mkdir()
    weight_map = {name: SHARDS[number % 2] for number, name in enumerate(tensors)}
    for file, kind in zip(SHARDS, kinds, strict=True):
        part = {name: tensors[name] for name, place in weight_map.items() if place == file}
        save_file(part, folder / file, metadata={KIND: kind})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def difference(model: Tensors, base: Tensors) -> dict[str, Tensor]:
    return {name: model[name].float() - base[name].float() for name in base if base[name].is_floating_point()}


@pytest.fixture
def streams(tmp_path: Path) -> tuple[Stream, Stream]:
    return Stream(tmp_path / "of_models", base_tensors()), Stream(tmp_path / "of_task_vectors", base_tensors())


def test_folds_to_the_bytes_that_the_model_folds_to(
    streams: tuple[Stream, Stream], tmp_path: Path, generator: Generator
) -> None:
    of_models, of_task_vectors = streams
    for number in range(3):
        model = fine_tuned(base_tensors(), generator)
        expected = of_models.fold(model)
        folder = write(tmp_path / str(number), difference(model, base_tensors()))
        assert of_task_vectors.fold_folder(folder) == expected
        assert_same(of_task_vectors.accumulated, of_models.accumulated)
        assert_same(of_task_vectors.merged, of_models.merged)


def test_partial(streams: tuple[Stream, Stream], tmp_path: Path, generator: Generator) -> None:
    of_models, of_task_vectors = streams
    model = dict(base_tensors()) | {QUERY: fine_tuned(base_tensors(), generator)[QUERY]}
    of_models.fold({QUERY: model[QUERY]})
    of_task_vectors.fold_folder(write(tmp_path / "partial", {QUERY: difference(model, base_tensors())[QUERY]}))
    assert_same(of_task_vectors.merged, of_models.merged)


def test_sharded(streams: tuple[Stream, Stream], tmp_path: Path, generator: Generator) -> None:
    of_models, of_task_vectors = streams
    model = fine_tuned(base_tensors(), generator)
    of_models.fold(model)
    folder = write_shards(tmp_path / "sharded", difference(model, base_tensors()), ("task_vector", "task_vector"))
    of_task_vectors.fold_folder(folder)
    assert_same(of_task_vectors.merged, of_models.merged)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_cannot_be_merged(
    value: float, streams: tuple[Stream, Stream], tmp_path: Path, generator: Generator
) -> None:
    tensors = difference(fine_tuned(base_tensors(), generator), base_tensors())
    tensors[QUERY][0, 0] = value
    with pytest.raises(CheckpointRefused, match=f"NaN or infinite values in {QUERY}"):
        streams[1].fold_folder(write(tmp_path / "poisoned", tensors))


def test_zero(streams: tuple[Stream, Stream], tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="nothing to merge"):
        streams[1].fold_folder(write(tmp_path / "zero", {QUERY: torch.zeros(24, 24)}))


def test_tied_tensors_that_differ(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "tied", base_tensors() | {"lm_head.weight": base_tensors()[EMBEDDING].clone()})
    with pytest.raises(CheckpointRefused, match="are one in the base, and differ in it"):
        stream.fold_folder(
            write(tmp_path / "parted", {EMBEDDING: torch.ones(40, 24), "lm_head.weight": torch.zeros(40, 24)})
        )


class TestTheDoor:
    @pytest.fixture
    def stream(self, streams: tuple[Stream, Stream]) -> Stream:
        return streams[1]

    def check(self, stream: Stream, folder: Path, ignore: tuple[str, ...] = ()) -> None:
        check_against_plan(open_checkpoint(folder), stream.plan, ignore=ignore, partial=False)

    def refusal(self, stream: Stream, folder: Path) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            self.check(stream, folder)
        assert refused.value.hint
        return str(refused.value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_what_can_be_folded(self, dtype: torch.dtype, stream: Stream, tmp_path: Path) -> None:
        self.check(stream, write(tmp_path / "some", {QUERY: torch.ones(24, 24, dtype=dtype)}))
        tensors = {QUERY: torch.ones(24, 24), FROZEN: torch.zeros(16, dtype=torch.int64), "head.weight": torch.ones(2)}
        self.check(stream, write(tmp_path / "more", tensors), ignore=("head.*",))

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({QUERY: torch.ones(24, 25)}, "has shape [24, 25] and the base's has [24, 24]"),
            ({QUERY: torch.ones(23, 24)}, "has 23 rows and the base's has 24"),
            ({QUERY: torch.ones(24, 24), "head.weight": torch.ones(2)}, "1 tensor that the base lacks: head.weight"),
            ({"head.weight": torch.ones(2)}, "no tensor in common with the base"),
            ({QUERY: torch.ones(24, 24, dtype=torch.int8)}, "has dtype I8"),
            ({QUERY: torch.ones(24, 24, dtype=torch.float64)}, "has dtype F64"),
        ],
        ids=["shape", "rows", "extra", "another base", "int8", "float64"],
    )
    def test_refusals(self, tensors: Tensors, words: str, stream: Stream, tmp_path: Path) -> None:
        assert words in self.refusal(stream, write(tmp_path / "bad", tensors))

    @pytest.mark.parametrize("kind", ["", "TASK_VECTOR", "adapter", "delta\x1b[2J", "x" * 5000])
    def test_a_kind_that_there_is_not(self, kind: str, stream: Stream, tmp_path: Path) -> None:
        folder = write(tmp_path / "kind", {QUERY: torch.ones(24, 24)}, {KIND: kind})
        sentence = self.refusal(stream, folder)
        assert "its foldin.kind is " in sentence
        assert "known ones are model, task_vector, compressed_task_vector" in sentence
        assert sentence.isprintable()
        assert len(sentence) < 300

    @pytest.mark.parametrize("kinds", [("task_vector", "model"), ("model", "\x1b[2J"), ("\u202e", "model")])
    def test_files_of_different_kinds(self, kinds: tuple[str, str], stream: Stream, tmp_path: Path) -> None:
        folder = write_shards(tmp_path / "mixed", difference(base_tensors(1), base_tensors()), kinds)
        assert f"its files differ in foldin.kind: {', '.join(map(repr, sorted(kinds)))}" in self.refusal(stream, folder)

    def test_a_model_is_no_task_vector_of_itself(self, stream: Stream, tmp_path: Path) -> None:
        folder = write(tmp_path / "model", {QUERY: torch.ones(24, 24)}, {KIND: "model"})
        assert "it lacks" in self.refusal(stream, folder)
