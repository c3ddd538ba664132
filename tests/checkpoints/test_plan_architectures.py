"""Plans of folders that transformers itself saved."""

from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Treatment, make_plan
from safetensors.torch import load_file

from tests.checkpoints.test_plan import plan_of, treatments

PROJECTED, SUMMED, TIED = Treatment.PROJECTED, Treatment.SUMMED, Treatment.TIED


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
