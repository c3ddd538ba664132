import struct
import time
from collections.abc import Callable

import pytest
from foldind.errors import NotFound, WrongState
from foldind.state.database import Database
from foldind.state.durable import FileDigest
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import SubmissionState, Version, VersionState
from foldind.state.sketches import Sketches
from foldind.state.versions import Versions

PUBLISHED, WITHDRAWN, PRUNED = VersionState
Commit = Callable[..., Version]
SKETCH = bytes(16)
FILES = {"model.safetensors": FileDigest(10, "0" * 64)}


@pytest.fixture
def commit(ledger: Ledger, versions: Versions) -> Commit:
    """Merges one more submission, as far as the ledger is concerned."""

    def make(name: str = "task", sketch: bytes = SKETCH) -> Version:
        submission = ledger.create(NewSubmission(FILES, name=name))
        ledger.enqueue(submission.id, FILES, submission.id)
        taken = ledger.take_next()
        assert taken is not None
        head = versions.head()
        version = Version(
            version=versions.last_number() + 1,
            parent=head.version if head else 0,
            state=PUBLISHED,
            submission_id=taken.id,
            submission_name=name,
            created_at=time.time(),
            merge_seconds=0.5,
            rule="opcm",
            publication="norm",
            variant=False,
            submissions=(head.submissions if head else 0) + 1,
            lambda_=1.25,
            accumulated_norm=3.0,
            task_vector_norm=2.0,
            task_vector_norm_sum=4.0,
            state_files={"accumulated.safetensors": FileDigest(5, "1" * 64)},
            files=FILES,
        )
        versions.commit(version, sketch)
        return version

    return make


def numbers(found: list[Version]) -> list[int]:
    return [version.version for version in found]


def states(versions: Versions) -> list[VersionState]:
    return [version.state for version in versions.all()]


def test_before_the_first(versions: Versions) -> None:
    assert versions.head() is None
    assert versions.last_number() == 0
    assert versions.all() == versions.page(0, 10) == []
    for number in (0, 1, -1, 10**18):
        with pytest.raises(NotFound, match=f"v{number}"):
            versions.get(number)


def test_a_commit_is_everything_at_once(versions: Versions, ledger: Ledger, commit: Commit) -> None:
    version = commit("größe")
    found = versions.get(1)
    assert found == versions.head() == versions.aliased("latest")
    assert found.aliases == ("latest",)
    assert {**vars(found), "aliases": ()} == vars(version)
    assert found.record.mean_task_vector_norm == 4.0
    submission = ledger.get(version.submission_id)
    assert (submission.state, submission.version, submission.reason) == (SubmissionState.MERGED, 1, "")
    assert submission.bytes_kept is False
    assert ledger.history(submission.id)[-1].detail == "in v1"


def test_a_commit_happens_or_not(versions: Versions, ledger: Ledger, commit: Commit) -> None:
    first = commit()
    submission = ledger.create(NewSubmission(FILES))
    again = Version(**{**vars(first), "submission_id": submission.id})
    with pytest.raises(Exception, match="UNIQUE"):
        versions.commit(again, SKETCH)
    assert ledger.get(submission.id).state is SubmissionState.RECEIVING
    assert versions.get(1).submission_id == first.submission_id


def test_lineage(versions: Versions, commit: Commit) -> None:
    for _ in range(4):
        commit()
    versions.undo(versions.get(4))
    commit()
    assert versions.get(5).parent == 3
    assert numbers(versions.lineage(5, 10)) == [5, 3, 2, 1]
    assert numbers(versions.lineage(5, 2)) == [5, 3]
    assert numbers(versions.lineage(4, 10)) == [4, 3, 2, 1]
    assert [version.submissions for version in versions.lineage(5, 10)] == [4, 3, 2, 1]


def test_undo(versions: Versions, ledger: Ledger, commit: Commit) -> None:
    commit()
    undone = commit()
    versions.undo(versions.get(2))
    assert versions.head() == versions.get(1)
    assert states(versions) == [PUBLISHED, WITHDRAWN]
    submission = ledger.get(undone.submission_id)
    assert submission.state is SubmissionState.WITHDRAWN
    assert "v2" in submission.reason
    assert versions.last_number() == 2, "numbers are not used again"


def test_undo_of_the_first(versions: Versions, commit: Commit) -> None:
    commit()
    versions.undo(versions.get(1))
    assert versions.head() is None
    assert versions.get(1).aliases == ()
    commit()
    assert (versions.get(2).parent, versions.get(2).submissions) == (0, 1)


def test_aliases(versions: Versions, commit: Commit) -> None:
    commit()
    commit()
    for alias in ("zebra", "stable", "a.b-c_d"):
        versions.point(alias, 2)
    assert versions.get(2).aliases == ("a.b-c_d", "latest", "stable", "zebra")
    versions.point("stable", 1)
    assert versions.get(1).aliases == ("stable",)
    assert versions.aliased("stable") == versions.get(1)
    versions.point("stable", 0)
    versions.point("stable", 0)
    assert versions.aliased("stable") is None
    with pytest.raises(NotFound, match="v3"):
        versions.point("stable", 3)
    assert versions.aliased("stable") is None


def test_an_alias_may_name_what_was_undone(versions: Versions, commit: Commit) -> None:
    commit()
    commit()
    versions.point("stable", 2)
    versions.undo(versions.get(2))
    assert versions.aliased("stable").state is WITHDRAWN  # type: ignore[union-attr]
    assert versions.prune(1, time.time() + 1) == [], "it stays for as long as it is named"


def test_pages(versions: Versions, commit: Commit) -> None:
    for _ in range(3):
        commit()
    assert numbers(versions.page(0, 2)) == [1, 2]
    assert numbers(versions.page(2, 2)) == [3]
    assert versions.page(3, 2) == []
    assert numbers(versions.page_before(4, 2)) == [3, 2]
    assert numbers(versions.page_before(2, 2)) == [1]
    assert versions.page_before(1, 2) == []
    assert numbers(versions.page_before(2**64, 9)) == [3, 2, 1]


class TestPrune:
    def test_keeps_the_newest(self, versions: Versions, commit: Commit) -> None:
        for _ in range(5):
            commit()
        later = time.time() + 1
        assert versions.prune(3, later) == [1, 2]
        assert states(versions) == [PRUNED, PRUNED, PUBLISHED, PUBLISHED, PUBLISHED]
        assert versions.prune(3, later) == []
        assert versions.find(1, PRUNED) is not None
        assert versions.find(3, PRUNED) is None

    def test_keeps_for_a_lease_what_was_superseded(self, versions: Versions, commit: Commit) -> None:
        commit()
        commit()
        between = time.time()
        for _ in range(3):
            commit()
        assert versions.prune(1, between - 60) == []
        assert versions.prune(1, between) == [1]
        assert versions.prune(1, time.time() + 1) == [2, 3]

    def test_always_keeps_the_head_and_its_parent(self, versions: Versions, commit: Commit) -> None:
        for _ in range(3):
            commit()
        assert versions.prune(1, time.time() + 1) == [1]
        versions.undo(versions.get(3))
        commit()
        assert versions.get(4).parent == 2
        assert versions.prune(1, time.time() + 1) == [3]
        assert states(versions) == [PRUNED, PUBLISHED, PRUNED, PUBLISHED]

    def test_keeps_what_an_alias_names(self, versions: Versions, commit: Commit) -> None:
        for _ in range(4):
            commit()
        versions.point("stable", 1)
        assert versions.prune(1, time.time() + 1) == [2]
        versions.point("stable", 0)
        assert versions.prune(1, time.time() + 1) == [1]

    def test_what_was_undone_does_not_count_as_new(self, versions: Versions, commit: Commit) -> None:
        for _ in range(4):
            commit()
        versions.undo(versions.get(4))
        assert versions.prune(2, time.time() - 60) == [], "it has its lease too"
        assert versions.prune(2, time.time() + 1) == [1, 4]

    def test_an_alias_cannot_name_what_is_gone(self, versions: Versions, commit: Commit) -> None:
        for _ in range(3):
            commit()
        versions.prune(1, time.time() + 1)
        with pytest.raises(WrongState, match="v1 are no longer kept"):
            versions.point("stable", 1)

    def test_a_head_that_was_superseded_once_stays(self, versions: Versions, commit: Commit) -> None:
        for _ in range(3):
            commit()
        versions.undo(versions.get(3))
        versions.undo(versions.get(2))
        assert 1 not in versions.prune(1, time.time() + 1)
        assert versions.head() == versions.get(1)


def test_sketches_are_kept_whatever_becomes_of_the_submission(
    database: Database, ledger: Ledger, versions: Versions, commit: Commit
) -> None:
    sketches = Sketches(database)
    assert (sketches.newest(9), sketches.of([])) == ([], {})
    one, two, three = (commit(sketch=struct.pack("<2f", number, 0.5)).submission_id for number in range(3))
    assert sketches.newest(9) == [three, two, one]
    assert sketches.newest(2) == [three, two]
    waiting = ledger.create(NewSubmission(FILES)).id
    assert sketches.of([three, waiting, "none", one]) == {three: (2.0, 0.5), one: (0.0, 0.5)}
    assert list(sketches.of([three, one])) == [three, one]
    versions.undo(versions.get(3))
    assert sketches.newest(9) == [two, one]
    assert sketches.of([three]) == {three: (2.0, 0.5)}
