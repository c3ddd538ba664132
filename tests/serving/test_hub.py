"""The merged model as a repository of the Hugging Face Hub, on the wire; the real clients are in tests/end_to_end."""

import base64
import json
import socket
from collections.abc import Callable
from hashlib import sha256
from http.client import HTTPMessage, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pytest
from foldin import InvalidArgument, PermissionDenied
from grpc import StatusCode

from tests.support.daemon import Daemon, foldind, wait_for
from tests.support.history import VERSIONS, History
from tests.support.wire import SINGLE, Wire, refused

API = "/api/models/foldin/merged"
RESOLVE = "/foldin/merged/resolve"


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        return None


def ask(daemon: Daemon, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """One request; redirects are not followed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response: HTTPResponse | HTTPError
    try:
        response = build_opener(_NoRedirects).open(Request(daemon.http + path, body, named, method=method), timeout=30)
    except HTTPError as error:
        response = error
    with response:
        assert response.status is not None
        return Answer(response.status, response.headers, response.read())


def answered(daemon: Daemon, request: bytes, *headers: bytes) -> tuple[int, bytes]:
    """The status of the answer to what urllib would not send, and all of its bytes."""
    host, port = daemon.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"\r\n".join((request + b" HTTP/1.1", b"Connection: close", *headers, b"\r\n")))
        everything = answer.read()
    return int(everything.split()[1]), everything


def commit(daemon: Daemon, version: int) -> str:
    """What the commit id of a version is defined as."""
    manifest = (daemon.state / "snapshots" / f"v{version}" / "foldin.json").read_bytes()
    return sha256(manifest).hexdigest()[:40]


def content(daemon: Daemon, version: int, name: str = SINGLE) -> bytes:
    return (daemon.state / "snapshots" / f"v{version}" / name).read_bytes()


class TestRevisions:
    @pytest.mark.parametrize(
        ("revision", "version"), [("main", 4), ("latest", 4), ("v4", 4), ("v1", 1), ("2", 2), ("{commit}", 3)]
    )
    def test_of_every_kind(self, daemon: Daemon, revision: str, version: int) -> None:
        revision = revision.format(commit=commit(daemon, 3))
        info = ask(daemon, f"{API}/revision/{revision}").json
        assert (info["id"], info["sha"]) == ("foldin/merged", commit(daemon, version))
        answer = ask(daemon, f"{RESOLVE}/{revision}/{SINGLE}")
        assert answer.body == content(daemon, version)
        assert answer.headers["X-Repo-Commit"] == commit(daemon, version)

    def test_none_is_main(self, daemon: Daemon) -> None:
        assert ask(daemon, API).json["sha"] == commit(daemon, VERSIONS)

    @pytest.mark.parametrize("revision", ["v5", "stable", "0" * 40, "refs%2Fpr%2F1", "%20", "v4%2F..%2Fv1", "%00"])
    def test_none_such(self, daemon: Daemon, revision: str) -> None:
        for path in (f"{API}/revision/{revision}", f"{API}/tree/{revision}", f"{RESOLVE}/{revision}/config.json"):
            answer = ask(daemon, path)
            assert (answer.status, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")
            assert answer.json["error"]
            assert answer.headers["X-Error-Message"].isprintable()

    def test_before_the_first_merge(self, past: History, tmp_path: Path) -> None:
        with Daemon(tmp_path / "fresh", past.base) as daemon:
            answer = ask(daemon, f"{API}/revision/main")
            assert (answer.status, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")
            assert "nothing has been merged yet" in answer.json["error"]
            assert ask(daemon, f"{API}/refs").json["branches"] == []

    def test_what_is_no_longer_kept(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened("--keep-snapshots", "1", "--lease", "0").daemon
        wait_for(lambda: ask(daemon, f"{API}/revision/v1").status == 404, "v1 to be pruned")
        answer = ask(daemon, f"{RESOLVE}/v1/{SINGLE}")
        assert answer.headers["X-Error-Code"] == "RevisionNotFound"
        assert "no longer kept" in answer.json["error"]
        assert {tag["name"] for tag in ask(daemon, f"{API}/refs").json["tags"]} == {"v3", "v4"}

    def test_other_repositories(self, daemon: Daemon) -> None:
        for path in ("/api/models/foldin/other", "/api/models/foldin/other/refs", "/a/b/resolve/main/config.json"):
            answer = ask(daemon, path)
            assert (answer.status, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")

    def test_a_name_of_ones_own(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened("--model-id", "acme/all-tasks").daemon
        assert ask(daemon, "/api/models/acme/all-tasks").json["id"] == "acme/all-tasks"
        assert ask(daemon, "/acme/all-tasks/resolve/v1/config.json").status == 200
        assert ask(daemon, API).status == 404

    @pytest.mark.parametrize("model_id", ["merged", "a/b/c", "a/b c", "/b", "ä/b", "a/..", "../b"])
    def test_a_name_that_cannot_be(self, past: History, tmp_path: Path, model_id: str) -> None:
        state = past.copy(tmp_path / "state")
        ended = foldind("serve", "--state", str(state), "--model-id", model_id, check=False)
        assert ended.returncode == 1
        assert "is not OWNER/NAME" in ended.stderr

    def test_as_references_of_the_contract(self, wire: Wire) -> None:
        assert wire.snapshot("main").version == VERSIONS
        assert wire.snapshot(commit(wire.daemon, 2)).version == 2
        with refused(StatusCode.NOT_FOUND, "commit id"):
            wire.snapshot("f" * 40)

    def test_not_as_aliases(self, daemon: Daemon) -> None:
        with daemon.client() as client:
            with pytest.raises(PermissionDenied, match="`main` always names the newest"):
                client.set_alias("main", 1)
            with pytest.raises(InvalidArgument):
                client.set_alias("f" * 40, 1)


class TestListings:
    def test_info(self, daemon: Daemon) -> None:
        info = ask(daemon, f"{API}?blobs=true").json
        assert {sibling["rfilename"]: sibling["lfs"]["sha256"] for sibling in info["siblings"]} == {
            path.name: sha256(path.read_bytes()).hexdigest() for path in (daemon.state / "snapshots" / "v4").iterdir()
        }
        assert "lfs" not in ask(daemon, API).json["siblings"][0]

    def test_refs(self, reopened: Callable[..., Wire]) -> None:
        wire = reopened()
        wire.point("stable", 2)
        refs = ask(wire.daemon, f"{API}/refs").json
        commits = {number: commit(wire.daemon, number) for number in range(1, VERSIONS + 1)}
        assert refs["branches"] == [
            {"name": "stable", "ref": "refs/heads/stable", "targetCommit": commits[2]},
            {"name": "main", "ref": "refs/heads/main", "targetCommit": commits[4]},
        ]
        assert {tag["name"]: tag["targetCommit"] for tag in refs["tags"]} == {
            f"v{number}": commits[number] for number in commits
        }
        assert ask(wire.daemon, f"{RESOLVE}/stable/{SINGLE}").body == content(wire.daemon, 2)

    def test_commits(self, daemon: Daemon) -> None:
        commits = ask(daemon, f"{API}/commits/v3").json
        assert [found["id"] for found in commits] == [commit(daemon, number) for number in (3, 2, 1)]
        assert commits[0]["title"] == "v3: task3"

    def test_tree(self, daemon: Daemon) -> None:
        tree = ask(daemon, f"{API}/tree/v2?recursive=true&expand=true").json
        assert {item["path"]: (item["size"], item["lfs"]["oid"]) for item in tree} == {
            path.name: (path.stat().st_size, sha256(path.read_bytes()).hexdigest())
            for path in (daemon.state / "snapshots" / "v2").iterdir()
        }
        assert tree[0]["lastCommit"]["id"] == commit(daemon, 2)
        answer = ask(daemon, f"{API}/tree/v2/nowhere")
        assert (answer.status, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")

    def test_folders(self, reopened: Callable[..., Wire]) -> None:
        wire = reopened("--publish", "model", "--publish", "adapter")
        with wire.daemon.client() as client:
            client.publish("norm", alias="both")
        top = {item["path"]: item["type"] for item in ask(wire.daemon, f"{API}/tree/both").json}
        assert (top["adapter"], top[SINGLE]) == ("directory", "file")
        assert not any(path.startswith("adapter/") for path in top)
        everything = {item["path"] for item in ask(wire.daemon, f"{API}/tree/both?recursive=1").json}
        inside = {item["path"] for item in ask(wire.daemon, f"{API}/tree/both/adapter").json}
        assert inside == {path for path in everything if path.startswith("adapter/")}
        assert "adapter/adapter_model.safetensors" in inside
        for path in inside:
            assert ask(wire.daemon, f"{RESOLVE}/both/{path}").status == 200

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("application/x-www-form-urlencoded", b"paths=config.json&paths=nowhere&expand=True"),
            ("application/json", b'{"paths": ["config.json", "nowhere"], "expand": true}'),
        ],
    )
    def test_paths_info(self, daemon: Daemon, kind: str, body: bytes) -> None:
        answer = ask(daemon, f"{API}/paths-info/v1", "POST", body, Content_Type=kind)
        assert [item["path"] for item in answer.json] == ["config.json"]
        assert answer.json[0]["lastCommit"]["title"] == "v1: task1"

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"{", b"3", b'{"paths": 3}', b'{"paths": [{}]}', b"\xff", pytest.param(b"[" * 10**5, id="deep")],
    )
    def test_paths_info_of_nonsense(self, daemon: Daemon, body: bytes) -> None:
        answer = ask(daemon, f"{API}/paths-info/v1", "POST", body, Content_Type="application/json")
        assert answer.status == 400 or answer.json == []


class TestFiles:
    def test_head_pins_a_name_that_moves(self, daemon: Daemon) -> None:
        answer = ask(daemon, f"{RESOLVE}/main/{SINGLE}", "HEAD")
        assert answer.status == 307
        assert answer.headers["Location"] == f"{RESOLVE}/{commit(daemon, 4)}/{SINGLE}"
        pinned = ask(daemon, answer.headers["Location"], "HEAD")
        digest = sha256(content(daemon, 4)).hexdigest()
        assert (pinned.status, pinned.headers["ETag"], pinned.body) == (200, f'"{digest}"', b"")
        assert int(pinned.headers["Content-Length"]) == len(content(daemon, 4))
        assert pinned.headers["Content-Encoding"] is None
        assert "immutable" in pinned.headers["Cache-Control"]

    @pytest.mark.parametrize(
        "name", ["nothing.bin", "..%2Fv1%2Fmodel.safetensors", "%2e%2e/foldin.toml", "model.safetensors/"]
    )
    def test_no_such_file(self, daemon: Daemon, name: str) -> None:
        for method in ("GET", "HEAD"):
            answer = ask(daemon, f"{RESOLVE}/v2/{name}", method)
            assert (answer.status, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
            assert answer.headers["X-Repo-Commit"] == commit(daemon, 2)

    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [
            ("0-0", 0, 1),
            ("5-99", 5, 100),
            ("100-", 100, None),
            ("-7", -7, None),
            ("0-", 0, None),
            ("0-99999999", 0, None),
        ],
    )
    def test_ranges(self, daemon: Daemon, asked: str, start: int, end: int | None) -> None:
        whole = content(daemon, 4)
        answer = ask(daemon, f"{RESOLVE}/v4/{SINGLE}", Range=f"bytes={asked}")
        assert (answer.status, answer.body) == (206, whole[start:end])
        first = len(whole) + start if start < 0 else start
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.body) - 1}/{len(whole)}"

    @pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=9-5", "bytes=-", "bytes=-0", "bytes=x-y"])
    def test_ranges_that_cannot_be(self, daemon: Daemon, asked: str) -> None:
        answer = ask(daemon, f"{RESOLVE}/v4/{SINGLE}", Range=asked)
        assert (answer.status, answer.body) == (416, b"416: Requested Range Not Satisfiable")
        assert answer.headers["Content-Range"] == f"bytes */{len(content(daemon, 4))}"

    @pytest.mark.parametrize("asked", ["bytes=0-5,7-9", "rows=0-5", "nonsense"])
    def test_ranges_that_are_none(self, daemon: Daemon, asked: str) -> None:
        answer = ask(daemon, f"{RESOLVE}/v4/{SINGLE}", Range=asked)
        assert (answer.status, answer.body) == (200, content(daemon, 4))

    def test_a_range_of_another_version_is_the_whole(self, daemon: Daemon) -> None:
        before = ask(daemon, f"{RESOLVE}/v3/{SINGLE}").headers["ETag"]
        answer = ask(daemon, f"{RESOLVE}/main/{SINGLE}", Range="bytes=5-9", If_Range=before)
        assert (answer.status, answer.body) == (200, content(daemon, 4))
        answer = ask(daemon, f"{RESOLVE}/main/{SINGLE}", Range="bytes=5-9", If_Range=answer.headers["ETag"])
        assert (answer.status, answer.body) == (206, content(daemon, 4)[5:10])

    def test_a_file_that_is_gone(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        (daemon.state / "snapshots" / "v4" / SINGLE).unlink()
        for revision in ("main", "v4", commit(daemon, 4)):
            answer = ask(daemon, f"{RESOLVE}/{revision}/{SINGLE}")
            assert (answer.status, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")

    def test_a_damaged_file_is_no_whole_answer(self, reopened: Callable[..., Wire]) -> None:
        daemon = reopened().daemon
        path = daemon.state / "snapshots" / "v4" / SINGLE
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(IncompleteRead):
            ask(daemon, f"{RESOLVE}/v4/{SINGLE}")
        assert "it ends after 5000 bytes" in daemon.log.read_text()
        assert ask(daemon, f"{RESOLVE}/v4/config.json").status == 200

    def test_what_the_client_has(self, daemon: Daemon) -> None:
        tag = ask(daemon, f"{RESOLVE}/v4/{SINGLE}").headers["ETag"]
        answer = ask(daemon, f"{RESOLVE}/v4/{SINGLE}", If_None_Match=tag)
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", tag)
        assert ask(daemon, f"{RESOLVE}/v3/{SINGLE}", If_None_Match=tag).status == 200


class TestToken:
    @pytest.fixture
    def guarded(self, past: History, tmp_path: Path) -> Any:
        environment = {"FOLDIN_HTTP_TOKEN": "hf_secret"}
        with Daemon(past.copy(tmp_path / "state"), None, environment=environment) as daemon:
            yield daemon

    def test_it_is_asked_for(self, guarded: Daemon) -> None:
        basic = base64.b64encode(b"anyone:hf_secret").decode()
        for wrong in ("", "Bearer", "Bearer wrong", "Basic hf_secret", "Basic %%%", "Bearer hf_secret2", "hf_secret"):
            for path in (API, f"{RESOLVE}/main/{SINGLE}"):
                answer = ask(guarded, path, **({"Authorization": wrong} if wrong else {}))
                assert answer.status == 401
                assert "HF_TOKEN" in answer.headers["X-Error-Message"]
        for anything in (b"Bearer \xff", b"Basic \xff", b"Basic " + base64.b64encode(b"anyone:\xff"), b"\xff"):
            assert answered(guarded, b"GET /", b"Host: foldin", b"Authorization: " + anything)[0] == 401
        for right in ("Bearer hf_secret", "bearer hf_secret", f"Basic {basic}"):
            assert ask(guarded, f"{RESOLVE}/main/{SINGLE}", Authorization=right).body == content(guarded, 4)
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert ask(guarded, probe).status in (200, 503)
        assert "hf_secret" not in guarded.log.read_text()
