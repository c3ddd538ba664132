"""Random reads while versions are published and pruned: whatever comes is what the commit that it names says."""

import http.client
import random
import threading
from collections import Counter
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from foldin import Client

from tests.support.daemon import Daemon, wait_for
from tests.support.history import History
from tests.support.models import base_tensors
from tests.support.wire import SINGLE, Wire, fine_tuned, single, state

READERS = 8
FILES = (SINGLE, "foldin.json", "config.json", "README.md")
MOVING = ("main", "latest", "stable")


class Read(NamedTuple):
    """One answer, to be judged at the end."""

    revision: str
    commit: str
    file: str
    span: tuple[int, int] | None
    """First and last byte, as the answer says; None: the whole file."""
    digest: str


class Storm:
    """Readers and one publisher, and what they saw."""

    def __init__(self, daemon: Daemon, seed: int, reads: int):
        self._daemon = daemon
        self._seed = seed
        self._wanted = reads
        self.published: dict[str, dict[str, bytes]] = {}
        """Commit -> file -> content, as it was when the version appeared."""
        self.commits: list[str] = []
        self.reads: list[Read] = []
        self.refused: Counter[str] = Counter()
        self.errors: list[str] = []

    def publish(self) -> None:
        """Merge until the readers are done."""
        with Wire(self._daemon) as wire, self._daemon.client() as client:
            while self.goes_on:
                submission = wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)
                assert state(submission) == "MERGED"
                self._note(client, submission.version)
                client.set_alias("stable", max(1, submission.version - 1))

    def _note(self, client: Client, version: int) -> None:
        folder = self._daemon.state / "snapshots" / f"v{version}"
        content = {path.name: path.read_bytes() for path in folder.iterdir()}
        commit = sha256(content["foldin.json"]).hexdigest()[:40]
        self.published[commit] = content
        self.commits.append(commit)

    def read(self, reader: int) -> None:
        """Ask for this and that over one connection."""
        rng = random.Random(f"{self._seed} {reader}")
        with closing(http.client.HTTPConnection(urlsplit(self._daemon.http).netloc, timeout=60)) as connection:
            while self.goes_on:
                self._ask(rng, connection)

    def _ask(self, rng: random.Random, connection: http.client.HTTPConnection) -> None:
        revision, file = self._revision(rng), rng.choice(FILES)
        start = rng.randrange(20_000)
        headers = {"Range": f"bytes={start}-{start + rng.randrange(9000)}"} if rng.random() < 0.5 else {}
        connection.request("GET", f"/foldin/merged/resolve/{revision}/{file}", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        said = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        match answer.status:
            case 200:
                span = None
            case 206:
                first, _, last = said[0].partition("-")
                span = (int(first), int(last))
            case 416 if start >= int(said[2]):
                return
            case 404 if revision not in MOVING:
                self.refused[answer.headers["X-Error-Code"]] += 1
                return
            case _:
                self.errors.append(f"{revision} {file} {headers}: {answer.status} {body!r}")
                return
        self.reads.append(Read(revision, answer.headers["X-Repo-Commit"], file, span, sha256(body).hexdigest()))

    @property
    def goes_on(self) -> bool:
        """Whether more is to be read."""
        return len(self.reads) < self._wanted and not self.errors

    def _revision(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.5 or not self.commits:
            return rng.choice(MOVING)
        recent = rng.randrange(max(0, len(self.commits) - 6), len(self.commits))
        return self.commits[recent] if kind < 0.75 else f"v{recent + 1}"

    def judge(self) -> None:
        """Compare every answer with what its commit was published with."""
        for read in self.reads:
            content = self.published[read.commit][read.file]
            wanted = content if read.span is None else content[read.span[0] : read.span[1] + 1]
            assert sha256(wanted).hexdigest() == read.digest, read
            if read.revision == f"v{read.revision[1:]}" and read.revision[1:].isdigit():
                assert read.commit == self.commits[int(read.revision[1:]) - 1], read
            elif read.revision not in MOVING:
                assert read.commit == read.revision, read


@pytest.mark.parametrize("reads", [3_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_random_reads(past: History, tmp_path: Path, reads: int, seed: int) -> None:
    environment = {"FOLDIN_KEEP_BASES": "false"}
    flags = ("--keep-snapshots", "2", "--lease", "0.2")
    with Daemon(tmp_path / "state", past.base, *flags, environment=environment) as daemon:
        storm = Storm(daemon, seed, reads)
        publisher = threading.Thread(target=storm.publish)
        publisher.start()
        wait_for(lambda: len(storm.commits) > 1, "the first versions", 60)
        readers = [threading.Thread(target=storm.read, args=(number,)) for number in range(READERS)]
        for thread in readers:
            thread.start()
        for thread in [*readers, publisher]:
            thread.join()
        assert not storm.errors
        storm.judge()
        on_disk = {path.name for path in (daemon.state / "snapshots").iterdir()}
    print(f"{len(storm.reads)} reads of {len(storm.commits)} versions, {dict(storm.refused)}, {len(on_disk)} kept")
    assert set(storm.refused) <= {"RevisionNotFound"}
    assert len({read.commit for read in storm.reads}) > 3
