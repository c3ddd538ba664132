"""Hostile statistics beside sound checkpoints, through both doors of daemons whose rules read them."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from safetensors.torch import save

from tests.hostile import files
from tests.hostile.checkpoints import Tensors
from tests.hostile.statistics import ATTACKS, STATISTICS, good
from tests.support.daemon import Daemon
from tests.support.dropping import SETTINGS, Box
from tests.support.models import make_base
from tests.support.wire import SINGLE, Wire, assert_is_sentence, fine_tuned, single, state

RULES = ("fisher", "regmean")
LONG = {"header just too long", "a long name twice"}


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Box]]:
    """The inbox of a daemon for each rule."""
    place = tmp_path_factory.mktemp("statistics")
    base = make_base(place / "base")
    daemons = {
        rule: Daemon(
            place / rule,
            base,
            *("--inbox", str(place / f"{rule}-inbox"), "--allowed-root", str(place)),
            init_flags=("--rule", rule),
            environment=SETTINGS,
        )
        for rule in RULES
    }
    try:
        yield {rule: Box(place / f"{rule}-inbox", daemon.start()) for rule, daemon in daemons.items()}
    finally:
        for daemon in daemons.values():
            daemon.kill()


@pytest.fixture(scope="module")
def wires(boxes: dict[str, Box]) -> Iterator[dict[str, Wire]]:
    opened = {rule: Wire(box.daemon) for rule, box in boxes.items()}
    yield opened
    for wire in opened.values():
        with wire:
            pass


def told(wire: Wire, tensors: Tensors, statistics: bytes) -> str:
    settled = wire.settled(wire.upload(single(fine_tuned(tensors)) | {STATISTICS: statistics}).id)
    assert (state(settled), settled.version) == ("REJECTED", 0)
    assert_is_sentence(settled.reason)
    assert settled.reason.isprintable()
    return settled.reason


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, wires: dict[str, Wire], tensors: Tensors) -> None:
    rule, build, words = ATTACKS[name]
    worker = wires[rule].daemon.worker
    assert words in told(wires[rule], tensors, build(tensors))
    assert wires[rule].daemon.worker == worker, "it goes on"


@pytest.mark.parametrize("name", files.ATTACKS)
def test_a_file_that_is_malformed(name: str, wires: dict[str, Wire], tensors: Tensors) -> None:
    content, words = files.ATTACKS[name]
    reason = told(wires["fisher"], tensors, content())
    assert reason.startswith(STATISTICS)
    assert ("states a header of" if name in LONG else words) in reason


@pytest.mark.parametrize("rule", RULES)
def test_none_at_all(rule: str, wires: dict[str, Wire], tensors: Tensors) -> None:
    """It is said before anything is sent."""
    with pytest.raises(grpc.RpcError) as refused:
        wires[rule].create(single(fine_tuned(tensors)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"it comes without {STATISTICS}, and this daemon's merge rule")


@pytest.mark.parametrize("rule", RULES)
def test_drops(rule: str, boxes: dict[str, Box], tensors: Tensors, tmp_path: Path) -> None:
    box, model = boxes[rule], single(fine_tuned(tensors))
    sound = save(good(rule, tensors))
    box.write("alone.safetensors", model[SINGLE])
    box.write_folder(".without", model).rename(box.path / "without")
    box.write_folder(".cut-off", model | {STATISTICS: sound[:-8]}).rename(box.path / "cut-off")
    box.write_folder(".garbage", model | {STATISTICS: b"x" * 100}).rename(box.path / "garbage")
    box.write_folder(".escape", model)
    (box.path / ".escape" / STATISTICS).symlink_to("/etc/passwd")
    (box.path / ".escape").rename(box.path / "escape")
    poisoned = next(build for of, build, words in ATTACKS.values() if of == rule and "NaN" in words)
    box.write_folder(".poisoned", model | {STATISTICS: poisoned(tensors)}).rename(box.path / "poisoned")
    box.write_folder(".good", single(fine_tuned(tensors)) | {STATISTICS: sound}).rename(box.path / "good")
    box.accepted("good")
    box.rejected("alone.safetensors", f"it comes without {STATISTICS}")
    box.rejected("without", "is incomplete and nothing was added", f"it comes without {STATISTICS}")
    box.rejected("cut-off", "is incomplete and nothing was added", f"{STATISTICS} is cut off")
    box.rejected("garbage", f"{STATISTICS} states a header of")
    box.rejected("escape", "leads out of the folders that the daemon may read")
    box.rejected("poisoned", "has NaN or infinite values")


@pytest.mark.parametrize("rule", RULES)
def test_by_path(rule: str, wires: dict[str, Wire], boxes: dict[str, Box], tensors: Tensors) -> None:
    place = boxes[rule].path.parent / f"{rule}-path"
    place.mkdir()
    (place / SINGLE).write_bytes(single(fine_tuned(tensors))[SINGLE])
    with pytest.raises(grpc.RpcError, match=f"it comes without {STATISTICS}"):
        wires[rule].submit_path(place)
    (place / STATISTICS).write_bytes(save(good(rule, tensors)))
    assert state(wires[rule].settled(wires[rule].submit_path(place).id)) == "MERGED"


@pytest.mark.parametrize("rule", RULES)
def test_other_statistics_are_other_content(rule: str, wires: dict[str, Wire], tensors: Tensors) -> None:
    model, known = single(fine_tuned(tensors)), good(rule, tensors)
    first = wires[rule].upload(model | {STATISTICS: save(known)})
    assert wires[rule].create(model | {STATISTICS: save(known)}).submission.id == first.id
    other = {name: 2 * tensor for name, tensor in known.items()}
    assert wires[rule].create(model | {STATISTICS: save(other)}).submission.id != first.id


def test_no_traceback(boxes: dict[str, Box]) -> None:
    for box in boxes.values():
        assert "Traceback" not in box.daemon.log.read_text()
