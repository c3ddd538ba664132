"""Versions published as adapters: pulled whole and cut, loaded by PEFT, and what is said where there is none."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foldin import Client, InvalidArgument, NotFound
from peft import PeftModel

from tests.end_to_end.test_adapters import adapted, llama, logits
from tests.support.daemon import Daemon, foldin, foldind

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice

ADAPTER = ["README.md", "adapter_config.json", "adapter_model.safetensors", "foldin.json"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def submit(client: Client, tmp_path: Path, *seeds: int) -> None:
    for seed in seeds:
        adapted(tmp_path / f"task-{seed}", seed, "q_proj", "v_proj", "down_proj")
        client.submit(tmp_path / f"task-{seed}", name=f"task-{seed}", wait=True)


def on_base(adapter: Path) -> Any:
    return PeftModel.from_pretrained(llama(), adapter).eval()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_as_model_and_adapter(base: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "state", base, "--publish", "model", "--publish", "adapter", "--adapter-rank", "5")
    with daemon, daemon.client() as client:
        submit(client, tmp_path, 1, 2)
        pulled = client.pull("latest", to=tmp_path / "model")
        assert pulled.has_adapter
        assert "adapter" not in names(tmp_path / "model")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()

        adapter = client.pull_adapter(to=tmp_path / "adapter")
        assert (adapter.snapshot.version, adapter.rank, adapter.published_rank, adapter.left_out) == (2, 4, 4, ())
        assert adapter.retained == pytest.approx(1, abs=1e-9)
        assert names(tmp_path / "adapter") == ADAPTER
        torch.testing.assert_close(logits(on_base(tmp_path / "adapter")), logits(model), rtol=0, atol=1e-4)
        assert (logits(model) - logits(llama())).abs().max() > 1e-2

        told: list[str] = []
        client.pull_adapter(to=tmp_path / "adapter", on_progress=lambda progress: told.append(progress.stage))
        assert set(told) == {"verifying"}, "what is there already is not fetched again"

        command = ("pull", "latest", "--as", "adapter", "--rank", "2", "--to", str(tmp_path / "cut"))
        said = foldin(*command, "--server", client.server).stdout
        cut = client.pull_adapter(to=tmp_path / "cut", rank=2)
        assert f"rank 2 of 4, with {100 * cut.retained:.2f} %" in said
        assert 0.5 < cut.retained < 1
        assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"] == 2
        difference = logits(on_base(tmp_path / "cut")) - logits(model)
        assert 1e-4 < difference.abs().max() < (logits(llama()) - logits(model)).abs().max()

        client.pull("latest", to=tmp_path / "adapter")
        assert "config.json" in names(tmp_path / "adapter"), "one form takes the other's place"
        client.pull_adapter(to=tmp_path / "adapter")
        assert names(tmp_path / "adapter") == ADAPTER

        with pytest.raises(InvalidArgument, match="at least 1"):
            client.pull_adapter(to=tmp_path / "cut", rank=0)
        with urllib.request.urlopen(f"{daemon.http}/metrics") as page:
            assert "foldin_adapter_rank 4.0" in page.read().decode()
        assert "rank 4 and 100.0 % of the update's energy" in daemon.log.read_text()
        daemon.terminate()
    foldind("fsck", "--state", str(daemon.state))
    (daemon.state / "snapshots" / "v2" / "adapter" / "stray").write_text("x")
    assert "stray: it is no part of the snapshot" in foldind("fsck", "--state", str(daemon.state), check=False).stdout


def test_as_an_adapter_only_and_changed_later(base: Path, tmp_path: Path) -> None:
    with Daemon(tmp_path / "state", base, environment={"FOLDIN_PUBLISH": '["adapter"]'}) as daemon:
        with daemon.client() as client:
            submit(client, tmp_path, 1)
            assert names(daemon.state / "snapshots" / "v1") == ["README.md", "adapter", "foldin.json"]
            with pytest.raises(NotFound, match="as an adapter only: pull it with --as adapter"):
                client.pull("v1", to=tmp_path / "model")
            client.pull_adapter("v1", to=tmp_path / "adapter")
        daemon.terminate()
    with Daemon(tmp_path / "state") as daemon, daemon.client() as client:
        submit(client, tmp_path, 2)
        client.pull("v2", to=tmp_path / "model")
        with pytest.raises(NotFound, match="v2 has no adapter"):
            client.pull_adapter("v2", to=tmp_path / "other")
        assert not (tmp_path / "other").exists()
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert torch.isfinite(logits(merged)).all()


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    refused = foldin("pull", "--rank", "4", "--to", str(tmp_path / "x"), check=False)
    assert "add --as adapter" in refused.stderr
    refused = foldin("pull", "--as", "lora", "--to", str(tmp_path / "x"), check=False)
    assert "neither model nor adapter" in refused.stderr
