"""The newest state in another publication: a version of its own, for which nothing is merged."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from foldin import FailedPrecondition, FoldinError, InvalidArgument, PermissionDenied, Progress
from foldind.state.fsck import check_state
from safetensors.numpy import load_file

from tests.support.daemon import Daemon, wait_for
from tests.support.history import History
from tests.support.models import base_tensors
from tests.support.wire import Wire, fine_tuned, single, state

QUERY = "encoder.layer.0.attention.query.weight"
BIAS = "encoder.layer.0.attention.query.bias"


@pytest.fixture
def daemon(tmp_path: Path, past: History) -> Iterator[Daemon]:
    with Daemon(past.copy(tmp_path / "state"), None, "--lease", "0", "--keep-snapshots", "2") as running:
        yield running


def merge(wire: Wire) -> int:
    submission = wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)
    assert state(submission) == "MERGED"
    return submission.version


def test_it_is_a_version_of_its_own(daemon: Daemon) -> None:
    told: list[Progress] = []
    with Wire(daemon) as wire, daemon.client() as client:
        merge(wire)
        head = merge(wire)
        snapshot = client.publish("scale:0.25", alias="candidate", on_progress=told.append)
        assert (snapshot.version, snapshot.parent, snapshot.variant) == (head + 1, head, True)
        assert (snapshot.publication, snapshot.aliases) == ("scale:0.25", ("candidate",))
        assert client.show("candidate") == snapshot
        assert client.show("latest").version == head
        assert (client.show("latest").publication, client.show("latest").variant) == ("norm", False)
        assert snapshot.lambda_ == pytest.approx(4, rel=1e-12)
        assert {progress.stage for progress in told} == {"publishing"}
        base, accumulated, merged = (
            load_file(daemon.state / place)
            for place in (
                "base/model.safetensors",
                f"merge/v{head}/accumulated.safetensors",
                f"snapshots/v{head + 1}/model.safetensors",
            )
        )
        for name, values in accumulated.items():
            np.testing.assert_allclose(merged[name], base[name] + 0.25 * values, rtol=1e-6, atol=1e-7)

        following = merge(wire)
        assert (following, client.show("latest").parent) == (head + 2, head)
    daemon.terminate()
    assert check_state(daemon.state, lambda what: None) == []
    with daemon.start().client() as client:
        assert client.show("candidate").version == head + 1


def test_by_the_spectrum(daemon: Daemon) -> None:
    with Wire(daemon) as wire, daemon.client() as client:
        merge(wire)
        head = merge(wire)
        lambda_ = client.publish("iso").lambda_
        damaged = next((daemon.state / "bases").glob("*/*.safetensors"))
        damaged.write_bytes(damaged.read_bytes()[:100])
        again = client.publish("iso")
    base, accumulated, merged, repeated = (
        load_file(daemon.state / place)
        for place in (
            "base/model.safetensors",
            f"merge/v{head}/accumulated.safetensors",
            f"snapshots/v{head + 1}/model.safetensors",
            f"snapshots/v{again.version}/model.safetensors",
        )
    )
    left, sigma, right = np.linalg.svd(accumulated[QUERY].astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(merged[QUERY] - base[QUERY], sigma.mean() * left @ right, rtol=0, atol=1e-6)
    count = again.submissions
    np.testing.assert_allclose(merged[BIAS] - base[BIAS], accumulated[BIAS] / count, rtol=0, atol=1e-6)
    # The second by bases that were kept, but for one that was damaged.
    assert all(np.array_equal(merged[name], repeated[name]) for name in merged)
    length = np.sqrt(sum(float(((merged[n] - base[n]).astype(np.float64) ** 2).sum()) for n in accumulated))
    norm = np.sqrt(sum(float((values.astype(np.float64) ** 2).sum()) for values in accumulated.values()))
    assert lambda_ == pytest.approx(norm / length, rel=1e-4)


def test_what_cannot_be(daemon: Daemon, tmp_path: Path, past: History) -> None:
    with Wire(daemon) as wire, daemon.client() as client:
        head = merge(wire)
        for publication, told in (("best", "no publication 'best'; it has norm"), ("ties", "no publication 'ties'")):
            with pytest.raises(InvalidArgument, match=told):
                client.publish(publication)
        for publication in ("flat:-1", "flat:0", "flat:nan", "power:2", "flat:1:2", "flat:x", "norm:1"):
            with pytest.raises(InvalidArgument):
                client.publish(publication)
        with pytest.raises(PermissionDenied, match="latest"):
            client.publish("mean", alias="latest")
        with pytest.raises(InvalidArgument, match="cannot be an alias"):
            client.publish("mean", alias="v3")
        assert client.snapshots()[-1].version == head
    nothing = pytest.raises(FailedPrecondition, match="nothing has been merged yet")
    with Daemon(tmp_path / "fresh", past.base) as fresh, fresh.client() as client, nothing:
        client.publish("mean")


def test_it_goes_with_what_it_is_of(daemon: Daemon) -> None:
    with Wire(daemon) as wire, daemon.client() as client:
        merge(wire)
        head = merge(wire)
        variant = client.publish("mean")
        assert client.rollback(head).undone == head
        assert client.show(f"v{variant.version}").state in {"WITHDRAWN", "PRUNED"}
        merge(wire)
        wait_for(lambda: client.show(f"v{variant.version}").state == "PRUNED", "what nothing names to be pruned", 60)
    daemon.terminate()
    assert check_state(daemon.state, lambda what: None) == []


def test_killed_meanwhile_it_leaves_nothing(daemon: Daemon) -> None:
    with Wire(daemon) as wire, daemon.client() as client, ThreadPoolExecutor(1) as pool:
        merge(wire)
        head = merge(wire)
        daemon.wait_for_bases()
        worker = daemon.worker
        assert worker is not None
        worker.suspend()
        publishing = pool.submit(client.publish, "iso", alias="candidate")
        wait_for(lambda: list((daemon.state / "snapshots").glob("v*.tmp")), "it to begin")
        daemon.kill()
        with pytest.raises(FoldinError):
            publishing.result()
    with daemon.start().client() as client:
        assert client.snapshots()[-1].version == head
        assert client.publish("iso", alias="candidate").version == head + 1
    daemon.terminate()
    assert check_state(daemon.state, lambda what: None) == []


def test_as_a_setting_it_is_how_every_version_is_published(tmp_path: Path, past: History) -> None:
    flags = ("--publication", "flat:1.5")
    with Daemon(past.copy(tmp_path / "state"), None, *flags) as daemon, Wire(daemon) as wire, daemon.client() as client:
        merge(wire)
        head = merge(wire)
        assert (client.show("latest").publication, client.show("latest").variant) == ("flat:1.5", False)
        bases = {path.name for path in (daemon.state / "bases").glob("*/*.safetensors")}
        assert bases, "what it was published by serves the next fold"
        merge(wire)
        (line,) = [line for line in daemon.log.read_text().splitlines() if f"merged in v{head + 1}," in line]
        assert " 0 bases computed" in line


def test_what_has_no_adapter_is_published_as_a_model(past: History, tmp_path: Path) -> None:
    with (
        Daemon(past.copy(tmp_path / "state"), None, "--publish", "model", "--publish", "adapter") as daemon,
        daemon.client() as client,
    ):
        assert not client.publish("flat:2.0").has_adapter
        assert client.publish("scale:0.25").has_adapter
