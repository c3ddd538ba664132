"""Adapters that PEFT wrote, folded, against what PEFT itself merges them to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream

EXACT = 1e-6
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=99)
    ),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**SMALL)),
}
LINEAR = {
    "bert": ["query", "value", "dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # Conv1D; c_proj is square in the attention
    "t5": ["q", "v", "wo"],
    "phi": ["q_proj", "v_proj", "fc1"],
}
EMBEDDING = {"bert": "word_embeddings", "llama": "embed_tokens"}
KINDS: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {".*\\.0\\..*": 3, "1\\..*(v_proj|value|c_fc|q)": 7},
        "alpha_pattern": {"(v_proj|value|c_attn|wo)": 5, "nothing": 1},
    },
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "whole modules": {"modules_to_save": ["LayerNorm", "input_layernorm", "ln_1", "layer_norm"]},
}


def adapted(name: str, generator: Generator, **settings: object) -> PeftModel:
    """A base with an adapter none of whose tensors is zero."""
    torch.manual_seed(7)
    model = MODELS[name]()
    config = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[name]} | settings
    peft = get_peft_model(model, LoraConfig(**config))
    add_noise([parameter for parameter in peft.parameters() if parameter.requires_grad], generator)
    return peft


def add_noise(parameters: Sequence[Tensor], generator: Generator) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def stream_of(name: str, root: Path) -> Stream:
    torch.manual_seed(7)
    MODELS[name]().save_pretrained(root / "base")
    return Stream(root, None)


def assert_folded(peft: PeftModel, stream: Stream, root: Path) -> None:
    """The snapshot of the first fold is the model that PEFT merges to."""
    peft.save_pretrained(root / "adapter")
    result = stream.fold_folder(root / "adapter")
    assert result.lambda_ == pytest.approx(1, rel=1e-12)
    merged = peft.merge_and_unload().state_dict()
    snapshot, base = stream.merged, load_file(stream.base / "model.safetensors")
    changed = 0
    for tensor, value in snapshot.items():
        expected = merged[tensor]
        assert (value - expected).norm() <= EXACT * expected.norm(), tensor
        if not torch.equal(expected, base[tensor]):
            changed += 1
            difference = (value.double() - base[tensor]) - (expected.double() - base[tensor])
            assert difference.norm() <= 1e-4 * (expected.double() - base[tensor]).norm(), tensor
    assert changed > 3, "the adapter changes something"


@pytest.mark.filterwarnings("ignore")  # PEFT's advice
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_folded_is_merged(name: str, kind: str, generator: Generator, tmp_path: Path) -> None:
    stream = stream_of(name, tmp_path)
    assert_folded(adapted(name, generator, **KINDS[kind]), stream, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bert", "phi", "gpt2"])
def test_bias_of_the_factors(name: str, generator: Generator, tmp_path: Path) -> None:
    stream = stream_of(name, tmp_path)
    assert_folded(adapted(name, generator, lora_bias=True), stream, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EMBEDDING)
def test_embedding(name: str, generator: Generator, tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = MODELS[name]()
    model.config.tie_word_embeddings = False
    stream = stream_of(name, tmp_path)
    peft = adapted(name, generator, target_modules=[*LINEAR[name], EMBEDDING[name]])
    assert_folded(peft, stream, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, generator: Generator, tmp_path: Path) -> None:
    stream = stream_of("llama", tmp_path)
    peft = adapted("llama", generator).to(dtype)
    peft.save_pretrained(tmp_path / "adapter")
    stream.fold_folder(tmp_path / "adapter")
    base, merged = load_file(stream.base / "model.safetensors"), stream.merged
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = peft.base_model.model.model.layers[0].self_attn.q_proj
    up, down = (layer.lora_B["default"].weight.double(), layer.lora_A["default"].weight.double())
    expected = 6 / 4 * up @ down
    torch.testing.assert_close(merged[name].double() - base[name], expected, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_in_one_folder(generator: Generator, tmp_path: Path) -> None:
    """PEFT puts all but the default one into folders of their own: each is a submission."""
    stream = stream_of("bert", tmp_path)
    peft = adapted("bert", generator, task_type=TaskType.FEATURE_EXTRACTION)
    peft.add_adapter("second", LoraConfig(r=2, target_modules=["key"]))
    add_noise([parameter for name, parameter in peft.named_parameters() if ".second." in name], generator)
    peft.save_pretrained(tmp_path / "adapters")
    first = stream.fold_folder(tmp_path / "adapters")
    second = stream.fold_folder(tmp_path / "adapters" / "second")
    changed = [{t.name for t in result.tensors if t.task_vector_norm > 0} for result in (first, second)]
    assert not changed[0] & changed[1]
    assert all("key" in name for name in changed[1])
