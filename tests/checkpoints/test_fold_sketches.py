"""The sketch that a fold makes is that of the submission's task vector, in whatever form and parts that is read."""

import base64
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foldind.merging.sketch import WIDTH, sketch
from foldind.worker import blocks, fold
from foldind.worker.messages import FoldRequest, FoldResult
from torch import Generator, Tensor

from tests.checkpoints.folding import DENSE, EMBEDDING, FROZEN, QUERY, Stream, fine_tuned
from tests.checkpoints.test_fold_factored import Adapters
from tests.support.models import base_tensors

RULES = ("opcm", "foldin", "average", "ties")


def told(result: FoldResult) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(result.sketch), "<f4").copy())


def expected(base: Mapping[str, Tensor], submission: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for name, tensor in submission.items():
        if name != FROZEN:
            total += sketch(name, tensor.shape, 0, tensor.float() - base[name].float())
    return total.float()


def assert_close(found: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(found, other, rtol=0, atol=1e-5 * float(other.norm()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("processors", [1, 2])
def test_of_models_and_parts_of_them(
    rule: str, processors: int, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    base = base_tensors(dtype=torch.bfloat16) | {"experts.w1": torch.randn(3, 20, 12, generator=generator)}
    stream = Stream(tmp_path, base, rule=rule)
    for names in (base, (QUERY, EMBEDDING, "logit_scale", "experts.w1"), base):
        submission = {name: tensor for name, tensor in fine_tuned(base, generator).items() if name in names}
        assert_close(told(stream.fold(submission)), expected(base, submission))


@pytest.mark.parametrize("large", [0, blocks.LARGE_ELEMENTS])
def test_of_row_blocks(large: int, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a tensor, which begin within a chunk; of large matrices those that are projected too."""
    base = {EMBEDDING: torch.randn(3000, 24, generator=generator), DENSE[0]: torch.randn(1000, 70, generator=generator)}
    submissions = [fine_tuned(base, generator) for _ in range(2)]
    whole = Stream(tmp_path / "whole", base)
    results = [told(whole.fold(submission)) for submission in submissions]
    monkeypatch.setattr(blocks, "LARGE_ELEMENTS", large)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 77 * 24)
    parts = Stream(tmp_path / "parts", base)
    for submission, result in zip(submissions, results, strict=True):
        assert_close(result, expected(base, submission))
        assert_close(told(parts.fold(submission)), result)


@pytest.mark.parametrize("rule", ["opcm", "ties"])
def test_of_adapters_is_that_of_the_model_they_make(rule: str, generator: Generator, tmp_path: Path) -> None:
    """Whether they are folded as factors, or multiplied out."""
    base = {QUERY: torch.randn(400, 90, generator=generator), "up.weight": torch.randn(24, 300, generator=generator)}
    adapters, stream = Adapters(tmp_path, base, generator), Stream(tmp_path, base, rule=rule)
    for names in ((QUERY,), (QUERY, "up.weight")):
        folder, model = adapters.write(*names)
        result = stream.fold_folder(folder)
        assert any(tensor.rank for tensor in result.tensors) == (rule == "opcm")
        assert_close(told(result), expected(base, model))


@pytest.mark.parametrize("factored", [False, True])
def test_of_what_is_taken_out_is_that_of_what_was_merged(
    factored: bool, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {QUERY: torch.randn(400, 90, generator=generator)}
    adapters, stream = Adapters(tmp_path, base, generator), Stream(tmp_path, base, rule="average")
    folders = [adapters.write(QUERY)[0] for _ in range(2)]
    if not factored:
        stream.fold(fine_tuned(base, generator))
    merged = [stream.fold_folder(folder) for folder in folders]
    asked = fold.accumulate

    def accumulate(request: FoldRequest, *arguments: object) -> object:
        return asked(replace(request, take_out=True), *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fold, "accumulate", accumulate)
    assert stream.fold_folder(folders[0]).sketch == merged[0].sketch != merged[1].sketch
