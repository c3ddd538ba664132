"""Attacks over gRPC: each gets its own sentence, nothing is merged, and a good submission right after it is taken."""

import grpc
import pytest

from tests.hostile.attacks import ATTACKS
from tests.hostile.checkpoints import Files, Tensors
from tests.support.wire import SINGLE, Wire, assert_is_sentence, fine_tuned, single, state

AT_THE_DOOR = {grpc.StatusCode.INVALID_ARGUMENT}


def told(wire: Wire, files: Files) -> str:
    """Upload files, and return what the submitter is told."""
    try:
        uploaded = wire.upload(files)
    except grpc.RpcError as error:
        assert error.code() in AT_THE_DOOR, error
        return error.details()
    settled = wire.settled(uploaded.id)
    assert (state(settled), settled.version) == ("REJECTED", 0)
    return settled.reason


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(wire: Wire, tensors: Tensors, name: str) -> None:
    attack, head = ATTACKS[name], wire.daemon.pid
    sentence = told(wire, attack.build(tensors))
    assert attack.words in sentence
    assert_is_sentence(sentence)
    assert sentence.isprintable()
    good = wire.upload(single(fine_tuned(tensors)))
    assert state(good) in ("QUEUED", "MERGING", "MERGED")
    assert wire.daemon.pid == head


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/model.safetensors", "..", "model\0.safetensors", "\x1b[2J", "a\\b", ""],
    ids=repr,
)
def test_names_of_files(wire: Wire, name: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        wire.create({name: b"12345678"})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a plain file name" in refused.value.details()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "epoch.ckpt", "weights.pkl"])
def test_pickles(wire: Wire, name: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        wire.create({name: b"\x80\x04cos\nsystem\n."})
    assert (
        f"{name} is a pickle file, which can run code when it is loaded; run `foldin convert`"
        in refused.value.details()
    )


def test_a_length_that_is_a_lie(wire: Wire, tensors: Tensors) -> None:
    content = single(fine_tuned(tensors))[SINGLE]
    opened = wire.create({SINGLE: content + b"x"}, digests=False)
    with pytest.raises(grpc.RpcError) as refused:
        wire.write(opened.submission.id, SINGLE, 0, content)
    assert "are no chunk of model.safetensors" in refused.value.details()


def test_only_what_was_good_is_merged(wire: Wire, tensors: Tensors) -> None:
    last = wire.settled(wire.upload(single(fine_tuned(tensors)), name="last").id)
    assert state(last) == "MERGED"
    log = wire.daemon.log.read_text()
    assert "Traceback" not in log
