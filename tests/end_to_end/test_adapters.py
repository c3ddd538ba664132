"""Adapters and task vectors through every door, into a model that transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foldin import CheckpointError, Client
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.support.daemon import Daemon, foldind, wait_for

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=60,
    )
    return transformers.LlamaForCausalLM(config).eval()


def adapted(folder: Path, seed: int, *modules: str) -> Any:
    """Save an adapter of rank 2, and return the model that PEFT merges it into."""
    model = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=4, target_modules=list(modules)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.merge_and_unload().eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 17).reshape(2, 8)).logits


@pytest.fixture
def base(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def pulled(client: Client, folder: Path) -> Any:
    client.pull("latest", to=folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_through_every_door(base: Path, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    daemon = Daemon(
        tmp_path / "state", base, "--inbox", str(inbox), "--allowed-root", str(tmp_path), init_flags=("--max-rank", "3")
    )
    with daemon, daemon.client() as client:
        expected = adapted(tmp_path / "one", 1, "q_proj", "v_proj")
        assert client.submit(tmp_path / "one", name="uploaded", wait=True).version == 1
        torch.testing.assert_close(logits(pulled(client, tmp_path / "v1")), logits(expected), rtol=0, atol=1e-5)
        assert sorted(path.name for path in (daemon.state / "merge" / "v1").iterdir()) == [
            "accumulated.safetensors",
            "factored.safetensors",
            "records.json",
        ]

        adapted(tmp_path / "two", 2, "q_proj", "down_proj")
        assert client.submit_path(str(tmp_path / "two"), wait=True).version == 2

        adapted(tmp_path / "three", 3, "q_proj")
        (tmp_path / "three").rename(inbox / "three")
        wait_for(lambda: client.show("latest").version == 3, "the drop to be merged")
        manifest = json.loads((daemon.state / "snapshots" / "latest" / "foldin.json").read_text())
        assert manifest["tensors"]["model.layers.0.self_attn.q_proj.weight"]["rank"] == 3
        assert manifest["dropped"] > 0.01
        assert "max_rank dropped" in daemon.log.read_text()

        daemon.kill()
        daemon.start()
        with daemon.client() as again:
            whole = load_file(base / "model.safetensors")
            difference = {name: 0.01 * torch.ones_like(tensor) for name, tensor in whole.items() if "mlp" in name}
            save_file(difference, tmp_path / "difference.safetensors", metadata={"foldin.kind": "task_vector"})
            assert again.submit(tmp_path / "difference.safetensors", wait=True).version == 4
            merged = logits(pulled(again, tmp_path / "v4"))
            assert torch.isfinite(merged).all()
            assert not torch.allclose(merged, logits(llama()), atol=1e-3)
    foldind("fsck", "--state", str(daemon.state))


def test_several_adapters_are_submitted_one_by_one(base: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        adapted(tmp_path / "adapters" / name, 1, "q_proj")
    daemon = Daemon(tmp_path / "state", base)
    with daemon, daemon.client() as client, pytest.raises(CheckpointError) as refused:
        client.submit(tmp_path / "adapters")
    assert "first, second" in str(refused.value)
    assert "one by one" in str(refused.value)


def test_what_the_base_lacks_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    adapted(tmp_path / "adapter", 1, "q_proj")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    renamed = {name.replace("model.layers", "transformer.h"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "adapter" / "adapter_model.safetensors")
    daemon = Daemon(tmp_path / "state", base)
    with daemon, daemon.client() as client:
        submission = client.submit(tmp_path / "adapter")
        assert submission.state == "REJECTED"
        assert "changes tensors that the base lacks: transformer.h.0.self_attn.q_proj.weight" in submission.reason
