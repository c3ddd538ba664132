"""The merged model as a repository of the Hugging Face Hub, to be read only: what clients ask of it with HF_ENDPOINT.

Every version is a commit. The newest is the branch `main`, each alias is a branch and each version that is kept a tag.
Sizes and digests are the ledger's: nothing is hashed for a request. A name that moves is answered with the commit that
it names now: clients go on by that, and what they put together is of one version.
"""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from aiohttp import hdrs
from aiohttp.web import (
    AbstractRouteDef,
    HTTPBadRequest,
    HTTPNotFound,
    Request,
    Response,
    StreamResponse,
    get,
    json_response,
    post,
)

from foldind.errors import FoldinError
from foldind.metrics import Metrics
from foldind.serving.delivery import SealedFile, send_file
from foldind.serving.downloads import Downloads
from foldind.serving.references import MAIN, resolve
from foldind.state.durable import FileDigest
from foldind.state.folder import StateFolder
from foldind.state.records import Version, VersionState
from foldind.state.versions import LATEST, Versions

COMMITS_SHOWN = 1000
_LONG_LIVED = "private, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_REPOSITORY = "{owner}/{name}"


class Hub:
    """A repository with one model.

    Args:
      folder: where the snapshots lie.
      versions: of the ledger.
      model_id: OWNER/NAME.
      metrics: where bytes are counted.
      downloads: where whole files are counted.
    """

    def __init__(self, folder: StateFolder, versions: Versions, model_id: str, metrics: Metrics, downloads: Downloads):
        self._folder = folder
        self._versions = versions
        self.model_id = model_id
        """OWNER/NAME."""
        self._metrics = metrics
        self._downloads = downloads

    def routes(self) -> list[AbstractRouteDef]:
        """Return what it answers."""
        api = f"/api/models/{_REPOSITORY}"
        answers = {
            api: self._info,
            f"{api}/revision/{{revision}}": self._info,
            f"{api}/tree/{{revision}}": self._tree,
            f"{api}/tree/{{revision}}/{{path:.*}}": self._tree,
            f"{api}/refs": self._refs,
            f"{api}/commits/{{revision}}": self._commits,
            f"/{_REPOSITORY}/resolve/{{revision}}/{{path:.+}}": self._file,
        }
        routes = [get(path, answer) for path, answer in answers.items()]
        return [*routes, post(f"{api}/paths-info/{{revision}}", self._paths_info)]

    async def _info(self, request: Request) -> Response:
        version = await self._version(request)
        blobs = _is_set(request.query.get("blobs", ""))
        return json_response(
            {
                "_id": version.commit_id[:24],
                "id": self.model_id,
                "modelId": self.model_id,
                "author": self.model_id.partition("/")[0],
                "sha": version.commit_id,
                "lastModified": _moment(version.created_at),
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "library_name": "transformers",
                "tags": ["transformers", "safetensors", "merge"],
                "siblings": [
                    {"rfilename": name, **({"blobId": _blob_id(digest), **_blob(digest)} if blobs else {})}
                    for name, digest in version.files.items()
                ],
            }
        )

    async def _tree(self, request: Request) -> Response:
        version = await self._version(request)
        folder = PurePosixPath(request.match_info.get("path", "").strip("/"))
        items = {item["path"]: item for item in _items(version, _is_set(request.query.get("expand", "")))}
        root = folder == PurePosixPath()
        if not root and items.get(str(folder), {"type": "file"})["type"] == "file":
            raise _not_found("EntryNotFound", f"v{version.version} has no folder {str(folder)!r}", version.commit_id)
        inside = [path for path in items if folder in PurePosixPath(path).parents]
        if not _is_set(request.query.get("recursive", "")):
            inside = [path for path in inside if PurePosixPath(path).parent == folder]
        return json_response([items[path] for path in inside], headers={"X-Repo-Commit": version.commit_id})

    async def _paths_info(self, request: Request) -> Response:
        version = await self._version(request)
        try:
            asked: Any = await request.json() if request.content_type == "application/json" else await request.post()
            paths = asked["paths"] if isinstance(asked, dict) else asked.getall("paths", [])
            wanted = {path.strip("/") for path in paths}
            expand = _is_set(str(asked.get("expand", "")))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise HTTPBadRequest(text="send the fields `paths` and `expand`, as a form or as JSON\n") from None
        found = [item for item in _items(version, expand) if item["path"] in wanted]
        return json_response(found, headers={"X-Repo-Commit": version.commit_id})

    async def _refs(self, request: Request) -> Response:
        self._require_model(request)
        kept = await asyncio.to_thread(self._versions.kept)
        branches = {
            MAIN if alias == LATEST else alias: version.commit_id for version in kept for alias in version.aliases
        }
        tags = {f"v{version.version}": version.commit_id for version in kept}
        return json_response(
            {
                "branches": _refs("refs/heads", branches),
                "tags": _refs("refs/tags", tags),
                "converts": [],
                "pullRequests": [],
            }
        )

    async def _commits(self, request: Request) -> Response:
        version = await self._version(request)
        lineage = await asyncio.to_thread(self._versions.lineage, version.version, COMMITS_SHOWN)
        return json_response(
            [
                {
                    "id": ancestor.commit_id,
                    "title": _title(ancestor),
                    "message": "",
                    "date": _moment(ancestor.created_at),
                    "authors": [{"user": "foldin"}],
                }
                for ancestor in lineage
            ]
        )

    async def _file(self, request: Request) -> StreamResponse:
        version = await self._version(request)
        while True:
            try:
                return await self._send(request, version)
            except FileNotFoundError:  # pruned a moment ago: a name that moves names another one by now
                before, version = version, await self._version(request)
                if version.version == before.version:
                    raise _gone(version) from None

    async def _send(self, request: Request, version: Version) -> StreamResponse:
        name, commit_id = request.match_info["path"], version.commit_id
        if name not in version.files:
            raise _not_found("EntryNotFound", f"v{version.version} has no file {name!r}", commit_id)
        digest = version.files[name]
        pinned = request.match_info["revision"] == commit_id
        headers = {"X-Repo-Commit": commit_id, hdrs.CACHE_CONTROL: _LONG_LIVED if pinned else _ASK_AGAIN}
        if request.method == hdrs.METH_HEAD and not pinned:
            # Clients ask for the digest of a file first, and then for its bytes: where this led them.
            headers[hdrs.LOCATION] = f"/{self.model_id}/resolve/{commit_id}/{quote(name)}"
            return Response(status=307, headers=headers)
        file = SealedFile(self._folder.snapshot(version.version) / name, digest.size, digest.sha256)

        def count(sent: int, to_the_end: bool) -> None:
            self._metrics.sent.inc(sent)
            if to_the_end:
                self._downloads.count(version.version, name)

        return await send_file(request, file, headers, count)

    async def _version(self, request: Request) -> Version:
        self._require_model(request)
        try:
            version = await asyncio.to_thread(resolve, self._versions, request.match_info.get("revision", MAIN))
        except FoldinError as error:
            raise _not_found("RevisionNotFound", str(error)) from error
        if version.state is VersionState.PRUNED:
            raise _gone(version)
        return version

    def _require_model(self, request: Request) -> None:
        if (asked := "{owner}/{name}".format_map(request.match_info)) != self.model_id:
            raise _not_found("RepoNotFound", f"there is no model {asked!r} here, but {self.model_id}")


def _gone(version: Version) -> HTTPNotFound:
    return _not_found("RevisionNotFound", f"the files of v{version.version} are no longer kept; ask for a newer one")


def _not_found(code: str, sentence: str, commit_id: str = "") -> HTTPNotFound:
    """What clients of the Hub take for one of its errors; one about a file names the commit that lacks it."""
    headers = {"X-Error-Code": code, "X-Error-Message": re.sub(r"[^ -~]", "?", sentence)}
    if commit_id:
        headers["X-Repo-Commit"] = commit_id
    return HTTPNotFound(headers=headers, text=json.dumps({"error": sentence}), content_type="application/json")


def _items(version: Version, expand: bool) -> Iterable[dict[str, Any]]:
    """Files and folders of a version as the Hub lists them."""
    last_commit = {"id": version.commit_id, "title": _title(version), "date": _moment(version.created_at)}
    expanded = {"lastCommit": last_commit} if expand else {}
    folders = {str(PurePosixPath(name).parent) for name in version.files if "/" in name}
    for folder in sorted(folders):
        yield {"type": "directory", "path": folder, "size": 0, "oid": version.commit_id, **expanded}
    for name, digest in version.files.items():
        yield {"type": "file", "path": name, "oid": _blob_id(digest), **_blob(digest), **expanded}


def _blob(digest: FileDigest) -> dict[str, Any]:
    """A file as one of large-file storage, whose digest clients name it by in their cache, and check."""
    lfs = {"oid": digest.sha256, "sha256": digest.sha256, "size": digest.size, "pointerSize": 134}
    return {"size": digest.size, "lfs": lfs}


def _blob_id(digest: FileDigest) -> str:
    return digest.sha256[:40]


def _refs(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"{kind}/{name}", "targetCommit": commit} for name, commit in named.items()]


def _title(version: Version) -> str:
    return f"v{version.version}: {version.change or version.submission_id}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_set(value: str) -> bool:
    return value.lower() in ("1", "true")
