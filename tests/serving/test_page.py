"""The status page as it is sent; what browsers make of it is in tests/browser."""

import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from foldind.serving.pages.rendering import LONGEST, cut
from foldind.serving.pages.rendering import size as in_units
from foldind.state.database import Database

from tests.serving.test_hub import RESOLVE, answered, ask, commit
from tests.support.daemon import Daemon, wait_for
from tests.support.history import VERSIONS, History
from tests.support.models import base_tensors
from tests.support.wire import SINGLE, Daemons, Wire, fine_tuned, idle_worker, single, state

HOSTILE = "<script>alert(1)</script> \u05d0\u05d1 '\"&{{ 7*7 }}" + "x" * 150
PAGES = ("/", "/?before=3", "/versions/4", "/versions/99")


def text(daemon: Daemon, path: str = "/") -> str:
    return ask(daemon, path).body.decode()


@contextmanager
def events(daemon: Daemon) -> Iterator[HTTPResponse]:
    host, port = daemon.http.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port), timeout=20)
    connection.request("GET", "/events")
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def next_event(response: HTTPResponse) -> dict[str, str]:
    """The parts in the next event that has any."""
    while line := response.readline():
        if line.startswith(b"data: "):
            parts: dict[str, str] = json.loads(line.removeprefix(b"data: "))
            return parts
    raise AssertionError("the stream ended")


class TestPages:
    @pytest.mark.parametrize("path", PAGES)
    def test_nothing_from_elsewhere(self, daemon: Daemon, path: str) -> None:
        answer = ask(daemon, path)
        assert answer.status == (404 if "99" in path else 200)
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} <= {*policy}
        assert "unsafe" not in str(policy)
        page = answer.body.decode()
        assert not re.search(r"""\s(style|on\w+)\s*=|<style|javascript:""", page)
        assert re.findall(r"""<script[^>]*>[^<]""", page) == []
        assert all(link.startswith(("/", "#", "data:image")) for link in re.findall(r'(?:href|src)="([^"]*)', page))
        head = ask(daemon, path, method="HEAD")
        assert (head.status, head.body) == (answer.status, b"")

    def test_what_is_on_the_first(self, daemon: Daemon) -> None:
        page = text(daemon)
        for words in ("foldin/merged", "opcm", "HF_ENDPOINT=" + daemon.http, f"--server {daemon.server}", "ready"):
            assert words in page
        assert [f'id="v{number}"' in page for number in range(1, 6)] == [True] * VERSIONS + [False]
        assert "receiving" in page, "it is on its way"
        assert "no tensors" not in page
        assert "rejected" in page

    def test_older_versions(self, daemon: Daemon) -> None:
        page = text(daemon, "/?before=3")
        assert [f'id="v{number}"' in page for number in range(1, 5)] == [True, True, False, False]
        assert 'id="newest"' in page
        assert 'data-live="timeline"' not in page
        assert "There are no versions before these" in text(daemon, "/?before=1")
        for wrong in ("-1", "x", "9" * 30, "²"):
            assert ask(daemon, f"/?before={wrong.encode().hex() if wrong == '²' else wrong}").status == 400

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            (b"a:b:c", 400),
            (b"a:99999", 400),
            (b"\xff", 400),
            (b"x:y", 400),
            (b"[", 200),
            (b"a b", 200),
            (b"", 200),
            (b"<b>:1", 200),
            (b'a"<script>x', 200),
        ],
    )
    def test_host_header_is_refused_or_escaped(self, daemon: Daemon, host: bytes, status: int) -> None:
        found, page = answered(daemon, b"GET /", b"Host: " + host)
        assert found == status
        assert b"<b>:1" not in page
        assert b"<script>x" not in page

    def test_of_a_version(self, daemon: Daemon) -> None:
        page = text(daemon, "/versions/3")
        manifest = json.loads((daemon.state / "snapshots" / "v3" / "foldin.json").read_bytes())
        for digest in manifest["files"].values():
            assert digest["sha256"] in page
        (link,) = re.findall(r'href="([^"]*/model.safetensors)"', page)
        assert link == f"{RESOLVE}/{commit(daemon, 3)}/{SINGLE}"
        assert ask(daemon, link).status == 200
        query = manifest["tensors"]["encoder.layer.0.attention.query.weight"]
        assert f"layer 0, attention.query: {100 * query['kept']:.1f} %" in page
        assert f"{query['split_rank']} of 24" in page
        assert 'href="/versions/2"' in page

    @pytest.mark.parametrize("path", ["/versions/0", "/versions/99", "/versions/999999999999999999"])
    def test_no_such_version(self, daemon: Daemon, path: str) -> None:
        answer = ask(daemon, path)
        assert answer.status == 404
        assert b"There is no version" in answer.body

    @pytest.mark.parametrize("path", ["/versions/x", "/versions/-1", "/versions/", "/static/", "/static/../http.py"])
    def test_no_such_page(self, daemon: Daemon, path: str) -> None:
        assert ask(daemon, path).status == 404

    @pytest.mark.parametrize(("name", "kind"), [("page.css", "text/css"), ("page.js", "text/javascript")])
    def test_files_are_sent_once(self, daemon: Daemon, name: str, kind: str) -> None:
        answer = ask(daemon, f"/static/{name}")
        assert answer.headers["Content-Type"].startswith(kind)
        assert int(answer.headers["Content-Length"]) == len(answer.body)
        again = ask(daemon, f"/static/{name}", If_None_Match=answer.headers["ETag"])
        assert (again.status, again.body) == (304, b"")

    def test_the_script_is_short(self, daemon: Daemon) -> None:
        assert len(text(daemon, "/static/page.js").splitlines()) < 120

    def test_before_the_first_merge(self, past: History, tmp_path: Path) -> None:
        with Daemon(tmp_path / "fresh", past.base) as daemon:
            page = text(daemon)
            assert "Nothing has been merged yet" in page
            assert "foldin submit" in page
            assert "Once two checkpoints are merged" in page

    def test_pruned(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened("--keep-snapshots", "1", "--lease", "0").daemon
        wait_for(lambda: "no longer kept" in text(daemon, "/versions/1"), "v1 to be pruned")
        page = text(daemon, "/versions/1")
        assert "/resolve/" not in page
        assert "pruned" in text(daemon)

    def test_rolled_back(self, reopened: Callable[..., Wire]) -> None:
        wire = reopened()
        wire.rollback()
        assert "withdrawn" in text(wire.daemon, "/versions/4")
        assert 'id="head">v3<' in text(wire.daemon)

    def test_published_in_another_way(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        with daemon.client() as client:
            number = client.publish("scale:0.25", alias="candidate").version
        page = text(daemon, f"/versions/{number}")
        for words in (f'<a href="/versions/{VERSIONS}">', "published in another way", "candidate", "scale:0.25"):
            assert words in page
        assert f"republished</span> v{VERSIONS} as scale:0.25" in text(daemon)

    def test_what_the_gate_said(self, reopened: Callable[..., Wire]) -> None:
        answer = shlex.quote(json.dumps({"ACC": 0.87654, "<b>hostile": 1}))
        wire = reopened("--gate", f"echo {answer}; echo '<i>no</i>' >&2; exit $((FOLDIN_VERSION % 2))")
        daemon = wire.daemon
        assert '<th scope="col">Gate' not in text(daemon), "it was not asked so far"
        for number in (VERSIONS + 1, VERSIONS + 2):
            wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)
            verdict = "failed" if number % 2 else "passed"
            wait_for(lambda: f"gate-{verdict}" in text(daemon, f"/versions/{number}"), f"v{number} to be {verdict}")  # noqa: B023
        failed, passed = (text(daemon, f"/versions/{number}") for number in (VERSIONS + 1, VERSIONS + 2))
        assert "&lt;i&gt;no" in failed
        assert "0.8765" in passed
        assert "&lt;b&gt;hostile" in passed
        assert {"gate-failed", "gate-passed"} <= set(re.findall(r"gate-\w+", text(daemon)))
        assert not re.search("<b>hostile|<i>no", failed + passed + text(daemon))

    def test_many_versions(self, past: History, tmp_path: Path, start_daemon: Daemons) -> None:
        folder = past.copy(tmp_path / "state")
        with Database(folder / "ledger.sqlite") as database, database.transaction() as connection:
            columns = [row["name"] for row in connection.execute("PRAGMA table_info(versions)")]
            chosen = ", ".join({"version": "?", "state": "'PRUNED'"}.get(name, name) for name in columns)
            copy = f"INSERT INTO versions SELECT {chosen} FROM versions WHERE version = 1"
            connection.executemany(copy, [(number,) for number in range(VERSIONS + 1, 61)])
        daemon = start_daemon(folder, None)
        seen, path = [], "/"
        while path:
            page = text(daemon, path)
            seen.append([int(number) for number in re.findall(r'id="v(\d+)"', page)])
            path = next(iter(re.findall(r'href="(/\?before=\d+)"', page)), "")
        assert seen == [[*range(60, 35, -1)], [*range(35, 10, -1)], [*range(10, 0, -1)]]

    def test_a_token_is_asked_for(self, past: History, tmp_path: Path, start_daemon: Daemons) -> None:
        daemon = start_daemon(past.copy(tmp_path / "state"), None, environment={"FOLDIN_HTTP_TOKEN": "hf_secret"})
        for path in (*PAGES, "/events", "/static/page.js"):
            assert ask(daemon, path).status == 401, path
        assert ask(daemon, "/", Authorization="Bearer hf_secret").status == 200

    def test_downloads_are_counted(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        size = len(ask(daemon, f"{RESOLVE}/v2/{SINGLE}").body)
        ask(daemon, f"{RESOLVE}/v2/{SINGLE}", Range="bytes=0-99")
        ask(daemon, f"{RESOLVE}/v2/{SINGLE}", Range=f"bytes=100-{size - 1}")
        ask(daemon, f"{RESOLVE}/v2/config.json")
        wait_for(lambda: "<dt>Downloads</dt><dd>2</dd>" in text(daemon, "/versions/2"), "two downloads")
        assert "<dt>Downloads</dt><dd>0</dd>" in text(daemon, "/versions/3")

    def test_the_tables_of_a_page_have_names_of_their_own(self, daemon: Daemon) -> None:
        for path in ("/", "/versions/4"):
            page = ask(daemon, path).body.decode()
            for heading in ("versions", "files", "queue"):
                assert page.count(f'aria-labelledby="{heading}"') <= 1, (path, heading)


class TestStrangers:
    def test_what_they_write_stays_text(self, reopened: Callable[..., Wire]) -> None:
        wire = reopened()
        terms: dict[str, Any] = {"name": HOSTILE[:200], "labels": {"<b>who": "<img src=x onerror=alert(1)>"}}
        wire.settled(wire.upload({SINGLE: b"<i>no</i>"}, **terms).id)
        wire.settled(wire.upload(single(fine_tuned(base_tensors())), **terms).id)
        for path in ("/", f"/versions/{VERSIONS + 1}"):
            page = text(wire.daemon, path)
            assert "&lt;script&gt;alert(1)" in page, path
            for never in ("<script>alert", "<b>who", "<img", "<i>no", "49" + "x", "x" * 100):
                assert never not in page, (path, never)
        assert "&lt;img src=x" in text(wire.daemon, f"/versions/{VERSIONS + 1}")

    def test_what_is_not_to_be_seen_is_marked(self) -> None:
        assert cut("a\u202eb\x07c\nd  e") == "a\ufffdb\ufffdc d e"
        assert (len(cut("x" * 10**6)), cut("x" * 9, 8)) == (LONGEST, "xxxxxxx…")

    def test_marks_do_not_pile_up_over_other_lines(self) -> None:
        assert cut("a" + "\u0301" * 90 + "b") == "a" + "\u0301" * 4 + "b"
        assert cut("\u20dd" * 9) == "\u20dd" * 4
        for readable in ("\u05d1\u05bc\u05b0\u05e8\u05b5", "e\u0302\u0323", "\u0928\u092e\u0938\u094d\u0924\u0947"):
            assert cut(readable) == readable


class TestEvents:
    def test_tell_of_a_merge(self, reopened: Callable[..., Wire]) -> None:
        wire = reopened()
        daemon = wire.daemon
        with events(daemon) as stream, idle_worker(daemon):
            assert stream.headers["Content-Type"] == "text/event-stream"
            first = next_event(stream)
            assert {*first} == {"status", "queue", "timeline", "alike", "first", "said"}
            submission = wire.upload(single(fine_tuned(base_tensors())), name="live")
            wait_for(lambda: state(wire.get(submission.id)) == "MERGING", "the merge to begin")
            queue = ""
            while '"tag merging"' not in queue:
                queue = next_event(stream).get("queue", queue)
            assert "live" in queue
        with events(daemon) as stream:
            timeline = ""
            while 'id="v5"' not in timeline:
                timeline = next_event(stream).get("timeline", timeline)

    def test_are_what_the_page_says(self, daemon: Daemon) -> None:
        with events(daemon) as stream:
            first = next_event(stream)
        page = text(daemon)
        for name in ("timeline", "alike"):
            assert first[name].strip() in page

    def test_no_more_than_that_follow(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        with ExitStack() as stack:
            streams = [stack.enter_context(events(daemon)) for _ in range(64)]
            assert {stream.status for stream in streams} == {200}
            with events(daemon) as refused:
                assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
            assert ask(daemon, "/").status == 200

        def free() -> bool:
            with events(daemon) as stream:
                return stream.status == 200

        wait_for(free, "those who went to be forgotten", 20)

    def test_end_with_the_daemon(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        with events(daemon) as stream:
            next_event(stream)
            assert daemon.terminate(10) == 0
            stream.read()  # to an end that is one
        assert "Traceback" not in daemon.log.read_text()

    def test_one_who_does_not_read_holds_nothing(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        host, port = daemon.http.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"GET /events HTTP/1.1\r\nHost: foldin\r\n\r\n")
            with events(daemon) as stream:
                next_event(stream)
            assert daemon.terminate(15) == 0

    def test_only_to_be_got(self, daemon: Daemon) -> None:
        assert ask(daemon, "/events", method="HEAD").status == 405


def test_sizes_have_the_unit_they_round_to() -> None:
    sizes = (0, 999, 1000, 999_499, 999_500, 999_700_000, 10**9, 5 * 10**15)
    told = ["0 B", "999 B", "1 kB", "999 kB", "1 MB", "1 GB", "1 GB", "5 PB"]
    assert [in_units(count) for count in sizes] == told
