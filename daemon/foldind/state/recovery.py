"""Bringing the state folder in line with the ledger, at start and after every merge."""

import time
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan
from foldind.errors import FoldinError, StateError
from foldind.state.durable import REMOVED_SUFFIX, remove, replace_symlink
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.records import SubmissionState, VersionState
from foldind.state.versions import LATEST, Versions

NEEDS_BYTES = (SubmissionState.QUEUED, SubmissionState.MERGING, SubmissionState.QUARANTINED)


def recover(folder: StateFolder, ledger: Ledger, versions: Versions) -> None:
    """Remove what an interruption left, and refuse to go on if anything recorded is missing or anything is unknown.

    Raises:
      StateError: a person has to look; says at what, and what to do.
      OSError: the disk fails.
    """
    try:
        open_checkpoint(folder.base)
    except FoldinError as error:
        raise StateError(
            f"the base in {folder.base} is damaged or gone ({error.reason})", "restore the state folder from a backup"
        ) from error
    folder.make_folders()
    folder.discard_unrecorded(versions.last_number())
    folder.discard_half_copied()
    remove_dropped(folder, ledger, versions)
    if missing := missing_folders(folder, ledger, versions):
        raise StateError(
            f"the ledger records {missing[0]}, which is not there" + _and_more(missing),
            "restore the state folder from a backup; the daemon does not start without what it promised to keep",
        )
    if unknown := unknown_paths(folder, ledger, versions):
        raise StateError(
            f"the ledger does not know of {unknown[0]}" + _and_more(unknown), "move it out of the state folder"
        )
    point_latest(folder, versions)


def read_plan(folder: StateFolder) -> Plan:
    """Return the plan of the base. Raises StateError: its file is damaged or gone."""
    try:
        return Plan.from_json(folder.plan.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{folder.plan} is damaged or gone", "restore the state folder from a backup") from error


def remove_dropped(folder: StateFolder, ledger: Ledger, versions: Versions) -> None:
    """Delete bytes of settled submissions, files of pruned versions, and what was half removed. Raises OSError."""
    for place in (folder.submissions, folder.snapshots, folder.merge):
        for path in place.glob(f"*{REMOVED_SUFFIX}"):
            remove(path)
    for path in folder.submissions.iterdir():
        if ledger.bytes_kept(path.name) is False:
            remove(path)
    for number in folder.snapshot_versions():
        if versions.find(number, VersionState.PRUNED):
            remove(folder.snapshot(number))


def prune(folder: StateFolder, versions: Versions, keep: int, lease: float) -> list[int]:
    """Delete the snapshots that the retention policy lets go, and return their numbers.

    Args:
      folder: the state folder.
      versions: the versions.
      keep: how many of the newest stay.
      lease: seconds that a superseded snapshot stays at the least.

    Raises:
      OSError: the disk fails; the rest is deleted at the next start.
    """
    numbers = versions.prune(keep, time.time() - lease)
    for number in numbers:
        remove(folder.snapshot(number))
    return numbers


def point_latest(folder: StateFolder, versions: Versions) -> None:
    """Point snapshots/latest where the ledger says. Raises OSError."""
    link = folder.snapshots / LATEST
    if head := versions.head():
        replace_symlink(link, f"v{head.version}")
    else:
        remove(link)


def missing_folders(folder: StateFolder, ledger: Ledger, versions: Versions) -> list[Path]:
    """Return the folders that the ledger records and that are not there."""
    wanted = [
        folder.snapshot(version.version) for version in versions.all() if version.state is not VersionState.PRUNED
    ]
    if head := versions.head():
        wanted.append(folder.accumulated(head.version))
    wanted += [folder.submission(submission.id) for submission in ledger.all(*NEEDS_BYTES)]
    return [path for path in wanted if not path.is_dir()]


def unknown_paths(folder: StateFolder, ledger: Ledger, versions: Versions) -> list[Path]:
    """Return what lies in the state folder that the ledger does not know of."""
    known = {f"v{version.version}" for version in versions.all()}
    return [
        *(path for path in sorted(folder.merge.iterdir()) if path.name not in known),
        *(path for path in sorted(folder.snapshots.iterdir()) if path.name not in known | {LATEST}),
        *(path for path in sorted(folder.submissions.iterdir()) if ledger.bytes_kept(path.name) is None),
    ]


def _and_more(paths: list[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
