import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from foldind.state.durable import (
    BLOCK_BYTES,
    REMOVED_SUFFIX,
    DurableFile,
    FileDigest,
    copy_file,
    digest_file,
    is_disk_trouble,
    make_folder,
    remove,
    replace_symlink,
    seal,
    write_at,
    write_file,
)


def digest(content: bytes) -> FileDigest:
    return FileDigest(len(content), sha256(content).hexdigest())


class TestDurableFile:
    def test_written_in_parts(self, tmp_path: Path) -> None:
        with DurableFile(tmp_path / "file", 10) as file:
            file.write(b"01234")
            file.write(b"")
            file.write(memoryview(b"56789"))
            assert file.finish() == digest(b"0123456789")
        assert (tmp_path / "file").read_bytes() == b"0123456789"

    def test_empty(self, tmp_path: Path) -> None:
        with DurableFile(tmp_path / "file", 0) as file:
            assert file.finish() == digest(b"")
        assert (tmp_path / "file").read_bytes() == b""

    def test_takes_its_whole_room_at_once(self, tmp_path: Path) -> None:
        with DurableFile(tmp_path / "file", 1_000_000):
            status = (tmp_path / "file").stat()
            assert status.st_size == 1_000_000
            assert status.st_blocks * 512 >= 1_000_000

    def test_left_by_an_exception_it_is_discarded(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), DurableFile(tmp_path / "file", 3) as file:
            file.write(b"012")
            raise KeyError
        assert not list(tmp_path.iterdir())

    def test_left_by_an_exception_after_finish_it_is_discarded(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), DurableFile(tmp_path / "file", 3) as file:
            file.write(b"012")
            file.finish()
            raise KeyError
        assert not list(tmp_path.iterdir())

    def test_left_unfinished_it_is_discarded(self, tmp_path: Path) -> None:
        with DurableFile(tmp_path / "file", 3) as file:
            file.write(b"012")
        assert not list(tmp_path.iterdir())

    def test_too_short(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="2 of 3 bytes"), DurableFile(tmp_path / "file", 3) as file:
            file.write(b"01")
            file.finish()
        assert not list(tmp_path.iterdir())

    def test_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="beyond the 3 bytes"), DurableFile(tmp_path / "file", 3) as file:
            file.write(b"01")
            file.write(b"23")
        assert not list(tmp_path.iterdir())

    def test_never_writes_over_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"other")
        with pytest.raises(FileExistsError):
            DurableFile(tmp_path / "file", 3)
        assert (tmp_path / "file").read_bytes() == b"other"

    def test_never_follows_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileExistsError):
            DurableFile(tmp_path / "file", 3)
        assert not (tmp_path / "elsewhere").exists()

    def test_without_room_it_is_discarded_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"File too large|No space"):
            DurableFile(tmp_path / "file", 2**62)
        assert not list(tmp_path.iterdir())

    def test_is_not_open_after_an_exec(self, tmp_path: Path) -> None:
        with DurableFile(tmp_path / "file", 0):
            open_ones = {int(link.name): os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
            (descriptor,) = (number for number, path in open_ones.items() if path == str(tmp_path / "file"))
            assert not os.get_inheritable(descriptor)


def test_write_at_writes_every_byte_at_its_place(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        write_at(descriptor, content[1_000_000:], 1_000_000)
        write_at(descriptor, memoryview(content)[:1_000_000], 0)
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == content


class TestWriteFile:
    def test_new(self, tmp_path: Path) -> None:
        assert write_file(tmp_path / "file", b"new") == digest(b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_in_place_of_another(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old and longer")
        (tmp_path / ".file.tmp").write_bytes(b"left by a crash")
        with (tmp_path / "file").open("rb") as reader:
            write_file(tmp_path / "file", b"new")
            assert reader.read() == b"old and longer", "who reads the old one goes on reading the old one"
        assert (tmp_path / "file").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_readers_see_the_old_or_the_new(self, tmp_path: Path) -> None:
        contents = [bytes([number]) * 100_000 for number in range(2)]
        write_file(tmp_path / "file", contents[0])
        seen, stop = set(), threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen.add((tmp_path / "file").read_bytes())

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(40):
            write_file(tmp_path / "file", contents[number % 2])
        stop.set()
        reader.join()
        assert seen <= set(contents)


class TestCopyFile:
    @pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1])
    def test_copies(self, tmp_path: Path, size: int) -> None:
        content = os.urandom(size)
        (tmp_path / "source").write_bytes(content)
        assert copy_file(tmp_path / "source", tmp_path / "target") == digest(content)
        assert (tmp_path / "target").read_bytes() == content

    def test_the_copy_is_a_file_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"before")
        copy_file(tmp_path / "source", tmp_path / "target")
        (tmp_path / "source").write_bytes(b"after!")
        assert (tmp_path / "target").read_bytes() == b"before"

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            copy_file(tmp_path / "source", tmp_path / "target")
        assert not list(tmp_path.iterdir())

    def test_never_over_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"source")
        (tmp_path / "target").write_bytes(b"target")
        with pytest.raises(FileExistsError):
            copy_file(tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == b"target"

    def test_a_source_shorter_than_its_length(self, tmp_path: Path) -> None:
        # Files of sysfs state one page and hold a line: what a file looks like that is cut short while it is copied.
        source = Path("/sys/kernel/mm/transparent_hugepage/enabled")
        if not source.exists():
            pytest.skip(f"{source} does not exist")
        with pytest.raises(OSError, match="cut short") as caught:
            copy_file(source, tmp_path / "target")
        assert str(source) in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_a_source_longer_than_its_length(self, tmp_path: Path) -> None:
        # Files of procfs state no length: what a file looks like that grows while it is copied.
        assert copy_file(Path("/proc/version"), tmp_path / "target") == digest(b"")

    def test_a_source_that_grows(self, tmp_path: Path) -> None:
        content = os.urandom(2 * BLOCK_BYTES)
        (tmp_path / "source").write_bytes(content)
        stop = threading.Event()

        def grow() -> None:
            with (tmp_path / "source").open("ab") as file:
                while not stop.is_set():
                    file.write(b"more")
                    file.flush()

        writer = threading.Thread(target=grow)
        writer.start()
        try:
            copied = copy_file(tmp_path / "source", tmp_path / "target")
        finally:
            stop.set()
            writer.join()
        target = (tmp_path / "target").read_bytes()
        assert copied == digest(target) == digest_file(tmp_path / "target")
        assert target[: len(content)] == content
        assert len(target) <= (tmp_path / "source").stat().st_size


class TestSeal:
    def test_gives_the_final_name(self, tmp_path: Path) -> None:
        (tmp_path / "v1.tmp").mkdir()
        (tmp_path / "v1.tmp" / "file").write_bytes(b"1")
        seal(tmp_path / "v1.tmp", tmp_path / "v1")
        assert [path.name for path in tmp_path.iterdir()] == ["v1"]
        assert (tmp_path / "v1" / "file").read_bytes() == b"1"

    def test_never_over_what_is_there(self, tmp_path: Path) -> None:
        for name in ("v1.tmp", "v1"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
        with pytest.raises(OSError, match="not empty"):
            seal(tmp_path / "v1.tmp", tmp_path / "v1")
        assert (tmp_path / "v1" / "file").read_text() == "v1"


def test_make_folder_twice(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "missing" / "folder")


class TestReplaceSymlink:
    def test_new_moved_and_kept(self, tmp_path: Path) -> None:
        link = tmp_path / "latest"
        replace_symlink(link, "v1")
        assert link.readlink() == Path("v1")
        (tmp_path / ".latest.tmp").symlink_to("left by a crash")
        replace_symlink(link, "v2")
        assert link.readlink() == Path("v2")
        inode = link.lstat().st_ino
        replace_symlink(link, "v2")
        assert link.lstat().st_ino == inode, "nothing to do"
        assert [path.name for path in tmp_path.iterdir()] == ["latest"]

    def test_readers_never_miss_it(self, tmp_path: Path) -> None:
        link, stop, seen = tmp_path / "latest", threading.Event(), set()
        replace_symlink(link, "v0")

        def read() -> None:
            while not stop.is_set():
                seen.add(str(link.readlink()))

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(40):
            replace_symlink(link, f"v{number % 2}")
        stop.set()
        reader.join()
        assert seen <= {"v0", "v1"}


def test_remove_whatever_is_there(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "link").symlink_to(kept)
    for name in ("link", "file", "folder", "nothing"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists(), "a link is removed, not what it points to"


def test_two_threads_remove_the_same_folder(tmp_path: Path) -> None:
    doomed = tmp_path / f"folder{REMOVED_SUFFIX}"
    for _ in range(20):
        doomed.mkdir()
        for number in range(200):
            (doomed / str(number)).touch()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(remove, [doomed, doomed]))
        assert not doomed.exists()


class TestDiskTrouble:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
    def test_of_the_disk(self, code: int) -> None:
        assert is_disk_trouble(OSError(code, os.strerror(code)))

    @pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EEXIST, errno.EPIPE, errno.EFBIG])
    def test_of_a_file(self, code: int) -> None:
        assert not is_disk_trouble(OSError(code, os.strerror(code)))

    @pytest.mark.parametrize("error", [ValueError("no space left"), MemoryError(), OSError("no number")])
    def test_of_neither(self, error: Exception) -> None:
        assert not is_disk_trouble(error)

    def test_a_full_device(self) -> None:
        with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"1")
        assert is_disk_trouble(caught.value)

    @pytest.mark.parametrize(
        ("spoil", "trouble"),
        [
            (lambda connection: connection.execute("PRAGMA max_page_count = 2"), True),
            (lambda connection: connection.execute("PRAGMA query_only = 1"), True),
            (lambda connection: connection.execute("DROP TABLE numbers"), False),
        ],
        ids=["full", "read-only", "another mistake"],
    )
    def test_of_sqlite(self, tmp_path: Path, spoil: Callable[[sqlite3.Connection], object], trouble: bool) -> None:
        connection = sqlite3.connect(tmp_path / "database", isolation_level=None)
        try:
            connection.execute("CREATE TABLE numbers (number)")
            spoil(connection)
            with pytest.raises(sqlite3.OperationalError) as caught:
                connection.execute("INSERT INTO numbers VALUES (zeroblob(100000))")
        finally:
            connection.close()
        assert is_disk_trouble(caught.value) is trouble

    @pytest.mark.parametrize(
        "code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_FULL]
    )
    def test_codes_of_sqlite_extended_or_not(self, code: int) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = code
        assert is_disk_trouble(error)

    def test_a_locked_database_is_no_disk_trouble(self, tmp_path: Path) -> None:
        first, second = (sqlite3.connect(tmp_path / "database", isolation_level=None, timeout=0) for _ in range(2))
        try:
            first.execute("BEGIN EXCLUSIVE")
            with pytest.raises(sqlite3.OperationalError, match="locked") as caught:
                second.execute("BEGIN IMMEDIATE")
            assert not is_disk_trouble(caught.value)
        finally:
            first.close()
            second.close()
