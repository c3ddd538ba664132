"""Where a kill struck: read off what it left behind."""

from pathlib import Path

from foldind.intake.uploads import RECEIVED_SUFFIX
from foldind.state.durable import TEMPORARY_SUFFIX
from foldind.state.records import Submission, SubmissionState, VersionState

from tests.faults.evidence import LedgerContent, read_ledger
from tests.faults.processes import WORKER_READY

_TOLD = {
    "publishing tensor": "publishing",
    "folding tensor": "folding",
    " into v": "taken up",
    ": merged in": "merged or idle",
    "pruned v": "merged or idle",
    WORKER_READY: "ready",
}


def intake_stage(state: Path) -> str:
    """Return what was being received."""
    receiving = [one for one in read_ledger(state).submissions if one.state is SubmissionState.RECEIVING]
    return _receiving(state, receiving[0]) if receiving else "nothing on its way"


def merge_stage(state: Path, log: str) -> str:
    """Return what the loop was doing.

    Args:
      state: the state folder.
      log: what the daemon logged since it was started.
    """
    content = read_ledger(state)
    if " serving " not in log:
        return "starting"
    return _merging(state, content) or _keeping_house(state, content) or _waiting(content, log)


def last_stage(log: str) -> str:
    """Return what the loop told last, of a daemon that runs."""
    for line in reversed(log.splitlines()):
        for text, stage in _TOLD.items():
            if text in line:
                return stage
    return "starting"


def _receiving(state: Path, submission: Submission) -> str:
    folder = state / "submissions" / submission.id
    if not folder.is_dir():
        return "row created"
    received = b""
    for name, digest in submission.files.items():
        map_path = folder / (name + RECEIVED_SUFFIX)
        if not map_path.is_file() or (folder / name).stat().st_size != digest.size:
            return "files being made"
        received += map_path.read_bytes()
    if not any(received):
        return "files made"
    return "all chunks there" if all(received) else "some chunks there"


def _merging(state: Path, content: LedgerContent) -> str:
    last = content.versions[-1].version if content.versions else 0
    if (state / "snapshots" / f"v{last + 1}").exists():
        return "both sealed, not recorded"
    if (state / "merge" / f"v{last + 1}").exists():
        return "state sealed"
    if not any(one.state is SubmissionState.MERGING for one in content.submissions):
        return ""
    snapshots = list((state / "snapshots").glob(f"v*{TEMPORARY_SUFFIX}"))
    if any((path / "foldin.json").exists() for path in snapshots):
        return "snapshot complete"
    if any((path / "model.safetensors").exists() for path in snapshots):
        return "publishing"
    if any((path / "accumulated.safetensors").exists() for path in (state / "merge").glob(f"v*{TEMPORARY_SUFFIX}")):
        return "folding"
    return "folders made" if snapshots else "taken up"


def _keeping_house(state: Path, content: LedgerContent) -> str:
    if not content.versions:
        return ""
    link = state / "snapshots" / "latest"
    if not link.is_symlink() or str(link.readlink()) != f"v{content.latest}":
        return "recorded, latest not yet pointed"
    if any(not one.bytes_kept and (state / "submissions" / one.id).exists() for one in content.submissions):
        return "merged, bytes still there"
    gone = [one.version for one in content.versions if one.state is VersionState.PRUNED]
    if any((state / "snapshots" / f"v{version}").exists() for version in gone):
        return "pruned, files still there"
    return ""


def _waiting(content: LedgerContent, log: str) -> str:
    if WORKER_READY not in log:
        return "worker starting"
    queued = any(one.state is SubmissionState.QUEUED for one in content.submissions)
    return "queued, not yet taken up" if queued else "idle"
