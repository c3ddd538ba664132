"""Folds by rules that weigh submissions by their statistics, streamed as the daemon has them streamed."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from foldin.checkpoint import CheckpointFile
from foldin.compression import compress_model
from foldin.recipe import read_recipe
from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import CheckpointRefused
from foldind.worker import blocks
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import EMBEDDING, QUERY, Stream, fine_tuned, relative_error, write
from tests.checkpoints.statistics import STATISTICS, fisher_average, fishers, grams, put, regmean
from tests.support.models import base_tensors

MAKE = {"fisher": fishers, "regmean": grams}
ORACLE = {"fisher": fisher_average, "regmean": regmean}
RULES = tuple(MAKE)


def submission(folder: Path, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor], shards: int = 1) -> Path:
    return put(write(folder, tensors, shards), statistics)


def assert_close(stream: Stream, expected: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert relative_error(stream.merged, expected) <= tolerance


@pytest.mark.parametrize("rule", RULES)
class TestStream:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_equals_the_closed_form(self, rule: str, shards: int, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base, shards, rule=rule)
        models, statistics = [], []
        for number in range(3):
            models.append(fine_tuned(base, generator))
            statistics.append(MAKE[rule](base, generator))
            stream.fold_folder(submission(tmp_path / f"s{number}", models[-1], statistics[-1], shards))
            assert_close(stream, ORACLE[rule](base, models, statistics))

    def test_order_does_not_matter(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        """Also of what is partial, of which the statistics say more than it changes, or nothing."""
        base = base_tensors()
        models: list[dict[str, Tensor]] = [fine_tuned(base, generator) for _ in range(3)]
        statistics = [MAKE[rule](base, generator) for _ in range(3)]
        models[1] = {EMBEDDING: models[1][EMBEDDING]}  # but it says how much the base is worth to it elsewhere
        models[2] = {QUERY: models[2][QUERY]}
        statistics[2] = {QUERY: statistics[2][QUERY]}
        expected = ORACLE[rule](base, models, statistics)
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
            stream = Stream(tmp_path / str(order), base, rule=rule)
            for number in order:
                place = tmp_path / str(order) / f"s{number}"
                stream.fold_folder(submission(place, models[number], statistics[number]))
            assert_close(stream, expected)

    def test_taken_out_until_nobody_is_left_who_says_anything(
        self, rule: str, generator: Generator, tmp_path: Path
    ) -> None:
        """Of a tensor that what stays neither changes nor weighs, nothing is left."""
        base = base_tensors()
        models = [fine_tuned(base, generator) for _ in range(3)]
        models[2][QUERY] = base[QUERY]
        statistics = [MAKE[rule](base, generator) for _ in range(3)]
        statistics[0] = {name: 1e6 * values for name, values in statistics[0].items()}
        del statistics[2][QUERY]
        folders = [submission(tmp_path / f"s{number}", models[number], statistics[number]) for number in range(3)]
        stream, alone = Stream(tmp_path / "with", base, rule=rule), Stream(tmp_path / "alone", base, rule=rule)
        for folder in folders:
            stream.fold_folder(folder)
        for folder in (folders[1], folders[0]):
            stream.fold_folder(folder, take_out=True)
        alone.fold_folder(folders[2])
        assert torch.equal(stream.merged[QUERY], base[QUERY])
        for name, values in alone.merged.items():
            if values.is_floating_point():
                update = values - base[name]
                assert (stream.merged[name] - values).norm() <= 1e-5 * update.norm(), name

    def test_a_state_that_an_earlier_release_kept_in_float32(
        self, rule: str, generator: Generator, tmp_path: Path
    ) -> None:
        base = base_tensors()
        models = [fine_tuned(base, generator) for _ in range(3)]
        statistics = [MAKE[rule](base, generator) for _ in range(3)]
        statistics[2] = {QUERY: statistics[2][QUERY]}
        stream = Stream(tmp_path, base, rule=rule)
        for number in range(3):
            stream.fold_folder(submission(tmp_path / f"s{number}", models[number], statistics[number]))
            for file in stream.state_folder.glob("*.safetensors"):
                save_file({name: values.float() for name, values in load_file(file).items()}, file)
        assert_close(stream, ORACLE[rule](base, models, statistics))

    def test_row_blocks_change_nothing(
        self, rule: str, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = base_tensors()
        place = submission(tmp_path / "s", fine_tuned(base, generator), MAKE[rule](base, generator))
        whole, parts = Stream(tmp_path / "whole", base, rule=rule), Stream(tmp_path / "parts", base, rule=rule)
        expected = whole.fold_folder(place).snapshot_files
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 100)
        monkeypatch.setattr(blocks, "LARGE_ELEMENTS", 200)
        assert parts.fold_folder(place).snapshot_files == expected

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, rule: str, dtype: torch.dtype, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        models = [fine_tuned(base, generator) for _ in range(2)]
        halves = [{name: t.to(dtype) for name, t in MAKE[rule](base, generator).items()} for _ in range(2)]
        stream = Stream(tmp_path, base, rule=rule)
        for number in range(2):
            stream.fold_folder(submission(tmp_path / f"s{number}", models[number], halves[number]))
        # Of a symmetric matrix the rounded one is symmetric; but it is made so of two halves that may differ.
        assert_close(stream, ORACLE[rule](base, models, halves), 1e-5 if rule == "fisher" else 1e-3)

    def test_compressed_submissions(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        tuned = fine_tuned(base, generator)
        model = write(tmp_path / "model", tuned)
        (place := tmp_path / "small").mkdir()
        stream = Stream(tmp_path, base, rule=rule)
        recipe = read_recipe("int8", stream.base, None)
        assert recipe is not None
        files = [CheckpointFile("model.safetensors", model / "model.safetensors")]
        compress_model(files, recipe, False, place, lambda _: None)
        stream.fold_folder(put(place, MAKE[rule](base, generator)))
        update, wanted = stream.merged[QUERY] - base[QUERY], tuned[QUERY] - base[QUERY]
        assert float((update - wanted).norm()) <= 0.02 * float(wanted.norm()), "alone it comes back as it was sent"

    def test_tied_tensors_by_any_of_their_names(self, rule: str, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        base["lm_head.weight"] = base[EMBEDDING].clone()
        models = [fine_tuned(base, generator) for _ in range(2)]
        for model in models:
            model["lm_head.weight"] = model[EMBEDDING].clone()
        statistics = [MAKE[rule](base, generator) for _ in range(2)]
        stream = Stream(tmp_path, base, rule=rule)
        for number in range(2):
            if rule == "fisher":
                del statistics[number][EMBEDDING if number else "lm_head.weight"]
            stream.fold_folder(submission(tmp_path / f"s{number}", models[number], statistics[number]))
            if rule == "fisher":
                known = statistics[number].get(EMBEDDING, statistics[number].get("lm_head.weight"))
                assert known is not None
                statistics[number] |= {EMBEDDING: known, "lm_head.weight": known}
        assert_close(stream, ORACLE[rule](base, models, statistics))


def test_the_rows_that_both_vocabularies_have(generator: Generator, tmp_path: Path) -> None:
    base = base_tensors()
    model, fisher = fine_tuned(base, generator), fishers(base, generator)
    longer = {EMBEDDING: torch.cat([model[EMBEDDING], torch.ones(4, 24)])}
    weights = {EMBEDDING: torch.cat([fisher[EMBEDDING], torch.ones(4, 24)])}
    other, other_fisher = fine_tuned(base, generator), fishers(base, generator)
    stream = Stream(tmp_path, base, rule="fisher")
    stream.fold_folder(submission(tmp_path / "longer", model | longer, fisher | weights), VocabPolicy.COMMON)
    stream.fold_folder(submission(tmp_path / "other", other, other_fisher))
    assert_close(stream, fisher_average(base, [model, other], [fisher, other_fisher]))


def test_stacked_experts_have_a_gram_matrix_each(generator: Generator, tmp_path: Path) -> None:
    base = {"mlp.experts.up": torch.randn(3, 10, 6, generator=generator), "norm.weight": torch.ones(6)}
    models = [fine_tuned(base, generator) for _ in range(3)]
    statistics = [grams(base, generator, ("mlp.experts.up",)) for _ in range(3)]
    stream = Stream(tmp_path, base, rule="regmean")
    for number in range(3):
        stream.fold_folder(submission(tmp_path / f"s{number}", models[number], statistics[number]))
    assert_close(stream, regmean(base, models, statistics))


@pytest.mark.parametrize("rule", RULES)
def test_adapters(rule: str, generator: Generator, tmp_path: Path) -> None:
    """By the parameter's name; it says nothing of what it does not change."""
    base = base_tensors()
    stream = Stream(tmp_path, base, rule=rule)
    up, down = torch.randn(24, 2, generator=generator), torch.randn(2, 24, generator=generator)
    models, statistics = [], []
    models.append(fine_tuned(base, generator))
    statistics.append(MAKE[rule](base, generator))
    (place := tmp_path / "adapter").mkdir()
    (place / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    module = f"base_model.model.{QUERY.removesuffix('.weight')}"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, place / ADAPTER)
    models.append({QUERY: base[QUERY] + up @ down})
    statistics.append({QUERY: MAKE[rule](base, generator)[QUERY]})
    stream.fold_folder(put(place, statistics[1]))
    assert stream.accumulated.keys() == {QUERY}
    stream.fold_folder(submission(tmp_path / "model", models[0], statistics[0]))
    expected = ORACLE[rule](base, models, statistics)
    assert_close(stream, expected)


BAD_VALUES = {
    "NaN": ("fisher", (0, float("nan")), "has NaN or infinite values"),
    "infinity": ("fisher", (0, float("inf")), "has NaN or infinite values"),
    "negative": ("fisher", (5, -1e-9), "has negative or enormous values, and is no diagonal Fisher"),
    "enormous": ("fisher", (5, 1e35), "has negative or enormous values, and is no diagonal Fisher"),
    "NaN in a Gram matrix": ("regmean", (30, float("nan")), "has NaN or infinite values"),
    "infinity in a Gram matrix": ("regmean", (30, float("-inf")), "has NaN or infinite values"),
    "asymmetric": ("regmean", (1, 0.0), "is not symmetric and positive semi-definite, and so no Gram matrix"),
    "negative diagonal": ("regmean", (0, -1.0), "is not symmetric and positive semi-definite, and so no Gram matrix"),
    "zero diagonal": ("regmean", (0, 0.0), "is not symmetric and positive semi-definite, and so no Gram matrix"),
}


@pytest.mark.parametrize("what", BAD_VALUES)
def test_values_that_cannot_be(what: str, generator: Generator, tmp_path: Path) -> None:
    rule, (place, value), words = BAD_VALUES[what]
    base = base_tensors()
    statistics = MAKE[rule](base, generator)
    statistics[QUERY].view(-1)[place] = value
    stream = Stream(tmp_path, base, rule=rule)
    with pytest.raises(CheckpointRefused) as refused:
        stream.fold_folder(submission(tmp_path / "s", fine_tuned(base, generator), statistics))
    assert refused.value.reason == f"in {STATISTICS}, {QUERY!r} {words}"
    assert list(stream.state_folder.iterdir()) == []


def test_other_rules_do_not_read_them(generator: Generator, tmp_path: Path) -> None:
    base = base_tensors()
    place = write(tmp_path / "s", fine_tuned(base, generator))
    (place / STATISTICS).write_bytes(b"no safetensors at all")
    Stream(tmp_path / "stream", base, rule="average").fold_folder(place)


def test_metadata_says_nothing(generator: Generator, tmp_path: Path) -> None:
    base = base_tensors()
    place = write(tmp_path / "s", fine_tuned(base, generator))
    save_file(fishers(base, generator), place / STATISTICS, metadata={"foldin.kind": "other"})
    Stream(tmp_path / "stream", base, rule="fisher").fold_folder(place)
