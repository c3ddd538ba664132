"""Submitting what lies on the daemon's own file system."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from foldind.checkpoints.plan import Plan
from foldind.config import MergeSettings, ServeSettings
from foldind.errors import Forbidden
from foldind.intake.admission import Admission
from foldind.intake.copies import Copies
from foldind.intake.local import LocalPaths
from foldind.metrics import Metrics
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger, NewSubmission
from grpc import StatusCode
from torch import Tensor

from tests.support.daemon import Daemon, wait_for
from tests.support.wire import INDEX, SINGLE, Wire, idle_worker, refused, sharded, single, specs, state, write_files

Checkpoint = Callable[[], dict[str, Tensor]]


@pytest.fixture
def place(root: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of one's own below the allowed root."""
    folder = root / request.node.name
    folder.mkdir()
    return folder


def test_a_folder(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    files = single(checkpoint())
    write_files(place / "task", files)
    (place / "task" / "config.json").write_text("{}")
    (place / "task" / "optimizer.pt").write_bytes(b"pickle")
    submission = wire.submit_path(place / "task", name="task", labels={"round": "4"})
    assert (state(submission), submission.name, dict(submission.labels)) == ("QUEUED", "task", {"round": "4"})
    assert list(submission.files) == specs(files), "other files are neither sent nor read"
    assert state(wire.settled(submission.id)) == "MERGED"


def test_a_file_of_any_name(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    (place / "epoch 3.safetensors").write_bytes(single(checkpoint())[SINGLE])
    submission = wire.submit_path(place / "epoch 3.safetensors")
    assert state(submission) == "QUEUED"
    assert [file.name for file in submission.files] == [SINGLE]


def test_shards(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    files = sharded(checkpoint(), shards=3)
    submission = wire.submit_path(write_files(place / "task", files))
    assert {file.name: file.size for file in submission.files} == {name: len(data) for name, data in files.items()}
    assert state(wire.settled(submission.id)) == "MERGED"


def test_a_model_goes_before_an_index(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    tensors = checkpoint()
    submission = wire.submit_path(write_files(place / "task", {**sharded(tensors), **single(tensors)}))
    assert [file.name for file in submission.files] == [SINGLE]


def test_the_same_content_by_another_door(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    files = single(checkpoint())
    uploaded = wire.upload(files)
    assert wire.submit_path(write_files(place / "task", files)).id == uploaded.id
    assert wire.submit_path(place / "task", force=True).id != uploaded.id


def test_a_source_that_goes_after_the_acknowledgement(
    daemon: Daemon, wire: Wire, checkpoint: Checkpoint, place: Path
) -> None:
    write_files(place / "task", single(checkpoint()))
    with idle_worker(daemon):
        submission = wire.submit_path(place / "task")
        assert state(submission) == "QUEUED"
        shutil.rmtree(place / "task")
    assert state(wire.settled(submission.id)) == "MERGED"


def test_outside_the_allowed_roots(wire: Wire, checkpoint: Checkpoint, tmp_path: Path, root: Path) -> None:
    outside = write_files(tmp_path / "task", single(checkpoint()))
    beside = write_files(root.with_name(root.name + "-beside"), single(checkpoint()))
    for path in (outside, outside / SINGLE, beside, root / ".." / beside.name, "/", "/etc/passwd", "/nowhere"):
        with refused(StatusCode.PERMISSION_DENIED, str(path), "allowed_roots"):
            wire.submit_path(path)


def test_by_default_nothing_is_allowed(daemon: Daemon, checkpoint: Checkpoint, tmp_path: Path) -> None:
    task = write_files(tmp_path / "task", single(checkpoint()))
    folder = StateFolder(daemon.state)
    plan = Plan.from_json(folder.plan.read_bytes())
    with Database(tmp_path / "ledger.sqlite", create=True) as database:
        ledger, settings = Ledger(database), ServeSettings()
        copies = Copies(folder, Admission(folder, ledger, plan, MergeSettings(), settings), Metrics().received["path"])
        paths = LocalPaths(folder, ledger, copies, settings)
        with pytest.raises(Forbidden, match="allowed_roots"):
            asyncio.run(paths.submit(str(task), NewSubmission({})))


@pytest.mark.parametrize("path", ["", ".", "task", "../task", "~/task"])
def test_relative_paths(wire: Wire, path: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "absolute"):
        wire.submit_path(path)


@pytest.mark.parametrize("path", ["/nul\0byte", "/folder/\0", "/" + "a" * 5000, "/" + "a/" * 3000])
def test_paths_that_no_file_system_has(wire: Wire, root: Path, path: str) -> None:
    for hostile in (path, f"{root}{path}"):
        with pytest.raises(grpc.RpcError) as caught:
            wire.submit_path(hostile)
        code = caught.value.code()
        assert code in (StatusCode.PERMISSION_DENIED, StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT)


def test_links_that_lead_outside(wire: Wire, checkpoint: Checkpoint, place: Path, tmp_path: Path) -> None:
    outside = write_files(tmp_path / "task", single(checkpoint()))
    (place / "folder").symlink_to(outside)
    (place / "file.safetensors").symlink_to(outside / SINGLE)
    (place / "holding").mkdir()
    (place / "holding" / SINGLE).symlink_to(outside / SINGLE)
    files = sharded(checkpoint())
    (shard := write_files(place / "shards", files) / list(files)[-1]).unlink()
    shard.symlink_to(outside / SINGLE)
    for path in ("folder", "file.safetensors", "holding", "shards"):
        with refused(StatusCode.PERMISSION_DENIED, "allowed_roots"):
            wire.submit_path(place / path)


def test_links_that_stay_inside(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    # As in the cache of huggingface_hub: a folder of links to blobs.
    files = sharded(checkpoint())
    (place / "blobs").mkdir()
    (place / "task").mkdir()
    for number, (name, content) in enumerate(files.items()):
        (place / "blobs" / str(number)).write_bytes(content)
        (place / "task" / name).symlink_to(f"../blobs/{number}")
    submission = wire.submit_path(place / "task")
    assert state(submission) == "QUEUED"
    assert state(wire.settled(submission.id)) == "MERGED"


def test_missing(wire: Wire, place: Path) -> None:
    with refused(StatusCode.NOT_FOUND, "does not exist"):
        wire.submit_path(place / "nowhere")


def make_no_checkpoint(place: Path, kind: str) -> Path:
    """Put something else than a checkpoint into a folder, and return its path."""
    match kind:
        case "a pipe":
            os.mkfifo(place / SINGLE)
        case "a folder of that name":
            (place / SINGLE).mkdir()
        case "half an adapter":
            (place / "adapter_config.json").write_text("{}")
        case "nothing":
            pass
        case file:
            (place / file).write_text("{}")
            return place / file
    return place


@pytest.mark.parametrize(
    ("kind", "word"),
    {
        "a pipe": SINGLE,
        "a folder of that name": SINGLE,
        "nothing": SINGLE,
        "half an adapter": "without adapter_model.safetensors",
        "pytorch_model.bin": "pickle",
        "notes.txt": "no part of a checkpoint",
        INDEX: "weights",
    }.items(),
)
def test_what_holds_no_checkpoint(
    wire: Wire, tmp_path_factory: pytest.TempPathFactory, root: Path, kind: str, word: str
) -> None:
    (place := root / tmp_path_factory.mktemp("place").name).mkdir()
    with refused(StatusCode.INVALID_ARGUMENT, word):
        wire.submit_path(make_no_checkpoint(place, kind))


def test_a_folder_with_pickles(wire: Wire, place: Path) -> None:
    (place / "pytorch_model.bin").write_bytes(b"")
    with refused(StatusCode.INVALID_ARGUMENT, SINGLE, "save_pretrained"):
        wire.submit_path(place)


def test_what_cannot_be_merged_is_rejected(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    submission = wire.submit_path(
        write_files(place / "task", single(checkpoint() | {"extra": next(iter(checkpoint().values()))}))
    )
    assert state(submission) == "REJECTED"
    assert "extra" in submission.reason


def test_an_index_whose_shard_is_missing(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    files = sharded(checkpoint())
    _, kept, gone = files
    submission = wire.submit_path(write_files(place / "task", {name: files[name] for name in (INDEX, kept)}))
    assert state(submission) == "REJECTED"
    assert gone in submission.reason


def test_a_request_id(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    first = wire.submit_path(write_files(place / "task", single(checkpoint())), request_id="path-1")
    assert wire.submit_path(place / "task", request_id="path-1").id == first.id
    files = sharded(checkpoint())
    with refused(StatusCode.ALREADY_EXISTS, "path-1", first.id):
        wire.submit_path(write_files(place / "shards", files), request_id="path-1")


def test_a_request_id_with_other_content_of_the_same_size(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    first = wire.submit_path(write_files(place / "one", single(checkpoint())), request_id="path-2")
    with refused(StatusCode.ALREADY_EXISTS, "path-2", first.id):
        wire.submit_path(write_files(place / "two", single(checkpoint())), request_id="path-2")


def test_a_request_id_of_an_upload_in_progress(wire: Wire, checkpoint: Checkpoint, place: Path) -> None:
    files = single(checkpoint())
    upload = wire.create(files, request_id="path-3").submission
    with refused(StatusCode.ALREADY_EXISTS, "path-3", upload.id):
        wire.submit_path(write_files(place / "task", files), request_id="path-3")
    wire.send(upload.id, files)
    assert state(wire.commit(upload.id, files)) == "QUEUED"


def test_refused_ones_leave_nothing_behind(daemon: Daemon, wire: Wire, place: Path) -> None:
    write_files(place / "task", {SINGLE: b"no tensors"})
    assert state(wire.submit_path(place / "task")) == "REJECTED"
    with refused(StatusCode.INVALID_ARGUMENT):
        wire.submit_path(place)
    # What is settled is being removed under such a name for a moment.
    wait_for(lambda: not list((daemon.state / "submissions").glob("*.tmp")), "the copies to be removed")
