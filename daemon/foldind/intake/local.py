"""Submissions from the daemon's own file system: copied, then admitted like any other."""

import asyncio
import os
from pathlib import Path

from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG, INDEX, SINGLE, check_file_names, choose_files
from foldind.config import ServeSettings
from foldind.errors import Conflict, Forbidden, InvalidRequest, NotFound, OutOfRoom
from foldind.intake.copies import Copies, lies_under, look_at
from foldind.state.durable import is_disk_trouble
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger, NewSubmission
from foldind.state.records import Submission, SubmissionState


class LocalPaths:
    """Takes checkpoints from folders that the operator allowed."""

    def __init__(self, folder: StateFolder, ledger: Ledger, copies: Copies, settings: ServeSettings):
        self._folder = folder
        self._ledger = ledger
        self._copies = copies
        self._settings = settings
        self._copying = asyncio.Lock()  # one at a time: the disk is the bottleneck

    async def submit(self, path: str, description: NewSubmission) -> Submission:
        """Copy the checkpoint at a path, and queue it.

        Args:
          path: absolute; a .safetensors file or a folder.
          description: what the submitter says of it; its files are found here.

        Raises:
          Forbidden, NotFound, InvalidRequest, CheckpointRefused, SourceChanged, Conflict, OutOfRoom: as the contract
            says.
        """
        async with self._copying:
            try:
                return await asyncio.to_thread(self._submit, path, description)
            except OSError as error:
                if is_disk_trouble(error):
                    raise OutOfRoom(
                        f"the daemon's disk cannot take the submission ({error})",
                        "submit again once the operator has made room",
                    ) from error
                raise InvalidRequest(f"{path} cannot be read: {error.strerror}", "check the path") from error

    def _submit(self, path: str, description: NewSubmission) -> Submission:
        if "\0" in path:
            raise InvalidRequest("a path with a zero byte in it leads nowhere", "check the path")
        found = find_checkpoint(self._allowed(path), statistics=self._copies.reads_statistics)
        real = {name: self._allowed(str(source)) for name, source in found.items()}  # links may lead elsewhere
        sources = {name: look_at(source) for name, source in real.items()}
        return self._copies.take(sources, self._settings.allowed_roots, description, self._record)

    def _record(self, new: NewSubmission) -> Submission:
        submission = self._ledger.create(new)
        if submission.state is SubmissionState.RECEIVING and submission.uploaded:
            raise Conflict(
                f"request id {new.request_id!r} belongs to an upload in progress, {submission.id}",
                "use another request id",
            )
        return submission

    def _allowed(self, path: str) -> Path:
        if not Path(path).is_absolute():
            raise InvalidRequest(f"{path} is a relative path", "give an absolute one, as it is on the daemon's machine")
        real = Path(os.path.realpath(path))
        if not lies_under(real, self._settings.allowed_roots):
            raise Forbidden(
                f"{path} is not below a folder that the daemon may read",
                "upload it instead, or have the operator add its folder to `allowed_roots`",
            )
        if not real.exists():
            raise NotFound(f"{path} does not exist on the daemon's machine", "upload it instead")
        return real


def find_checkpoint(path: Path, *, statistics: bool = False) -> dict[str, Path]:
    """Return the files that make the checkpoint at a path, by the names they are handed in under.

    A file is model.safetensors. A folder's checkpoint is its adapter, else its model.safetensors, else its index and
    the shards that it names.

    Args:
      path: of a file or a folder.
      statistics: whether those in the folder are wanted too.

    Raises:
      CheckpointRefused: they cannot be a checkpoint.
      InvalidRequest: there is none.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            check_file_names([path.name])
        return {SINGLE: path}
    names = choose_files([entry.name for entry in path.iterdir() if entry.is_file()], statistics=statistics)
    if not names:
        raise InvalidRequest(f"{path} holds neither {SINGLE} nor {INDEX}", "save the model with save_pretrained(...)")
    check_file_names(names)
    if missing := [name for name in names if name == ADAPTER and not (path / name).exists()]:
        raise InvalidRequest(f"{path} holds {ADAPTER_CONFIG} without {missing[0]}", "put both into one folder")
    return {name: path / name for name in names}
