import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from foldind.errors import StateError
from foldind.state.database import FORMAT, Database

COUNT = "SELECT count(*) FROM submissions"
ADD = (
    "INSERT INTO submissions (id, name, labels, state, files, partial, forced, created_at, updated_at)"
    " VALUES (?, '', '{}', 'QUEUED', '{}', 0, 0, 0, 0)"
)


def test_is_made_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Database(path, create=True) as database, database.transaction() as connection:
        connection.execute(ADD, ("one",))
    with Database(path) as database:
        assert [row["id"] for row in database.query("SELECT id FROM submissions")] == ["one"]
        assert database.query("PRAGMA user_version")[0][0] == FORMAT
        assert database.check() == []


def test_is_as_durable_as_sqlite_can(database: Database) -> None:
    settings = {
        name: database.query(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_is_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Database(path, create=True):
        with pytest.raises(StateError, match="locked"):
            Database(path)
        other = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute(COUNT)
        other.close()
    with Database(path) as database:
        assert database.query(COUNT)[0][0] == 0


def test_is_exclusive_among_processes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM submissions')"
    with Database(path, create=True):
        ended = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert "database is locked" in ended.stderr


def make_format_4(connection: sqlite3.Connection) -> None:
    connection.execute("DROP INDEX versions_by_commit")
    connection.execute("DROP INDEX versions_at_gate")
    connection.execute("DROP INDEX submissions_by_change")
    for column in ("gate", "gate_reason", "scores", "gate_at", "gate_seconds"):
        connection.execute(f"ALTER TABLE versions DROP COLUMN {column}")
    connection.execute("DROP TABLE sketches")
    connection.execute("PRAGMA user_version=4")


def test_aliases_that_mean_something_else_now_are_renamed(tmp_path: Path) -> None:
    path, commit = tmp_path / "ledger.sqlite", "0a" * 20
    with Database(path, create=True) as database, database.transaction() as connection:
        connection.execute(ADD, ("one",))
        connection.execute(
            "INSERT INTO versions (version, parent, state, submission_id, created_at, merge_seconds, rule, submissions,"
            " lambda, accumulated_norm, task_vector_norm, task_vector_norm_sum, state_files, files)"
            " VALUES (1, 0, 'PUBLISHED', 'one', 0, 0, 'sum', 1, 1, 1, 1, 1, '{}', '{}')"
        )
        names = ("latest", "main", "stable", commit, "g" * 40)
        connection.executemany("INSERT INTO aliases VALUES (?, 1)", [(name,) for name in names])
        make_format_4(connection)
    with Database(path) as database:
        found = {row["name"] for row in database.query("SELECT name FROM aliases")}
    assert found == {"latest", "main.old", "stable", f"{commit}.old", "g" * 40}


def test_one_of_an_earlier_format_is_upgraded_with_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Database(path, create=True) as database, database.transaction() as connection:
        connection.execute(ADD, ("one",))
        schema = connection.execute("PRAGMA table_info(submissions)").fetchall()
        for column in ("vocab", "common_rows", "takes_out", "took_out"):
            connection.execute(f"ALTER TABLE submissions DROP COLUMN {column}")
        versions = connection.execute("PRAGMA table_info(versions)").fetchall()
        for column in ("publication", "variant"):
            connection.execute(f"ALTER TABLE versions DROP COLUMN {column}")
        make_format_4(connection)
        connection.execute("PRAGMA user_version=2")
    for _ in range(2):  # the second time there is nothing to do
        with Database(path) as database:
            assert database.query("PRAGMA user_version")[0][0] == FORMAT == 5
            (row,) = database.query("SELECT * FROM submissions")
            assert (row["id"], row["vocab"], row["common_rows"]) == ("one", "same", "{}")
            # Columns that were added stand last; nothing reads them by their place.
            found = database.query("PRAGMA table_info(submissions)")
            assert {tuple(column)[1:5] for column in found} == {tuple(column)[1:5] for column in schema}
            found = database.query("PRAGMA table_info(versions)")
            assert {tuple(column)[1:5] for column in found} == {tuple(column)[1:5] for column in versions}
            assert database.query("PRAGMA index_info(versions_by_commit)")


@pytest.mark.parametrize("format_", [1, FORMAT + 1])
def test_another_format(format_: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Database(path, create=True):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={format_}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match=f"format {format_}.*reads format {FORMAT}.*run the release that wrote it"):
        Database(path)
    assert path.read_bytes() == before


def test_a_missing_one_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"ledger\.sqlite cannot be opened.*backup"):
        Database(tmp_path / "ledger.sqlite")
    assert not list(tmp_path.iterdir())


def test_one_is_never_made_over_another(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Database(path, create=True) as database, database.transaction() as connection:
        connection.execute(ADD, ("one",))
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        Database(path, create=True)


def test_a_path_with_marks_of_an_address(tmp_path: Path) -> None:
    folder = tmp_path / "50% ?mode=ro#größe"
    folder.mkdir()
    with Database(folder / "ledger.sqlite", create=True):
        pass
    with Database(folder / "ledger.sqlite") as database:
        assert database.query(COUNT)[0][0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(StateError, match="format 0"):
        Database(tmp_path / "ledger.sqlite")


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 4080])
def test_what_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"cannot be opened.*backup"):
        Database(path)
    assert path.read_bytes() == content


def test_a_transaction_happens_or_not(database: Database) -> None:
    with pytest.raises(KeyError), database.transaction() as connection:
        connection.execute(ADD, ("one",))
        connection.execute(ADD, ("two",))
        raise KeyError
    assert database.query(COUNT)[0][0] == 0
    with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
        connection.execute(ADD, ("one",))
        connection.execute(ADD, ("one",))
    assert database.query(COUNT)[0][0] == 0
    with database.transaction() as connection:
        connection.execute(ADD, ("one",))
    assert database.query(COUNT)[0][0] == 1


def test_versions_need_their_submission(database: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
        connection.execute("INSERT INTO aliases VALUES ('stable', 3)")


def test_threads_take_turns(database: Database) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 20):
            with database.transaction() as connection:
                before = connection.execute(COUNT).fetchone()[0]
                connection.execute(ADD, (str(number),))
                assert connection.execute(COUNT).fetchone()[0] == before + 1

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.query(COUNT)[0][0] == 80
