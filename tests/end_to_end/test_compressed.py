"""Task vectors and compressed updates through the client and a real daemon."""

from pathlib import Path

import numpy as np
import pytest
import torch
from foldin import Client, Refused
from foldin.checkpoint import find_checkpoint
from foldin.compression import compress_model
from foldin.models import Progress
from foldin.recipe import read_recipe
from safetensors.torch import save_file

from tests.support.compressed import block_of_bytes, decode
from tests.support.daemon import Daemon, foldin
from tests.support.models import base_tensors, load_model, make_checkpoint, shard

WIDE = "encoder.layer.1.intermediate.dense.weight"
QUERY = "encoder.layer.0.attention.query.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The small base, and a matrix that is worth coding."""
    folder = tmp_path / "base"
    folder.mkdir()
    wide = torch.randn(96, 80, generator=torch.Generator().manual_seed(0))
    save_file(base_tensors() | {WIDE: wide}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def submit_first(client: Client, checkpoint: Path, base: Path, coding: str, to: Path) -> list[Progress]:
    progress: list[Progress] = []
    submission = client.submit(checkpoint, compress=coding, base=base, wait=True, on_progress=progress.append)
    assert (submission.state, submission.version) == ("MERGED", 1)
    client.pull("latest", to=to)
    return progress


@pytest.mark.parametrize("coding", ["ternary", "int8"])
def test_the_first_snapshot_is_the_base_and_what_was_decoded(
    coding: str, daemon: Daemon, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "task", base, seed=1)
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with daemon.client() as client:
        progress = submit_first(client, checkpoint, base, coding, tmp_path / "merged")
    assert list(scratch.iterdir()) == []
    stages = list(dict.fromkeys(step.stage for step in progress))
    assert stages[:3] == ["compressing", "hashing", "uploading"]
    recipe = read_recipe(coding, base, None)
    assert recipe is not None
    made = compress_model(find_checkpoint(checkpoint), recipe, False, scratch, progress.append)
    decoded, merged = decode(made.path), load_model(tmp_path / "merged")
    assert WIDE in decoded
    for name, tensor in load_model(base).items():
        expected = tensor.double().numpy() + decoded.get(name, 0.0)
        np.testing.assert_allclose(merged[name].double().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_the_same_submission_again_is_found(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    tensors = load_model(make_checkpoint(tmp_path / "task", base, seed=1))
    with daemon.client() as client:
        first = client.submit(tmp_path / "task", compress="ternary", base=base)
        again = client.submit(shard(tmp_path / "shards", tensors, 3), compress="ternary", base=base, density=0.1)
        other = client.submit(tmp_path / "task", compress="ternary", base=base, density=0.2)
    assert again.id == first.id
    assert other.id != first.id


def test_the_command(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    checkpoint = str(make_checkpoint(tmp_path / "task", base, seed=1))
    flags = ("--compress", "ternary", "--density", "0.3", "--base", str(base), "--server", daemon.server)
    done = foldin("submit", checkpoint, *flags, "--wait")
    assert "v1" in done.stdout
    assert "compressing" in done.stderr
    for wrong, words, status in (
        (("--compress", "ternary"), "give the base that it was fine-tuned from", 1),
        (("--compress", "zip", "--base", str(base)), "zip", 2),
        (("--compress", "ternary", "--base", str(base), "--on-server"), "nothing is sent with --on-server", 2),
    ):
        failed = foldin("submit", checkpoint, *wrong, "--server", daemon.server, check=False)
        assert (failed.returncode, words in failed.stderr) == (status, True), failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_task_vector_is_merged_as_the_model_is(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path / "task", base, seed=1))
    original = load_model(base)
    task_vector = {name: model[name] - original[name] for name in model if model[name].is_floating_point()}
    file = tmp_path / "task_vector.safetensors"
    save_file(task_vector, file, metadata={"foldin.kind": "task_vector"})
    with daemon.client() as client:
        assert client.submit(file, wait=True).version == 1
        client.pull("latest", to=tmp_path / "merged")
        refused = tmp_path / "nan.safetensors"
        save_file({QUERY: torch.full((24, 24), float("nan"))}, refused, metadata={"foldin.kind": "task_vector"})
        with pytest.raises(Refused, match="NaN or infinite"):
            client.submit(refused, wait=True)
    merged = load_model(tmp_path / "merged")
    for name, tensor in model.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-7)


def test_codes_that_do_not_decode_are_refused_and_the_next_is_merged(
    daemon: Daemon, base: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(block_of_bytes(QUERY, (24, 24), b"\xff" * 116).file())
    with daemon.client() as client:
        with pytest.raises(Refused, match="has the byte 255, and five ternary digits"):
            client.submit(bad, wait=True)
        submit_first(client, make_checkpoint(tmp_path / "task", base, seed=1), base, "ternary", tmp_path / "merged")
