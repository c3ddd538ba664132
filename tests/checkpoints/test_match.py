from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.match import check_against_plan
from foldind.checkpoints.plan import make_plan
from foldind.errors import CheckpointRefused
from safetensors.torch import save_file
from torch import Tensor

from tests.support.models import base_tensors

QUERY = "encoder.layer.0.attention.query.weight"
EMBEDDING = "embeddings.word_embeddings.weight"


def save(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


class Matching:
    def __init__(self, root: Path, base: Mapping[str, Tensor]):
        self._root = root
        self.plan = make_plan(open_checkpoint(save(root / "base", base)))

    def check(self, tensors: Mapping[str, Tensor], *, ignore: tuple[str, ...] = (), partial: bool = False) -> None:
        submission = open_checkpoint(save(self._root / "submission", tensors))
        check_against_plan(submission, self.plan, ignore=ignore, partial=partial)

    def refusal(self, tensors: Mapping[str, Tensor], *, ignore: tuple[str, ...] = (), partial: bool = False) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            self.check(tensors, ignore=ignore, partial=partial)
        assert refused.value.hint
        return str(refused.value)


@pytest.fixture
def matching(tmp_path: Path) -> Matching:
    return Matching(tmp_path, base_tensors())


@pytest.fixture
def tied(tmp_path: Path) -> Matching:
    return Matching(tmp_path, {**base_tensors(), "lm_head.weight": base_tensors()[EMBEDDING].clone()})


def without(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


class TestNames:
    def test_the_same_names_fit(self, matching: Matching) -> None:
        matching.check(base_tensors(seed=1))
        matching.check(dict(reversed(base_tensors(seed=1).items())))

    def test_extra(self, matching: Matching) -> None:
        extra = {"classifier.weight": torch.zeros(3, 24), "classifier.bias": torch.zeros(3)}
        sentence = matching.refusal(base_tensors() | extra)
        assert "it has 2 tensors that the base lacks: classifier." in sentence
        assert "classifier.bias" in sentence
        assert "1 tensor that the base lacks: classifier.weight;" in matching.refusal(
            without(base_tensors() | extra, "classifier.bias")
        )

    def test_many_extra_are_not_all_listed(self, matching: Matching) -> None:
        sentence = matching.refusal(base_tensors() | {f"head.{number}": torch.zeros(1) for number in range(40)})
        assert "40 tensors" in sentence
        assert "and 35 more" in sentence
        assert sentence.count("head.") == 5

    def test_ignored(self, matching: Matching) -> None:
        extra = {"classifier.weight": torch.zeros(3, 24), "classifier.bias": torch.zeros(3)}
        matching.check(base_tensors() | extra, ignore=("pooler.*", "classifier.*"))
        assert "classifier.bias" in matching.refusal(base_tensors() | extra, ignore=("classifier.weight",))

    def test_ignoring_does_not_excuse_what_the_base_has(self, matching: Matching) -> None:
        tensors = base_tensors() | {QUERY: torch.zeros(3, 3)}
        assert "has shape [3, 3]" in matching.refusal(tensors, ignore=("*",))
        assert "it lacks 1 tensor" in matching.refusal(without(base_tensors(), QUERY), ignore=("*",))

    def test_missing(self, matching: Matching) -> None:
        assert f"it lacks 1 tensor of the base: {QUERY};" in matching.refusal(without(base_tensors(), QUERY))
        assert "it lacks 2 tensors" in matching.refusal(without(base_tensors(), QUERY, EMBEDDING))

    def test_frozen_tensors_may_be_missing(self, matching: Matching) -> None:
        matching.check(without(base_tensors(), "embeddings.position_ids"))

    def test_partial(self, matching: Matching) -> None:
        matching.check({QUERY: base_tensors()[QUERY]}, partial=True)
        matching.check(base_tensors(), partial=True)

    @pytest.mark.parametrize("partial", [True, False])
    def test_nothing_in_common(self, partial: bool, matching: Matching) -> None:
        frozen = {"embeddings.position_ids": torch.arange(16)}
        sentence = matching.refusal(frozen, partial=partial)
        assert "no tensor in common" in sentence
        assert "no tensor in common" in matching.refusal({"head": torch.zeros(2)}, ignore=("head",), partial=True)

    def test_names_of_another_model(self, matching: Matching) -> None:
        assert "no tensor in common" in matching.refusal({"other": torch.zeros(2)}, partial=True)

    @pytest.mark.parametrize("prefix", ["bert.", "model.", "base_model.model.", "_orig_mod."])
    def test_prefix(self, prefix: str, matching: Matching) -> None:
        tensors = {prefix + name: tensor for name, tensor in base_tensors().items()}
        sentence = matching.refusal(tensors)
        assert f"those of the base with {prefix!r} before them" in sentence
        assert "save the inner model alone" in sentence
        assert prefix.rstrip(".") in sentence

    def test_prefix_beside_a_task_head(self, matching: Matching) -> None:
        tensors = {"bert." + name: tensor for name, tensor in base_tensors().items()}
        assert "'bert.' before them" in matching.refusal(tensors | {"classifier.weight": torch.zeros(3, 24)})

    def test_no_prefix_where_some_names_lack_it(self, matching: Matching) -> None:
        tensors = {"bert." + name: tensor for name, tensor in without(base_tensors(), QUERY).items()}
        assert "no tensor in common" in matching.refusal(tensors)

    def test_tied_tensors_may_come_under_any_of_their_names(self, tied: Matching) -> None:
        both = {**base_tensors(), "lm_head.weight": base_tensors()[EMBEDDING].clone()}
        tied.check(both)
        tied.check(without(both, "lm_head.weight"))
        tied.check(without(both, EMBEDDING))
        assert EMBEDDING in tied.refusal(without(both, EMBEDDING, "lm_head.weight"))


class TestTensors:
    @pytest.mark.parametrize("shape", [(24, 23), (24,), (24, 24, 1), (12, 48)])
    def test_wrong_shape(self, shape: tuple[int, ...], matching: Matching) -> None:
        sentence = matching.refusal(base_tensors() | {QUERY: torch.zeros(shape)})
        assert f"tensor {QUERY!r} has shape {list(shape)} and the base's has [24, 24]" in sentence

    def test_scalar_is_no_vector_of_one(self, matching: Matching) -> None:
        assert "has shape [1] and the base's has []" in matching.refusal(
            base_tensors() | {"logit_scale": torch.ones(1)}
        )

    def test_extra_rows(self, matching: Matching) -> None:
        sentence = matching.refusal(base_tensors() | {EMBEDDING: torch.zeros(43, 24)})
        assert f"tensor {EMBEDDING!r} has 43 rows and the base's has 40" in sentence
        assert "vocabulary" in sentence

    def test_wrong_shape_in_a_partial_submission(self, matching: Matching) -> None:
        assert "has shape [2, 2]" in matching.refusal({QUERY: torch.zeros(2, 2)}, partial=True)

    def test_wrong_shape_of_a_frozen_tensor(self, matching: Matching) -> None:
        assert "has shape [17]" in matching.refusal(base_tensors() | {"embeddings.position_ids": torch.arange(17)})

    def test_wrong_shape_of_a_tied_tensor(self, tied: Matching) -> None:
        sentence = tied.refusal({**base_tensors(), "lm_head.weight": torch.zeros(24, 40)})
        assert "tensor 'lm_head.weight' has shape [24, 40]" in sentence

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_any_of_the_mergeable_dtypes(self, dtype: torch.dtype, matching: Matching) -> None:
        matching.check(base_tensors(dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.uint8, torch.float8_e4m3fn])
    def test_other_dtypes(self, dtype: torch.dtype, matching: Matching) -> None:
        sentence = matching.refusal(base_tensors() | {QUERY: torch.zeros(24, 24).to(dtype)})
        assert f"tensor {QUERY!r} has dtype " in sentence
        assert "BF16, F16, F32" in sentence

    def test_dtype_of_a_tied_tensor(self, tied: Matching) -> None:
        sentence = tied.refusal({**base_tensors(), "lm_head.weight": torch.zeros(40, 24, dtype=torch.int8)})
        assert "tensor 'lm_head.weight' has dtype I8" in sentence

    def test_dtype_of_a_frozen_tensor_does_not_matter(self, matching: Matching) -> None:
        matching.check(base_tensors() | {"embeddings.position_ids": torch.arange(16, dtype=torch.int32)})
