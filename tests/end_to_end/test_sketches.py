"""Cosines of real submissions, estimated from what the ledger of a real daemon keeps, against those of their files."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from foldin import Client
from foldind.state.database import Database
from foldind.state.sketches import Sketches, likeness
from safetensors.torch import save_file
from torch import Generator, Tensor

from tests.support.daemon import Daemon
from tests.support.http import scrape
from tests.support.models import base_tensors

QUERY, INTERMEDIATE = "encoder.layer.0.attention.query", "encoder.layer.0.intermediate.dense"
MATRIX = "encoder.layer.1.output.dense"
SINGLE = "model.safetensors"

Tensors = dict[str, Tensor]


def write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def moved(base: Tensors, generator: Generator, scale: float = 0.02) -> Tensors:
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in base.items()
    }


def adapter(folder: Path, base: Tensors, generator: Generator) -> Tensors:
    """Write an adapter of rank 2, and return the model that it makes."""
    folder.mkdir()
    factors, model = {}, dict(base)
    for module in (QUERY, INTERMEDIATE, MATRIX):
        m, n = base[f"{module}.weight"].shape
        up, down = torch.randn(m, 2, generator=generator), 0.1 * torch.randn(2, n, generator=generator)
        factors[f"base_model.model.{module}.lora_A.weight"] = down
        factors[f"base_model.model.{module}.lora_B.weight"] = up
        model[f"{module}.weight"] = base[f"{module}.weight"] + up @ down
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return model


def flat(base: Tensors, model: Tensors) -> np.ndarray:
    return np.concatenate(
        [
            (model.get(name, tensor).double() - tensor.double()).numpy().ravel()
            for name, tensor in base.items()
            if tensor.is_floating_point()
        ]
    )


def test_every_form(tmp_path: Path, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    base = base_tensors() | {f"{MATRIX}.weight": torch.randn(320, 96, generator=generator)}
    write(tmp_path / "base", base)
    whole = moved(base, generator)
    models = {
        "whole": whole,
        "like it": moved(whole, generator),
        "compressed": moved(base, generator),
        "partial": {name: tensor for name, tensor in moved(whole, generator).items() if name.startswith("encoder")},
        "adapter": adapter(tmp_path / "adapter", base, generator),
    }
    models["merged adapter"] = moved(models["adapter"], generator, 0.002)
    daemon = Daemon(tmp_path / "state", tmp_path / "base")
    with daemon, daemon.client() as client:
        ids = {name: submit(client, tmp_path, name, model) for name, model in models.items()}
        last = scrape(daemon.http)("foldin_task_vector_cosine_max")
    with Database(daemon.state / "ledger.sqlite") as database:
        sketches = Sketches(database)
        assert sketches.newest(100) == list(reversed(ids.values()))
        found = likeness(list(sketches.of(list(ids.values())).values()))
    vectors = np.stack([flat(base, model) for model in models.values()])
    exact = vectors @ vectors.T / np.outer(*2 * [np.linalg.norm(vectors, axis=1)])
    names = list(models)
    for one, other in combinations(range(len(names)), 2):
        cosine, estimate = exact[one, other], found.cosines[one][other]
        spread = 5 * (1 - cosine**2) * found.standard_error + 1e-3  # int8 rounds by less than that
        assert abs(estimate - cosine) < spread, (names[one], names[other], cosine, estimate)
    assert exact[names.index("whole"), names.index("like it")] > 0.6
    assert last == max(abs(cosine) for cosine in found.cosines[-1][:-1]) > 0.9


def submit(client: Client, root: Path, name: str, model: Tensors) -> str:
    folder = root / name
    if name != "adapter":
        write(folder, model)
    coding = {"compress": "int8", "base": root / "base"} if name == "compressed" else {}
    submission = client.submit(folder, partial=name == "partial", wait=True, **coding)  # type: ignore[arg-type]
    assert submission.state == "MERGED"
    return submission.id
