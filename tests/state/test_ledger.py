import pytest
from foldind.checkpoints.vocabulary import RowCounts, VocabPolicy
from foldind.errors import Conflict, NotFound, WrongState
from foldind.state.database import Database
from foldind.state.durable import FileDigest
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import Submission, SubmissionState

RECEIVING, QUEUED, MERGING, MERGED, REJECTED, QUARANTINED, WITHDRAWN = SubmissionState

FILES = {"model.safetensors": FileDigest(10, "")}


def digests(content: str) -> dict[str, FileDigest]:
    return {"model.safetensors": FileDigest(10, content * 64)}


def queued(ledger: Ledger, content: str = "", **terms: object) -> Submission:
    submission = ledger.create(NewSubmission(FILES, **terms))  # type: ignore[arg-type]
    return ledger.enqueue(submission.id, digests("0"), content or submission.id)


def bring(ledger: Ledger, state: SubmissionState) -> Submission:
    """Return a submission in a state, the only one."""
    if state is RECEIVING:
        return ledger.create(NewSubmission(FILES))
    submission = queued(ledger)
    match state:
        case SubmissionState.MERGING:
            ledger.take_next()
        case SubmissionState.REJECTED:
            ledger.reject(submission.id, "bad")
        case SubmissionState.QUARANTINED:
            ledger.take_next()
            ledger.count_attempt(submission.id, "it died", 1)
        case SubmissionState.WITHDRAWN:
            ledger.withdraw(submission.id, "taken back")
    return ledger.get(submission.id)


class TestCreate:
    def test_what_was_said_is_kept(self, ledger: Ledger) -> None:
        new = NewSubmission(
            files={"b": FileDigest(2**62, ""), "a": FileDigest(0, "0" * 64)},
            name="größe",
            labels={"team": "vision", "a": ""},
            partial=True,
            forced=True,
        )
        submission = ledger.create(new)
        assert submission == ledger.get(submission.id)
        assert submission.files == new.files
        assert (submission.name, submission.labels) == (new.name, new.labels)
        assert (submission.partial, submission.forced, submission.bytes_kept) == (True, True, True)
        assert (submission.state, submission.reason, submission.version, submission.attempts) == (RECEIVING, "", 0, 0)

    def test_ids_are_distinct_and_sort_by_time(self, ledger: Ledger) -> None:
        submissions = [ledger.create(NewSubmission(FILES)) for _ in range(30)]
        assert len({submission.id for submission in submissions}) == 30
        moments = [submission.id[:11] for submission in submissions]  # milliseconds
        assert moments == sorted(moments)
        assert [submission.number for submission in submissions] == list(range(1, 31))

    def test_by_request_id(self, ledger: Ledger) -> None:
        first = ledger.create(NewSubmission(FILES, name="first", request_id="r"))
        assert ledger.create(NewSubmission(FILES, name="second", request_id="r")) == first
        assert ledger.create(NewSubmission(FILES, request_id="s")).id != first.id
        assert ledger.create(NewSubmission(FILES)).id != ledger.create(NewSubmission(FILES)).id

    @pytest.mark.parametrize("state", SubmissionState)
    def test_a_request_id_means_the_same_in_every_state(self, ledger: Ledger, state: SubmissionState) -> None:
        known = ledger.create(NewSubmission(FILES, request_id="r", content_digest="c"))
        if state is not RECEIVING:
            ledger.enqueue(known.id, digests("0"), "c")
        if state in (MERGING, QUARANTINED):
            ledger.take_next()
        if state is QUARANTINED:
            ledger.count_attempt(known.id, "it died", 1)
        if state is REJECTED:
            ledger.reject(known.id, "bad")
        if state is WITHDRAWN:
            ledger.withdraw(known.id, "taken back")
        assert ledger.create(NewSubmission(FILES, request_id="r", content_digest="c", forced=True)).id == known.id

    @pytest.mark.parametrize("files", [{"model.safetensors": FileDigest(11, "")}, {"other": FileDigest(10, "")}, {}])
    def test_a_request_id_with_other_files(self, ledger: Ledger, files: dict[str, FileDigest]) -> None:
        known = ledger.create(NewSubmission(FILES, request_id="r"))
        with pytest.raises(Conflict, match=f"'r'.*{known.id}.*another request id"):
            ledger.create(NewSubmission(files, request_id="r"))
        assert len(ledger.page(0, 10)) == 1

    def test_a_request_id_with_other_digests(self, ledger: Ledger) -> None:
        known = ledger.create(NewSubmission(digests("1"), request_id="r", content_digest="1"))
        with pytest.raises(Conflict, match=f"'r'.*{known.id}"):
            ledger.create(NewSubmission(digests("2"), request_id="r", content_digest="2"))

    def test_by_content(self, ledger: Ledger) -> None:
        first = ledger.create(NewSubmission(FILES, content_digest="c"))
        assert ledger.create(NewSubmission(FILES, content_digest="c")).id == first.id
        assert ledger.create(NewSubmission(FILES, content_digest="d")).id != first.id
        assert ledger.create(NewSubmission(FILES, content_digest="c", forced=True)).id != first.id

    def test_by_content_and_force(self, ledger: Ledger) -> None:
        forced = NewSubmission(FILES, content_digest="c", forced=True)
        first = ledger.create(forced)
        assert ledger.create(forced).id == first.id, "a forced upload that broke off is gone on with"
        ledger.enqueue(first.id, digests("1"), "c")
        assert ledger.create(forced).id != first.id, "and one that is complete is not"

    @pytest.mark.parametrize("state", [state for state in SubmissionState if state is not MERGED])
    def test_content_is_known_while_it_is_queued_or_merged(self, ledger: Ledger, state: SubmissionState) -> None:
        known = bring(ledger, state)
        if state is RECEIVING:
            return
        again = ledger.create(NewSubmission(FILES, content_digest=known.content_digest))
        assert (again.id == known.id) is (state in (QUEUED, MERGING))


class TestEnqueue:
    def test_twins(self, ledger: Ledger) -> None:
        first, second = (ledger.create(NewSubmission(FILES)) for _ in range(2))
        assert ledger.enqueue(first.id, digests("1"), "c").state is QUEUED
        assert ledger.enqueue(second.id, digests("1"), "c").id == first.id
        withdrawn = ledger.get(second.id)
        assert (withdrawn.state, withdrawn.bytes_kept) == (WITHDRAWN, False)
        assert withdrawn.reason == f"it has the same content as submission {first.id}", "ledgers hold this sentence"
        assert ledger.twin(withdrawn) == ledger.get(first.id)
        assert [submission.id for submission in ledger.page(0, 10, [QUEUED])] == [first.id]

    def test_a_twin_that_is_still_received_does_not_count(self, ledger: Ledger) -> None:
        waiting = ledger.create(NewSubmission(FILES, content_digest="c"))
        other = ledger.create(NewSubmission(FILES))
        assert ledger.enqueue(other.id, digests("1"), "c").id == other.id
        assert ledger.enqueue(waiting.id, digests("1"), "c").id == other.id

    def test_a_forced_twin(self, ledger: Ledger) -> None:
        first = queued(ledger, "c")
        forced = ledger.create(NewSubmission(FILES, forced=True))
        assert ledger.enqueue(forced.id, digests("1"), "c").id == forced.id
        assert ledger.get(first.id).state is QUEUED

    def test_twice(self, ledger: Ledger) -> None:
        first = queued(ledger, "c")
        assert ledger.enqueue(first.id, digests("2"), "d") == first
        assert [event.state for event in ledger.history(first.id)] == [RECEIVING, QUEUED]

    def test_keeps_the_digests(self, ledger: Ledger) -> None:
        submission = ledger.create(NewSubmission(FILES))
        assert ledger.enqueue(submission.id, digests("1"), "c").files == digests("1")
        assert ledger.get(submission.id).content_digest == "c"

    def test_unknown(self, ledger: Ledger) -> None:
        with pytest.raises(NotFound, match="nowhere"):
            ledger.enqueue("nowhere", digests("1"), "c")


class TestQueue:
    def test_empty(self, ledger: Ledger) -> None:
        ledger.create(NewSubmission(FILES))
        assert ledger.take_next() is None

    def test_in_the_order_of_the_commits(self, ledger: Ledger) -> None:
        first, second, third = (ledger.create(NewSubmission(FILES)) for _ in range(3))
        for submission in (third, first, second):
            ledger.enqueue(submission.id, digests("1"), submission.id)
        taken = []
        while submission := ledger.take_next():
            taken.append(submission.id)
            assert ledger.get(submission.id).state is MERGING
            ledger.reject(submission.id, "bad")
        assert taken == [third.id, first.id, second.id]

    def test_what_was_interrupted_goes_first(self, ledger: Ledger) -> None:
        first, _second = queued(ledger), queued(ledger)
        for _ in range(2):
            assert ledger.take_next().id == first.id  # type: ignore[union-attr]
        assert [event.state for event in ledger.history(first.id)] == [RECEIVING, QUEUED, MERGING]

    def test_what_is_queued_again_keeps_its_place(self, ledger: Ledger) -> None:
        first, second = queued(ledger), queued(ledger)
        ledger.take_next()
        ledger.requeue(first.id, "the disk was full")
        assert ledger.get(first.id).state is QUEUED
        assert ledger.get(first.id).attempts == 0
        assert ledger.history(first.id)[-1].detail == "the disk was full"
        ledger.take_next()
        ledger.count_attempt(first.id, "it died", 2)
        assert ledger.take_next().id == first.id  # type: ignore[union-attr]
        ledger.count_attempt(first.id, "it died", 2)
        assert ledger.take_next().id == second.id  # type: ignore[union-attr]
        ledger.reject(second.id, "bad")
        third = queued(ledger)
        ledger.retry(first.id)
        assert ledger.take_next().id == first.id  # type: ignore[union-attr]
        ledger.reject(first.id, "bad")
        assert ledger.take_next().id == third.id  # type: ignore[union-attr]

    def test_a_disk_that_stays_full_does_not_fill_the_ledger(self, ledger: Ledger) -> None:
        submission = queued(ledger)
        for detail in ("full", "full", "full", "failing", "failing", "full"):
            ledger.take_next()
            ledger.requeue(submission.id, detail)
        told = [(event.state, event.detail) for event in ledger.history(submission.id)]
        assert told[:2] == [(RECEIVING, ""), (QUEUED, "")]
        assert told[2:] == [
            part for detail in ("full", "failing", "full") for part in ((MERGING, ""), (QUEUED, detail))
        ]

    def test_only_a_merging_one_is_put_back(self, ledger: Ledger) -> None:
        submission = bring(ledger, WITHDRAWN)
        ledger.requeue(submission.id, "too late")
        assert ledger.get(submission.id) == submission


def test_attempts_are_counted_until_quarantine(ledger: Ledger) -> None:
    submission = queued(ledger)
    for attempt in (1, 2):
        ledger.take_next()
        told = ledger.count_attempt(submission.id, "the worker died", 3)
        assert (told.state, told.attempts, told.reason) == (QUEUED, attempt, "")
        assert f"attempt {attempt} of 3" in ledger.history(submission.id)[-1].detail
    ledger.take_next()
    told = ledger.count_attempt(submission.id, "the worker died", 3)
    assert (told.state, told.attempts, told.bytes_kept) == (QUARANTINED, 3, True)
    assert "3 attempts" in told.reason
    assert "the worker died" in told.reason
    assert ledger.take_next() is None
    retried = ledger.retry(submission.id)
    assert (retried.state, retried.attempts, retried.reason) == (QUEUED, 0, "")


@pytest.mark.parametrize("state", [RECEIVING, QUEUED, REJECTED, WITHDRAWN])
def test_an_attempt_counts_only_while_merging(ledger: Ledger, state: SubmissionState) -> None:
    submission = bring(ledger, state)
    assert ledger.count_attempt(submission.id, "it died", 1) == submission


def test_reject_does_not_change_what_is_settled(ledger: Ledger) -> None:
    submission = bring(ledger, WITHDRAWN)
    assert ledger.reject(submission.id, "bad") == submission


def test_reject(ledger: Ledger) -> None:
    submission = ledger.reject(queued(ledger).id, "it has NaN values")
    assert (submission.state, submission.reason, submission.bytes_kept) == (REJECTED, "it has NaN values", False)
    assert ledger.bytes_kept(submission.id) is False


@pytest.mark.parametrize("state", [RECEIVING, QUEUED, QUARANTINED])
def test_withdraw(ledger: Ledger, state: SubmissionState) -> None:
    submission = ledger.withdraw(bring(ledger, state).id, "taken back")
    assert (submission.state, submission.reason, submission.bytes_kept) == (WITHDRAWN, "taken back", False)
    assert ledger.take_next() is None


@pytest.mark.parametrize("state", [MERGING, REJECTED, WITHDRAWN])
def test_withdraw_too_late(ledger: Ledger, state: SubmissionState) -> None:
    submission = bring(ledger, state)
    with pytest.raises(WrongState, match=f"{submission.id} is {state}"):
        ledger.withdraw(submission.id, "taken back")
    assert ledger.get(submission.id) == submission


@pytest.mark.parametrize("state", [state for state in SubmissionState if state not in (QUARANTINED, MERGED)])
def test_retry_in_another_state(ledger: Ledger, state: SubmissionState) -> None:
    submission = bring(ledger, state)
    with pytest.raises(WrongState, match=f"{submission.id} is {state}.*only a QUARANTINED"):
        ledger.retry(submission.id)
    assert ledger.get(submission.id) == submission


@pytest.mark.parametrize("forced", [False, True])
def test_retry_of_what_was_queued_otherwise_meanwhile(ledger: Ledger, forced: bool) -> None:
    submission = ledger.create(NewSubmission(FILES, forced=forced))
    ledger.enqueue(submission.id, digests("1"), "c")
    ledger.take_next()
    assert ledger.count_attempt(submission.id, "the worker died", 1).state is QUARANTINED
    other = queued(ledger, "c")
    assert ledger.retry(submission.id).id == (submission.id if forced else other.id)
    assert ledger.get(submission.id).state is (QUEUED if forced else WITHDRAWN)


def test_an_open_upload_that_was_described_otherwise_is_not_joined(ledger: Ledger) -> None:
    whole = ledger.create(NewSubmission(FILES, content_digest="c"))
    partial = ledger.create(NewSubmission(FILES, content_digest="c", partial=True))
    common = ledger.create(NewSubmission(FILES, content_digest="c", vocab=VocabPolicy.COMMON))
    assert len({whole.id, partial.id, common.id}) == 3
    assert ledger.create(NewSubmission(FILES, content_digest="c", vocab=VocabPolicy.COMMON)).id == common.id
    assert ledger.create(NewSubmission(FILES, content_digest="c")).id == whole.id


def test_common_rows_are_recorded_when_it_is_queued(ledger: Ledger) -> None:
    submission = ledger.create(NewSubmission(FILES, vocab=VocabPolicy.COMMON))
    assert (submission.vocab, submission.common_rows) == (VocabPolicy.COMMON, {})
    ledger.enqueue(submission.id, digests("1"), "c", {"w": RowCounts(12, 10), "v": RowCounts(8, 9)})
    found = ledger.get(submission.id)
    assert found.common_rows == {"w": RowCounts(submission=12, base=10), "v": RowCounts(submission=8, base=9)}
    assert [rows.common for rows in found.common_rows.values()] == [10, 8]


def test_what_is_copied_from_a_path_is_nobodys_upload(ledger: Ledger) -> None:
    upload = ledger.create(NewSubmission(FILES, content_digest="c"))
    copied = [ledger.create(NewSubmission(FILES, content_digest="c", uploaded=False)) for _ in range(2)]
    assert copied[0].id == copied[1].id != upload.id, "one that was interrupted goes on; it joins no upload"
    assert ledger.create(NewSubmission(FILES, content_digest="c")).id == upload.id
    assert ledger.enqueue(copied[0].id, digests("1"), "c").id == copied[0].id
    assert ledger.enqueue(upload.id, digests("1"), "c").id == copied[0].id


@pytest.mark.parametrize("name", ["", "nowhere", "'; DROP TABLE submissions; --"])
def test_unknown_submissions(ledger: Ledger, name: str) -> None:
    for call in (ledger.get, ledger.retry, lambda id: ledger.withdraw(id, ""), lambda id: ledger.reject(id, "")):
        with pytest.raises(NotFound):
            call(name)
    assert ledger.history(name) == []
    assert ledger.bytes_kept(name) is None


def test_history_is_everything_that_happened(ledger: Ledger) -> None:
    submission = queued(ledger)
    ledger.take_next()
    ledger.count_attempt(submission.id, "it died", 1)
    ledger.retry(submission.id)
    ledger.take_next()
    ledger.reject(submission.id, "bad")
    history = ledger.history(submission.id)
    assert [event.state for event in history] == [
        RECEIVING,
        QUEUED,
        MERGING,
        QUARANTINED,
        QUEUED,
        MERGING,
        REJECTED,
    ]
    assert [event.at for event in history] == sorted(event.at for event in history)
    assert history[-1].detail == "bad"
    assert ledger.get(submission.id).updated_at <= history[-1].at


def test_pages(ledger: Ledger) -> None:
    ids = [queued(ledger).id for _ in range(5)]
    ledger.withdraw(ids[1], "taken back")
    assert [submission.id for submission in ledger.page(0, 3)] == ids[:3]
    assert [submission.id for submission in ledger.page(3, 3)] == ids[3:]
    assert ledger.page(5, 3) == []
    assert ledger.page(2**62, 3) == []
    assert [submission.id for submission in ledger.page(0, 9, [QUEUED])] == [ids[0], *ids[2:]]
    assert [submission.id for submission in ledger.page(1, 1, [QUEUED, WITHDRAWN])] == [ids[1]]
    assert ledger.page(0, 9, [MERGED]) == []
    assert [submission.id for submission in ledger.newest(2, QUEUED, WITHDRAWN)] == [ids[1], ids[4]]
    assert ledger.newest(2, MERGED) == []


def test_uploads_that_were_never_completed(ledger: Ledger) -> None:
    opened = ledger.create(NewSubmission(FILES))
    queued(ledger)
    assert ledger.receiving_since_before(opened.updated_at) == []
    assert [submission.id for submission in ledger.receiving_since_before(opened.updated_at + 0.001)] == [opened.id]


def test_everything_is_there_again_after_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("restart") / "ledger.sqlite"
    with Database(path, create=True) as database:
        ledger = Ledger(database)
        first, second = queued(ledger, name="first"), queued(ledger)
        ledger.take_next()
        before = ledger.page(0, 10)
    with Database(path) as database:
        ledger = Ledger(database)
        assert ledger.page(0, 10) == before
        assert ledger.take_next() == before[0]
        ledger.reject(first.id, "bad")
        assert ledger.take_next().id == second.id  # type: ignore[union-attr]


def test_the_newest_are_found_among_many(database: Database, ledger: Ledger) -> None:
    many, states = 3_000, (REJECTED, QUARANTINED)
    columns = "id, name, labels, state, files, partial, forced, created_at, updated_at"
    with database.transaction() as connection:
        connection.executemany(
            f"INSERT INTO submissions ({columns}) VALUES (?, '', '{{}}', ?, '{{}}', 0, 0, 0, ?)",
            [(str(number), states[number % 2], number * 7 % many) for number in range(many)],
        )
    found = ledger.newest(5, *states)
    assert [submission.updated_at for submission in found] == [many - 1 - number for number in range(5)]
    assert {submission.state for submission in found} == {*states}
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    with database.transaction() as connection:
        connection.set_progress_handler(step, 100)
    ledger.newest(5, *states)
    with database.transaction() as connection:
        connection.set_progress_handler(None, 0)
    assert steps < 20, "it does not read all of them"
