"""What is done between merges: letting go of what is no longer kept, and undoing the newest version.

Everything here blocks on the disk.
"""

import logging
import time
from contextlib import suppress

from foldind.config import ServeSettings
from foldind.errors import WrongState
from foldind.logs import about
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.records import Version
from foldind.state.recovery import point_latest, prune, remove_dropped
from foldind.state.versions import Versions

log = logging.getLogger(__name__)


def keep_house(folder: StateFolder, ledger: Ledger, versions: Versions, settings: ServeSettings) -> bool:
    """Bring the folder in line with the ledger, prune snapshots, give up uploads that went quiet.

    Returns:
      Whether a submission changed its state.

    Raises:
      StateError: another folder lies in its place.
      OSError: the disk fails.
    """
    changed = False
    folder.check_in_place()
    point_latest(folder, versions)
    remove_dropped(folder, ledger, versions)
    for number in prune(folder, versions, settings.keep_snapshots, settings.lease):
        log.info("pruned v%d", number)
    expired = time.time() - settings.upload_expiry
    for submission in ledger.receiving_since_before(expired):
        if folder.last_written(submission.id) > expired:
            continue
        with suppress(WrongState):  # it was completed this moment
            ledger.withdraw(submission.id, "the upload was not completed in time")
            changed = True
            about(log, submission.id).info("withdrawn, its upload was not completed in time")
    return changed


def undo_newest(number: int, folder: StateFolder, versions: Versions) -> tuple[Version, Version | None]:
    """Undo the newest version; no merge may be running.

    Args:
      number: of the version to undo, which must be the newest; 0 for whichever that is.
      folder: the state folder.
      versions: the versions.

    Returns:
      The version undone, and the newest one now.

    Raises:
      WrongState: that version cannot be undone (any more).
    """
    head = versions.head()
    if head is None:
        raise WrongState("nothing is merged", "there is nothing to undo")
    if number not in (0, head.version):
        raise WrongState(f"v{number} is not the newest version, v{head.version} is", "only the newest can be undone")
    if head.parent and not folder.accumulated(head.parent).is_dir():
        raise WrongState(
            f"the state of v{head.parent} is no longer kept", "only one version can be undone between two merges"
        )
    folder.check_in_place()
    versions.undo(head)
    point_latest(folder, versions)
    about(log, head.submission_id).info(
        "withdrawn, v%d was rolled back; the newest version is v%d", head.version, head.parent
    )
    return versions.get(head.version), versions.head()
