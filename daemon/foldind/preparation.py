"""Between merges: the bases that the next fold needs are computed, one matrix a processor at a time.

So a submission that arrives meanwhile waits for one matrix at the most, and finds what is finished. They are a cache:
whatever goes wrong here is logged, and costs time only.
"""

import asyncio
import errno
import logging
import os
import secrets

from foldind.checkpoints.plan import Plan
from foldind.config import Configuration, ServeSettings
from foldind.intake.admission import RESERVED_BYTES
from foldind.merging.catalog import CATALOG
from foldind.state.bases import KeptBases, bases_key, basis_bytes
from foldind.state.durable import remove
from foldind.state.folder import StateFolder
from foldind.state.layout import dense_tensors
from foldind.state.records import Version
from foldind.state.room import merge_bytes
from foldind.state.versions import Versions
from foldind.worker.blocks import projected_matrices
from foldind.worker.estimates import basis_computation_bytes
from foldind.worker.messages import BasisRequest, BasisTarget
from foldind.worker.supervisor import Supervisor, WorkerDied, WorkFailed

log = logging.getLogger(__name__)


class Preparation:
    """Has the worker compute the bases of the newest version's state."""

    def __init__(
        self,
        folder: StateFolder,
        configuration: Configuration,
        settings: ServeSettings,
        plan: Plan,
        versions: Versions,
        supervisor: Supervisor,
    ):
        self._folder = folder
        self._merge = configuration.merge
        self._wanted = settings.keep_bases
        self._versions = versions
        self._supervisor = supervisor
        self._kept = KeptBases(folder.bases)
        projects = CATALOG[configuration.merge.rule].projects
        self._matrices = {matrix.basis_file: matrix for matrix in projected_matrices(plan) if projects}
        self._memory_budget = settings.memory_budget
        self._merge_bytes = merge_bytes(plan, configuration.merge, settings) + RESERVED_BYTES
        self._key = ""
        self._missing: list[str] = []

    def ready(self) -> tuple[int, int]:
        """Return how many of the bases that the next fold needs are there, and how many it needs; reads the disk."""
        head = self._versions.head()
        key = bases_key(head.state_files, self._merge) if head else ""
        try:
            wanted = self._wanted_of(head)
        except OSError:  # a merge may just have made that state the one before
            wanted = list(self._matrices)
        return len(wanted) - len(self._kept.missing(key, wanted)), len(wanted)

    async def step(self) -> bool:
        """Compute bases of the newest version's state, one a processor, and tell whether there were any to compute."""
        try:
            head = await asyncio.to_thread(self._look)
            if head is None or not self._missing:
                return False
            done = await self._compute(head)
            del self._missing[:done]
            self._tell_if_ready(head)
        except (OSError, WorkFailed, WorkerDied) as error:
            # Not again before the next version: its fold computes by itself what is missing.
            if not self._supervisor.stopped:
                log.warning("could not keep %d of %d bases: %s", len(self._missing), len(self._matrices), error)
            self._missing = []
        return True

    def _look(self) -> Version | None:
        head = self._versions.head()
        key = bases_key(head.state_files, self._merge) if head and self._wanted else ""
        if key != self._key:
            self._key, self._missing = key, []
            self._kept.keep_only(key)
            self._missing = self._kept.missing(key, self._wanted_of(head)) if key else []
            if head and key:
                self._tell_if_ready(head)
        return head

    def _wanted_of(self, head: Version | None) -> list[str]:
        """Return the bases that the next fold needs: what is held as factors is its own basis."""
        if head is None:
            return list(self._matrices)
        dense = dense_tensors(self._folder.accumulated(head.version))
        return [file for file, matrix in self._matrices.items() if matrix.tensor.name in dense]

    def _tell_if_ready(self, head: Version) -> None:
        if not self._missing:
            log.info("the bases of v%d are ready", head.version)

    async def _compute(self, head: Version) -> int:
        files = self._next()
        needed = sum(basis_bytes(*self._matrices[file].tensor.shape[-2:]) for file in files)
        disk = os.statvfs(self._folder.root)
        if disk.f_bavail * disk.f_frsize < needed + self._merge_bytes:
            raise OSError(errno.ENOSPC, "the disk has no room for them beside a merge")
        attempt = secrets.token_hex(4)
        temporary = {file: self._kept.temporary(self._key, file, attempt) for file in files}
        request = BasisRequest(
            rule=self._merge.rule,
            hyper_parameters=self._merge.hyper_parameters,
            backend=self._merge.backend,
            threads=self._merge.threads,
            accumulated=str(self._folder.accumulated(head.version)),
            targets=tuple(
                BasisTarget(self._matrices[file].tensor.name, self._matrices[file].rows, str(temporary[file]))
                for file in files
            ),
        )
        try:
            await self._supervisor.compute_bases(request)
            for file, path in temporary.items():
                await asyncio.to_thread(self._kept.seal, path, file)
        finally:
            for path in temporary.values():
                await asyncio.to_thread(remove, path)
        return len(files)

    def _next(self) -> list[str]:
        at_once = max(1, len(os.sched_getaffinity(0)) // self._merge.threads)
        files: list[str] = []
        for file in self._missing[:at_once]:
            if (
                files
                and sum(basis_computation_bytes(self._matrices[name]) for name in (*files, file)) > self._memory_budget
            ):
                break
            files.append(file)
        return files
