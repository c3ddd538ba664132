"""Model families as transformers saves them: planned, folded, and loaded again as the model they were."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foldind.checkpoints.plan import Treatment
from foldind.state.snapshots import companion_files
from torch import Tensor

from tests.checkpoints.folding import Stream

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": 99}
GROUPED = TEXT | {"num_key_value_heads": 2}
IMAGES = SIZES | {"image_size": 16, "patch_size": 8}
FAMILIES: Mapping[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**TEXT)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**IMAGES)),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGES, projection_dim=16)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, head_dim=8)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED)),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**GROUPED, head_dim=8)),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**TEXT)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=99, decoder_start_token_id=0
        )
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**GROUPED, num_local_experts=3)),
    "gpt_oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=3, num_experts_per_tok=2)
    ),
    "whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=99,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
}
LLAMA_LIKE = {*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")), "lm_head"}
BERT_LIKE = {
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense", "pooler.dense"),
}
CLIP_LIKE = {*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"}
PROJECTED: Mapping[str, set[str]] = {
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE,
    "vit": {name.replace("self", "attention") for name in BERT_LIKE},
    "clip": CLIP_LIKE | {"text_projection", "visual_projection"},
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "gemma": LLAMA_LIKE - {"lm_head"},  # tied, and saved once
    "phi": {*(f"self_attn.{x}_proj" for x in "qkv"), "self_attn.dense", "mlp.fc1", "mlp.fc2", "lm_head"},
    "t5": {*(f"Attention.{x}" for x in "qkvo"), "DenseReluDense.wi", "DenseReluDense.wo"},
    "mixtral": {name for name in LLAMA_LIKE if "mlp" not in name} | {"moe.gate", ".w1", ".w2", ".w3"},
    "gpt_oss": {name for name in LLAMA_LIKE if "mlp" not in name}
    | {"mlp.router", "experts.gate_up_proj", "experts.down_proj"},  # stacked: one 3-D tensor for all experts
    "whisper": {*(f"_attn.{x}_proj" for x in ("q", "k", "v", "out")), ".fc1", ".fc2"},
    "mamba": {f"mixer.{x}_proj" for x in ("dt", "in", "out", "x")},
}
"""Ends of the names of linear layers, without `.weight`."""


def made(family: str, folder: Path) -> tuple[Any, Path]:
    """Build a model whose parameters are all random, and save it."""
    torch.manual_seed(3)
    model = FAMILIES[family]().eval()
    perturb(model, 0.05)
    model.save_pretrained(folder)
    return model, folder


def perturb(model: Any, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape))


@torch.no_grad()
def outputs(model: Any) -> list[Tensor]:
    """What the model gives for two inputs: its logits, or its hidden states."""
    tokens = torch.arange(2, 18).reshape(2, 8)
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    spectrograms = torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32)
    inputs = {
        "vit": {"pixel_values": images},
        "clip": {"pixel_values": images, "input_ids": tokens},
        "siglip_vision_model": {"pixel_values": images},
        "encoder-decoder": {"input_ids": tokens, "decoder_input_ids": tokens},
        "t5": {"input_ids": tokens, "decoder_input_ids": tokens},
        "whisper": {"input_features": spectrograms, "decoder_input_ids": tokens},
    }
    answer = model(**inputs.get(model.config.model_type, {"input_ids": tokens}))
    names = ("logits", "logits_per_image", "text_embeds", "image_embeds", "last_hidden_state")
    return [answer[name] for name in names if name in answer]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str, tmp_path: Path) -> None:
    model, _ = made(family, tmp_path / "base")
    before = outputs(model)
    stream = Stream(tmp_path, None)
    treatments = {name: tensor.treatment for name, tensor in stream.plan.by_name.items()}
    projected = {name for name, treatment in treatments.items() if treatment is Treatment.PROJECTED}
    ends = tuple(PROJECTED[family])
    assert {name for name in treatments if name.removesuffix(".weight").endswith(ends)} == projected
    assert {end for end in ends if any(name.removesuffix(".weight").endswith(end) for name in projected)} == set(ends)
    assert {treatments[name] for name in treatments.keys() - projected} == {Treatment.SUMMED}

    perturb(model, 0.02)
    model.save_pretrained(tmp_path / "expert", max_shard_size="20KB")
    assert len(list((tmp_path / "expert").glob("*.safetensors"))) > 1
    expected = outputs(model)
    stream.fold_folder(tmp_path / "expert")
    for file in companion_files(tmp_path / "base"):
        shutil.copy(file, stream.snapshot_folder)
    merged, report = type(model).from_pretrained(stream.snapshot_folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    found = outputs(merged.eval())
    assert found, "a model without outputs shows nothing"
    for one, other, base in zip(found, expected, before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
        assert (other - base).abs().max() > 1e-3, "which the base would not do"


def test_what_is_equal_by_initialisation_is_not_tied(tmp_path: Path) -> None:
    """Every layer of a new Mamba has the same A_log; fine-tuning parts them."""
    torch.manual_seed(3)
    FAMILIES["mamba"]().save_pretrained(tmp_path / "base")
    assert not Stream(tmp_path, None).plan.tied_names
