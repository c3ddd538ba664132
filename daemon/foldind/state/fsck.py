"""Checking a state folder: every digest, and the ledger against the disk."""

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.config import read_configuration
from foldind.errors import FoldinError
from foldind.state.bases import KeptBases, bases_key
from foldind.state.creation import digest_base
from foldind.state.database import Database
from foldind.state.durable import TEMPORARY_SUFFIX, FileDigest
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.records import SubmissionState, Version, VersionState
from foldind.state.recovery import NEEDS_BYTES, missing_folders, unknown_paths
from foldind.state.snapshots import MANIFEST
from foldind.state.verification import altered_files
from foldind.state.versions import Versions


def check_state(root: Path, report: Callable[[str], None]) -> list[str]:
    """Return everything that is wrong with a state folder that no daemon serves; an empty list if nothing is.

    What an interruption leaves and the next start removes is not wrong.

    Args:
      root: the state folder.
      report: told what is being checked.

    Raises:
      StateError: it is no state folder, or in use.
      OSError: it cannot be read.
    """
    folder = StateFolder(root)
    configuration = read_configuration(folder.configuration)
    with folder, Database(folder.ledger) as database:
        ledger, versions = Ledger(database), Versions(database)
        report("the ledger")
        findings = [f"ledger.sqlite: {finding}" for finding in database.check()]
        findings += [
            f"{path}: the ledger records it, and it is not there" for path in missing_folders(folder, ledger, versions)
        ]
        report("the base")
        findings += _check_base(folder, configuration.base_digest, configuration.merge.summed)
        left_over = {f"v{versions.last_number() + 1}"}
        for path in unknown_paths(folder, ledger, versions):
            if path.name not in left_over and not path.name.endswith(TEMPORARY_SUFFIX):
                findings.append(f"{path}: the ledger does not know of it")
        if head := versions.head():
            report("the bases")
            key = bases_key(head.state_files, configuration.merge)
            damaged = KeptBases(folder.bases).damaged(key)
            findings += [f"{path}: it is damaged; the next start computes it again" for path in damaged]
        for version in versions.all():
            report(f"v{version.version}")
            findings += _check_version(folder, version)
        merged = ledger.all(SubmissionState.MERGED)
        findings += _check_lineage(versions, {submission.id for submission in ledger.all() if submission.takes_out})
        for submission in ledger.all(*NEEDS_BYTES):
            report(f"submission {submission.id}")
            findings += altered_files(folder.submission(submission.id), submission.files)
        holders = {version.version: version for version in versions.all()}
        for submission in merged:
            holder = holders.get(submission.version)
            if holder is None or holder.submission_id != submission.id:
                findings.append(f"submission {submission.id}: MERGED, and in no version")
        taken_out = {submission.took_out for submission in merged}
        for version in holders.values():
            if version.state is not VersionState.WITHDRAWN and version.submission_id not in taken_out:
                state = ledger.get(version.submission_id).state
                if state is not SubmissionState.MERGED and not (
                    version.state is VersionState.PRUNED and state is SubmissionState.WITHDRAWN
                ):
                    findings.append(f"v{version.version}: its submission {version.submission_id} is {state}")
    return findings


def _check_base(folder: StateFolder, digest: str, summed: tuple[str, ...]) -> Iterator[str]:
    try:
        if digest_base(folder.base) != digest:
            yield f"{folder.base}: its digest is not the one in foldin.toml"
        if make_plan(open_checkpoint(folder.base), summed) != Plan.from_json(folder.plan.read_bytes()):
            yield f"{folder.plan}: it is not the plan of the base"
    except (FoldinError, OSError, ValueError, KeyError) as error:
        yield f"{folder.base}: {error}"


def _check_version(folder: StateFolder, version: Version) -> Iterator[str]:
    if (accumulated := folder.accumulated(version.version)).is_dir():
        yield from altered_files(accumulated, version.state_files)
    snapshot = folder.snapshot(version.version)
    if version.state is VersionState.PRUNED or not snapshot.is_dir():
        return
    yield from altered_files(snapshot, version.files)
    folders = {str(Path(name).parent) for name in version.files}
    for path in sorted(snapshot.rglob("*")):
        name = str(path.relative_to(snapshot))
        if name not in version.files and not (name in folders and path.is_dir() and not path.is_symlink()):
            yield f"{path}: it is no part of the snapshot"
    try:
        manifest = json.loads((snapshot / MANIFEST).read_bytes())
        told = {name: FileDigest(entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        if told != {name: digest for name, digest in version.files.items() if name != MANIFEST}:
            yield f"{snapshot / MANIFEST}: its digests are not those of the ledger"
        if manifest["version"] != version.version or manifest["lambda"] != version.lambda_:
            yield f"{snapshot / MANIFEST}: it is not the manifest of v{version.version}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{snapshot / MANIFEST}: {error}"


def _check_lineage(versions: Versions, taking_out: Collection[str]) -> Iterator[str]:
    known = {version.version: version for version in versions.all()}
    head = versions.head()
    for version in known.values():
        parent = known.get(version.parent)
        if version.parent and (parent is None or parent.version >= version.version):
            yield f"v{version.version}: its parent v{version.parent} is no earlier version"
        else:
            change, wanted = 1, "one submission more than its parent"
            if version.variant:
                change, wanted = 0, "what its parent does"
            elif version.submission_id in taking_out:
                change, wanted = -1, "one submission less than its parent"
            if version.submissions != (parent.submissions if parent else 0) + change:
                yield f"v{version.version}: it does not hold {wanted}"
    if head and head.state is VersionState.WITHDRAWN:
        yield f"v{head.version}: `latest` names it, and it was withdrawn"
    for version in known.values():
        newest = head.version if head else 0
        if (
            version.state is VersionState.PUBLISHED
            and (version.parent if version.variant else version.version) > newest
        ):
            yield f"v{version.version}: it is newer than what `latest` names"
