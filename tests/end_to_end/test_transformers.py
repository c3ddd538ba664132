"""Snapshots as their users load them: with transformers, from the folder, as it is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foldin import Client
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.daemon import Daemon, foldind
from tests.support.models import load_model, shard

pytestmark = pytest.mark.filterwarnings("default")  # transformers' own warnings are not ours

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def randomised(model: Any, seed: int) -> Any:
    """Fill every parameter anew: some initialisations are zero, or the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def fine_tuned(model: Any, folder: Path, seed: int) -> Path:
    """Save a copy of a model with noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    return folder


@pytest.fixture
def bert(transformers: Any, tmp_path: Path) -> tuple[Any, Path]:
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
    )
    model = randomised(transformers.BertModel(config), seed=0)
    model.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


@pytest.fixture
def gpt2(transformers: Any, tmp_path: Path) -> tuple[Any, Path]:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = randomised(transformers.GPT2LMHeadModel(config), seed=0)
    model.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


@pytest.fixture
def t5(transformers: Any, tmp_path: Path) -> tuple[Any, Path]:
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = randomised(transformers.T5ForConditionalGeneration(config), seed=0)
    model.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], Client]]:
    daemons: list[Daemon] = []

    def start(base: Path) -> Client:
        daemon = Daemon(tmp_path / "state", base)
        daemons.append(daemon)
        return daemon.start().client()

    yield start
    for daemon in daemons:
        daemon.kill()


def outputs(model: Any) -> Tensor:
    tokens = torch.arange(1, 17).reshape(2, 8)
    if model.config.is_encoder_decoder:
        return model(input_ids=tokens, decoder_input_ids=tokens).logits
    answer = model(input_ids=tokens)
    return answer.logits if hasattr(answer, "logits") else answer.last_hidden_state


def loaded(kind: Any, folder: Path) -> Any:
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    assert not report["mismatched_keys"], report
    return model.eval()


@torch.no_grad()
def test_an_encoder(transformers: Any, bert: tuple[Any, Path], serve: Callable[..., Client], tmp_path: Path) -> None:
    model, base = bert
    tasks = [fine_tuned(model, tmp_path / f"task{seed}", seed) for seed in (1, 2, 3)]
    expected = outputs(loaded(transformers.AutoModel, tasks[0]))
    with serve(base) as client:
        client.submit(tasks[0], wait=True)
        client.pull(to=tmp_path / "merged")
        torch.testing.assert_close(outputs(loaded(transformers.AutoModel, tmp_path / "merged")), expected, **TOLERANCE)
        assert (outputs(model) - expected).abs().max() > 1e-2, "which the base would not do"
        for task in tasks[1:]:
            client.submit(task, wait=True)
        client.pull(to=tmp_path / "merged")
        merged = loaded(transformers.AutoModel, tmp_path / "merged")
        assert bool(outputs(merged).isfinite().all())
        assert (outputs(merged) - expected).abs().max() > 1e-3

        # Straight from the state folder too, for readers on the daemon's machine.
        in_place = loaded(transformers.AutoModel, tmp_path / "state" / "snapshots" / "latest")
        assert torch.equal(outputs(in_place), outputs(merged))
        assert torch.equal(outputs(loaded(transformers.BertModel, tmp_path / "merged")), outputs(merged))


@torch.no_grad()
@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.long) for name in ("gpt2", "t5")])
def test_tied_embeddings(
    transformers: Any, request: pytest.FixtureRequest, serve: Callable[..., Client], tmp_path: Path, family: str
) -> None:
    model, base = request.getfixturevalue(family)
    kind = type(model)
    # A base saved with every name written out, as older releases and other tools do.
    tensors = load_file(base / "model.safetensors")
    tied = {"gpt2": {"lm_head.weight": "transformer.wte.weight"}, "t5": {"lm_head.weight": "shared.weight"}}[family]
    assert not tied.keys() & tensors.keys()
    save_file(
        tensors | {name: tensors[other].clone() for name, other in tied.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    treatments = {
        tensor["name"]: (tensor["treatment"], tensor["tied_to"])
        for tensor in json.loads(foldind("plan", "--base", str(base), "--json").stdout)
    }
    for name, other in tied.items():
        assert treatments[name] == ("tied", other)
        assert treatments[other][0] == "summed"

    task = fine_tuned(model, tmp_path / "task", seed=1)
    expected = outputs(loaded(kind, task))
    with serve(base) as client:
        client.submit(task, wait=True)
        client.submit(fine_tuned(model, tmp_path / "other", seed=2), wait=True)
        for version in (1, 2):
            client.pull(f"v{version}", to=tmp_path / f"v{version}")
    published = load_model(tmp_path / "v2")
    for name, other in tied.items():
        assert torch.equal(published[name], published[other])
    torch.testing.assert_close(outputs(kind.from_pretrained(tmp_path / "v1").eval()), expected, **TOLERANCE)
    merged = kind.from_pretrained(tmp_path / "v2").eval()
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert bool(outputs(merged).isfinite().all())


@torch.no_grad()
@pytest.mark.long
def test_shards_in_bfloat16(
    transformers: Any, bert: tuple[Any, Path], serve: Callable[..., Client], tmp_path: Path
) -> None:
    model, base = bert
    model.to(torch.bfloat16).save_pretrained(base)
    sharded = shard(tmp_path / "sharded", load_model(base), 3)
    shutil.copy(base / "config.json", sharded)
    single = fine_tuned(model, tmp_path / "task", seed=1)
    parts = shard(tmp_path / "parts", load_model(fine_tuned(model, tmp_path / "other", seed=2)), 2)
    with serve(sharded) as client:
        client.submit(single, wait=True)
        client.submit(parts, wait=True)
        for version in (1, 2):
            client.pull(f"v{version}", to=tmp_path / f"v{version}")
    names = {path.name for path in (tmp_path / "v1").iterdir()}
    assert names >= {path.name for path in sharded.iterdir()}, "a snapshot has the shards of the base"
    first, second = (loaded(transformers.AutoModel, tmp_path / f"v{version}") for version in (1, 2))
    assert first.dtype == second.dtype == torch.bfloat16
    for name, tensor in load_model(single).items():
        torch.testing.assert_close(first.state_dict()[name], tensor, rtol=2**-7, atol=1e-6)
    assert bool(outputs(second).isfinite().all())
