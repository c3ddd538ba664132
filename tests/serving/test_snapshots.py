"""Get, List and ReadFile of snapshots."""

import json
from hashlib import sha256

import pytest
import torch
from foldin.v1 import snapshots_pb2 as pb
from grpc import StatusCode
from safetensors.torch import load

from tests.support.daemon import Daemon
from tests.support.history import BEYOND, VERSIONS, History
from tests.support.models import load_model
from tests.support.wire import SECONDS, Wire, refused


def page(wire: Wire, size: int = 0, token: str = "") -> pb.ListSnapshotsResponse:
    return wire.snapshots.List(pb.ListSnapshotsRequest(page_size=size, page_token=token), timeout=SECONDS)


class TestGet:
    @pytest.mark.parametrize("ref", ["", "latest", "v4", "4"])
    def test_the_newest(self, wire: Wire, past: History, ref: str) -> None:
        snapshot = wire.snapshot(ref)
        assert (snapshot.version, snapshot.parent, list(snapshot.aliases)) == (4, 3, ["latest"])
        assert (snapshot.submission_id, snapshot.submission_name) == (past.merged[3], "task4")
        assert (snapshot.submissions, snapshot.rule) == (4, "opcm")
        assert snapshot.state == pb.SNAPSHOT_STATE_PUBLISHED
        assert getattr(snapshot, "lambda") == pytest.approx(snapshot.accumulated_norm / snapshot.mean_task_vector_norm)
        assert snapshot.merge_seconds > 0
        assert abs(snapshot.created_at.ToNanoseconds() - wire.get(past.merged[3]).updated_at.ToNanoseconds()) < 10**9

    def test_the_first(self, wire: Wire) -> None:
        snapshot = wire.snapshot("v1")
        assert (snapshot.parent, snapshot.submissions, list(snapshot.aliases)) == (0, 1, [])
        assert getattr(snapshot, "lambda") == pytest.approx(1, abs=1e-6)
        assert snapshot.task_vector_norm == snapshot.mean_task_vector_norm
        assert snapshot.accumulated_norm == pytest.approx(snapshot.task_vector_norm, rel=1e-6)

    def test_norms_are_of_the_published_tensors(self, wire: Wire, past: History) -> None:
        base, snapshot = load_model(past.base), wire.snapshot()
        merged = load(wire.read(snapshot.version, "model.safetensors"))
        norm = torch.stack([(merged[name].double() - base[name].double()).norm() for name in base]).norm()
        assert float(norm) == pytest.approx(snapshot.mean_task_vector_norm, rel=1e-5)

    @pytest.mark.parametrize("ref", ["v5", "5", "v0", "0", "v" + "9" * 18])
    def test_no_such_version(self, wire: Wire, ref: str) -> None:
        with refused(StatusCode.NOT_FOUND, f"v{int(ref.removeprefix('v'))}"):
            wire.snapshot(ref)

    def test_no_such_alias(self, wire: Wire) -> None:
        with refused(StatusCode.NOT_FOUND, "'stable'"):
            wire.snapshot("stable")

    @pytest.mark.parametrize("ref", ["V4", "LATEST", "v4 ", " ", "-", "a b", "v1/../v2", "ä", "a" * 101, "\0", "x\n"])
    def test_neither_version_nor_alias(self, wire: Wire, ref: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT):
            wire.snapshot(ref)


class TestList:
    def test_oldest_first(self, wire: Wire) -> None:
        snapshots = page(wire).snapshots
        assert [snapshot.version for snapshot in snapshots] == list(range(1, VERSIONS + 1))
        assert all(snapshot == wire.snapshot(f"v{snapshot.version}") for snapshot in snapshots)

    def test_pages(self, wire: Wire) -> None:
        first = page(wire, 2)
        assert [snapshot.version for snapshot in first.snapshots] == [1, 2]
        second = page(wire, 2, first.next_page_token)
        assert [snapshot.version for snapshot in second.snapshots] == [3, 4]
        assert second.next_page_token == ""
        assert [len(page(wire, size).snapshots) for size in (1, 3, 4, 5, 2**32 - 1)] == [1, 3, 4, 4, 4]

    @pytest.mark.parametrize("token", ["v1", "x", "-1", "1" * 19])
    def test_bad_tokens(self, wire: Wire, token: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "page token"):
            page(wire, 2, token)


class TestReadFile:
    def test_every_file_is_what_was_announced(self, wire: Wire, daemon: Daemon) -> None:
        for version in range(1, VERSIONS + 1):
            folder = daemon.state / "snapshots" / f"v{version}"
            files = {file.name: file for file in wire.snapshot(f"v{version}").files}
            assert files.keys() == {path.name for path in folder.iterdir()}
            for name, file in files.items():
                content = wire.read(version, name)
                assert (file.size, file.sha256) == (len(content), sha256(content).hexdigest())
                assert content == (folder / name).read_bytes()

    def test_a_snapshot_is_a_model_folder(self, wire: Wire) -> None:
        names = {file.name for file in wire.snapshot().files}
        assert names == {"README.md", "config.json", "foldin.json", "model.safetensors", "tokenizer_config.json"}
        manifest = json.loads(wire.read(4, "foldin.json"))
        assert (manifest["version"], manifest["parent"], manifest["submission"]["name"]) == (4, 3, "task4")
        assert manifest["files"].keys() == names - {"foldin.json"}

    def test_from_an_offset(self, wire: Wire) -> None:
        whole = wire.read(2, "model.safetensors")
        for offset in (1, 8, len(whole) // 2, len(whole) - 1):
            assert wire.read(2, "model.safetensors", offset) == whole[offset:]
        assert wire.read(2, "model.safetensors", len(whole)) == b""

    def test_beyond_the_end(self, wire: Wire) -> None:
        size = len(wire.read(2, "model.safetensors"))
        for offset in (size + 1, *BEYOND):
            with refused(StatusCode.OUT_OF_RANGE, str(size)):
                wire.read(2, "model.safetensors", offset)

    @pytest.mark.parametrize(
        "name", ["", "nothing", "../v1/model.safetensors", "/etc/passwd", "..", ".", "model.safetensors\0", "latest"]
    )
    def test_no_such_file(self, wire: Wire, name: str) -> None:
        with refused(StatusCode.NOT_FOUND, "v2"):
            wire.read(2, name)

    @pytest.mark.parametrize("version", [0, 5, *BEYOND])
    def test_no_such_version(self, wire: Wire, version: int) -> None:
        with refused(StatusCode.NOT_FOUND, f"v{version}"):
            wire.read(version, "model.safetensors")
