"""What a fold writes: files, their layout and bytes, whatever the layout of what it reads."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.header import read_header
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Generator

from tests.checkpoints.folding import (
    FROZEN,
    Stream,
    assert_same,
    fine_tuned,
)
from tests.support.models import base_tensors


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


def test_state_is_a_safetensors_file_in_the_order_of_the_plan(generator: Generator, tmp_path: Path) -> None:
    stream = Stream(tmp_path, base_tensors(dtype=torch.bfloat16))
    stream.fold(fine_tuned(base_tensors(dtype=torch.bfloat16), generator))
    path = stream.state_folder / "accumulated.safetensors"
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in read_header(path).tensors] == [
        (tensor.name, "F32", tensor.shape) for tensor in stream.plan.folded
    ]
    assert load_file(path).keys() == {tensor.name for tensor in stream.plan.folded}
