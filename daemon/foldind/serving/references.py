"""The names by which people and programs ask for a version: its number, its commit id, or an alias."""

import re

from foldind.errors import Forbidden, InvalidRequest, NotFound
from foldind.state.records import Version
from foldind.state.versions import LATEST, Versions

MAIN = "main"
"""What clients of the Hugging Face Hub call `latest`."""

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"v?([0-9]{1,18})")


def resolve(versions: Versions, ref: str) -> Version:
    """Return the version that something names.

    Args:
      versions: of the ledger.
      ref: "v12", a commit id of 40 hexadecimal digits, an alias, or `main` for `latest`.

    Raises:
      NotFound: there is none.
      InvalidRequest: it cannot be a name.
    """
    if match := _VERSION.fullmatch(ref):
        return versions.get(int(match[1]))
    if _COMMIT.fullmatch(ref):
        if version := versions.of_commit(ref):
            return version
        raise NotFound(f"there is no version with the commit id {ref}", "see `foldin snapshots`")
    name = alias(ref)
    if version := versions.aliased(name):
        return version
    if name == LATEST:
        raise NotFound("nothing has been merged yet", "submit a checkpoint first")
    raise NotFound(f"there is no alias {ref!r}", "see `foldin snapshots`")


def alias(name: str) -> str:
    """Return the alias that a name stands for. Raises InvalidRequest."""
    if not _ALIAS.fullmatch(name) or _VERSION.fullmatch(name) or _COMMIT.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} cannot be an alias",
            "aliases are up to 100 lower-case letters, digits, '.', '_' and '-', and do not read as a version",
        )
    return LATEST if name == MAIN else name


def movable_alias(name: str) -> str:
    """Return the name of an alias that people may move. Raises InvalidRequest or Forbidden."""
    if alias(name) == LATEST:
        raise Forbidden(f"`{name}` always names the newest version", "choose another alias, say `stable`")
    return name
