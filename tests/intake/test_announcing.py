"""What is refused before a byte is sent."""

import grpc
import pytest
from foldin.v1 import submissions_pb2 as pb
from grpc import StatusCode

from tests.support.wire import CHUNK, INDEX, SECONDS, SINGLE, Wire, ranges, refused, state

SHA = "0" * 64
GIB = 1024**3


def announce(
    wire: Wire, *files: tuple[str, int] | tuple[str, int, str], **terms: object
) -> pb.CreateSubmissionResponse:
    specs = [pb.FileSpec(name=name, size=size, sha256=sha[0] if sha else "") for name, size, *sha in files]
    return wire.submissions.CreateSubmission(pb.CreateSubmissionRequest(files=specs, **terms), timeout=SECONDS)


def test_an_announced_file_is_missing_as_a_whole(wire: Wire) -> None:
    size = 2 * CHUNK + 5
    response = announce(wire, (SINGLE, size), name="task", labels={"team": "vision"}, partial=True)
    assert response.chunk_size == CHUNK
    assert ranges(response) == {SINGLE: [(0, size)]}
    submission = response.submission
    assert (state(submission), submission.name, dict(submission.labels)) == ("RECEIVING", "task", {"team": "vision"})
    assert submission.partial
    assert not submission.version
    assert not submission.content_digest
    assert [(file.name, file.size) for file in submission.files] == [(SINGLE, size)]
    assert submission.created_at == submission.updated_at


def test_content_digest_is_known_once_every_digest_is(wire: Wire) -> None:
    assert len(announce(wire, (SINGLE, 77, "1" * 64)).submission.content_digest) == 64


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../model.safetensors",
        "/etc/passwd",
        "folder/model.safetensors",
        "a\\b.safetensors",
        ".hidden.safetensors",
        "model..safetensors",
        "model.safetensors\n",
        "nul\0.safetensors",
        "modèle.safetensors",
        "-rf.safetensors",
        "a" * 201 + ".safetensors",
    ],
)
def test_names_that_are_no_plain_file_names(wire: Wire, name: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "plain file name"):
        announce(wire, (name, 10))


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "pytorch_model-00001-of-00002.bin"],
)
def test_pickles(wire: Wire, name: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, name, "foldin convert", "save_pretrained"):
        announce(wire, (name, 10))


def test_half_an_adapter(wire: Wire) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with refused(StatusCode.INVALID_ARGUMENT, "adapter", "these two files"):
            announce(wire, (name, 10))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no weights"),
        ([INDEX], "no weights"),
        (["model-00001-of-00001.safetensors"], INDEX),
        ([SINGLE, INDEX], "alone"),
        ([SINGLE, "config.json"], "config.json"),
        ([INDEX, "shard.safetensors", "tokenizer.json"], "tokenizer.json"),
    ],
)
def test_files_that_make_no_checkpoint(wire: Wire, names: list[str], words: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, words):
        announce(wire, *((name, 10) for name in names))


def test_a_file_given_twice(wire: Wire) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, SINGLE, "twice"):
        announce(wire, (SINGLE, 10), (SINGLE, 11))


def test_too_many_files(wire: Wire) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "2001 files"):
        announce(wire, (INDEX, 10), *((f"{number}.safetensors", 10) for number in range(2_000)))


@pytest.mark.parametrize("sha", ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "0x" + "0" * 62, " " + "0" * 63])
def test_malformed_digests(wire: Wire, sha: str) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, SINGLE, "64 lower-case hexadecimal"):
        announce(wire, (SINGLE, 10, sha))


@pytest.mark.parametrize("size", [2 * GIB, 2**63 - 1, 2**63, 2**64 - 1])
def test_more_bytes_than_any_checkpoint_of_the_base_has(wire: Wire, size: int) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, str(size), "base"):
        announce(wire, (SINGLE, size))


def test_shards_count_together(wire: Wire) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "base"):
        announce(wire, (INDEX, 10), ("a.safetensors", GIB), ("b.safetensors", GIB))


@pytest.mark.parametrize(
    "terms",
    [
        {"name": "n" * 201},
        {"name": "two\nlines"},
        {"name": "\x1b[2J"},
        {"labels": {"k" * 201: "v"}},
        {"labels": {"k": "v" * 201}},
        {"labels": {"k": "tab\there"}},
        {"labels": {f"k{number}": "v" for number in range(65)}},
        {"request_id": "r" * 201},
    ],
    ids=lambda terms: next(iter(terms)),
)
def test_descriptions_beyond_the_limits(wire: Wire, terms: dict[str, object]) -> None:
    with refused(StatusCode.INVALID_ARGUMENT):
        announce(wire, (SINGLE, 10), **terms)


def test_descriptions_at_the_limits(wire: Wire) -> None:
    labels = {f"{number:0>200}": "ü" * 200 for number in range(64)}
    submission = announce(wire, (SINGLE, 10), name="é" * 200, labels=labels, request_id="r" * 200).submission
    assert (submission.name, dict(submission.labels)) == ("é" * 200, labels)


def test_as_many_files_as_may_be_fit_into_every_answer(wire: Wire) -> None:
    # By a stock client, which takes messages of 4 MiB.
    name = "n" * 180
    files = [(INDEX, 10, "0" * 64), *((f"{name}{number:04}.safetensors", 10, "0" * 64) for number in range(1_999))]
    opened = [announce(wire, *files, name=f"many {number}") for number in range(5)]
    opened += [announce(wire, *files, name=f"many {number}", force=True) for number in range(5)]
    assert all(len(response.submission.files) == len(response.missing) == 2_000 for response in opened)
    listed, token = [], ""
    while not listed or token:
        page = wire.submissions.List(pb.ListSubmissionsRequest(page_size=1000, page_token=token), timeout=SECONDS)
        listed += [item.id for item in page.submissions]
        token = page.next_page_token
    assert {response.submission.id for response in opened} <= set(listed)
    assert len(set(listed)) == len(listed)


def test_what_was_refused_left_no_submission(wire: Wire) -> None:
    def ids() -> list[str]:
        return [item.id for item in wire.submissions.List(pb.ListSubmissionsRequest(page_size=1000)).submissions]

    before = ids()
    for files in ([("model.bin", 10)], [(SINGLE, 2**63)], [(SINGLE, 10, "bad")]):
        with pytest.raises(grpc.RpcError):
            announce(wire, *files)
    assert ids() == before
