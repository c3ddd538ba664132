"""The client: one typed method per thing a daemon can be asked."""

import builtins
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from foldin import following
from foldin.adapter import cut_to_rank, read_statistics
from foldin.arguments import name_in_contract, version_number, vocab_policy
from foldin.checkpoint import find_checkpoint
from foldin.connection import WHOLE_CHECKPOINT, Connection
from foldin.decoding import snapshot_of, submission_of, vocab_in_contract
from foldin.download import adapter_files, pull
from foldin.errors import InvalidArgument
from foldin.models import File, Progress, PulledAdapter, Rollback, Snapshot, Submission
from foldin.preparation import prepared
from foldin.reading import stream_file
from foldin.recipe import read_recipe
from foldin.upload import Terms, upload
from foldin.v1 import snapshots_pb2, submissions_pb2
from foldin.vocabulary import VocabPolicy

OnProgress = Callable[[Progress], None]


class Client:
    """A client of one Foldin daemon; use it as a context manager, or close it.

    Every method raises FoldinError, or the subclass that says more: ServerUnavailable, NotFound, FailedPrecondition,
    PermissionDenied, ... The text of the error is a sentence that says what to do.

    Args:
      server: HOST:PORT; None takes FOLDIN_SERVER from the environment, else localhost:7070.
      patience: seconds that transfers and watches wait for a daemon that answered before and then went away.
      parallel: chunks in flight in an upload; each holds 2 MiB of memory.
    """

    def __init__(self, server: str | None = None, *, patience: float = 60.0, parallel: int = 4) -> None:
        if parallel < 1:
            raise InvalidArgument(f"parallel is {parallel}: at least one chunk has to be in flight.")
        self._connection = Connection(server, patience)
        self._parallel = parallel

    @property
    def server(self) -> str:
        """HOST:PORT of the daemon."""
        return self._connection.server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def submit(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        partial: bool = False,
        vocab: str = VocabPolicy.SAME,
        force: bool = False,
        take_out: bool = False,
        wait: bool = False,
        compress: str | None = None,
        base: str | Path | None = None,
        density: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Submission:
        """Hand in a checkpoint that lies on this machine.

        Calling it again with the same content goes on with an upload that broke off, and finds a submission that was
        handed in before.

        Args:
          path: a .safetensors file, or a folder in the Hugging Face layout.
          name: for people to read; need not be unique.
          labels: free labels.
          request_id: the same request_id always means the same submission; None lets the content decide.
          partial: tensors of the base that the checkpoint lacks count as unchanged.
          vocab: "common": of token embeddings and output layers whose vocabulary has another size than the base's, the
            rows that both have are folded; "same": they are refused.
          force: take content that is queued or merged already as a submission of its own.
          take_out: it is merged, and is to be taken out again; where the daemon's merge rule allows it.
          wait: return once it is merged.
          compress: "ternary" or "int8": what differs from the base is sent, with losses; None: the checkpoint is.
          base: with compress, the base that it was fine-tuned from: a .safetensors file or a folder.
          density: with ternary, the share of each tensor's elements that is kept; None means 0.1.
          on_progress: told of `compressing`, `hashing` and `uploading` in bytes and, with wait, `folding` and
            `publishing` in tensors.

        Returns:
          The submission; without wait it may have been REJECTED.

        Raises:
          CheckpointError: there is no whole checkpoint at path, it changed while it was sent, or it is none of base.
          InvalidArgument: there is no such vocab, or compress, base and density do not go together.
          Refused: with wait, it was not merged.
        """
        terms = Terms(name or "", labels, request_id or "", partial, force, vocab_policy(vocab), take_out)
        recipe = read_recipe(compress, base, density)
        tell = on_progress or _ignore
        with prepared(find_checkpoint(path), recipe, partial, tell) as files:
            submission = submission_of(upload(self._connection, files, terms, self._parallel, tell))
        return self.wait(submission.id, on_progress=on_progress) if wait else submission

    def submit_path(
        self,
        path: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        partial: bool = False,
        vocab: str = VocabPolicy.SAME,
        force: bool = False,
        wait: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Submission:
        """Hand in a checkpoint that lies on the daemon's machine, below one of its allowed_roots.

        Args:
          path: absolute path there. The other arguments are those of submit.

        Raises:
          InvalidArgument: there is no such vocab.
          PermissionDenied: the path is outside the allowed_roots.
          Refused: with wait, it was not merged.
        """
        request = submissions_pb2.SubmitPathRequest(
            path=path,
            name=name or "",
            labels=dict(labels or {}),
            request_id=request_id or "",
            partial=partial,
            force=force,
            vocab=vocab_in_contract(vocab_policy(vocab)),
        )
        # Repeating a forced one without a request_id might hand it in twice.
        call = self._connection.call if force and not request_id else self._connection.call_patiently
        response = call(self._connection.submissions.SubmitPath, request, WHOLE_CHECKPOINT)
        submission = submission_of(response.submission)
        return self.wait(submission.id, on_progress=on_progress) if wait else submission

    def status(self, id: str) -> Submission:
        """Return one submission with its history."""
        request = submissions_pb2.GetSubmissionRequest(id=id)
        return submission_of(self._connection.call(self._connection.submissions.Get, request))

    def list(self, states: Iterable[str] = ()) -> builtins.list[Submission]:
        """Return submissions, oldest first.

        Args:
          states: only these, such as SubmissionState.QUEUED; empty means all.

        Raises:
          InvalidArgument: there is no such state.
        """
        request = submissions_pb2.ListSubmissionsRequest(states=[name_in_contract(state) for state in states])
        pages = self._connection.pages(self._connection.submissions.List, request)
        return [submission_of(message) for page in pages for message in page.submissions]

    def watch(self, id: str) -> Iterator[Submission]:
        """Yield a submission as it is now and after each change, until it is merged or refused."""
        return following.watch_submission(self._connection, id)

    def wait(self, id: str, *, on_progress: OnProgress | None = None) -> Submission:
        """Return a submission once it is merged.

        Raises:
          Refused: it ended otherwise.
        """
        return following.wait_for_merge(self._connection, id, on_progress or _ignore)

    def retry(self, id: str) -> Submission:
        """Queue a QUARANTINED submission again, at its old place."""
        request = submissions_pb2.RetrySubmissionRequest(id=id)
        return submission_of(self._connection.call(self._connection.submissions.Retry, request))

    def withdraw(self, id: str) -> Submission:
        """Take a submission back before it is merged; its bytes are deleted."""
        request = submissions_pb2.WithdrawSubmissionRequest(id=id)
        return submission_of(self._connection.call(self._connection.submissions.Withdraw, request))

    def snapshots(self) -> builtins.list[Snapshot]:
        """Return all snapshots, oldest first."""
        pages = self._connection.pages(self._connection.snapshots.List, snapshots_pb2.ListSnapshotsRequest())
        return [snapshot_of(message) for page in pages for message in page.snapshots]

    def show(self, ref: str = "latest") -> Snapshot:
        """Return one snapshot by version ("v12") or alias."""
        request = snapshots_pb2.GetSnapshotRequest(ref=ref)
        return snapshot_of(self._connection.call(self._connection.snapshots.Get, request))

    def read(self, version: int, file: File, offset: int = 0) -> Generator[bytes, None, None]:
        """Yield the bytes of a file of a snapshot in pieces, from an offset on, through outages; not verified."""
        return stream_file(self._connection, version, file, offset)

    def pull(self, ref: str = "latest", *, to: str | Path, on_progress: OnProgress | None = None) -> Snapshot:
        """Bring a snapshot into a folder, which then is a Hugging Face model folder.

        The folder is replaced as a whole once every file has arrived and its SHA-256 is right. A pull that broke off
        goes on where it stopped; one of what is there already does nothing.

        Args:
          ref: version ("v12") or alias.
          to: a folder that does not exist, is empty, or was pulled before.
          on_progress: told of `verifying` and `downloading` in bytes.

        Raises:
          NotFound: no such version or alias, or it is no longer kept.
          PullError: the folder holds something else, or the disk is full.
          DataLoss: a file arrived altered twice.
        """
        return pull(self._connection, ref, Path(to), on_progress or _ignore)

    def pull_adapter(
        self, ref: str = "latest", *, to: str | Path, rank: int | None = None, on_progress: OnProgress | None = None
    ) -> PulledAdapter:
        """Bring a snapshot into a folder as a PEFT adapter of the base, which the daemon has to publish; as `pull`.

        Args:
          ref: version ("v12") or alias.
          to: a folder that does not exist, is empty, or was pulled before.
          rank: the highest, for the best approximation of it, fetched anew each time; None: as published.
          on_progress: told of `verifying` and `downloading` in bytes.

        Raises:
          NotFound: no such version or alias, or it has no adapter.
          InvalidArgument: rank is below 1.
          PullError, DataLoss: as `pull`.
        """
        if rank is not None and rank < 1:
            raise InvalidArgument(f"rank is {rank}: it has to be at least 1.")
        finish = None if rank is None else lambda folder: cut_to_rank(folder, rank)
        snapshot = pull(self._connection, ref, Path(to), on_progress or _ignore, adapter_files, finish)
        published = read_statistics(Path(to).expanduser())
        kept = min(rank or published["rank"], published["rank"])
        retained = published["retained"][kept - 1]
        return PulledAdapter(snapshot, kept, published["rank"], retained, tuple(published["left_out"]))

    def watch_snapshots(self, alias: str = "latest") -> Iterator[Snapshot]:
        """Yield the snapshot an alias names, if there is one, and then each one it moves to, without end."""
        return following.watch_alias(self._connection, alias)

    def set_alias(self, alias: str, version: int | None) -> Snapshot | None:
        """Point an alias at a version and return that snapshot; None removes the alias."""
        request = snapshots_pb2.SetAliasRequest(alias=alias, version=0 if version is None else version_number(version))
        response = self._connection.call(self._connection.snapshots.SetAlias, request)
        return snapshot_of(response.snapshot) if response.HasField("snapshot") else None

    def publish(self, publication: str, *, alias: str = "", on_progress: OnProgress | None = None) -> Snapshot:
        """Publish the newest state in another way, as a new version that `latest` does not name.

        Nothing is merged for it. A merge that is running is waited for.

        Args:
          publication: a name, and its numbers after colons, such as "flat:2.0"; empty: as the merge rule does.
          alias: pointed at the new version; empty: none.
          on_progress: told of `decomposing` and `publishing` in tensors.

        Raises:
          InvalidArgument: the merge rule has no such publication, or the alias cannot be one.
          FailedPrecondition: nothing is merged.
        """
        return following.publish(self._connection, publication, alias, on_progress or _ignore)

    def rollback(self, version: int | None = None) -> Rollback:
        """Undo the newest version.

        Args:
          version: the version to undo, which must be the newest; None means the newest, whichever it is.

        Raises:
          FailedPrecondition: version is not the newest, or the state before it is no longer kept.
        """
        request = snapshots_pb2.RollbackRequest(version=0 if version is None else version_number(version))
        response = self._connection.call(self._connection.snapshots.Rollback, request)
        return Rollback(response.undone, snapshot_of(response.snapshot) if response.HasField("snapshot") else None)


def _ignore(progress: Progress) -> None:
    pass
