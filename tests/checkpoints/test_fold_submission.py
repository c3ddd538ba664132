"""The worker's fold, in this process, on real files: against the whole-model oracle, and what it refuses."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from foldind.checkpoints.header import read_header
from foldind.errors import CheckpointRefused
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream
from tests.merging import oracle
from tests.support.models import base_tensors

QUERY = "encoder.layer.0.attention.query.weight"
DENSE = ("encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.output.dense.weight")
PROJECTED = (QUERY, *DENSE)
EMBEDDING = "embeddings.word_embeddings.weight"
FROZEN = "embeddings.position_ids"
DIGITS = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}


def fine_tuned(base: Mapping[str, Tensor], generator: Generator, scale: float = 0.02) -> dict[str, Tensor]:
    """Noise of the same dtype on every floating-point tensor."""
    return {
        name: (tensor.float() + scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.dtype in DIGITS
        else tensor.clone()
        for name, tensor in base.items()
    }


def as_numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors that are folded, in float64."""
    return {name: tensor.double().numpy() for name, tensor in tensors.items() if tensor.dtype in DIGITS}


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, np.ndarray]) -> float:
    difference = {name: found[name].double().numpy() - expected[name] for name in expected}
    return oracle.norm(difference) / oracle.norm(expected)


def assert_rounded_once(found: Tensor, exact: np.ndarray, slack: float) -> None:
    """Every element is the nearest of its dtype, give or take an error of the state."""
    digits = DIGITS[found.dtype]
    smallest = -14 if found.dtype is torch.float16 else -126
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(exact))), smallest)
    assert (np.abs(found.double().numpy() - exact) <= 2.0 ** (exponent - digits) + slack).all()


@pytest.fixture
def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


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
            assert result.accumulated_norm == pytest.approx(oracle.norm(step.accumulated), rel=1e-6)
            assert (result.submissions, result.task_vector_norm_sum) == (count, pytest.approx(norms, rel=1e-15))

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


class TestFiles:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_snapshot_is_readable_and_laid_out_like_the_base(
        self, shards: int, generator: Generator, tmp_path: Path
    ) -> None:
        base = base_tensors(dtype=torch.bfloat16)
        stream = Stream(tmp_path, base, shards)
        stream.fold(fine_tuned(base, generator))
        result = stream.fold(fine_tuned(base, generator))
        names = sorted(path.name for path in stream.base.iterdir() if "safetensors" in path.name)
        assert sorted(result.snapshot_files) == sorted(path.name for path in stream.snapshot_folder.iterdir()) == names
        assert list(result.state_files) == [path.name for path in stream.state_folder.iterdir()]
        for folder, files in (
            (stream.snapshot_folder, result.snapshot_files),
            (stream.state_folder, result.state_files),
        ):
            for name, digest in files.items():
                content = (folder / name).read_bytes()
                assert tuple(digest) == (len(content), hashlib.sha256(content).hexdigest())
        for name in names:
            ours, theirs = stream.snapshot_folder / name, stream.base / name
            if name.endswith(".json"):
                assert ours.read_bytes() == theirs.read_bytes()
                continue
            layout = [
                [(tensor.name, tensor.dtype, tensor.shape) for tensor in read_header(path).tensors]
                for path in (ours, theirs)
            ]
            assert layout[0] == layout[1]
            with safe_open(ours, "pt") as file:
                assert file.metadata() == {"format": "pt"}
                assert sorted(file.keys()) == sorted(name for name, *_ in layout[0])

    def test_equal_folds_are_equal_bytes(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        submissions = [fine_tuned(base, generator) for _ in range(3)]
        digests = []
        for root in ("one", "two"):
            stream = Stream(tmp_path / root, base)
            results = [stream.fold(submission) for submission in submissions]
            digests.append([(result.state_files, result.snapshot_files) for result in results])
        assert digests[0] == digests[1]

    @pytest.mark.parametrize(("base_shards", "submission_shards"), [(3, 1), (1, 2), (2, 3)])
    def test_shards_make_no_difference(
        self, base_shards: int, submission_shards: int, generator: Generator, tmp_path: Path
    ) -> None:
        base = base_tensors()
        single, sharded = Stream(tmp_path / "single", base), Stream(tmp_path / "sharded", base, base_shards)
        for _ in range(3):
            submission = fine_tuned(base, generator)
            one, other = single.fold(submission), sharded.fold(submission, submission_shards)
            assert_same(sharded.accumulated, single.accumulated)
            # Norms are summed in the order of the files.
            assert other.lambda_ == pytest.approx(one.lambda_, rel=1e-14)
            for name, tensor in single.merged.items():
                torch.testing.assert_close(sharded.merged[name], tensor, rtol=2.0**-23, atol=0)

    def test_order_in_the_submission_makes_no_difference(self, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        submission = fine_tuned(base, generator)
        streams = [Stream(tmp_path / name, base) for name in ("one", "two")]
        results = [
            stream.fold(tensors)
            for stream, tensors in zip(streams, (submission, dict(reversed(submission.items()))), strict=True)
        ]
        assert results[0].state_files == results[1].state_files
        assert results[0].snapshot_files == results[1].snapshot_files

    def test_frozen_tensors_are_copied_from_the_base(self, generator: Generator, tmp_path: Path) -> None:
        frozen = {
            FROZEN: torch.arange(16),
            "mask": torch.tensor([True, False, True]),
            "table": torch.randint(0, 255, (1100, 1000), dtype=torch.uint8, generator=generator),
            "wide.weight": torch.randn(5, 3, generator=generator).double(),
            "quantised.weight": torch.randn(5, 3, generator=generator).to(torch.float8_e4m3fn),
            "none": torch.zeros(0, 3, dtype=torch.int32),
            "long": torch.arange(700_000),  # 5.6 MB: more than a block
        }
        base = base_tensors() | frozen
        stream = Stream(tmp_path, base)
        stream.fold(fine_tuned(base, generator) | {"mask": torch.zeros(3, dtype=torch.bool), "long": -frozen["long"]})
        merged = stream.merged
        for name, tensor in frozen.items():
            assert merged[name].dtype == tensor.dtype
            assert torch.equal(merged[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        assert not frozen.keys() & stream.accumulated.keys()

    def test_empty_tensors_and_tensors_of_several_blocks(self, generator: Generator, tmp_path: Path) -> None:
        # Rows of the embedding come in blocks of 2 Mi elements, of the bias too; the matrix comes whole.
        base = {
            "embed.weight": torch.randn(2100, 1024, generator=generator),
            "none.weight": torch.zeros(0, 8),
            "nothing.weight": torch.zeros(8, 0),
            "long.bias": torch.randn(2_200_000, generator=generator),
            "w": torch.randn(6, 5, generator=generator),
        }
        submission = {name: tensor + 0.25 * tensor.sign() for name, tensor in base.items()}
        stream = Stream(tmp_path, base)
        result = stream.fold(submission)
        assert result.lambda_ == 1
        expected = 0.25 * math.sqrt(sum(tensor.numel() for tensor in base.values()))
        assert result.task_vector_norm == pytest.approx(expected, rel=1e-6)
        for name, tensor in stream.merged.items():
            torch.testing.assert_close(tensor, submission[name], rtol=0, atol=1e-6)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


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
            assert result.state_files == expected.state_files
            assert result.lambda_ == expected.lambda_
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
        assert reason.endswith(" and 3 more tensors")
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
        assert (result.accumulated_norm, result.lambda_) == (0.0, 1.0)
        assert torch.equal(stream.merged["bias"], base["bias"])
        stream.fold({"bias": base["bias"] + 0.25})
        assert torch.isfinite(stream.merged["bias"]).all()


def test_state_is_a_safetensors_file_in_the_order_of_the_plan(generator: Generator, tmp_path: Path) -> None:
    stream = Stream(tmp_path, base_tensors(dtype=torch.bfloat16))
    stream.fold(fine_tuned(base_tensors(dtype=torch.bfloat16), generator))
    path = stream.state_folder / "accumulated.safetensors"
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in read_header(path).tensors] == [
        (tensor.name, "F32", tensor.shape) for tensor in stream.plan.folded
    ]
    assert load_file(path).keys() == {tensor.name for tensor in stream.plan.folded}
