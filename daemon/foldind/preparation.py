"""Between merges: the bases that the next fold needs are computed, one matrix at a time.

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
from foldind.state.bases import KeptBases, bases_key
from foldind.state.durable import remove
from foldind.state.folder import StateFolder
from foldind.state.records import Version
from foldind.state.versions import Versions
from foldind.worker.blocks import projected_matrices
from foldind.worker.messages import BasisRequest, Failed
from foldind.worker.supervisor import Supervisor, WorkerDied

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
        self._matrices = {matrix.basis_file: matrix for matrix in projected_matrices(plan)}
        self._merge_bytes = plan.merge_bytes + RESERVED_BYTES
        self._key = ""
        self._missing: list[str] = []

    def ready(self) -> tuple[int, int]:
        """Return how many of the bases that the next fold needs are there, and how many it needs; reads the disk."""
        head = self._versions.head()
        key = bases_key(head.state_files, self._merge) if head else ""
        missing = self._kept.missing(key, self._matrices)
        return len(self._matrices) - len(missing), len(self._matrices)

    async def step(self) -> bool:
        """Compute one basis of the newest version's state, and tell whether there was one to compute."""
        try:
            head = await asyncio.to_thread(self._look)
            if head is None or not self._missing:
                return False
            await self._compute(head, self._missing[0])
            self._missing.pop(0)
            self._tell_if_ready(head)
        except (OSError, WorkerDied) as error:
            # Not again before the next version: its fold computes by itself what is missing.
            if not self._supervisor.stopped:
                log.warning("%d of %d bases are not kept: %s", len(self._missing), len(self._matrices), error)
            self._missing = []
        return True

    def _look(self) -> Version | None:
        head = self._versions.head()
        key = bases_key(head.state_files, self._merge) if head and self._wanted else ""
        if key != self._key:
            self._key, self._missing = key, []
            self._kept.keep_only(key)
            self._missing = self._kept.missing(key, self._matrices) if key else []
            if head and key:
                self._tell_if_ready(head)
        return head

    def _tell_if_ready(self, head: Version) -> None:
        if not self._missing:
            log.info("the bases of v%d are ready", head.version)

    async def _compute(self, head: Version, file: str) -> None:
        matrix = self._matrices[file]
        disk = os.statvfs(self._folder.root)
        if disk.f_bavail * disk.f_frsize < matrix.basis_bytes + self._merge_bytes:
            raise OSError(errno.ENOSPC, "the disk has no room for them beside a merge")
        temporary = self._kept.temporary(self._key, file, secrets.token_hex(4))
        request = BasisRequest(
            rule=self._merge.rule,
            hyper_parameters=self._merge.hyper_parameters,
            backend=self._merge.backend,
            threads=self._merge.threads,
            accumulated=str(self._folder.accumulated(head.version)),
            tensor=matrix.tensor.name,
            rows=matrix.rows,
            target=str(temporary),
        )
        try:
            answer = await self._supervisor.compute_basis(request)
            if isinstance(answer, Failed):
                raise OSError(answer.message)
            await asyncio.to_thread(self._kept.seal, temporary, file)
        finally:
            await asyncio.to_thread(remove, temporary)
