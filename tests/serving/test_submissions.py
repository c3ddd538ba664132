"""Get and List of submissions."""

from itertools import chain

import pytest
from foldin.v1 import submissions_pb2 as pb
from grpc import StatusCode

from tests.support.history import History
from tests.support.wire import SECONDS, Wire, refused, state


def page(wire: Wire, size: int = 0, token: str = "", states: tuple[int, ...] = ()) -> pb.ListSubmissionsResponse:
    request = pb.ListSubmissionsRequest(page_size=size, page_token=token, states=states)
    return wire.submissions.List(request, timeout=SECONDS)


def pages(wire: Wire, size: int, states: tuple[int, ...] = ()) -> list[list[str]]:
    """Ids, page by page."""
    found, token = [], ""
    while True:
        response = page(wire, size, token, states)
        found.append([submission.id for submission in response.submissions])
        token = response.next_page_token
        if not token:
            return found


def everyone(past: History) -> list[str]:
    return [past.rejected, past.withdrawn, *past.merged, past.receiving]


class TestGet:
    def test_merged(self, wire: Wire, past: History) -> None:
        submission = wire.get(past.merged[1])
        assert (submission.id, submission.name, state(submission)) == (past.merged[1], "task2", "MERGED")
        assert (submission.version, submission.reason, submission.attempts) == (2, "", 0)
        assert not submission.HasField("progress")
        assert [file.name for file in submission.files] == ["model.safetensors"]
        assert submission.files[0].size > 0
        assert len(submission.files[0].sha256) == len(submission.content_digest) == 64
        history = submission.history
        assert [event.state for event in history] == [1, 2, 3, 4]
        assert history[-1].detail == "in v2"
        moments = [event.at.ToNanoseconds() for event in history]
        assert moments == sorted(moments)
        assert abs(submission.created_at.ToNanoseconds() - moments[0]) <= 10**9
        assert abs(submission.updated_at.ToNanoseconds() - moments[-1]) <= 10**9

    def test_refused(self, wire: Wire, past: History) -> None:
        submission = wire.get(past.rejected)
        assert (state(submission), submission.version) == ("REJECTED", 0)
        assert "model.safetensors" in submission.reason

    def test_unknown(self, wire: Wire) -> None:
        with refused(StatusCode.NOT_FOUND, "'nowhere'", "foldin list"):
            wire.get("nowhere")


class TestList:
    def test_oldest_first_without_history(self, wire: Wire, past: History) -> None:
        submissions = page(wire).submissions
        assert [submission.id for submission in submissions] == everyone(past)
        assert not any(submission.history for submission in submissions)
        assert [submission.id for submission in submissions] == sorted(submission.id for submission in submissions)

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 2**32 - 1])
    def test_pages(self, wire: Wire, past: History, size: int) -> None:
        found = pages(wire, size)
        assert list(chain(*found)) == everyone(past)
        assert all(len(ids) == size for ids in found[:-1])
        assert 0 < len(found[-1]) <= size

    @pytest.mark.parametrize(
        ("states", "chosen"),
        [
            ((pb.SUBMISSION_STATE_MERGED,), slice(2, 6)),
            ((pb.SUBMISSION_STATE_REJECTED, pb.SUBMISSION_STATE_WITHDRAWN), slice(0, 2)),
            ((pb.SUBMISSION_STATE_RECEIVING,), slice(6, 7)),
            ((pb.SUBMISSION_STATE_QUEUED, pb.SUBMISSION_STATE_MERGING, pb.SUBMISSION_STATE_QUARANTINED), slice(0, 0)),
            ((pb.SUBMISSION_STATE_MERGED,) * 3, slice(2, 6)),
        ],
    )
    def test_of_states(self, wire: Wire, past: History, states: tuple[int, ...], chosen: slice) -> None:
        assert list(chain(*pages(wire, 2, states))) == everyone(past)[chosen]

    @pytest.mark.parametrize("number", [0, 8, -1, 2**31 - 1])
    def test_of_unknown_states(self, wire: Wire, number: int) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, str(number)):
            page(wire, states=(number,))

    @pytest.mark.parametrize("token", ["x", "-1", "1.5", " 1", "٣", "1" * 19, "1; DROP TABLE submissions"])
    def test_bad_tokens(self, wire: Wire, token: str) -> None:
        with refused(StatusCode.INVALID_ARGUMENT, "page token"):
            page(wire, token=token)

    def test_a_token_beyond_the_end(self, wire: Wire) -> None:
        response = page(wire, token="9" * 18)
        assert (list(response.submissions), response.next_page_token) == ([], "")
