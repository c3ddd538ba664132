"""The merged update as a PEFT adapter: loaded it is the merged model, and cut to a rank it is the best there is."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from foldind.state.snapshots import companion_files
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream
from tests.checkpoints.test_families import GROUPED, IMAGES, PROJECTED, TEXT, made, outputs, perturb

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice

BOTH = ("model", "adapter")
LOADED = ("bert", "roberta", "clip", "gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "phi", "t5", "whisper")
"""Families whose modules have the names of their saved tensors, and that PEFT adapts."""
WHOLE = ("bert", "roberta", "llama", "qwen2", "qwen3", "mistral", "phi", "mixtral")
"""Those of which every tensor has a place in an adapter."""
WORDS = "embeddings.word_embeddings.weight"
DENSE = "encoder.layer.0.intermediate.dense.weight"


def add_adapter(family: Any, base: Path, folder: Path, targets: list[str], seed: int) -> Path:
    model = get_peft_model(type(family).from_pretrained(base), LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def merged_both_ways(model: Any, stream: Stream) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs of the base, of the snapshot, and of the base with the snapshot's adapter."""
    for file in companion_files(stream.base):
        shutil.copy(file, stream.snapshot_folder)
    base = type(model).from_pretrained(stream.base).eval()
    before = outputs(base)
    snapshot = type(model).from_pretrained(model_of(stream.snapshot_folder)).eval()
    adapted = PeftModel.from_pretrained(base, stream.snapshot_folder / "adapter").eval()
    return before, outputs(snapshot), outputs(adapted.base_model.model)


def model_of(snapshot: Path) -> Path:
    """What `foldin pull` brings of a snapshot."""
    return Path(shutil.copytree(snapshot, snapshot.with_name("pulled"), ignore=shutil.ignore_patterns("adapter")))


def assert_equal_but_not_the_base(before: list[Tensor], snapshot: list[Tensor], adapted: list[Tensor]) -> None:
    for one, other, base in zip(snapshot, adapted, before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert (other - base).abs().max() > 1e-3, "which the base would not do"


@pytest.mark.parametrize("family", LOADED)
def test_a_stream_of_adapters(family: str, tmp_path: Path) -> None:
    model, base = made(family, tmp_path / "base")
    stream = Stream(tmp_path, None, publish=BOTH)
    targets = sorted({end.rpartition(".")[2] for end in PROJECTED[family]})
    for seed in (1, 2):
        result = stream.fold_folder(add_adapter(model, base, tmp_path / f"adapter-{seed}", targets, seed))
    assert result.adapter
    assert (result.adapter.rank, result.adapter.left_out) == (6, ())
    assert result.adapter.retained[-1] == pytest.approx(1, abs=1e-9)
    assert_equal_but_not_the_base(*merged_both_ways(model, stream))


@pytest.mark.parametrize("family", WHOLE)
def test_a_whole_model(family: str, tmp_path: Path) -> None:
    """Norms and biases go in as they are, the vocabulary as factors."""
    model, _ = made(family, tmp_path / "base")
    stream = Stream(tmp_path, None, publish=BOTH)
    perturb(model, 0.02)
    model.save_pretrained(tmp_path / "expert")
    result = stream.fold_folder(tmp_path / "expert")
    assert result.adapter
    assert (result.adapter.rank, result.adapter.left_out) == (32, ())
    assert_equal_but_not_the_base(*merged_both_ways(model, stream))


def test_what_peft_has_no_place_for_is_named(tmp_path: Path) -> None:
    model, _ = made("gpt_oss", tmp_path / "base")
    stream = Stream(tmp_path, None, publish=BOTH)
    perturb(model, 0.02)
    model.save_pretrained(tmp_path / "expert")
    result = stream.fold_folder(tmp_path / "expert")
    assert result.adapter
    assert {name.rpartition(".")[2] for name in result.adapter.left_out} == {
        *("down_proj", "down_proj_bias", "gate_up_proj", "gate_up_proj_bias", "sinks")
    }
    lost = sum(tensor.task_vector_norm**2 for tensor in result.tensors if tensor.name in result.adapter.left_out)
    assert result.adapter.retained[-1] == pytest.approx(1 - lost / result.record.accumulated_norm**2, rel=1e-6)
    base = type(model).from_pretrained(stream.base)
    PeftModel.from_pretrained(base, stream.snapshot_folder / "adapter")


@pytest.mark.parametrize("family", ["gemma", "t5", "gpt2"])
def test_a_vocabulary_with_two_uses_stays_out(family: str, tmp_path: Path) -> None:
    """It is input and output, or of encoder and decoder: factors on one module would part them."""
    model, _ = made(family, tmp_path / "base")
    stream = Stream(tmp_path, None, publish=("adapter",))
    perturb(model, 0.02)
    model.save_pretrained(tmp_path / "expert")
    result = stream.fold_folder(tmp_path / "expert")
    assert result.adapter
    (left_out,) = result.adapter.left_out
    assert left_out.endswith(("embed_tokens.weight", "shared.weight", "wte.weight"))


def as_matrices(folder: Path, rank: int) -> Mapping[str, np.ndarray]:
    """Module -> what the factors of an adapter, cut to a rank, add to its weight."""
    tensors = {
        name: tensor.double().numpy() for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    found = {}
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            found[name.removeprefix("base_model.model.").replace("lora_A.", "")] = up[:, :rank] @ down[:rank]
        if name.endswith(".lora_embedding_A"):
            up = tensors[name.replace("embedding_A", "embedding_B")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_embedding_A")
            found[f"{module}.weight"] = (up[:, :rank] @ down[:rank]).T
    return found


def test_cut_to_any_rank_it_is_the_best_approximation(base: Path, generator: Generator, tmp_path: Path) -> None:
    """Against float64, of whole models: dense matrices, wide and tall, and what they retain of the whole update."""
    tensors = load_file(base / "model.safetensors")
    (tmp_path / "stream").mkdir()
    shutil.copytree(base, tmp_path / "stream" / "base")
    (tmp_path / "stream" / "base" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    stream = Stream(tmp_path / "stream", None, publish=("adapter",), adapter_rank=5)
    for _ in range(2):
        tuned = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in tensors.items()
        }
        result = stream.fold(tuned)
    assert not list(stream.snapshot_folder.glob("*.safetensors")), "only an adapter was asked for"
    accumulated = {name: tensor.double().numpy() for name, tensor in stream.accumulated.items()}
    total = sum(float((tensor**2).sum()) for tensor in accumulated.values())
    assert result.adapter
    assert result.adapter.rank == 5
    assert result.adapter.left_out == ("logit_scale",), "which is of no module"
    shapes = {accumulated[name].shape for name in as_matrices(stream.snapshot_folder / "adapter", 5)}
    assert {shape[0] > shape[1] for shape in shapes} == {True, False}
    for rank in (1, 3, 5):
        found = as_matrices(stream.snapshot_folder / "adapter", rank)
        assert {WORDS, DENSE} < found.keys()
        lost = float(accumulated["logit_scale"] ** 2)
        for name, matrix in found.items():
            left, singular_values, right = np.linalg.svd(accumulated[name], full_matrices=False)
            best = left[:, :rank] * singular_values[:rank] @ right[:rank] / result.lambda_
            assert np.linalg.norm(matrix - best) <= 2e-6 * np.linalg.norm(best), name
            lost += float((singular_values[rank:] ** 2).sum())
        assert math.isclose(result.adapter.retained[rank - 1], 1 - lost / total, rel_tol=1e-6)


def test_the_same_bytes_whatever_is_done_at_once(base: Path, generator: Generator, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tuned = {
        name: tensor + torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    files = []
    for budget in (0, 2**31):
        stream = Stream(tmp_path / str(budget), tensors, publish=BOTH, adapter_rank=4, memory_budget=budget)
        files.append(stream.fold(tuned).snapshot_files)
    assert files[0] == files[1]
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} < files[0].keys()


def test_a_module_is_named_by_its_end_where_that_is_enough(tmp_path: Path) -> None:
    model, base = made("bert", tmp_path / "base")
    stream = Stream(tmp_path, None, publish=("adapter",))
    stream.fold_folder(add_adapter(model, base, tmp_path / "adapter", ["query", "pooler.dense"], 1))
    config = json.loads((stream.snapshot_folder / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["pooler.dense", "query"]
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 3, "none")


def partly(model: Any, base: Path, folder: Path, *ends: str) -> Path:
    """A task vector of the parameters with these ends."""
    names = load_file(base / "model.safetensors").keys()
    generator = Generator().manual_seed(5)
    found = {
        name: 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
        if name in names and name.endswith(ends)
    }
    assert found
    folder.mkdir()
    save_file(found, folder / "model.safetensors", metadata={"foldin.kind": "task_vector"})
    return folder


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("bert", ("LayerNorm.weight", "query.weight")),  # PEFT asks for the bias of what it replaces
        ("bert", ("query.bias", "LayerNorm.bias")),  # and for factors, if only of zeros
        ("llama", ("model.norm.weight", "q_proj.weight")),  # and takes `norm` for the end of `input_layernorm`
        ("clip", ("conv1.weight", "patch_embedding.weight", "fc1.weight")),
    ],
)
def test_a_part_of_a_model(family: str, ends: tuple[str, ...], tmp_path: Path) -> None:
    model, base = made(family, tmp_path / "base")
    stream = Stream(tmp_path, None, publish=BOTH)
    result = stream.fold_folder(partly(model, base, tmp_path / "part", *ends))
    assert result.adapter
    assert not result.adapter.left_out
    assert_equal_but_not_the_base(*merged_both_ways(model, stream))


OTHERS = {
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**TEXT)),
    "two heads": lambda: transformers.GPT2DoubleHeadsModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64)
    ),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**IMAGES)),
    "falcon_mamba": lambda: transformers.FalconMambaForCausalLM(
        transformers.FalconMambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **GROUPED,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ),
    "granitemoe": lambda: transformers.GraniteMoeForCausalLM(
        transformers.GraniteMoeConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    ),
    "encoder-decoder": lambda: transformers.EncoderDecoderModel(
        transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.BertConfig(**TEXT), transformers.BertConfig(**TEXT)
        )
    ),
}
"""Models that PEFT adapts in part, or in a way of their own."""


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_in_it_is_applied_and_what_is_not_is_named(name: str, tmp_path: Path) -> None:
    """All that is not left out is changed; then the adapter does what the snapshot does."""
    torch.manual_seed(3)
    model = OTHERS[name]().eval()
    model.save_pretrained(tmp_path / "base")
    probe = Stream(tmp_path, None, publish=BOTH)
    perturb(model, 0.02)
    model.save_pretrained(tmp_path / "expert")
    result = probe.fold_folder(tmp_path / "expert")
    assert result.adapter
    left_out = set(result.adapter.left_out)
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "base", tmp_path / "again" / "base")
    stream = Stream(tmp_path / "again", None, publish=BOTH)
    base, expert = (load_file(tmp_path / which / "model.safetensors") for which in ("base", "expert"))
    assert left_out < base.keys()
    kept = {tensor: values if tensor not in left_out else base[tensor] for tensor, values in expert.items()}
    stream.fold(kept)
    assert_equal_but_not_the_base(*merged_both_ways(model, stream))


def test_a_model_whose_modules_peft_does_not_find(tmp_path: Path) -> None:
    model, _ = made("vit", tmp_path / "base")
    stream = Stream(tmp_path, None, publish=BOTH)
    perturb(model, 0.02)
    model.save_pretrained(tmp_path / "expert")
    result = stream.fold_folder(tmp_path / "expert")
    assert result.adapter
    assert (result.adapter.rank, result.adapter.retained) == (0, (0.0,))
    assert set(result.adapter.left_out) == {tensor.name for tensor in stream.plan.folded}
    assert result.snapshot_files.keys() == {"model.safetensors"}
    assert not (stream.snapshot_folder / "adapter").exists()
