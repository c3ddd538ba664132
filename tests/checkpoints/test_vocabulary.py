"""Vocabularies of another size than the base's, at the door."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.match import check_against_plan
from foldind.checkpoints.plan import make_plan
from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy, vocabulary_sizes
from foldind.errors import CheckpointRefused
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.test_match import save
from tests.support.compressed import block_of_bytes

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
BIAS = "lm_head.bias"
LOGITS_BIAS = "final_logits_bias"
LINEAR = "model.layers.0.mlp.up_proj.weight"
"""A linear layer with as many rows as the vocabulary has."""
POSITIONS = "model.embed_positions.weight"
NORM = "model.norm.weight"
ROWS = 10


def language_model(rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    """An untied model whose other sizes are those of the vocabulary, too."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        EMBEDDING: (rows, 6),
        HEAD: (rows, 6),
        BIAS: (rows,),
        LOGITS_BIAS: (1, rows),
        LINEAR: (ROWS, 6),
        POSITIONS: (ROWS, 6),
        NORM: (ROWS,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


TABLES = (EMBEDDING, HEAD, BIAS, LOGITS_BIAS)


class Door:
    def __init__(self, root: Path, base: Mapping[str, Tensor]):
        self._folder = root / "submission"
        self.plan = make_plan(open_checkpoint(save(root / "base", base)))

    def check(
        self,
        tensors: Mapping[str, Tensor],
        vocab: VocabPolicy = VocabPolicy.COMMON,
        *,
        partial: bool = False,
        kind: str = "model",
    ) -> dict[str, RowCounts]:
        self._folder.mkdir(exist_ok=True)
        save_file(dict(tensors), self._folder / "model.safetensors", metadata={"foldin.kind": kind})
        return self.check_folder(self._folder, vocab, partial=partial)

    def check_folder(
        self, folder: Path, vocab: VocabPolicy = VocabPolicy.COMMON, *, partial: bool = False
    ) -> dict[str, RowCounts]:
        return check_against_plan(open_checkpoint(folder), self.plan, ignore=(), partial=partial, vocab=vocab)

    def refusal(self, tensors: Mapping[str, Tensor], vocab: VocabPolicy = VocabPolicy.COMMON) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            self.check(tensors, vocab)
        return str(refused.value)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path, language_model())


class TestByDefault:
    @pytest.mark.parametrize("rows", [ROWS - 3, ROWS + 3])
    @pytest.mark.parametrize("name", TABLES)
    def test_refused_with_the_counts_and_the_way_out(self, name: str, rows: int, door: Door) -> None:
        sentence = door.refusal(language_model() | {name: language_model(rows)[name]}, VocabPolicy.SAME)
        assert f"tensor {name!r} has {rows} rows and the base's has {ROWS}" in sentence
        assert f"--vocab common` folds the {min(rows, ROWS)} that both have" in sentence

    @pytest.mark.parametrize("vocab", VocabPolicy)
    @pytest.mark.parametrize("name", [LINEAR, POSITIONS, NORM])
    def test_no_way_out_for_what_is_no_table(self, name: str, vocab: VocabPolicy, door: Door) -> None:
        sentence = door.refusal(language_model() | {name: torch.zeros(12, *language_model()[name].shape[1:])}, vocab)
        assert f"tensor {name!r} has " in sentence
        assert "12" in sentence
        assert "--vocab" not in sentence

    @pytest.mark.parametrize("vocab", VocabPolicy)
    def test_the_same_size_is_nothing_to_speak_of(self, vocab: VocabPolicy, door: Door) -> None:
        assert door.check(language_model(seed=1), vocab) == {}


class TestCommon:
    @pytest.mark.parametrize("rows", [1, ROWS - 3, ROWS + 3, 5 * ROWS])
    def test_all_tables_and_nothing_else(self, rows: int, door: Door) -> None:
        assert door.check(language_model(rows)) == dict.fromkeys(TABLES, RowCounts(rows, ROWS))

    def test_those_that_a_partial_one_has(self, door: Door) -> None:
        tensors = {name: language_model(12)[name] for name in (HEAD, NORM)}
        assert door.check(tensors, partial=True) == {HEAD: RowCounts(12, ROWS)}

    def test_of_task_vectors(self, door: Door) -> None:
        tensors = {name: language_model(12)[name] for name in (EMBEDDING, LOGITS_BIAS)}
        assert door.check(tensors, kind="task_vector").keys() == tensors.keys()

    def test_of_coded_task_vectors(self, tmp_path: Path, door: Door) -> None:
        (folder := tmp_path / "coded").mkdir()
        # 72 ternary digits, five to a byte, all zero.
        (folder / "model.safetensors").write_bytes(block_of_bytes(EMBEDDING, (12, 6), bytes(15)).file())
        assert door.check_folder(folder) == {EMBEDDING: RowCounts(12, ROWS)}
        (folder / "model.safetensors").write_bytes(block_of_bytes(LOGITS_BIAS, (1, 12), bytes(3)).file())
        with pytest.raises(CheckpointRefused, match="is coded, and cannot be cut"):
            door.check_folder(folder)

    @pytest.mark.parametrize("present", [(EMBEDDING, HEAD), (EMBEDDING,), (HEAD,)])
    def test_of_tied_tables_under_the_name_they_are_folded_under(
        self, present: tuple[str, ...], tmp_path: Path
    ) -> None:
        base = language_model()
        door = Door(tmp_path, base | {HEAD: base[EMBEDDING].clone()})
        submission = {name: tensor for name, tensor in language_model(12).items() if name not in (EMBEDDING, HEAD)}
        found = door.check(submission | {name: torch.ones(12, 6) for name in present})
        assert found.keys() == {EMBEDDING, BIAS, LOGITS_BIAS}


class TestRefused:
    @pytest.mark.parametrize("name", TABLES)
    @pytest.mark.parametrize("rows", [ROWS, 13])
    def test_counts_that_disagree(self, rows: int, name: str, door: Door) -> None:
        sentence = door.refusal(language_model(12) | {name: language_model(rows)[name]})
        assert f"disagree on the size of the vocabulary, which is {ROWS} in the base" in sentence
        assert f"{name!r} has {rows}" in sentence
        assert "has 12" in sentence

    def test_zero_rows(self, door: Door) -> None:
        assert f"has 0 rows and the base's has {ROWS}" in door.refusal(language_model(0))

    @pytest.mark.parametrize("shape", [(12, 5), (12,), (12, 6, 1), (6, 12), ()])
    def test_another_shape_besides(self, shape: tuple[int, ...], door: Door) -> None:
        sentence = door.refusal(language_model(12) | {EMBEDDING: torch.zeros(shape)})
        assert f"tensor {EMBEDDING!r} has shape {list(shape)}" in sentence

    def test_a_scalar_is_no_vocabulary_of_one(self, door: Door) -> None:
        assert f"tensor {BIAS!r} has shape []" in door.refusal(language_model(1) | {BIAS: torch.zeros(())})

    @pytest.mark.parametrize("name", [LINEAR, POSITIONS, NORM])
    def test_what_grows_along_and_is_no_table(self, name: str, door: Door) -> None:
        tensors = language_model(12)
        sentence = door.refusal(tensors | {name: torch.zeros(12, *tensors[name].shape[1:])})
        assert f"tensor {name!r} has " in sentence

    def test_wrong_dtypes_all_the_same(self, door: Door) -> None:
        assert f"tensor {HEAD!r} has dtype I8" in door.refusal(
            language_model(12) | {HEAD: torch.zeros(12, 6, dtype=torch.int8)}
        )


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        # An output layer of a common name is one only where it has as many rows as the embedding.
        ({"wte.weight": (9, 4), "cls.decoder.weight": (9, 4), "cls.decoder.bias": (9,)}, {0, 1, 2}),
        ({"wte.weight": (9, 4), "cls.decoder.weight": (8, 4), "cls.decoder.bias": (8,)}, {0}),
        ({"bert.embeddings.word_embeddings.weight": (9, 4), "cls.predictions.bias": (9,)}, {0, 1}),
        # A recogniser's alphabet has an output layer, and no embedding.
        ({"lm_head.weight": (9, 4), "lm_head.bias": (9,), "encoder.proj.weight": (9, 4)}, {0, 1}),
        # Two vocabularies.
        (
            {"encoder.embed_tokens.weight": (9, 4), "decoder.embed_tokens.weight": (7, 4), "lm_head.weight": (7, 4)},
            {*range(3)},
        ),
        # Named like embeddings, and none of tokens.
        ({"embeddings.position_embeddings.weight": (9, 4), "embeddings_project.weight": (9, 4)}, set()),
        ({"embeddings.token_type_embeddings.weight": (2, 4), "embeddings.patch_embeddings.weight": (9, 4)}, set()),
        ({"wte.weight": (4,), "shared.bias": (9,)}, set()),
    ],
)
def test_what_is_of_vocabulary_size(
    shapes: dict[str, tuple[int, ...]], expected: set[int], tmp_path: Path, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = vocabulary_sizes(make_plan(open_checkpoint(save(tmp_path / "base", tensors))))
    names = list(shapes)
    assert found == {names[number]: shapes[names[number]][0] for number in expected}


def test_an_output_layer_of_any_name_that_is_tied(tmp_path: Path) -> None:
    table = torch.randn(9, 4)
    base = save(tmp_path / "base", {"model.wte.weight": table, "pred.proj.weight": table.clone()})
    assert vocabulary_sizes(make_plan(open_checkpoint(base))) == {"model.wte.weight": 9, "pred.proj.weight": 9}
