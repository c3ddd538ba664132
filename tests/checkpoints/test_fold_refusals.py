"""What a fold refuses for its values, and unusual values that it takes."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.errors import CheckpointRefused
from torch import Generator, Tensor

from tests.checkpoints.folding import EMBEDDING, FROZEN, QUERY, Stream, as_numpy, fine_tuned, relative_error
from tests.merging import oracle
from tests.support.models import base_tensors


class TestRefusals:
    def refusal(self, stream: Stream, submission: Mapping[str, Tensor]) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            stream.fold(submission)
        assert refused.value.hint
        assert list(stream.snapshot_folder.iterdir()) == []
        return refused.value.reason

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("folds_before", [0, 1])
    def test_not_finite_names_all_the_tensors(
        self, value: float, folds_before: int, generator: Generator, tmp_path: Path
    ) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base)
        for _ in range(folds_before):
            stream.fold(fine_tuned(base, generator))
        broken = (QUERY, EMBEDDING, "logit_scale", "patch.projection.weight")
        submission = fine_tuned(base, generator)
        for name in broken:
            submission[name].view(-1)[-1] = value
        reason = self.refusal(stream, submission)
        assert reason.startswith("it has NaN or infinite values in ")
        assert set(reason.removeprefix("it has NaN or infinite values in ").split(", ")) == set(broken)
        assert list(stream.state_folder.iterdir()) == []

    @pytest.mark.parametrize("name", [QUERY, EMBEDDING, "logit_scale", "patch.projection.weight"])
    def test_nan_anywhere(self, name: str, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        submission = fine_tuned(base, generator)
        submission[name].view(-1)[0] = float("nan")
        assert self.refusal(Stream(tmp_path, base), submission) == f"it has NaN or infinite values in {name}"

    def test_many_are_counted(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        submission = {name: tensor.float() * float("nan") for name, tensor in base.items() if name != FROZEN}
        reason = self.refusal(Stream(tmp_path, base), submission)
        assert reason.endswith(" and 3 more")
        assert reason.count(", ") == 4

    def test_a_refusal_leaves_the_stream_as_it_was(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        submissions = [fine_tuned(base, generator) for _ in range(2)]
        streams = [Stream(tmp_path / name, base) for name in ("one", "two")]
        for stream in streams:
            stream.fold(submissions[0])
        self.refusal(streams[0], submissions[1] | {QUERY: torch.full((24, 24), float("inf"))})
        results = [stream.fold(submissions[1]) for stream in streams]
        assert results[0].snapshot_files == results[1].snapshot_files

    @pytest.mark.parametrize("folds_before", [0, 2])
    def test_the_base_itself(self, folds_before: int, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base)
        for _ in range(folds_before):
            stream.fold(fine_tuned(base, generator))
        for nothing in (base, {QUERY: base[QUERY]}, {name: tensor for name, tensor in base.items() if name == FROZEN}):
            assert "it equals the base" in self.refusal(stream, nothing)

    def test_out_of_the_range_of_float16(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors(dtype=torch.float16)
        base[QUERY][3, 3] = 60000.0
        stream = Stream(tmp_path, base)
        submission = {name: tensor.float() for name, tensor in fine_tuned(base, generator).items()}
        submission[QUERY][3, 3] = 70000.0
        reason = self.refusal(stream, submission)
        assert reason == f"merged, tensor {QUERY!r} would leave the range of the base's dtype, torch.float16"

    def test_largest_of_float16_is_in_its_range(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors(dtype=torch.float16)
        submission = fine_tuned(base, generator)
        submission[QUERY][3, 3] = 65504.0
        stream = Stream(tmp_path, base)
        stream.fold(submission)
        assert stream.merged[QUERY][3, 3] == 65504.0

    def test_out_of_the_range_of_float32(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream = Stream(tmp_path, base)
        huge = {EMBEDDING: torch.full((40, 24), 3e38)}
        stream.fold(base | huge)
        assert "overflows float32" in self.refusal(stream, base | huge)

    def test_difference_out_of_the_range_of_float32(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors() | {EMBEDDING: torch.full((40, 24), -3e38)}
        submission = fine_tuned(base, generator) | {EMBEDDING: torch.full((40, 24), 3e38)}
        assert EMBEDDING in self.refusal(Stream(tmp_path, base), submission)

    @pytest.mark.parametrize("scale", [1e-30, 1e15])
    def test_scales_that_are_only_unusual(self, scale: float, generator: Generator, tmp_path: Path) -> None:
        base = {"w": torch.zeros(8, 6), "b": torch.zeros(8)}
        stream = Stream(tmp_path, base)
        submissions = [
            {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
            for _ in range(3)
        ]
        expected = oracle.merge_accumulated(
            as_numpy(base), [as_numpy(submission) for submission in submissions], ("w",)
        )
        for submission, step in zip(submissions, expected, strict=True):
            result = stream.fold(submission)
            assert result.lambda_ == pytest.approx(step.lambda_, rel=1e-3)
            assert relative_error(stream.merged, step.merged) <= 1e-3

    def test_everything_cancels(self, tmp_path: Path) -> None:
        base = {"bias": torch.tensor([1.0, 2.0, 3.0])}
        stream = Stream(tmp_path, base)
        stream.fold({"bias": base["bias"] + 0.5})
        result = stream.fold({"bias": base["bias"] - 0.5})
        assert (result.record.accumulated_norm, result.lambda_) == (0.0, 1.0)
        assert torch.equal(stream.merged["bias"], base["bias"])
        stream.fold({"bias": base["bias"] + 0.25})
        assert torch.isfinite(stream.merged["bias"]).all()
