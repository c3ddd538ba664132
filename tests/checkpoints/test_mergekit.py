"""The rules that mergekit has too, merged by it from the same folders: the same model.

It has an environment of its own, which FOLDIN_MERGEKIT names: /path/to/mergekit/bin/python, made as RESULTS.md of
tests/bench says. All is float32 on the CPU, of a real architecture with random weights.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Generator, Tensor

from tests.checkpoints.folding import Stream
from tests.support.models import load_model

SCRIPT = Path(__file__).with_name("mergekit_merges.py")
BOUND = 1e-6
COUNT = 3
DARE = {"density": 0.5, "weight": 0.3}
SEEDS = range(8)


class Case(NamedTuple):
    """What mergekit is asked, and what Foldin."""

    method: str
    each: Mapping[str, float]
    """Parameters of every model."""
    shared: Mapping[str, float | bool]
    rule: str
    publication: str
    options: Mapping[str, float]


CASES: Mapping[str, Case] = {
    "linear": Case("linear", {"weight": 1.0}, {}, "average", "mean", {}),
    "task arithmetic": Case("task_arithmetic", {"weight": 0.3}, {}, "task_arithmetic", "scale:0.3", {}),
    "task arithmetic, normalised": Case(
        "task_arithmetic", {"weight": 1.0}, {"normalize": True}, "task_arithmetic", "mean", {}
    ),
    "ties": Case("ties", {"weight": 1.0, "density": 0.2}, {}, "ties", "ties", {"density": 0.2}),
    "ties, dense, lambda": Case(
        "ties", {"weight": 1.0, "density": 0.7}, {"lambda": 0.6}, "ties", "ties:0.6", {"density": 0.7}
    ),
    "breadcrumbs": Case(
        "breadcrumbs",
        {"weight": 0.3, "density": 0.9, "gamma": 0.01},
        {},
        "breadcrumbs",
        "scale:0.3",
        {"density": 0.9, "outliers": 0.01},
    ),
    "breadcrumbs, sparse": Case(
        "breadcrumbs",
        {"weight": 1.0, "density": 0.5, "gamma": 0.2},
        {},
        "breadcrumbs",
        "scale:1",
        {"density": 0.5, "outliers": 0.2},
    ),
    "breadcrumbs, no room": Case(
        "breadcrumbs",
        {"weight": 1.0, "density": 0.95, "gamma": 0.2},
        {},
        "breadcrumbs",
        "scale:1",
        {"density": 0.95, "outliers": 0.2},
    ),
    "model stock": Case("model_stock", {}, {"filter_wise": False}, "model_stock", "model_stock", {}),
}


class Models(NamedTuple):
    """A base, what was fine-tuned from it, and what mergekit makes of them."""

    base: Path
    tuned: list[Path]
    merged: Path


def write_models(root: Path, *, tied: bool, seed: int) -> tuple[Path, list[Path]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101,
            hidden_size=32,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )
    generator = Generator().manual_seed(seed)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    shared = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in before.items()}
    model.save_pretrained(root / "base")
    folders = []
    for number in range(COUNT):
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                noise = shared[name] + torch.randn(tensor.shape, generator=generator)
                tensor.copy_(before[name] + 0.02 * (1 + number) * noise)
        folders.append(root / f"tuned{number}")
        model.save_pretrained(folders[-1])
    return root / "base", folders


@pytest.fixture(scope="module")
def mergekit() -> str:
    python = os.environ.get("FOLDIN_MERGEKIT")
    if not python:
        pytest.skip("FOLDIN_MERGEKIT is not set: it names the python of an environment that has mergekit 0.1.5")
    return python


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def models(request: pytest.FixtureRequest, mergekit: str, tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    seed = int(os.environ.get("FOLDIN_TEST_SEED") or int.from_bytes(os.urandom(4)) >> 1)
    print(f"FOLDIN_TEST_SEED={seed}")
    base, tuned = write_models(root, tied=request.param, seed=seed)
    wanted = {
        str(root / name): configuration(case.method, case.each, case.shared, base, tuned)
        for name, case in CASES.items()
    }
    for number in SEEDS:
        wanted[str(root / f"dare{number}")] = {
            **configuration("dare_linear", DARE, {"rescale": True}, base, tuned),
            "seed": number,
        }
    # -P: what lies beside the script is not for its imports.
    run = subprocess.run(
        [mergekit, "-P", str(SCRIPT)], input=json.dumps(wanted), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return Models(base, tuned, root)


def configuration(
    method: str, each: Mapping[str, float], shared: Mapping[str, float | bool], base: Path, tuned: list[Path]
) -> dict[str, Any]:
    found = {
        "merge_method": method,
        "models": [{"model": str(folder), "parameters": dict(each)} for folder in tuned],
        "parameters": dict(shared),
        "dtype": "float32",
    }
    return found if method == "linear" else found | {"base_model": str(base)}


def merged(models: Models, root: Path, rule: str, publication: str, **options: float) -> dict[str, Tensor]:
    (root / "base").symlink_to(models.base)
    stream = Stream(root, None, rule=rule, publication=publication, **options)
    for folder in models.tuned:
        stream.fold_folder(folder)
    return stream.merged


def norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors.values()]).norm())


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_same_model(name: str, models: Models, tmp_path: Path) -> None:
    case = CASES[name]
    base, theirs = load_model(models.base), load_model(models.merged / name)
    ours = merged(models, tmp_path, case.rule, case.publication, **case.options)
    assert ours.keys() == base.keys()
    assert theirs.keys() - ours.keys() <= {"lm_head.weight"}  # tied
    assert ours.keys() <= theirs.keys()
    difference = {key: ours[key].double() - theirs[key].double() for key in ours}
    update = {key: theirs[key].double() - base[key].double() for key in ours}
    worst = max(float(difference[key].norm() / update[key].norm()) for key in ours if key in update)
    print(
        f"MEASURED mergekit {name}: model {norm(difference) / norm(theirs):.1e}, "
        f"update {norm(difference) / norm(update):.1e}, worst tensor's {worst:.1e}"
    )
    assert norm(difference) <= BOUND * norm(theirs)
    assert norm(difference) <= BOUND * norm(update)
    assert norm(update) > 0.1 * norm(base)


@pytest.mark.long
def test_dare_has_the_same_mean_and_spread(models: Models, tmp_path: Path) -> None:
    """Each draws by itself. mergekit keeps the sum of magnitudes as it was, and Foldin its expectation (the paper)."""
    base, plain = load_model(models.base), {}
    for folder in models.tuned:
        for key, tensor in load_model(folder).items():
            plain[key] = plain.get(key, 0) + DARE["weight"] * (tensor.double() - base[key].double())
    theirs, ours = [], []
    for number in SEEDS:
        root = tmp_path / str(number)
        root.mkdir()
        renamed = [
            root / f"{number}-{folder.name}" for folder in models.tuned
        ]  # a submission's name seeds its draws here
        for link, folder in zip(renamed, models.tuned, strict=True):
            link.symlink_to(folder)
        again = Models(models.base, renamed, models.merged)
        ours.append(merged(again, root, "dare", f"scale:{DARE['weight']}", density=DARE["density"]))
        theirs.append(load_model(models.merged / f"dare{number}"))
    found = []
    for runs in (ours, theirs):
        updates = [{key: run[key].double() - base[key].double() for key in plain} for run in runs]
        mean = {key: sum(one[key] for one in updates) / len(updates) for key in plain}
        bias = norm({key: mean[key] - plain[key] for key in plain}) / norm(plain)
        spread = (
            sum(norm({key: one[key] - plain[key] for key in plain}) ** 2 for one in updates) / len(updates)
        ) ** 0.5
        found.append((bias, spread / norm(plain)))
    print(f"MEASURED dare: bias and spread, ours {found[0]}, theirs {found[1]}")
    (our_bias, our_spread), (their_bias, their_spread) = found
    assert our_spread == pytest.approx(their_spread, rel=0.02)
    assert our_spread > 0.1
    for bias, spread in found:
        assert bias == pytest.approx(spread / len(SEEDS) ** 0.5, rel=0.05), (
            "draws are independent, and their mean is right"
        )
    assert our_bias == pytest.approx(their_bias, rel=0.05)
