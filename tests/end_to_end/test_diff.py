"""How two versions differ, as a real daemon serves them, against the same figures from the files on its disk."""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import foldin
import pytest
import torch
from foldin import Client, Difference, NotFound, Progress
from foldin.served import BLOCK_ELEMENTS
from safetensors.torch import save_file
from torch import Tensor

from tests.faults.processes import free_port
from tests.support.daemon import Daemon, wait_for
from tests.support.models import base_tensors, load_model, make_base, make_checkpoint, shard

QUERY = "encoder.layer.0.attention.query.weight"
LARGE = 16 * 2**20
"""Bytes of the tensor that is larger than any piece."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    daemons = []

    def start(base: Path, *flags: str, rule: str = "average") -> Daemon:
        daemons.append(Daemon(tmp_path / "state", base, *flags, init_flags=("--rule", rule)).start())
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


def merge(client: Client, base: Path, *seeds: int) -> None:
    for seed in seeds:
        task = make_checkpoint(base.parent / f"task{seed}", base, seed)
        client.submit(task, name=f"task{seed}", wait=True)


def on_disk(daemon: Daemon, version: int) -> dict[str, Tensor]:
    return load_model(daemon.state / "snapshots" / f"v{version}")


def assert_figures(found: Difference, daemon: Daemon) -> None:
    """Each figure is the one of a straight line in float64."""
    before, after = on_disk(daemon, found.a.version), on_disk(daemon, found.b.version)
    assert {tensor.name for tensor in found.tensors} == before.keys()
    squares = [0.0, 0.0]
    changed = elements = 0
    for tensor in found.tensors:
        a, b = before[tensor.name], after[tensor.name]
        first, second = a.double().flatten(), b.double().flatten()
        norm, difference = float(first.norm()), float((second - first).norm())
        assert tensor.shape == tuple(a.shape)
        assert tensor.elements == a.numel()
        assert tensor.norm == pytest.approx(norm, rel=1e-11)
        assert tensor.difference_norm == pytest.approx(difference, rel=1e-11)
        assert tensor.relative == pytest.approx(difference / norm, rel=1e-11)
        assert tensor.largest_change == float((second - first).abs().max())
        assert tensor.changed == int((a != b).sum())
        assert tensor.cosine == pytest.approx(float(first @ second / (norm * second.norm())), rel=1e-11)
        if a.is_floating_point():
            squares = [squares[0] + norm**2, squares[1] + difference**2]
            changed, elements = changed + tensor.changed, elements + a.numel()
    assert found.norm == pytest.approx(math.sqrt(squares[0]), rel=1e-11)
    assert found.difference_norm == pytest.approx(math.sqrt(squares[1]), rel=1e-11)
    assert found.relative == pytest.approx(math.sqrt(squares[1] / squares[0]), rel=1e-11)
    assert found.largest_change == max(
        tensor.largest_change for tensor in found.tensors if before[tensor.name].is_floating_point()
    )
    assert (found.elements, found.changed_share) == (elements, changed / elements)
    assert [tensor.relative for tensor in found.tensors] == sorted(
        (tensor.relative for tensor in found.tensors), reverse=True
    )


@pytest.mark.parametrize(
    ("dtype", "shards"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.float16, 3), (torch.bfloat16, 3)]
)
def test_figures(serve: Callable[..., Daemon], tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    base = make_base(tmp_path / "base", dtype)
    if shards > 1:
        (base / "model.safetensors").unlink()
        shard(base, base_tensors(dtype=dtype), shards)
    daemon = serve(base)
    with daemon.client() as client:
        merge(client, base, 1, 2)
        told: list[Progress] = []
        found = foldin.diff(client, "v1", "latest", on_progress=told.append)
    assert (found.a.version, found.b.version, found.unread) == (1, 2, 0)
    assert_figures(found, daemon)
    assert found.difference_norm > 0
    size = sum(tensor.element_size() * tensor.numel() for tensor in on_disk(daemon, 1).values())
    assert {(progress.stage, progress.total) for progress in told} == {("comparing", 2 * size)}
    assert told[-1].done == 2 * size


def test_equal_files_are_not_read(serve: Callable[..., Daemon], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    shard(base, base_tensors(), 3)
    daemon = serve(base, rule="task_arithmetic")
    with daemon.client() as client:
        merge(client, base, 1)
        only_query = tmp_path / "only-query"
        only_query.mkdir()
        save_file({QUERY: base_tensors()[QUERY] + 0.1}, only_query / "model.safetensors")
        client.submit(only_query, partial=True, wait=True)
        client.rollback()
        client.submit(only_query, partial=True, wait=True)

        told: list[Progress] = []
        same = foldin.diff(client, "v2", "v3", on_progress=told.append)
        assert told == []
        assert (same.unread, same.relative, same.difference_norm) == (len(same.tensors), 0, 0)
        assert {(tensor.norm, tensor.cosine, tensor.relative) for tensor in same.tensors} == {(None, None, 0)}
        assert (same.lineage.ancestor, [step.version for step in same.lineage.undone]) == (1, [2])
        assert [step.version for step in same.lineage.done] == [3]

        found = foldin.diff(client, "v1", "v3", on_progress=told.append)
    beside = set(list(base_tensors())[1::3])
    assert QUERY in beside
    assert {progress.item for progress in told} == beside
    assert {tensor.name for tensor in found.tensors if tensor.norm is not None} == beside
    assert found.unread == len(found.tensors) - len(beside)
    assert [tensor.name for tensor in found.tensors if tensor.relative] == [QUERY]
    before, after = (on_disk(daemon, version)[QUERY].double() for version in (1, 3))
    assert found.difference_norm == pytest.approx(float((after - before).norm()), rel=1e-11)


def test_the_ways_between_versions(serve: Callable[..., Daemon], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with serve(base).client() as client:
        merge(client, base, 1, 2, 3)
        ids = [client.show(f"v{version}").submission_id for version in (1, 2, 3)]
        client.submit(base.parent / "task2", take_out=True, name="out", wait=True)
        client.publish("scale:0.5", alias="candidate")
        client.rollback(4)
        merge(client, base, 4)

        found = foldin.diff(client, "candidate", "latest").lineage
        assert found.ancestor == 3
        undone = [(step.version, str(step.change), step.submission_id) for step in found.undone]
        assert undone == [(5, "published", ""), (4, "took_out", ids[1])]
        assert (found.undone[0].publication, found.undone[1].submission_name) == ("scale:0.5", "task2")
        assert [(step.version, step.submission_name, step.state) for step in found.done] == [(6, "task4", "PUBLISHED")]
        assert found.undone[1].state == "WITHDRAWN"

        back = foldin.diff(client, "v6", "v1").lineage
        assert (back.ancestor, back.done) == (1, ())
        assert [step.version for step in back.undone] == [6, 3, 2]

        lineage = foldin.lineage_of(client, "candidate")
        assert [(step.version, step.parent, str(step.change)) for step in lineage] == [
            (5, 4, "published"), (4, 3, "took_out"), (3, 2, "added"), (2, 1, "added"), (1, 0, "added"),
        ]  # fmt: skip
        assert [step.version for step in foldin.lineage_of(client, "v6", most=2)] == [6, 3]
        with pytest.raises(NotFound, match=r"nothing was merged for v5: .* foldin show v4 --tensors"):
            foldin.tensor_statistics(client, "candidate")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A base with one tensor that is many pieces long."""
    folder = tmp_path / "large"
    folder.mkdir()
    torch.manual_seed(1)
    tensors = {"embeddings.weight": torch.randn(LARGE // 4 // 64, 64), "norm.weight": torch.ones(64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.long
def test_a_tensor_is_never_held_whole(serve: Callable[..., Daemon], large: Path) -> None:
    daemon = serve(large)
    with daemon.client() as client:
        merge(client, large, 1, 2)
        foldin.diff(client, "v1", "v2")  # loads what is loaded once
        steps: list[int] = []
        tracemalloc.start()
        try:
            found = foldin.diff(client, "v1", "v2", on_progress=lambda progress: steps.append(progress.done))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert_figures(found, daemon)
    assert max(after - before for before, after in zip([0, *steps], steps, strict=False)) <= 4 * BLOCK_ELEMENTS
    assert peak < LARGE / 2, "two tensors of LARGE bytes are compared"


@pytest.mark.long
def test_it_goes_on_when_the_daemon_was_restarted(serve: Callable[..., Daemon], large: Path) -> None:
    daemon = serve(large, "--grpc", f"127.0.0.1:{free_port()}")
    with daemon.client() as client:
        merge(client, large, 1, 2)
        expected = foldin.diff(client, "v1", "v2")
        killed: list[int] = []

        def kill_in_the_middle(progress: Progress) -> None:
            if not killed and progress.done > progress.total // 2:
                killed.append(progress.done)
                daemon.kill()
                daemon.start()

        assert foldin.diff(client, "v1", "v2", on_progress=kill_in_the_middle) == expected
        assert killed
        daemon.kill()
        assert_figures(expected, daemon)


def test_what_is_no_longer_kept(serve: Callable[..., Daemon], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with serve(base, "--keep-snapshots", "1", "--lease", "0").client() as client:
        merge(client, base, 1, 2, 3)
        wait_for(lambda: client.show("v1").state == "PRUNED", "v1 to be pruned")
        with pytest.raises(NotFound, match="v1 is PRUNED: its files are no longer kept"):
            foldin.diff(client, "v1", "v3")
        with pytest.raises(NotFound, match="v1 is PRUNED: its files are no longer kept"):
            foldin.tensor_statistics(client, "v1")
        states = [(step.version, step.state) for step in foldin.lineage_of(client, "v3")]
        assert (states[0], states[-1]) == ((3, "PUBLISHED"), (1, "PRUNED"))
        for a, b in (("v1", "v9"), ("nothing", "v1")):
            with pytest.raises(NotFound, match="see `foldin snapshots`"):
                foldin.diff(client, a, b)


def test_adapters_only(serve: Callable[..., Daemon], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with serve(base, "--publish", "adapter").client() as client:
        merge(client, base, 1, 2)
        with pytest.raises(NotFound, match="v1 was published as an adapter only"):
            foldin.diff(client, "v1", "v2")
        assert foldin.tensor_statistics(client, "v2")[0].task_vector_norm > 0


def test_statistics_are_the_manifest_s(serve: Callable[..., Daemon], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    daemon = serve(base)
    with daemon.client() as client:
        merge(client, base, 1)
        found = {tensor.name: tensor for tensor in foldin.tensor_statistics(client)}
    task, tensors = load_model(tmp_path / "task1"), base_tensors()
    assert found.keys() == {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    for name, statistics in found.items():
        norm = float((task[name].double() - tensors[name].double()).norm())
        assert statistics.task_vector_norm == pytest.approx(norm, rel=1e-6)
        assert (statistics.kept, statistics.rank) == (1, 0)
    assert found[QUERY].treatment == "projected"
