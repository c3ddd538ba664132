"""Taking a checkpoint out of the merged model again, by the rules that allow it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from foldin import Client, FailedPrecondition, Refused, Submission
from foldind.state.fsck import check_state
from safetensors.torch import load_file, save_file
from torch import Generator, randn

from tests.support.daemon import Daemon
from tests.support.models import base_tensors
from tests.support.wire import idle_worker

RULES = (
    "average",
    *(pytest.param(rule, marks=pytest.mark.long) for rule in ("regression", "ties", "dare", "model_stock", "iso")),
)


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number, name in enumerate("abc"):
        generator = Generator().manual_seed(number)
        folder = found[name] = tmp_path / name
        folder.mkdir()
        tensors = {
            key: tensor + 0.02 * randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
            for key, tensor in base_tensors().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return found


Serve = Callable[..., Daemon]


@pytest.fixture
def serve(base: Path, tmp_path: Path) -> Iterator[Serve]:
    daemons = []

    def start(name: str, rule: str) -> Daemon:
        daemons.append(Daemon(tmp_path / name, base, init_flags=("--rule", rule)).start())
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


def merge(client: Client, folder: Path, **terms: object) -> Submission:
    submission = client.submit(folder, name=folder.name, wait=True, **terms)  # type: ignore[arg-type]
    assert submission.state == "MERGED"
    return submission


def update(daemon: Daemon) -> dict[str, np.ndarray]:
    merged, base = (
        load_file(daemon.state / place) for place in ("snapshots/latest/model.safetensors", "base/model.safetensors")
    )
    return {key: (merged[key] - base[key]).numpy() for key in merged if merged[key].is_floating_point()}


@pytest.mark.parametrize("rule", RULES)
def test_it_is_as_if_it_had_never_been_there(rule: str, serve: Serve, checkpoints: dict[str, Path]) -> None:
    with_it, without = serve("with", rule), serve("without", rule)
    with with_it.client() as client:
        merged = {name: merge(client, checkpoints[name]) for name in "abc"}
        took = merge(client, checkpoints["b"], take_out=True)
        assert (took.version, took.took_out) == (4, merged["b"].id)
        assert client.show("latest").submissions == 2
        taken = client.status(merged["b"].id)
        assert (taken.state, taken.reason) == ("WITHDRAWN", "taken out in v4")
        shown = client.show("latest")
        assert (shown.took_out, shown.took_out_name) == (merged["b"].id, "b")
        assert "| v4 | without b |" in (with_it.state / "snapshots" / "latest" / "README.md").read_text()
    with without.client() as client:
        for name in "ac":
            merge(client, checkpoints[name])
    found, expected = update(with_it), update(without)
    for key, values in expected.items():
        assert np.linalg.norm(found[key] - values) <= 1e-5 * np.linalg.norm(values) + 1e-7, key
    with_it.terminate()
    assert check_state(with_it.state, lambda what: None) == []


def test_what_comes_after(serve: Serve, checkpoints: dict[str, Path]) -> None:
    daemon = serve("state", "average")
    with daemon.client() as client:
        merged = {name: merge(client, checkpoints[name]) for name in "abc"}
        merge(client, checkpoints["b"], take_out=True)
        again = client.submit(checkpoints["b"], take_out=True)
        assert (again.state, again.reason) == ("REJECTED", "nothing that is merged has its content; see `foldin list`")

        undone = client.rollback(4)
        assert undone.snapshot is not None
        assert undone.snapshot.submissions == 3
        assert client.status(merged["b"].id).state == "MERGED"
        assert [event.state for event in client.status(merged["b"].id).history][-2:] == ["WITHDRAWN", "MERGED"]

        took = merge(client, checkpoints["b"], take_out=True)
        assert (took.version, took.took_out) == (5, merged["b"].id)
        back = merge(client, checkpoints["b"])
        assert back.id not in {merged["b"].id, took.id}, "what was taken out can be handed in anew"
        assert client.show("latest").submissions == 3

        for name in "ab":
            merge(client, checkpoints[name], take_out=True)
        last = client.submit(checkpoints["c"], take_out=True)
        assert (last.state, client.show("latest").submissions) == ("REJECTED", 1)
        assert "foldin rollback" in last.reason
    daemon.terminate()
    assert check_state(daemon.state, lambda what: None) == []


def test_one_that_comes_too_late_is_told_so(serve: Serve, checkpoints: dict[str, Path]) -> None:
    daemon = serve("state", "average")
    with daemon.client() as client:
        for name in "abc":
            merge(client, checkpoints[name])
        with idle_worker(daemon):
            first, second = (client.submit(checkpoints["b"], take_out=True) for _ in range(2))
        assert client.wait(first.id).state == "MERGED"
        with pytest.raises(Refused, match="nothing that is merged has its content"):
            client.wait(second.id)


@pytest.mark.parametrize("rule", ["opcm", "foldin", "magmax"])
def test_rules_that_do_not_allow_it(rule: str, serve: Serve, checkpoints: dict[str, Path]) -> None:
    with serve("state", rule).client() as client:
        merge(client, checkpoints["a"])
        with pytest.raises(FailedPrecondition, match="cannot be taken out again; `foldin rollback`"):
            client.submit(checkpoints["a"], take_out=True)
        assert len(client.list()) == 1


def test_nothing_is_taken_out_of_what_may_have_dropped_parts(base: Path, tmp_path: Path) -> None:
    settings = ("--rule", "average", "--max-rank", "6")
    with (
        Daemon(tmp_path / "state", base, init_flags=settings) as daemon,
        daemon.client() as client,
        pytest.raises(FailedPrecondition, match=r"max_rank = 6 .* `foldin rollback`"),
    ):
        client.submit(base, take_out=True)


def test_killed_meanwhile_it_is_taken_out_once(serve: Serve, checkpoints: dict[str, Path]) -> None:
    daemon = serve("state", "average")
    with daemon.client() as client:
        merged = {name: merge(client, checkpoints[name]) for name in "abc"}
        took = client.submit(checkpoints["b"], take_out=True)
    daemon.kill()
    with daemon.start().client() as client:
        assert client.wait(took.id).took_out == merged["b"].id
        assert client.show("latest").submissions == 2
        assert client.status(merged["b"].id).state == "WITHDRAWN"
    daemon.terminate()
    assert check_state(daemon.state, lambda what: None) == []
