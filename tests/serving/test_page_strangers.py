"""What strangers can do to the status page: with their words, with their requests, and by how often they come."""

from pathlib import Path

from foldind.serving.pages.rendering import cut
from foldind.state.database import Database
from foldind.state.ledger import Ledger
from foldind.state.records import SubmissionState

from tests.serving.test_hub import ask
from tests.support.daemon import Daemon

MANY = 3_000


def test_marks_do_not_pile_up_over_other_lines() -> None:
    assert cut("a" + "\u0301" * 90 + "b") == "a" + "\u0301" * 4 + "b"
    assert cut("\u20dd" * 9) == "\u20dd" * 4
    for readable in ("\u05d1\u05bc\u05b0\u05e8\u05b5", "e\u0302\u0323", "\u0928\u092e\u0938\u094d\u0924\u0947"):
        assert cut(readable) == readable


def test_the_newest_are_found_among_many(tmp_path: Path) -> None:
    states = (SubmissionState.REJECTED, SubmissionState.QUARANTINED)
    columns = "id, name, labels, state, files, partial, forced, created_at, updated_at"
    with Database(tmp_path / "ledger.sqlite", create=True) as database:
        with database.transaction() as connection:
            connection.executemany(
                f"INSERT INTO submissions ({columns}) VALUES (?, '', '{{}}', ?, '{{}}', 0, 0, 0, ?)",
                [(str(number), states[number % 2], number * 7 % MANY) for number in range(MANY)],
            )
        found = Ledger(database).newest(5, *states)
        assert [submission.updated_at for submission in found] == [MANY - 1 - number for number in range(5)]
        assert {submission.state for submission in found} == {*states}
        with database.transaction() as connection:
            steps = 0

            def step() -> None:
                nonlocal steps
                steps += 1

            connection.set_progress_handler(step, 100)
        Ledger(database).newest(5, *states)
        with database.transaction() as connection:
            connection.set_progress_handler(None, 0)
    assert steps < 20, "it does not read all of them"


def test_the_tables_of_a_page_have_names_of_their_own(daemon: Daemon) -> None:
    for path in ("/", "/versions/4"):
        page = ask(daemon, path).body.decode()
        for heading in ("versions", "files", "queue"):
            assert page.count(f'aria-labelledby="{heading}"') <= 1, (path, heading)
