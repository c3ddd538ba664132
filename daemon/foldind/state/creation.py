"""Making a state folder from a base."""

import errno
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from foldind.checkpoints.checkpoint import Checkpoint, open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.config import MergeSettings
from foldind.errors import StateError
from foldind.state.configuration import configuration_text
from foldind.state.database import Database
from foldind.state.durable import TEMPORARY_SUFFIX, FileDigest, copy_file, digest_file, remove, seal, sync, write_file
from foldind.state.folder import StateFolder
from foldind.state.snapshots import companion_files


def create_state(base: Path, root: Path, merge: MergeSettings, report: Callable[[str], None]) -> Plan:
    """Make a state folder with its own copy of the base; it appears whole or not at all.

    Args:
      base: folder of the base, a Hugging Face model folder.
      root: where the state folder is to be; may exist if it is empty.
      merge: what decides the bytes of a merge.
      report: told what is being done.

    Raises:
      CheckpointRefused: the base is no checkpoint.
      StateError: there is something at `root`, or the base has nothing to merge.
      OSError: it cannot be read or written.
    """
    root = root.absolute()
    checkpoint = check_places(base, root)
    report("reading the base")
    plan = make_plan(checkpoint, merge.summed)
    if not plan.folded:
        raise StateError(f"{base} has no tensor that could be merged", "check that it is the base model")
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = StateFolder(root.with_name(f".{root.name}{TEMPORARY_SUFFIX}"))
    remove(temporary.root)
    temporary.root.mkdir()
    try:
        temporary.base.mkdir()
        weights = {}
        for name in checkpoint.files:
            report(f"copying {name}")
            weights[name] = copy_file(base / name, temporary.base / name)
        for path in companion_files(base):
            weights[path.name] = copy_file(path, temporary.base / path.name)
        sync(temporary.base)
        temporary.make_folders()
        write_file(temporary.plan, plan.to_json().encode())
        write_file(temporary.configuration, configuration_text(base_digest(weights), merge).encode())
        with Database(temporary.ledger, create=True):
            pass
        try:
            seal(temporary.root, root)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise StateError(f"{root} is a mount point, and cannot be replaced", "name a folder inside it") from error
    finally:
        remove(temporary.root)
    return plan


def check_places(base: Path, root: Path) -> Checkpoint:
    """Check that there is a base, and nothing where its state folder is to be; return the base. Raises as above."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise StateError(f"{root} exists and is not empty", "choose another folder, or remove it")
    return open_checkpoint(base)


def base_digest(files: Mapping[str, FileDigest]) -> str:
    """Return the digest of a base from those of its files."""
    listed = [[name, *digest] for name, digest in sorted(files.items())]
    return sha256(json.dumps(listed).encode()).hexdigest()


def digest_base(folder: Path, before_block: Callable[[], None] = lambda: None) -> str:
    """Return the digest of the base in a folder, read anew; raises CheckpointRefused, OSError.

    `before_block` is called every few megabytes.
    """
    names = [*open_checkpoint(folder).files, *(path.name for path in companion_files(folder))]
    return base_digest({name: digest_file(folder / name, before_block) for name in names})
