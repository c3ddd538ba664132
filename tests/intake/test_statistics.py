"""Statistics beside a checkpoint where the merge rule does not read them: not asked for, and no other content."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from foldin import Client
from safetensors.torch import save, save_file
from torch import Tensor

from tests.support.daemon import Daemon, foldin
from tests.support.dropping import SETTINGS, Box
from tests.support.wire import SINGLE, Daemons, Wire, state

STATISTICS = "statistics.safetensors"
GARBAGE = b"no safetensors at all"
Checkpoint = Callable[[], dict[str, Tensor]]


def test_uploads(wire: Wire, checkpoint: Checkpoint) -> None:
    model = save(checkpoint())
    files = {SINGLE: model, STATISTICS: GARBAGE}
    opened = wire.create(files)
    assert {missing.file for missing in opened.missing} == {SINGLE}
    wire.send(opened.submission.id, {SINGLE: model})
    first = wire.commit(opened.submission.id, files)
    assert [file.name for file in first.files] == [SINGLE]
    assert f"{STATISTICS} is left out: the merge rule does not read it" in wire.daemon.log.read_text()
    assert state(wire.settled(first.id)) == "MERGED"
    # With other statistics, and without any, it is the same content; and it still is without digests.
    assert wire.create({SINGLE: model, STATISTICS: GARBAGE + b"!"}).submission.id == first.id
    assert wire.create({SINGLE: model}).submission.id == first.id
    again = wire.create(files, digests=False)
    wire.send(again.submission.id, {SINGLE: model})
    assert wire.commit(again.submission.id, {SINGLE: model}).id == first.id


def test_request_ids(wire: Wire, checkpoint: Checkpoint) -> None:
    model = save(checkpoint())
    one = wire.create({SINGLE: model, STATISTICS: GARBAGE}, request_id="with statistics")
    assert wire.create({SINGLE: model}, request_id="with statistics").submission.id == one.submission.id


def test_the_client(daemon: Daemon, checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_file(checkpoint(), tmp_path / SINGLE)
    with Client(daemon.server) as client:
        first = client.submit(tmp_path / SINGLE, wait=True)
        (tmp_path / STATISTICS).write_bytes(GARBAGE)
        assert client.submit(tmp_path).id == first.id
    told = foldin("submit", str(tmp_path), "--server", daemon.server).stderr
    assert f"{STATISTICS} was not sent: the merge rule of this daemon does not read it." in told
    assert "was not sent" not in foldin("submit", str(tmp_path / SINGLE), "--server", daemon.server).stderr


def test_paths(wire: Wire, root: Path, checkpoint: Checkpoint) -> None:
    (place := root / "beside").mkdir()
    save_file(checkpoint(), place / SINGLE)
    first = wire.submit_path(place)
    (place / STATISTICS).write_bytes(GARBAGE)
    assert wire.submit_path(place).id == first.id
    assert [file.name for file in wire.get(first.id).files] == [SINGLE]
    digest = sha256((place / SINGLE).read_bytes()).hexdigest()
    assert wire.create({SINGLE: (place / SINGLE).read_bytes()}).submission.files[0].sha256 == digest


def test_drops(start_daemon: Daemons, base: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    (inbox := tmp_path / "inbox").mkdir()
    daemon = start_daemon(tmp_path / "state", base, "--inbox", str(inbox), environment=SETTINGS)
    box = Box(inbox, daemon)
    box.write_folder("beside", {SINGLE: save(checkpoint()), STATISTICS: GARBAGE})
    box.accepted("beside")
