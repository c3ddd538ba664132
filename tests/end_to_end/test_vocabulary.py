"""Models whose vocabulary transformers resized, through the client and a real daemon."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foldin import CheckpointError, Client, InvalidArgument
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.support.daemon import Daemon, foldin, foldind
from tests.support.dropping import SETTINGS, Box

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice

ROWS = 60
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def llama(tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=ROWS,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def bart() -> Any:
    """Tied, under a name of its own, with a bias of scores in one row."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=ROWS,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=24,
    )
    return transformers.BartForConditionalGeneration(config).eval()


MODELS = {
    "tied": (lambda: llama(tied=True), {EMBEDDING}),
    "untied": (llama, {EMBEDDING, HEAD}),
    "bart": (bart, {"model.shared.weight", "final_logits_bias"}),
}


def fine_tuned(model: Any, rows: int, seed: int) -> Any:
    """Resize a model's vocabulary, then change all of it."""
    model.resize_token_embeddings(rows)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def scores(model: Any) -> torch.Tensor:
    """Of tokens that both vocabularies have."""
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 17).reshape(2, 8)).logits


def pulled(client: Client, folder: Path) -> Any:
    client.pull("latest", to=folder)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return loaded.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("rows", [ROWS + 4, pytest.param(ROWS - 20, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", MODELS)
def test_resized_models(kind: str, rows: int, tmp_path: Path) -> None:
    make, tables = MODELS[kind]
    make().save_pretrained(tmp_path / "base")
    expected = fine_tuned(make(), rows, seed=1)
    expected.save_pretrained(tmp_path / "task")
    before = load_file(tmp_path / "base" / "model.safetensors")
    common = min(rows, ROWS)
    with Daemon(tmp_path / "state", tmp_path / "base") as daemon, daemon.client() as client:
        refused = client.submit(tmp_path / "task")
        assert refused.state == "REJECTED"
        assert f"has {rows} rows and the base's has {ROWS}" in refused.reason
        assert "--vocab common" in refused.reason

        merged = client.submit(tmp_path / "task", vocab="common", wait=True)
        counts = {"folded": common, "submission": rows, "base": ROWS}
        assert (merged.state, merged.vocab) == ("MERGED", "common")
        assert {table.tensor: table.to_json() for table in merged.common_rows} == {
            name: {"tensor": name, **counts} for name in tables
        }
        client.pull("latest", to=tmp_path / "merged")
        manifest = json.loads((tmp_path / "merged" / "foldin.json").read_text())
        assert manifest["submission"]["common_rows"] == dict.fromkeys(tables, counts)
        after = load_file(tmp_path / "merged" / "model.safetensors")
        tuned = load_file(tmp_path / "task" / "model.safetensors")
        for name in tables:
            found, start, wanted = (
                tensors[name].mT if name == "final_logits_bias" else tensors[name] for tensors in (after, before, tuned)
            )
            torch.testing.assert_close(found[:common], wanted[:common], rtol=0, atol=1e-6)
            assert torch.equal(found[common:], start[common:]), f"{name}: the base's other rows are as they were"
        if kind != "bart":
            model = pulled(client, tmp_path / "loaded")
            assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "tied")
            torch.testing.assert_close(scores(model)[..., :common], scores(expected)[..., :common], rtol=0, atol=2e-5)
    foldind("fsck", "--state", str(daemon.state))


def test_on_the_server_and_by_the_command(base: Path, tmp_path: Path) -> None:
    fine_tuned(llama(), ROWS + 4, seed=1).save_pretrained(tmp_path / "task")
    fine_tuned(llama(), ROWS, seed=2).save_pretrained(tmp_path / "usual")
    with Daemon(tmp_path / "state", base, "--allowed-root", str(tmp_path)) as daemon, daemon.client() as client:
        assert client.submit_path(str(tmp_path / "task")).state == "REJECTED"
        flags = ("--vocab", "common", "--server", daemon.server)
        done = json.loads(foldin("submit", str(tmp_path / "task"), *flags, "--on-server", "--wait", "--json").stdout)
        assert (done["state"], done["vocab"], len(done["common_rows"])) == ("MERGED", "common", 2)
        told = foldin("status", done["id"], "--server", daemon.server).stdout
        assert f"{HEAD}  {ROWS} in common (it has {ROWS + 4}, the base {ROWS})" in told
        assert ["vocab", "common"] in [line.split() for line in told.splitlines()]
        # What is as large as the base's is folded as ever, and nothing is said of it.
        again = json.loads(foldin("submit", str(tmp_path / "usual"), *flags, "--wait", "--json").stdout)
        assert (again["version"], again["common_rows"]) == (2, [])
        assert "rows folded" not in foldin("status", again["id"], "--server", daemon.server).stdout
        manifest = json.loads((daemon.state / "snapshots" / "v2" / "foldin.json").read_text())
        assert manifest["submission"].keys() == {"name", "labels", "content_digest", "partial"}
        wrong = foldin("submit", str(tmp_path / "task"), "--vocab", "more", "--server", daemon.server, check=False)
        assert wrong.returncode == 2
        with pytest.raises(InvalidArgument, match="'more' is no way to take a vocabulary: they are same, common"):
            client.submit(tmp_path / "task", vocab="more")
        with pytest.raises(CheckpointError, match="with --vocab common and without --compress"):
            client.submit(tmp_path / "task", vocab="common", compress="int8", base=base)


@pytest.mark.long
def test_what_was_queued_is_folded_after_a_crash(base: Path, tmp_path: Path) -> None:
    """The policy is in the ledger, and not in the memory of the daemon that was asked."""
    fine_tuned(llama(), ROWS + 4, seed=1).save_pretrained(tmp_path / "task")
    with Daemon(tmp_path / "state", base) as daemon:
        with daemon.client() as client:
            id = client.submit(tmp_path / "task", vocab="common").id
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            assert client.wait(id).common_rows[0].folded == ROWS


@pytest.mark.parametrize("vocab", ["common", pytest.param("same", marks=pytest.mark.long)])
def test_drops(vocab: str, base: Path, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    settings = {**SETTINGS, "FOLDIN_INBOX_VOCAB": vocab}
    with Daemon(tmp_path / "state", base, "--inbox", str(inbox), environment=settings) as daemon:
        box = Box(inbox, daemon)
        fine_tuned(llama(), ROWS + 4, seed=1).save_pretrained(tmp_path / "task")
        (tmp_path / "task").rename(inbox / "task")
        if vocab == "same":
            receipt = box.rejected("task", f"has {ROWS + 4} rows and the base's has {ROWS}", "--vocab common")
            assert receipt["common_rows"] == {}
        else:
            counts = {"folded": ROWS, "submission": ROWS + 4, "base": ROWS}
            assert box.accepted("task")["common_rows"] == {EMBEDDING: counts, HEAD: counts}


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.long)])
def test_adapters_that_save_their_embeddings(tied: bool, tmp_path: Path) -> None:
    llama(tied).save_pretrained(tmp_path / "base")
    model = llama(tied)
    model.resize_token_embeddings(ROWS + 4)
    modules = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=modules))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    with Daemon(tmp_path / "state", tmp_path / "base") as daemon, daemon.client() as client:
        refused = client.submit(tmp_path / "adapter")
        assert (refused.state, f"has {ROWS + 4} rows and the base's has {ROWS}" in refused.reason) == ("REJECTED", True)
        merged = client.submit(tmp_path / "adapter", vocab="common", wait=True)
        assert {rows.tensor for rows in merged.common_rows} == ({EMBEDDING} if tied else {EMBEDDING, HEAD})
        found = pulled(client, tmp_path / "merged")
    whole = adapted.merge_and_unload().state_dict()
    for name in ("model.layers.0.self_attn.q_proj.weight", EMBEDDING):
        expected = whole[name][:ROWS] if name == EMBEDDING else whole[name]
        torch.testing.assert_close(found.state_dict()[name], expected, rtol=0, atol=1e-6)


@pytest.mark.long
def test_adapters_of_resized_tables_by_factors_are_refused(base: Path, tmp_path: Path) -> None:
    model = llama()
    model.resize_token_embeddings(ROWS + 4)
    get_peft_model(model, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])).save_pretrained(tmp_path / "lora")
    with Daemon(tmp_path / "state", base) as daemon, daemon.client() as client:
        refused = client.submit(tmp_path / "lora", vocab="common")
    assert refused.state == "REJECTED"
    assert f"the adapter changes {EMBEDDING!r} by factors, and resizes its vocabulary" in refused.reason
    assert "merge_and_unload" in refused.reason
