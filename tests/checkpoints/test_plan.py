import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import SUMMED_PATTERNS, Plan, Treatment, make_plan, matches_any
from safetensors.torch import load_file, save_file
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

    def test_linear_layers_that_are_one(self, tmp_path: Path) -> None:
        weight = torch.randn(6, 4)
        plan = plan_of(tmp_path, {"a.weight": weight, "b.weight": weight.clone()})
        assert treatments(plan) == {"a.weight": PROJECTED, "b.weight": TIED}

    @pytest.mark.parametrize("value", [0.0, 1.0, -0.0, 0.02])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_constant_tensors_are_not(self, value: float, dtype: torch.dtype, tmp_path: Path) -> None:
        tensors = {name: torch.full((5, 4), value, dtype=dtype) for name in ("a", "b")}
        assert set(treatments(plan_of(tmp_path, tensors)).values()) == {PROJECTED}

    def test_nearly_constant_tensors_are(self, tmp_path: Path) -> None:
        weight = torch.ones(5, 4)
        weight[-1, -1] = 2
        assert TIED in treatments(plan_of(tmp_path, {"a": weight, "b": weight.clone()})).values()

    def test_one_element_makes_a_difference(self, tmp_path: Path) -> None:
        weight = torch.randn(5, 4)
        other = weight.clone()
        other[-1, -1] += 1
        assert TIED not in treatments(plan_of(tmp_path, {"a": weight, "b": other})).values()

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
        assert TIED not in treatments(plan_of(tmp_path, {"a": one, "b": other.clone()})).values()

    def test_tensors_longer_than_a_block(self, tmp_path: Path) -> None:
        constant = torch.full((1100, 1024), 0.5)  # 4.3 MiB
        last_differs = constant.clone()
        last_differs[-1, -1] = 1
        second_differs = constant.clone()
        second_differs[0, 1] = 1
        tensors = {
            "a": last_differs,
            "b": last_differs.clone(),
            "c": constant,
            "d": constant.clone(),
            "e": second_differs,
            "f": second_differs.clone(),
        }
        plan = plan_of(tmp_path, tensors)
        assert treatments(plan) == dict.fromkeys("abcdef", PROJECTED) | {"b": TIED, "f": TIED}
        assert plan.tied_names == {"a": ("b",), "e": ("f",)}


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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
    )
    llama = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    built = {
        "bert": BertModel(bert),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=50, n_positions=20, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        ),
        "t5": T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        "llama": LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=False)),
        "tied llama": LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True)),
    }
    root = tmp_path_factory.mktemp("models")
    folders = {}
    for name, model in built.items():
        model.save_pretrained(folders.setdefault(name, root / name))
        model.save_pretrained(folders.setdefault(f"sharded {name}", root / f"sharded {name}"), max_shard_size="6KB")
    return folders


class TestPublishedArchitectures:
    """Folders that transformers itself saved."""

    def test_bert(self, models: dict[str, Path]) -> None:
        found = treatments(make_plan(open_checkpoint(models["bert"])))
        layer = "encoder.layer.0."
        assert {name for name, treatment in found.items() if treatment is PROJECTED} == {
            *(f"{layer}attention.self.{part}.weight" for part in ("query", "key", "value")),
            f"{layer}attention.output.dense.weight",
            f"{layer}intermediate.dense.weight",
            f"{layer}output.dense.weight",
            "pooler.dense.weight",
        }
        assert {treatment for treatment in found.values() if treatment is not PROJECTED} == {SUMMED}
        for table in ("word", "position", "token_type"):
            assert found[f"embeddings.{table}_embeddings.weight"] is SUMMED

    def test_gpt2(self, models: dict[str, Path]) -> None:
        found = treatments(make_plan(open_checkpoint(models["gpt2"])))
        assert {name for name, treatment in found.items() if treatment is PROJECTED} == {
            f"transformer.h.0.{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        }
        assert found["transformer.wte.weight"] is found["transformer.wpe.weight"] is SUMMED

    def test_t5(self, models: dict[str, Path]) -> None:
        found = treatments(make_plan(open_checkpoint(models["t5"])))
        assert found["shared.weight"] is SUMMED
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert found[f"encoder.{bias}"] is found[f"decoder.{bias}"] is SUMMED
        projected = {name for name, treatment in found.items() if treatment is PROJECTED}
        assert len(projected) == 4 + 2 + 4 + 4 + 2  # q, k, v, o and wi, wo; the decoder has cross-attention too
        assert all(name.rsplit(".", 2)[1] in {"q", "k", "v", "o", "wi", "wo"} for name in projected)

    def test_llama(self, models: dict[str, Path]) -> None:
        found = treatments(make_plan(open_checkpoint(models["llama"])))
        assert found["model.embed_tokens.weight"] is SUMMED
        assert found["lm_head.weight"] is PROJECTED
        assert list(found.values()).count(PROJECTED) == 2 * 7 + 1
        assert TIED not in found.values()

    def test_tied_llama(self, models: dict[str, Path], tmp_path: Path) -> None:
        """It is saved without the output layer; other writers save both."""
        checkpoint = open_checkpoint(models["tied llama"])
        found = treatments(make_plan(checkpoint))
        assert "lm_head.weight" not in found
        assert found["model.embed_tokens.weight"] is SUMMED
        tensors = load_file(models["tied llama"] / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        plan = plan_of(tmp_path, tensors)
        assert plan.tied_names == {"model.embed_tokens.weight": ("lm_head.weight",)}
        assert treatments(plan) == found | {"lm_head.weight": TIED}

    @pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama", "tied llama"])
    def test_sharded_is_planned_like_single(self, name: str, models: dict[str, Path]) -> None:
        single, sharded = open_checkpoint(models[name]), open_checkpoint(models[f"sharded {name}"])
        assert len(sharded.files) > 3
        one, other = make_plan(single), make_plan(sharded)
        assert one.by_name == other.by_name
        assert sorted(tensor.name for tensor in one.folded) == sorted(tensor.name for tensor in other.folded)
