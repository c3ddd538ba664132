"""The merged model through the clients that people have, as they are, while new versions are being published."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from foldin import Client

from tests.support.daemon import Daemon, wait_for
from tests.support.models import make_base, make_checkpoint

READER = Path(__file__).with_name("hub_reader.py")
OLDER = Path(sys.prefix) / "hub-0.36" / "bin" / "python"
"""An environment with the huggingface_hub of a year before, which speaks by another HTTP library."""


def environment(daemon: Daemon, home: Path) -> dict[str, str]:
    """What a user sets, and a cache of one's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    return {**inherited, "HF_ENDPOINT": daemon.http, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@contextmanager
def publishing(daemon: Daemon, base: Path, folder: Path, pause: float = 0.05) -> Iterator[list[int]]:
    """Merge one checkpoint after the other, and yield the versions there are; `stable` follows one behind."""
    over = threading.Event()
    published: list[int] = []

    def publish() -> None:
        with daemon.client() as client:
            for seed in range(1000):
                version = submit(client, make_checkpoint(folder / f"task{seed}", base, seed))
                client.set_alias("stable", max(1, version - 1))
                published.append(version)
                if over.wait(pause):
                    return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        wait_for(lambda: published, "the first version", 60)
        yield published
    finally:
        over.set()
        thread.join()


def submit(client: Client, checkpoint: Path) -> int:
    return client.submit(checkpoint, wait=True).version


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    base = make_base(tmp_path / "base")
    with Daemon(tmp_path / "state", base, environment={"FOLDIN_KEEP_BASES": "false"}) as running:
        yield running


@pytest.mark.parametrize(
    ("python", "version"), [(Path(sys.executable), "2."), (OLDER, "0.36.")], ids=["current", "a year older"]
)
def test_huggingface_hub(daemon: Daemon, tmp_path: Path, python: Path, version: str) -> None:
    if not python.exists():
        pytest.skip("make test makes an environment with an older huggingface_hub")
    until = tmp_path / "until"
    with publishing(daemon, tmp_path / "base", tmp_path) as published:
        before = len(published)
        reader = subprocess.Popen(
            [python, READER, until, "4"],
            env=environment(daemon, tmp_path / "home"),
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: reader.poll() is not None or len(published) >= before + 12, "a dozen versions", 120)
        until.touch()
        output, _ = reader.communicate(timeout=120)
    found = json.loads(output)
    assert found["version"].startswith(version)
    assert found["faults"] == []
    assert set(found["counts"]) == {"snapshot", "single_file", "refs", "file_system"}
    print(version, len(published) - before, "versions meanwhile;", found["counts"])


TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
found = []
for name, *revision in json.loads(sys.argv[1]):
    which = {"revision": revision[0]} if revision else {}
    model = AutoModelForSequenceClassification.from_pretrained(name, **which).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, **which)
    with torch.no_grad():
        tokens = tokenizer(["the cat sat", "a dog ran far"], return_tensors="pt", padding=True)
        found.append(model(**tokens).logits.tolist())
print(json.dumps(found))
"""


def logits(models: list[list[str]], env: dict[str, str]) -> Any:
    """Of models by name and revision, as transformers loads them in a process of its own."""
    command = [sys.executable, "-c", TRANSFORMERS, json.dumps(models)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def classifier(folder: Path) -> Path:
    """A tiny real classifier with a tokenizer, as save_pretrained writes them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "the", "a", "cat", "dog", "sat", "ran", "far"])
    }
    words_of = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    words_of.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_of, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")  # transformers' own warnings are not ours
def test_transformers(tmp_path: Path) -> None:
    base = classifier(tmp_path / "base")
    with Daemon(tmp_path / "state", base) as daemon, daemon.client() as client:
        for seed in (1, 2):
            submit(client, make_checkpoint(tmp_path / f"task{seed}", base, seed, scale=0.1))
        folders = [[str(daemon.state / "snapshots" / version)] for version in ("v1", "v2")]
        served = [["foldin/merged", "v1"], ["foldin/merged", "latest"], ["foldin/merged"]]
        first, second, *of_served = logits([*folders, *served], environment(daemon, tmp_path / "home"))
    assert first != second
    assert of_served == [first, second, second]


def test_curl(daemon: Daemon, tmp_path: Path) -> None:
    url = f"{daemon.http}/foldin/merged/resolve"
    with publishing(daemon, tmp_path / "base", tmp_path):
        content = (daemon.state / "snapshots" / "v1" / "model.safetensors").read_bytes()
        part = tmp_path / "part"
        part.write_bytes(content[:1234])
        curl("--continue-at", "-", "--output", str(part), f"{url}/v1/model.safetensors")
        assert part.read_bytes() == content
        assert curl("--range", "8-15", f"{url}/v1/model.safetensors") == content[8:16]
        manifest = json.loads(curl("--location", f"{url}/main/foldin.json"))
        assert manifest["version"] >= 1
        headers = curl("--head", "--location", f"{url}/latest/config.json").decode().lower()
        assert headers.count("x-repo-commit") == 2


def curl(*arguments: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--fail", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
