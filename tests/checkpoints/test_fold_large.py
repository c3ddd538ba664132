"""Matrices that are folded in row blocks: the same as whole, but for rounding."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foldind.errors import CheckpointRefused
from foldind.worker import blocks
from torch import Generator, Tensor

from tests.checkpoints.folding import DENSE, PROJECTED, Stream, fine_tuned
from tests.checkpoints.test_fold_bases import keep_bases
from tests.support.models import base_tensors

FOLDS = 2


@pytest.fixture
def base() -> dict[str, Tensor]:
    return base_tensors() | {"lm_head.weight": base_tensors(seed=1)[DENSE[0]].repeat(5, 1)}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tall matrix is a large one, in blocks of a few rows."""
    monkeypatch.setattr(blocks, "LARGE_ELEMENTS", 0)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 7 * base_tensors()[DENSE[0]].shape[1])


def submissions(base: dict[str, Tensor], generator: Generator) -> list[dict[str, Tensor]]:
    return [fine_tuned(base, generator) for _ in range(FOLDS)]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("projection", ["exact", "leading"])
@pytest.mark.parametrize("cross_blocks", ["keep", "drop"])
def test_in_rows_or_whole(
    base: dict[str, Tensor],
    backend: str,
    projection: str,
    cross_blocks: str,
    generator: Generator,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    streams, results = {}, {}
    handed_in = submissions(base, generator)
    for way in ("whole", "rows"):
        if way == "rows":
            request.getfixturevalue("rows")
        stream = Stream(
            tmp_path / way, base, backend=backend, projection=projection, cross_blocks=cross_blocks, memory_budget=0
        )
        streams[way], results[way] = stream, [stream.fold(submission) for submission in handed_in]
        assert not list(stream.state_folder.glob("*-*"))
    for whole, parts in zip(results["whole"], results["rows"], strict=True):
        assert parts.lambda_ == pytest.approx(whole.lambda_, rel=1e-6)
        assert parts.bases_computed == whole.bases_computed
        for one, other in zip(whole.tensors, parts.tensors, strict=True):
            assert (one.name, one.split_rank) == (other.name, other.split_rank)
            assert other.task_vector_norm == pytest.approx(one.task_vector_norm, rel=1e-7)
            assert other.kept == pytest.approx(one.kept, abs=1e-6)
    whole, parts = streams["whole"].accumulated, streams["rows"].accumulated
    for name in (*PROJECTED, "lm_head.weight"):
        difference = float((whole[name].double() - parts[name].double()).norm() / whole[name].double().norm())
        assert difference <= 1e-6, name
        assert name != "lm_head.weight" or difference > 0, "it was not folded in rows"


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("projection", ["exact", "leading"])
def test_kept_or_computed(base: dict[str, Tensor], projection: str, generator: Generator, tmp_path: Path) -> None:
    handed_in = submissions(base, generator)[:2]
    results = {}
    for keep in ("none", "all", "damaged"):
        stream = Stream(tmp_path / keep, base, projection=projection)
        stream.fold(handed_in[0])
        for file in [] if keep == "none" else keep_bases(stream, projection=projection):
            if keep == "damaged":
                file.write_bytes(file.read_bytes()[:-1])
        results[keep] = stream.fold(handed_in[1])
    matrices = len(PROJECTED) + 1
    assert [result.bases_computed for result in results.values()] == [matrices, 0, matrices]
    assert len({str(replace(result, bases_computed=0)) for result in results.values()}) == 1


@pytest.mark.usefixtures("rows")
def test_one_block_at_a_time_or_several(
    base: dict[str, Tensor], generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_in = submissions(base, generator)
    results = []
    for processors in (1, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=processors: set(range(count)))
        stream = Stream(tmp_path / str(processors), base)
        results.append([stream.fold(submission) for submission in handed_in])
    assert results[0] == results[1]


@pytest.mark.usefixtures("rows")
def test_untouched_then_touched(base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> None:
    """Nothing of it is merged yet: there is no direction to keep clear of."""
    first, second = submissions(base, generator)[:2]
    first["lm_head.weight"] = base["lm_head.weight"]
    stream = Stream(tmp_path, base)
    stream.fold(first)
    stream.fold(second)
    expected = second["lm_head.weight"] - base["lm_head.weight"]
    torch.testing.assert_close(stream.accumulated["lm_head.weight"], expected, rtol=0, atol=1e-7)
    before = stream.accumulated["lm_head.weight"]
    stream.fold(first | {PROJECTED[0]: second[PROJECTED[0]]})
    assert torch.equal(stream.accumulated["lm_head.weight"], before)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("position", [0, -1])
def test_not_finite(base: dict[str, Tensor], position: int, generator: Generator, tmp_path: Path) -> None:
    first, second = submissions(base, generator)[:2]
    stream = Stream(tmp_path, base)
    stream.fold(first)
    second["lm_head.weight"][position, 0] = float("nan")
    with pytest.raises(CheckpointRefused, match=r"NaN or infinite values in lm_head\.weight"):
        stream.fold(second)


@pytest.mark.usefixtures("rows")
def test_low_rank(base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> None:
    stream = Stream(tmp_path, base)
    rows, columns = base["lm_head.weight"].shape
    total = torch.zeros(rows, columns)
    for _ in range(3):
        left, right = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
        stream.fold(base | {"lm_head.weight": base["lm_head.weight"] + 0.01 * left @ right})
        total = stream.accumulated["lm_head.weight"]
    assert torch.linalg.matrix_rank(total.double(), rtol=1e-5) == 6
