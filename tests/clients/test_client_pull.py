"""Pulls through altered and interrupted downloads, and into folders of every kind."""

import fcntl
import json
import os
import re
from pathlib import Path

import foldin
import pytest

WEIGHTS = bytes(range(256)) * 4096
MODEL = {"model.safetensors": WEIGHTS, "config.json": b"{}", "empty.txt": b"", "foldin.json": b'{"version": 1}'}


@pytest.fixture
def to(tmp_path):
    return tmp_path / "models" / "merged"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def test_fills_a_new_folder(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    steps = []
    snapshot = client.pull(to=to, on_progress=steps.append)
    assert snapshot.version == 1
    assert contents(to) == MODEL
    assert beside(to) == []
    assert (steps[-1].done, steps[-1].total) == (snapshot.size, snapshot.size)


def test_nothing_to_do_the_second_time(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    client.pull(to=to)
    daemon.snapshots.reads.clear()
    assert client.pull("v1", to=to).version == 1
    assert daemon.snapshots.reads == []


def test_replaces_an_older_version_and_sweeps(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    client.pull(to=to)
    newer = MODEL | {"model.safetensors": WEIGHTS[::-1], "foldin.json": b'{"version": 2}'}
    daemon.snapshots.publish(2, newer)
    (to.parent / ".merged.v1.partial").mkdir()
    client.pull(to=to)
    assert contents(to) == newer
    assert beside(to) == []


def test_a_damaged_folder_is_mended(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    client.pull(to=to)
    (to / "model.safetensors").write_bytes(WEIGHTS[::-1])
    client.pull(to=to)
    assert contents(to) == MODEL


def test_a_link_stays_a_link(daemon, client, to, tmp_path):
    daemon.snapshots.publish(1, MODEL)
    link = tmp_path / "current"
    link.symlink_to(to)
    client.pull(to=link)
    assert link.is_symlink()
    assert contents(to) == MODEL


def test_resumes_where_it_stopped(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)

    class Killed(BaseException):
        pass

    def in_pieces(name, offset, data):
        return (data[start : start + 65536] for start in range(0, len(data), 65536))

    def die(progress):
        if progress.done >= len(WEIGHTS) // 2:
            raise Killed

    daemon.snapshots.on_read = in_pieces
    with pytest.raises(Killed):
        client.pull(to=to, on_progress=die)
    assert not to.exists()
    assert beside(to) == [".merged.v1.partial"]
    daemon.snapshots.reads.clear()
    client.pull(to=to)
    assert contents(to) == MODEL
    assert [offset for name, offset in daemon.snapshots.reads if name == "model.safetensors"] == [len(WEIGHTS) // 2]


@pytest.mark.parametrize("ending", ["outage", "early end"])
def test_goes_on_after_the_stream_broke_off(daemon, client, to, ending):
    daemon.snapshots.publish(1, MODEL)

    def break_off(name, offset, data):
        if name == "model.safetensors" and offset == 0:
            yield data[:1000]
            if ending == "outage":
                yield b""
        else:
            yield data

    daemon.snapshots.on_read = break_off
    client.pull(to=to)
    assert contents(to) == MODEL
    assert [read for read in daemon.snapshots.reads if read[0] == "model.safetensors"] == [
        ("model.safetensors", 0),
        ("model.safetensors", 1000),
    ]


def altering(daemon, times):
    left = [times]

    def alter(name, offset, data):
        if name == "model.safetensors" and left[0]:
            left[0] -= 1
            return iter([b"?" + data[1:]])
        return iter([data])

    daemon.snapshots.on_read = alter


def test_an_altered_file_is_fetched_once_more(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    altering(daemon, times=1)
    client.pull(to=to)
    assert contents(to) == MODEL
    assert [name for name, _ in daemon.snapshots.reads].count("model.safetensors") == 2


def test_a_file_altered_twice_is_an_error_and_touches_nothing(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    client.pull(to=to)
    daemon.snapshots.publish(2, MODEL | {"foldin.json": b'{"version": 2}'})
    altering(daemon, times=2)
    with pytest.raises(foldin.DataLoss, match=r"model\.safetensors of v2 arrived altered 2 times"):
        client.pull(to=to)
    assert contents(to) == MODEL


def test_too_many_bytes_are_an_error(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    daemon.snapshots.on_read = lambda name, offset, data: iter([data, b"more"])
    with pytest.raises(foldin.DataLoss):
        client.pull(to=to)


def a_file(to):
    to.parent.mkdir(parents=True)
    to.write_text("mine")
    return "is a file"


def foreign_files(to):
    to.mkdir(parents=True)
    (to / "notes.txt").write_text("mine")
    return "holds files that Foldin did not put there"


def foreign_beside_a_pulled_version(to):
    to.mkdir(parents=True)
    (to / "foldin.json").write_text(json.dumps({"files": {"model.safetensors": "..."}}))
    (to / "model.safetensors").write_bytes(b"old")
    (to / "notes.txt").write_text("mine")
    return "'notes.txt'"


@pytest.mark.parametrize("build", [a_file, foreign_files, foreign_beside_a_pulled_version])
def test_what_is_not_ours_is_left_alone(daemon, client, to, build):
    daemon.snapshots.publish(1, MODEL)
    sentence = build(to)
    before = contents(to) if to.is_dir() else to.read_text()
    with pytest.raises(foldin.PullError, match=re.escape(sentence)):
        client.pull(to=to)
    assert (contents(to) if to.is_dir() else to.read_text()) == before
    assert daemon.snapshots.reads == []


def test_an_empty_folder_is_filled(daemon, client, to):
    to.mkdir(parents=True)
    daemon.snapshots.publish(1, MODEL)
    client.pull(to=to)
    assert contents(to) == MODEL


def test_a_folder_is_not_ours_for_being_named_like_a_key_of_the_manifest(daemon, client, to):
    daemon.snapshots.publish(1, MODEL | {"foldin.json": json.dumps({"adapter": {}, "files": {}}).encode()})
    client.pull(to=to)
    (to / "adapter").mkdir()
    (to / "adapter" / "mine").write_bytes(b"mine")
    daemon.snapshots.publish(2, MODEL)
    with pytest.raises(foldin.PullError, match="'adapter' beside the model"):
        client.pull(to=to)
    assert (to / "adapter" / "mine").read_bytes() == b"mine"


def test_files_of_an_older_version_are_ours(daemon, client, to):
    older = MODEL | {"old.json": b"{}", "foldin.json": json.dumps({"files": {"old.json": {}}}).encode()}
    daemon.snapshots.publish(1, older)
    client.pull(to=to)
    daemon.snapshots.publish(2, MODEL)
    client.pull(to=to)
    assert contents(to) == MODEL


def test_two_pulls_at_once(daemon, client, to):
    daemon.snapshots.publish(1, MODEL)
    partial = to.parent / ".merged.v1.partial"
    partial.mkdir(parents=True)
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(foldin.PullError, match="another pull"):
            client.pull(to=to)
    finally:
        os.close(descriptor)
    client.pull(to=to)
    assert contents(to) == MODEL


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", "", "a\\b"])
def test_a_name_with_a_path_is_refused(daemon, client, to, name):
    daemon.snapshots.publish(1, MODEL | {name: b"evil"})
    with pytest.raises(foldin.PullError, match="cannot be written safely"):
        client.pull(to=to)
    assert not to.parent.exists()


def test_a_full_disk(daemon, client, to):
    snapshot = daemon.snapshots.publish(1, MODEL)
    snapshot.files[0].size = 2**60
    with pytest.raises(foldin.PullError, match="GB free: make room"):
        client.pull(to=to)


def test_no_such_version_and_no_longer_kept(daemon, client, to):
    with pytest.raises(foldin.NotFound, match="no snapshot latest"):
        client.pull(to=to)
    daemon.snapshots.publish(1, {})
    with pytest.raises(foldin.NotFound, match="no longer kept"):
        client.pull(to=to)
