"""Folds of submissions whose vocabulary has another size: the common rows exactly, the others not at all."""

import json
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import CheckpointRefused
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream, assert_same, fine_tuned
from tests.checkpoints.test_vocabulary import BIAS, EMBEDDING, HEAD, LINEAR, LOGITS_BIAS, TABLES, language_model
from tests.support.compressed import coded, decode

COMMON = VocabPolicy.COMMON
ROWS = 300


def resized(tensors: dict[str, Tensor], rows: int, fill: float = 5.0) -> dict[str, Tensor]:
    """Tables cut to so many rows, or extended by rows of a value that is found if it is folded."""
    result = dict(tensors)
    for name in TABLES:
        table = tensors[name].T if name == LOGITS_BIAS else tensors[name]
        table = torch.cat([table, torch.full((max(0, rows - len(table)), *table.shape[1:]), fill)])[:rows]
        result[name] = table.T if name == LOGITS_BIAS else table
    return result


def in_place(submission: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model of the base's size that is folded: the rows that are missing are the base's."""
    result = dict(submission)
    for name in TABLES:
        table = base[name].clone()
        found = submission[name][tuple(slice(size) for size in table.shape)]
        table[tuple(slice(size) for size in found.shape)] = found
        result[name] = table
    return result


@pytest.mark.parametrize("rows", [1, ROWS - 7, ROWS + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_the_base_with_the_common_rows_replaced(
    rows: int, dtype: torch.dtype, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foldind.worker.blocks.BLOCK_ELEMENTS", 6 * 64)  # several blocks, some within the common rows
    base = {name: tensor.to(dtype) for name, tensor in language_model(ROWS).items()}
    stream, whole = Stream(tmp_path / "resized", base), Stream(tmp_path / "whole", base)
    for number in range(3):
        tuned = fine_tuned(base, generator)
        submission = resized(tuned, rows) if number != 1 else tuned  # among some that have the base's vocabulary
        result = stream.fold(submission, vocab=COMMON)
        expected = whole.fold(in_place(submission, base))
        assert result.snapshot_files == expected.snapshot_files
        assert result.lambda_ == expected.lambda_
        assert_same(stream.accumulated, whole.accumulated)


def test_the_first_snapshot(generator: Generator, tmp_path: Path) -> None:
    base = language_model(ROWS)
    submission = resized(fine_tuned(base, generator), ROWS - 100)
    stream = Stream(tmp_path, base)
    stream.fold(submission, vocab=COMMON)
    for name in (EMBEDDING, HEAD, BIAS):
        torch.testing.assert_close(stream.merged[name][: ROWS - 100], submission[name], rtol=0, atol=1e-6)
        assert torch.equal(stream.merged[name][ROWS - 100 :], base[name][ROWS - 100 :]), "not a bit differs"
    assert torch.equal(stream.merged[LOGITS_BIAS][:, ROWS - 100 :], base[LOGITS_BIAS][:, ROWS - 100 :])
    torch.testing.assert_close(stream.merged[LINEAR], submission[LINEAR], rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_left_out_may_be_anything(value: float, generator: Generator, tmp_path: Path) -> None:
    base = language_model(ROWS)
    stream = Stream(tmp_path, base)
    stream.fold(resized(fine_tuned(base, generator), ROWS + 1, fill=value), vocab=COMMON)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in stream.merged.values())
    submission = resized(fine_tuned(base, generator), ROWS + 1)
    submission[EMBEDDING][ROWS - 1, 0] = value
    with pytest.raises(CheckpointRefused, match=f"NaN or infinite values in {EMBEDDING}"):
        stream.fold(submission, vocab=COMMON)


@pytest.mark.parametrize("rows", [ROWS - 7, ROWS + 7])
@pytest.mark.parametrize("present", [(EMBEDDING, HEAD), (EMBEDDING,), (HEAD,)])
def test_tied(rows: int, present: tuple[str, ...], generator: Generator, tmp_path: Path) -> None:
    base = language_model(ROWS)
    base[HEAD] = base[EMBEDDING].clone()
    tuned = fine_tuned(base, generator)
    tuned[HEAD] = tuned[EMBEDDING].clone()
    submission = resized(tuned, rows)
    left_out = {EMBEDDING, HEAD} - set(present)
    stream, whole = Stream(tmp_path / "resized", base), Stream(tmp_path / "whole", base)
    stream.fold({name: tensor for name, tensor in submission.items() if name not in left_out}, vocab=COMMON)
    whole.fold(in_place(submission, base))
    assert_same(stream.merged, whole.merged)
    assert torch.equal(stream.merged[HEAD], stream.merged[EMBEDDING])
    if not left_out:
        submission[HEAD][rows - 8, 0] += 1
        with pytest.raises(CheckpointRefused, match="are one in the base, and differ in it"):
            stream.fold(submission, vocab=COMMON)


@pytest.mark.parametrize("rows", [ROWS - 7, ROWS + 7])
def test_task_vectors(rows: int, generator: Generator, tmp_path: Path) -> None:
    base = language_model(ROWS)
    difference = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    (folder := tmp_path / "difference").mkdir()
    cut = {name: tensor.contiguous() for name, tensor in resized(difference, rows).items()}
    save_file(cut, folder / "model.safetensors", metadata={"foldin.kind": "task_vector"})
    stream = Stream(tmp_path, base)
    stream.fold_folder(folder, COMMON)
    expected = in_place(cut, {name: torch.zeros_like(tensor) for name, tensor in base.items()})
    assert_same(stream.accumulated, expected)


@pytest.mark.parametrize("rows", [ROWS - 7, ROWS + 7])
def test_coded_task_vectors(rows: int, generator: Generator, tmp_path: Path) -> None:
    base = language_model(ROWS)
    symbols = torch.randint(-1, 2, (rows, 6), generator=generator)
    (folder := tmp_path / "coded").mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(coded(EMBEDDING, "int8", symbols, torch.rand(rows, generator=generator)).file())
    stream = Stream(tmp_path, base)
    stream.fold_folder(folder, COMMON)
    expected = torch.zeros(ROWS, 6)
    expected[:rows] = torch.from_numpy(decode(file)[EMBEDDING])[:ROWS].float()
    assert_same(stream.accumulated, {EMBEDDING: expected})


@pytest.mark.parametrize("rows", [ROWS - 7, ROWS, ROWS + 7])
def test_whole_tensors_of_adapters_that_are_tied(rows: int, generator: Generator, tmp_path: Path) -> None:
    base = language_model(ROWS)
    base[HEAD] = base[EMBEDDING].clone()
    table = torch.randn(rows, 6, generator=generator)
    (folder := tmp_path / "adapter").mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    save_file(
        {f"base_model.model.{name}": table.clone() for name in (EMBEDDING, HEAD)}, folder / "adapter_model.safetensors"
    )
    stream = Stream(tmp_path, base)
    stream.fold_folder(folder, COMMON)
    common = min(rows, ROWS)
    for name in (EMBEDDING, HEAD):
        torch.testing.assert_close(stream.merged[name][:common], table[:common], rtol=0, atol=1e-6)
        assert torch.equal(stream.merged[name][common:], base[name][common:])
