"""Kept bases, several blocks at once, any memory budget: the same bytes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from foldind.worker.blocks import projected_matrices
from foldind.worker.messages import BasisRequest, BasisTarget
from foldind.worker.prepare import prepare_bases
from torch import Generator, Tensor

from tests.checkpoints.folding import PROJECTED, Stream, fine_tuned
from tests.support.models import base_tensors

EXPERTS = "block.experts.gate_proj"
MATRICES = len(PROJECTED) + 3


@pytest.fixture
def base() -> dict[str, Tensor]:
    return base_tensors() | {EXPERTS: base_tensors(seed=1)[PROJECTED[1]].reshape(3, 16, 24).contiguous()}


def keep_bases(stream: Stream, **hyper_parameters: object) -> list[Path]:
    """Have the bases of a stream's state computed, as the daemon does between merges; return their files."""
    stream.bases.mkdir()
    targets = [
        BasisTarget(matrix.tensor.name, matrix.rows, str(stream.bases / matrix.basis_file))
        for matrix in projected_matrices(stream.plan)
    ]
    for part in (targets[:1], targets[1:]):
        prepare_bases(
            BasisRequest(
                rule="opcm",
                hyper_parameters=hyper_parameters,
                backend=stream.backend,
                threads=1,
                accumulated=str(stream.merged_state),
                targets=tuple(part),
            )
        )
    return [Path(target.file) for target in targets]


@pytest.mark.parametrize("projection", ["exact", "leading"])
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_kept_or_computed(
    base: dict[str, Tensor], backend: str, projection: str, generator: Generator, tmp_path: Path
) -> None:
    submissions = [fine_tuned(base, generator) for _ in range(2)]
    results = {}
    for keep in ("none", "some", "all", "damaged"):
        stream = Stream(tmp_path / keep, base, backend=backend, projection=projection)
        stream.fold(submissions[0])
        files = [] if keep == "none" else keep_bases(stream, projection=projection)
        assert len(files) == (0 if keep == "none" else MATRICES)
        if keep == "some":
            for file in files[1::2]:
                file.unlink()
        if keep == "damaged":
            for number, file in enumerate(files):
                file.write_bytes(file.read_bytes()[: 10 * number])
        results[keep] = stream.fold(submissions[1])
    assert [result.bases_computed for result in results.values()] == [MATRICES, MATRICES // 2, 0, MATRICES]
    assert len({str(replace(result, bases_computed=0)) for result in results.values()}) == 1


@pytest.mark.parametrize("budget", [0, 2**30])
def test_one_block_at_a_time_or_several(
    base: dict[str, Tensor], budget: int, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submissions = [fine_tuned(base, generator) for _ in range(3)]
    results = []
    for processors in (1, 2, 7):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=processors: set(range(count)))
        stream = Stream(tmp_path / str(processors), base, memory_budget=budget)
        results.append([stream.fold(submission) for submission in submissions])
    assert results[0] == results[1] == results[2]
