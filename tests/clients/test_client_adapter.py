"""Cutting a pulled adapter to a lower rank, without torch."""

import json
from pathlib import Path

import numpy as np
import pytest
from foldin.adapter import cut_to_rank, read_statistics
from foldin.errors import PullError
from safetensors.numpy import load_file, save_file

RANK = 6
MODULE = "base_model.model.layer.0"


@pytest.fixture
def adapter(tmp_path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    tensors = {
        f"{MODULE}.q_proj.lora_A.weight": values(RANK, 9),
        f"{MODULE}.q_proj.lora_B.weight": values(5000, RANK),  # more rows than are cut at once
        f"{MODULE}.embed.lora_embedding_A": values(RANK, 11),
        f"{MODULE}.embed.lora_embedding_B": values(9, RANK),
        f"{MODULE}.norm.weight": values(9).astype(np.float16),
        f"{MODULE}.step": values().reshape(()),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": RANK, "bias": "none"}))
    retained = [0.5, 0.7, 0.8, 0.9, 0.95, 1.0]
    manifest = {"version": 3, "adapter": {"rank": RANK, "retained": retained, "left_out": ["scale"]}}
    (tmp_path / "foldin.json").write_text(json.dumps(manifest))
    return tmp_path


def expected(name: str, tensor: np.ndarray, rank: int) -> np.ndarray:
    if "_A" in name:
        return tensor[:rank]
    return tensor[:, :rank] if "_B" in name else tensor


@pytest.mark.parametrize("rank", [1, 4, RANK - 1])
def test_the_leading_rows_and_columns_stay(adapter: Path, rank: int) -> None:
    before = load_file(adapter / "adapter_model.safetensors")
    cut_to_rank(adapter, rank)
    after = load_file(adapter / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor, expected(name, before[name], rank))
        assert tensor.dtype == before[name].dtype
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config == {"r": rank, "lora_alpha": rank, "bias": "none"}
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "foldin.json",
    ]


@pytest.mark.parametrize("rank", [RANK, 1000])
def test_one_that_is_no_higher_stays_as_it_is(adapter: Path, rank: int) -> None:
    before = {path: path.read_bytes() for path in adapter.iterdir()}
    cut_to_rank(adapter, rank)
    assert {path: path.read_bytes() for path in adapter.iterdir()} == before


def test_what_it_holds(adapter: Path) -> None:
    assert read_statistics(adapter)["retained"][3] == 0.9


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '{"adapter": 3}', '{"adapter": {"retained": [], "left_out": []}}', '{"adapter": {"retained": [1]}}'],
)
def test_a_manifest_that_says_nothing_of_it(adapter: Path, text: str) -> None:
    (adapter / "foldin.json").write_text(text)
    with pytest.raises(PullError, match="says nothing of an adapter"):
        read_statistics(adapter)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b'{"r": 7}'),
        ("adapter_config.json", b'{"r": "6"}'),
        ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("adapter_model.safetensors", b'\x02\0\0\0\0\0\0\0""'),
        ("adapter_model.safetensors", b'\x0b\0\0\0\0\0\0\0{"a": null}'),
        ("adapter_model.safetensors", b"\xff" * 8),
    ],
)
def test_what_is_none_of_ours(adapter: Path, file: str, content: bytes) -> None:
    (adapter / file).write_bytes(content)
    with pytest.raises(PullError, match="no adapter that can be cut"):
        cut_to_rank(adapter, 2)
