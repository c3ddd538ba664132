"""Real checkpoints through a real daemon, against the algorithm written down straight, in float64."""

import random
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foldin import Client
from torch import Tensor

from tests.support.daemon import Daemon, wait_for
from tests.support.dropping import SETTINGS
from tests.support.models import load_model

ALPHA = 0.5
ZERO = 2e-7

Tensors = dict[str, Tensor]


def project(task_vector: Tensor, accumulated: Tensor) -> Tensor:
    """P(tau; S): without the leading block and without the diagonal, in the basis of S.

    Singular values at or below 2e-7 of the largest count as zero, by design: there, the vectors are rounding noise.
    """
    left, sigma, right = torch.linalg.svd(accumulated, full_matrices=False)
    rank = int((sigma > ZERO * sigma[0]).sum())
    left, sigma, right = left[:, :rank], sigma[:rank], right[:rank]
    r = int((sigma.cumsum(0) / sigma.sum() > ALPHA).nonzero()[0])
    rotated = left.T @ task_vector @ right.T
    cut = rotated.diagonal().diag()
    cut[:r, :r] = rotated[:r, :r]
    return task_vector - left @ cut @ right


def norm(tensors: Tensors) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors.values()]).norm())


def doubled(folder: Path) -> Tensors:
    return {name: tensor.double() for name, tensor in load_model(folder).items() if tensor.is_floating_point()}


def merge(base: Tensors, tasks: list[Path]) -> Iterator[tuple[float, Tensors]]:
    """Yield lambda and the merged task vector after each task."""
    accumulated = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    norms: list[float] = []
    for task in tasks:
        submission = doubled(task)
        task_vector = {name: submission[name] - base[name] for name in base}
        norms.append(norm(task_vector))
        for name, tensor in task_vector.items():
            projected = tensor.ndim == 2 and "embedding" not in name and bool(accumulated[name].any())
            accumulated[name] += project(tensor, accumulated[name]) if projected else tensor
        lambda_ = norm(accumulated) / statistics.fmean(norms)
        yield lambda_, {name: tensor / lambda_ for name, tensor in accumulated.items()}


def hand_in(client: Client, inbox: Path, task: Path, *, drop: bool) -> None:
    """Submit a checkpoint over gRPC, or drop it into the watched folder and wait until it is in the queue."""
    if not drop:
        client.submit(task / "model.safetensors", name=task.name)
        return
    shutil.copytree(task, inbox / f".{task.name}")
    (inbox / f".{task.name}").rename(inbox / task.name)
    wait_for(lambda: client.list()[-1:] and client.list()[-1].name == task.name, f"{task.name} to be handed in", 60)


@pytest.mark.suite
@pytest.mark.parametrize("count", [2, pytest.param(7, marks=pytest.mark.long)])
def test_tasks_in_any_order_through_both_doors(suite: Path, tmp_path: Path, seed: int, count: int) -> None:
    tasks = random.Random(seed).sample(sorted((suite / "tasks").iterdir()), count)
    inbox = tmp_path / "inbox"
    daemon = Daemon(tmp_path / "state", suite / "base", "--inbox", str(inbox), environment=SETTINGS)
    with daemon, daemon.client() as client:
        for number, task in enumerate(tasks):
            hand_in(client, inbox, task, drop=number % 2 == 1)
        client.wait(client.list()[-1].id)
        snapshots = client.snapshots()
        client.pull(to=tmp_path / "merged")
    assert [snapshot.submission_name for snapshot in snapshots] == [task.name for task in tasks]

    base = doubled(suite / "base")
    steps = list(merge(base, tasks))
    for snapshot, (lambda_, _) in zip(snapshots, steps, strict=True):
        assert snapshot.lambda_ == pytest.approx(lambda_, rel=1e-6)

    published, (_, expected) = doubled(tmp_path / "merged"), steps[-1]
    assert published.keys() == base.keys()
    errors = {
        name: float((published[name] - base[name] - expected[name]).norm() / expected[name].norm()) for name in base
    }
    worst = max(errors, key=lambda name: errors[name])
    print(f"median {statistics.median(errors.values()):.1e}, worst {errors[worst]:.1e} of {worst}")
    assert statistics.median(errors.values()) <= 1e-5
    assert errors[worst] <= 1e-3, worst
