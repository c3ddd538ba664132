"""The tasks: a name and a fine-tuned checkpoint each."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from foldind.checkpoints.checkpoint import STATISTICS, Checkpoint, open_checkpoint
from foldind.checkpoints.form import Form, form_of
from foldind.checkpoints.match import check_against_plan, submission_limits
from foldind.checkpoints.plan import Plan
from foldind.checkpoints.statistics import Kind, check_statistics
from foldind.errors import CheckpointRefused, FoldinError, InvalidRequest
from foldind.intake.local import find_checkpoint
from foldind.state.creation import base_digest
from foldind.state.durable import digest_file
from foldind.state.snapshots import companion_files

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Task:
    """A checkpoint that fits the base."""

    name: str
    checkpoint: Path
    """Folder of links to the files that are its checkpoint; of a whole model, also to the base's other files."""
    is_model: bool
    """Whether it is a whole model, and that folder a model folder like those of merged models."""
    digest: str
    """Of the checkpoint's files."""
    statistics: str
    """Digest of the statistics beside them; empty: no rule weighs by them."""


def name_tasks(named: Sequence[str], folder: Path | None) -> dict[str, Path]:
    """Return the path of every task's checkpoint by the task's name.

    Args:
      named: tasks as NAME=PATH.
      folder: with a model folder, or a .safetensors file, for every task; None: there is none.

    Raises:
      InvalidRequest: one is malformed or comes twice, or there is none.
      OSError: the folder cannot be read.
    """
    found: list[tuple[str, Path]] = []
    for text in named:
        name, _, path = text.partition("=")
        if not path:
            raise InvalidRequest(f"--task {text} is not NAME=PATH", "write --task colours=./checkpoints/colours")
        found.append((name, Path(path)))
    found += [
        (entry.name if entry.is_dir() else entry.stem, entry)
        for entry in (sorted(folder.iterdir()) if folder else ())
        if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix == ".safetensors")
    ]
    if not found:
        raise InvalidRequest("there is no task", "name them with --task NAME=PATH, or their folder with --tasks")
    tasks: dict[str, Path] = {}
    for name, checkpoint in found:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} is no name for a task", "use letters, digits, '.', '_' and '-'")
        if name in tasks:
            raise InvalidRequest(f"there are two tasks {name}", "give one of them another name")
        tasks[name] = checkpoint
    return tasks


def open_task(
    name: str, path: Path, base: Path, place: Path, plan: Plan, ignore: Sequence[str], weighed: Collection[Kind] = ()
) -> Task:
    """Check a task's checkpoint against the base, and link it into a folder of its own.

    Args:
      name: of the task.
      path: of its checkpoint; a folder or a .safetensors file.
      base: folder of the base.
      place: where the folder is made.
      plan: of the base.
      ignore: patterns of tensors beyond the base that are left out.
      weighed: what the rules ask of the statistics beside it.

    Raises:
      CheckpointRefused, InvalidRequest: it is no checkpoint of this base.
      OSError: it cannot be read.
    """
    if not path.exists():
        raise InvalidRequest(f"task {name}: {path} does not exist", "check the path")
    try:
        files = find_checkpoint(path, statistics=bool(weighed))
        place.mkdir(parents=True)
        for file, source in files.items():
            (place / file).symlink_to(source.absolute())
        checkpoint = open_checkpoint(place, submission_limits(plan))
        check_against_plan(checkpoint, plan, ignore=ignore, partial=False)
        for kind in weighed:
            check_statistics(checkpoint, plan, kind)
        is_model = form_of(checkpoint) is Form.MODEL
    except (CheckpointRefused, InvalidRequest) as error:
        raise _of_task(name, error) from error
    for companion in companion_files(base) if is_model else ():
        (place / companion.name).symlink_to(companion.absolute())
    statistics = digest_file(place / STATISTICS).sha256 if weighed else ""
    return Task(name, place, is_model, _digest(checkpoint), statistics)


def _of_task(name: str, error: FoldinError) -> FoldinError:
    return type(error)(f"task {name}: {error.reason}", error.hint)


def _digest(checkpoint: Checkpoint) -> str:
    return base_digest({file: digest_file(checkpoint.folder / file) for file in checkpoint.files})
