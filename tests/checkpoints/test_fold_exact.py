"""The worker's fold, in this process, on real files, against the whole-model oracle."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.checkpoints.folding import DIGITS, FROZEN, PROJECTED, Stream, as_numpy, fine_tuned, relative_error
from tests.merging import oracle
from tests.support.models import base_tensors


def assert_rounded_once(found: Tensor, exact: np.ndarray, slack: float) -> None:
    """Every element is the nearest of its dtype, give or take an error of the state."""
    digits = DIGITS[found.dtype]
    smallest = -14 if found.dtype is torch.float16 else -126
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(exact))), smallest)
    assert (np.abs(found.double().numpy() - exact) <= 2.0 ** (exponent - digits) + slack).all()


class TestAgainstOracle:
    @pytest.mark.parametrize(
        "hyper_parameters",
        [{}, {"alpha": 0.0}, {"alpha": 0.8}, {"cross_blocks": "drop"}],
        ids=str,
    )
    def test_five_folds(self, hyper_parameters: dict[str, object], tmp_path: Path) -> None:
        # Fixed seeds: over several folds rounding is amplified wherever singular values happen to coincide nearly.
        base = base_tensors()
        submissions = [fine_tuned(base, Generator().manual_seed(number), 0.01 * number) for number in range(1, 6)]
        expected = oracle.merge_accumulated(
            as_numpy(base), [as_numpy(submission) for submission in submissions], PROJECTED, **hyper_parameters
        )
        stream = Stream(tmp_path, base, **hyper_parameters)
        norms = 0.0
        for count, (submission, step) in enumerate(zip(submissions, expected, strict=True), start=1):
            result = stream.fold(submission)
            norms += result.task_vector_norm
            assert relative_error(stream.accumulated, step.accumulated) <= 1e-5
            assert relative_error(stream.merged, step.merged) <= 1e-6
            assert result.lambda_ == pytest.approx(step.lambda_, rel=1e-6)
            assert result.record.accumulated_norm == pytest.approx(oracle.norm(step.accumulated), rel=1e-6)
            assert (result.record.submissions, result.record.task_vector_norm_sum) == (
                count,
                pytest.approx(norms, rel=1e-15),
            )

    @pytest.mark.parametrize("base_dtype", DIGITS)
    @pytest.mark.parametrize("dtype", DIGITS)
    def test_every_fold_is_exact_whatever_the_dtypes(
        self, base_dtype: torch.dtype, dtype: torch.dtype, generator: Generator, tmp_path: Path
    ) -> None:
        base = base_tensors(dtype=base_dtype)
        base[FROZEN] = torch.arange(16)
        stream = Stream(tmp_path, base)
        before = {name: np.zeros(tensor.shape) for name, tensor in as_numpy(base).items()}
        norms: list[float] = []
        for _ in range(3):
            submission = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in fine_tuned(base, generator).items()
            }
            result = stream.fold(submission)
            task_vector = {name: tensor - as_numpy(base)[name] for name, tensor in as_numpy(submission).items()}
            norms.append(oracle.norm(task_vector))
            assert result.task_vector_norm == pytest.approx(norms[-1], rel=1e-6)
            after = {
                name: before[name]
                + (
                    oracle.project(task_vector[name], before[name], 0.5, "keep")
                    if name in PROJECTED and before[name].any()
                    else task_vector[name]
                )
                for name in before
            }
            assert relative_error(stream.accumulated, after) <= 1e-6
            assert {tensor.dtype for tensor in stream.accumulated.values()} == {torch.float32}
            assert result.lambda_ == pytest.approx(oracle.norm(after) / np.mean(norms), rel=1e-6)
            merged = stream.merged
            for name, start in as_numpy(base).items():
                assert merged[name].dtype == base_dtype
                assert_rounded_once(merged[name], start + after[name] / result.lambda_, slack=3e-7)
            before = as_numpy(stream.accumulated)

    def test_first_snapshot_is_the_submission(self, generator: Generator, tmp_path: Path) -> None:
        for dtype, digits in DIGITS.items():
            base = base_tensors(dtype=dtype)
            submission = fine_tuned(base, generator)
            stream = Stream(tmp_path / str(dtype), base)
            assert stream.fold(submission).lambda_ == 1
            for name, tensor in stream.merged.items():
                torch.testing.assert_close(tensor, submission[name], rtol=2.0 ** (1 - digits), atol=1e-7)

    def test_measured_norm_is_that_of_the_closed_form(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base)
        stream.fold(fine_tuned(base, generator))
        for _ in range(3):
            before = stream.accumulated
            statistics = {tensor.name: tensor for tensor in stream.fold(fine_tuned(base, generator)).tensors}
            after = stream.accumulated
            for name in PROJECTED:
                kept = statistics[name].kept * statistics[name].task_vector_norm
                assert 0 < statistics[name].kept < 1
                closed = math.hypot(float(before[name].double().norm()), kept)
                assert closed == pytest.approx(float(after[name].double().norm()), rel=1e-6)

    def test_statistics(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base)
        first, submission = stream.fold(fine_tuned(base, generator)), fine_tuned(base, generator)
        assert all((tensor.kept, tensor.split_rank) == (1.0, 0) for tensor in first.tensors)
        before = as_numpy(stream.accumulated)
        second = stream.fold(submission)
        assert [tensor.name for tensor in second.tensors] == [tensor.name for tensor in stream.plan.folded]
        for tensor in second.tensors:
            assert tensor.treatment == stream.plan.by_name[tensor.name].treatment
            task_vector = submission[tensor.name].double().numpy() - base[tensor.name].double().numpy()
            length = np.sqrt((task_vector**2).sum())
            assert tensor.task_vector_norm == pytest.approx(length, rel=1e-6)
            if tensor.name in PROJECTED:
                values = oracle.spectrum(before[tensor.name])
                assert tensor.split_rank == oracle.split_rank(values, 0.5) > 0
                kept = oracle.project(task_vector, before[tensor.name], 0.5, "keep")
                assert tensor.kept == pytest.approx(np.linalg.norm(kept) / length, rel=1e-5)
            else:
                assert (tensor.kept, tensor.split_rank) == (1.0, 0)

    def test_progress(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base)
        stream.fold(fine_tuned(base, generator))
        folding = [step for step in stream.progress if step.stage == "folding"]
        publishing = [step for step in stream.progress if step.stage == "publishing"]
        assert stream.progress == folding + publishing
        for steps, names in (
            (folding, [tensor.name for tensor in stream.plan.folded]),
            (publishing, [tensor.name for tensor in stream.plan.tensors]),
        ):
            assert [step.tensor for step in steps] == names
            assert [(step.done, step.total) for step in steps] == [(n, len(names)) for n in range(1, len(names) + 1)]
