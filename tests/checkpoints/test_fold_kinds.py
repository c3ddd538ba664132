"""Folds of tied tensors, of stacked experts, and of submissions that lack tensors."""

from pathlib import Path

import pytest
import torch
from foldind.errors import CheckpointRefused
from torch import Generator, Tensor

from tests.checkpoints.folding import DENSE, EMBEDDING, QUERY, Stream, assert_same, fine_tuned
from tests.support.models import base_tensors


class TestTied:
    @pytest.fixture
    def base(self) -> dict[str, Tensor]:
        return base_tensors() | {"lm_head.weight": base_tensors()[EMBEDDING].clone()}

    def tied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {"lm_head.weight": tensors[EMBEDDING].clone()}

    def test_folded_once_and_written_twice(self, base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> None:
        untied = {name: tensor for name, tensor in base.items() if name != "lm_head.weight"}
        stream, without = Stream(tmp_path / "tied", base), Stream(tmp_path / "without", untied)
        for _ in range(2):
            submission = self.tied(fine_tuned(base, generator))
            result = stream.fold(submission)
            expected = without.fold({name: submission[name] for name in untied})
            assert result.lambda_ == pytest.approx(expected.lambda_, rel=1e-14)
            assert result.task_vector_norm == pytest.approx(expected.task_vector_norm, rel=1e-14)
            assert_same(stream.accumulated, without.accumulated)
            merged = stream.merged
            assert torch.equal(merged["lm_head.weight"], merged[EMBEDDING])
            assert not torch.equal(merged[EMBEDDING], base[EMBEDDING])

    @pytest.mark.parametrize("name", [EMBEDDING, "lm_head.weight"])
    def test_one_of_the_names_is_enough(
        self, name: str, base: dict[str, Tensor], generator: Generator, tmp_path: Path
    ) -> None:
        submission = self.tied(fine_tuned(base, generator))
        both, one = Stream(tmp_path / "both", base), Stream(tmp_path / "one", base)
        expected = both.fold(submission)
        other = EMBEDDING if name == "lm_head.weight" else "lm_head.weight"
        result = one.fold({key: tensor for key, tensor in submission.items() if key != other})
        assert result.snapshot_files == expected.snapshot_files

    def test_tied_across_shards(self, base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> None:
        submission = self.tied(fine_tuned(base, generator))
        stream = Stream(tmp_path, base, shards=4)
        stream.fold(submission, shards=3)
        torch.testing.assert_close(stream.merged["lm_head.weight"], submission[EMBEDDING], rtol=0, atol=1e-7)

    def test_that_differ_are_refused(self, base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> None:
        submission = self.tied(fine_tuned(base, generator))
        submission["lm_head.weight"][-1, -1] += 0.5
        with pytest.raises(CheckpointRefused) as refused:
            Stream(tmp_path, base).fold(submission)
        assert f"tensors {EMBEDDING!r} and 'lm_head.weight' are one in the base, and differ in it" in str(refused.value)

    def test_nan_in_both_is_named_as_nan(self, base: dict[str, Tensor], generator: Generator, tmp_path: Path) -> None:
        submission = fine_tuned(base, generator)
        submission[EMBEDDING][0, 0] = float("nan")
        with pytest.raises(CheckpointRefused, match=f"NaN or infinite values in {EMBEDDING}"):
            Stream(tmp_path, base).fold(self.tied(submission))


class TestPartial:
    def test_what_is_missing_is_unchanged(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        stream, whole = Stream(tmp_path / "partial", base), Stream(tmp_path / "whole", base)
        for names in ((QUERY, EMBEDDING), (DENSE[0],), (QUERY, "logit_scale")):
            tuned = fine_tuned(base, generator)
            part = {name: tuned[name] for name in names}
            result, expected = stream.fold(part), whole.fold(base | part)
            assert result.snapshot_files == expected.snapshot_files
            assert result.lambda_ == expected.lambda_
            held = set(stream.accumulated)
            assert held == {name for name, tensor in whole.accumulated.items() if tensor.any()}
            assert all(torch.equal(stream.accumulated[name], whole.accumulated[name]) for name in held)
        touched = {QUERY, EMBEDDING, DENSE[0], "logit_scale"}
        for name, tensor in stream.merged.items():
            assert torch.equal(tensor, base[name]) == (name not in touched)


class TestExperts:
    @pytest.mark.parametrize("cross_blocks", ["keep", "drop"])
    def test_stacked_are_separate_matrices(self, cross_blocks: str, generator: Generator, tmp_path: Path) -> None:
        stacked_base = {
            "mlp.experts.up": torch.randn(3, 10, 6, generator=generator),
            "norm.weight": torch.randn(6, generator=generator),
        }

        def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            experts = {f"mlp.experts.{number}.up": matrix for number, matrix in enumerate(tensors["mlp.experts.up"])}
            return experts | {"norm.weight": tensors["norm.weight"]}

        stacked = Stream(tmp_path / "stacked", stacked_base, cross_blocks=cross_blocks)
        separate = Stream(tmp_path / "separate", apart(stacked_base), cross_blocks=cross_blocks)
        for _ in range(3):
            submission = fine_tuned(stacked_base, generator)
            # One direction holds most of what the last expert learns: its split rank is 0.
            submission["mlp.experts.up"][-1] += 0.5
            one, other = stacked.fold(submission), separate.fold(apart(submission))
            assert one.lambda_ == pytest.approx(other.lambda_, rel=1e-12)
            for found, expected in (
                (apart(stacked.accumulated), separate.accumulated),
                (apart(stacked.merged), separate.merged),
            ):
                assert found.keys() == expected.keys()
                for name, tensor in expected.items():
                    torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-8)
            ranks = [tensor.split_rank for tensor in other.tensors if "experts" in tensor.name]
            assert next(tensor.split_rank for tensor in one.tensors if "experts" in tensor.name) == max(ranks)
        assert ranks[-1] < max(ranks)

    def test_untouched_expert_stays(self, generator: Generator, tmp_path: Path) -> None:
        base = {"mlp.experts.up": torch.randn(3, 10, 6, generator=generator)}
        stream = Stream(tmp_path, base)
        for number in (0, 1):
            submission = {name: tensor.clone() for name, tensor in base.items()}
            submission["mlp.experts.up"][number] += 0.1 * torch.randn(10, 6, generator=generator)
            stream.fold(submission)
        # The second came into an expert with S = 0: it is whole.
        torch.testing.assert_close(
            stream.accumulated["mlp.experts.up"][1], (submission["mlp.experts.up"] - base["mlp.experts.up"])[1]
        )
        assert torch.equal(stream.merged["mlp.experts.up"][2], base["mlp.experts.up"][2])
