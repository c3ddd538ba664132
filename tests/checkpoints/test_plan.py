import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import SUMMED_PATTERNS, Plan, Treatment, make_plan, matches_any
from safetensors.torch import save_file
from torch import Tensor

from tests.support.models import base_tensors, shard

PROJECTED, SUMMED, FROZEN, TIED = Treatment.PROJECTED, Treatment.SUMMED, Treatment.FROZEN, Treatment.TIED


def plan_of(folder: Path, tensors: Mapping[str, Tensor], **settings: object) -> Plan:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return make_plan(open_checkpoint(folder), **settings)  # type: ignore[arg-type]


def treatments(plan: Plan) -> dict[str, Treatment]:
    return {tensor.name: tensor.treatment for tensor in plan.tensors}


class TestTreatments:
    def test_small_base(self, base: Path) -> None:
        plan = make_plan(open_checkpoint(base))
        assert treatments(plan) == {
            "embeddings.word_embeddings.weight": SUMMED,
            "encoder.layer.0.attention.query.weight": PROJECTED,
            "encoder.layer.0.attention.query.bias": SUMMED,
            "encoder.layer.0.intermediate.dense.weight": PROJECTED,
            "encoder.layer.0.output.dense.weight": PROJECTED,
            "encoder.layer.0.LayerNorm.weight": SUMMED,
            "patch.projection.weight": SUMMED,
            "logit_scale": SUMMED,
            "embeddings.position_ids": FROZEN,
        }
        assert [tensor.name for tensor in plan.tensors] == list(open_checkpoint(base).tensors)
        assert [tensor.name for tensor in plan.folded] == [
            tensor.name for tensor in plan.tensors if tensor.name != "embeddings.position_ids"
        ]
        assert plan.by_name["patch.projection.weight"].shape == (6, 3, 4, 4)
        assert plan.tied_names == {}

    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("proj.weight", (4, 6), PROJECTED),
            ("proj.weight", (2, 2), PROJECTED),
            ("proj.weight", (1, 6), SUMMED),
            ("proj.weight", (6, 1), SUMMED),
            ("proj.weight", (1, 1), SUMMED),
            ("proj.weight", (0, 6), SUMMED),
            ("proj.weight", (6,), SUMMED),
            ("proj.weight", (), SUMMED),
            ("mlp.experts.gate_up_proj", (3, 4, 6), PROJECTED),
            ("mlp.experts.gate_up_proj", (1, 4, 6), PROJECTED),
            ("mlp.experts.gate_up_proj", (3, 4, 1), SUMMED),
            ("mlp.experts.0.w1.weight", (4, 6), PROJECTED),
            ("mlp.experts.conv", (3, 4, 2, 2), SUMMED),
            ("mixer.conv1d.weight", (4, 1, 6), SUMMED),
            ("mixer.conv1d.weight", (4, 3, 6), SUMMED),
            ("cls_token", (1, 1, 8), SUMMED),
            ("patch.projection.weight", (4, 3, 2, 2), SUMMED),
        ],
        ids=str,
    )
    def test_shapes(self, name: str, shape: tuple[int, ...], expected: Treatment, tmp_path: Path) -> None:
        assert treatments(plan_of(tmp_path, {name: torch.zeros(shape)})) == {name: expected}

    @pytest.mark.parametrize(
        "name",
        [
            "model.embed_tokens.weight",
            "embeddings.word_embeddings.weight",
            "bert.embeddings.token_type_embeddings.weight",
            "wte.weight",
            "transformer.wte.weight",
            "transformer.wpe.weight",
            "encoder.position.weight",
            "vision.position_bias_table",
            "shared.weight",
            "t5.shared.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "backbone.layers.0.mixer.A_log",
        ],
    )
    def test_names_of_what_is_no_linear_layer(self, name: str, tmp_path: Path) -> None:
        assert treatments(plan_of(tmp_path, {name: torch.randn(4, 6)})) == {name: SUMMED}

    @pytest.mark.parametrize("name", ["mlp.shared_expert.weight", "my_shared.weight.left", "wte_projection", "log.A"])
    def test_names_that_only_look_alike(self, name: str, tmp_path: Path) -> None:
        assert treatments(plan_of(tmp_path, {name: torch.randn(4, 6)})) == {name: PROJECTED}

    def test_patterns_are_configurable(self, tmp_path: Path) -> None:
        tensors = {"embed.weight": torch.randn(4, 6), "router.weight": torch.randn(4, 6), "Router.w": torch.randn(4, 6)}
        plan = plan_of(tmp_path, tensors, summed_patterns=(*SUMMED_PATTERNS, "router.*"))
        assert treatments(plan) == {"embed.weight": SUMMED, "router.weight": SUMMED, "Router.w": PROJECTED}
        assert set(treatments(plan_of(tmp_path, tensors, summed_patterns=())).values()) == {PROJECTED}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_floats_are_folded(self, dtype: torch.dtype, tmp_path: Path) -> None:
        assert treatments(plan_of(tmp_path, {"w": torch.zeros(3, 4, dtype=dtype)})) == {"w": PROJECTED}

    @pytest.mark.parametrize(
        "dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.float8_e4m3fn]
    )
    def test_other_dtypes_are_frozen(self, dtype: torch.dtype, tmp_path: Path) -> None:
        plan = plan_of(tmp_path, {"w": torch.zeros(3, 4).to(dtype)})
        assert treatments(plan) == {"w": FROZEN}
        assert plan.folded == ()

    def test_patterns_are_shell_style_and_match_case(self) -> None:
        assert matches_any("a.b.weight", ["x", "*.b.*"])
        assert not matches_any("a.B.weight", ["*.b.*"])
        assert not matches_any("a.b", [])
        assert not matches_any("a.b.weight", ["b"])


class TestTied:
    def test_output_layer_is_folded_as_the_embedding(self, tmp_path: Path) -> None:
        weight = torch.randn(10, 4)
        tensors = {"lm_head.weight": weight, "model.embed_tokens.weight": weight.clone(), "w": torch.randn(10, 4)}
        plan = plan_of(tmp_path, tensors)
        assert treatments(plan) == {"lm_head.weight": TIED, "model.embed_tokens.weight": SUMMED, "w": PROJECTED}
        assert plan.by_name["lm_head.weight"].tied_to == "model.embed_tokens.weight"
        assert plan.by_name["model.embed_tokens.weight"].tied_to == ""
        assert plan.tied_names == {"model.embed_tokens.weight": ("lm_head.weight",)}
        assert [tensor.name for tensor in plan.folded] == ["model.embed_tokens.weight", "w"]

    def test_three_names_across_shards(self, tmp_path: Path) -> None:
        weight = torch.randn(10, 4)
        tensors = {name: weight.clone() for name in ("decoder.embed", "encoder.embed", "shared.weight")}
        shard(tmp_path / "model", tensors | {"w": torch.randn(4, 10)}, 3)
        plan = make_plan(open_checkpoint(tmp_path / "model"))
        (folded, others), *rest = plan.tied_names.items()
        assert rest == []
        assert {folded, *others} == tensors.keys()
        assert list(treatments(plan).values()).count(TIED) == 2

    def test_linear_layers_that_were_copied_are_not(self, tmp_path: Path) -> None:
        weight = torch.randn(6, 4)
        plan = plan_of(tmp_path, {"experts.0.weight": weight, "experts.1.weight": weight.clone()})
        assert set(treatments(plan).values()) == {PROJECTED}

    @pytest.mark.parametrize("value", [0.0, 1.0, -0.0, 0.02])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_constant_tensors_are_not(self, value: float, dtype: torch.dtype, tmp_path: Path) -> None:
        tensors = {name: torch.full((5, 4), value, dtype=dtype) for name in ("embed", "head")}
        assert set(treatments(plan_of(tmp_path, tensors)).values()) == {PROJECTED, SUMMED}

    def test_nearly_constant_tensors_are(self, tmp_path: Path) -> None:
        weight = torch.ones(5, 4)
        weight[-1, -1] = 2
        assert TIED in treatments(plan_of(tmp_path, {"embed": weight, "head": weight.clone()})).values()

    def test_one_element_makes_a_difference(self, tmp_path: Path) -> None:
        weight = torch.randn(5, 4)
        other = weight.clone()
        other[-1, -1] += 1
        assert TIED not in treatments(plan_of(tmp_path, {"embed": weight, "head": other})).values()

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (torch.arange(20.0), torch.arange(20.0)),
            (torch.arange(20.0).reshape(1, 20), torch.arange(20.0).reshape(1, 20)),
            (torch.arange(20).reshape(4, 5), torch.arange(20).reshape(4, 5)),
            (torch.arange(20.0).reshape(4, 5), torch.arange(20.0).reshape(5, 4)),
            (torch.arange(20.0).reshape(4, 5), torch.arange(20.0).reshape(4, 5).half()),
        ],
        ids=["vectors", "1 x n", "integers", "other shape", "other dtype"],
    )
    def test_only_matrices_of_one_shape_and_dtype(self, one: Tensor, other: Tensor, tmp_path: Path) -> None:
        assert TIED not in treatments(plan_of(tmp_path, {"embed": one, "head": other.clone()})).values()

    def test_tensors_longer_than_a_block(self, tmp_path: Path) -> None:
        constant = torch.full((1100, 1024), 0.5)  # 4.3 MiB
        last_differs = constant.clone()
        last_differs[-1, -1] = 1
        second_differs = constant.clone()
        second_differs[0, 1] = 1
        tensors = {
            "embed.a": last_differs,
            "b": last_differs.clone(),
            "embed.c": constant,
            "d": constant.clone(),
            "embed.e": second_differs,
            "f": second_differs.clone(),
        }
        plan = plan_of(tmp_path, tensors)
        assert plan.tied_names == {"embed.a": ("b",), "embed.e": ("f",)}


class TestNotFinite:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
    def test_masks_are_frozen(self, dtype: torch.dtype, value: float, tmp_path: Path) -> None:
        mask = torch.zeros(5, 4, dtype=dtype)
        largest = torch.full((5, 4), torch.finfo(dtype).max, dtype=dtype)
        mask[3, 2] = value
        plan = plan_of(tmp_path, {"mask": mask, "largest": largest, "weight": torch.randn(6, 4)})
        assert treatments(plan) == {"mask": FROZEN, "largest": PROJECTED, "weight": PROJECTED}


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        weight = torch.randn(6, 4)
        tensors = base_tensors() | {"lm_head.größe": weight, 'embed "tokens"': weight.clone()}
        plan = plan_of(tmp_path, tensors)
        assert plan.tied_names
        again = Plan.from_json(plan.to_json())
        assert again == plan
        assert again.tensors == plan.tensors
        assert isinstance(again.tensors[0].treatment, Treatment)
        assert isinstance(again.tensors[0].shape, tuple)
        assert Plan.from_json(plan.to_json().encode()).to_json() == plan.to_json()

    def test_is_one_tensor_a_line(self, base: Path) -> None:
        plan = make_plan(open_checkpoint(base))
        text = plan.to_json()
        assert json.loads(text)["format"] == 1
        assert len(text.splitlines()) == len(plan.tensors) + 2

    def test_of_nothing(self) -> None:
        assert Plan.from_json(Plan(()).to_json()) == Plan(())


def test_what_is_equal_by_initialisation_is_not_tied(tmp_path: Path) -> None:
    """Every layer of a new Mamba has the same A_log; fine-tuning parts them."""
    names = [f"backbone.layers.{layer}.mixer.A_log" for layer in (0, 1)]
    plan = plan_of(tmp_path, {name: torch.arange(32.0).reshape(8, 4) for name in names})
    assert treatments(plan) == dict.fromkeys(names, Treatment.SUMMED)


def test_what_is_published_of_a_merge(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.zeros(30, 20, dtype=torch.bfloat16),
        "b.weight": torch.zeros(8, dtype=torch.bfloat16),
        "steps": torch.zeros(3, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    plan = make_plan(open_checkpoint(tmp_path))
    model = 2 * (600 + 8) + 8 * 3
    assert plan.published_bytes(["model"], 0) == model
    assert plan.published_bytes(["adapter"], 5) == 4 * (5 * (30 + 20) + 8)
    assert plan.published_bytes(["model", "adapter"], 0) == model + 4 * (20 * (30 + 20) + 8)
