"""The newest state, published in another way, as somebody asked: a new version that `latest` does not name.

Nothing is merged for it. It is asked for from any task, and done by the loop that merges, between two merges.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from foldind.changes import Changes
from foldind.config import Configuration, PublishedAs, ServeSettings, possible_forms
from foldind.documents import variant_manifest
from foldind.errors import CheckpointRefused, FoldinError, WrongState
from foldind.sealing import Sealing
from foldind.state.bases import KeptBases, bases_key
from foldind.state.durable import make_folder, remove
from foldind.state.folder import StateFolder, Temporaries
from foldind.state.layout import check_recorded
from foldind.state.records import Version
from foldind.state.versions import Versions
from foldind.worker.jobs import job_of
from foldind.worker.messages import PublishRequest, PublishResult, Report
from foldind.worker.supervisor import Supervisor, WorkFailed

log = logging.getLogger(__name__)


class RepublicationFailed(FoldinError):
    """It could not be published; nothing has changed."""

    status = "FAILED_PRECONDITION"


@dataclass(frozen=True)
class _Asked:
    publication: str
    forms: tuple[PublishedAs, ...]
    alias: str
    report: Report
    answer: "asyncio.Future[Version]"


class Republication:
    """What was asked for and is not done yet."""

    def __init__(
        self,
        folder: StateFolder,
        configuration: Configuration,
        settings: ServeSettings,
        versions: Versions,
        supervisor: Supervisor,
        changes: Changes,
    ):
        self._folder = folder
        self._configuration = configuration
        self._settings = settings
        self._versions = versions
        self._supervisor = supervisor
        self._changes = changes
        self._kept = KeptBases(folder.bases)
        self._sealing = Sealing(folder, configuration, settings, versions)
        self._asked: list[_Asked] = []

    async def ask(self, publication: str, alias: str, report: Report) -> Version:
        """Publish the newest state in another way, under an alias if that is not empty, and return the new version.

        It has an adapter where the daemon publishes adapters and the publication allows it.

        Raises:
          InvalidRequest: the rule does not publish so, or not as an adapter, and the daemon publishes nothing else.
          WrongState: nothing is merged.
          RepublicationFailed, OSError: it failed; nothing has changed.
        """
        name = self._configuration.merge.publication(publication)
        forms = possible_forms(name, self._configuration.merge, self._settings.publish)
        answer: asyncio.Future[Version] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(name, forms, alias, report, answer))
        self._changes.announce()
        return await answer

    async def step(self) -> bool:
        """Do the next one, and tell whether there was any; what goes wrong is its asker's to hear."""
        if not self._asked:
            return False
        asked = self._asked.pop(0)
        if asked.answer.cancelled():
            return True
        try:
            version = await self._publish(asked)
        except Exception as error:
            log.warning("publishing as %s failed: %s", asked.publication, error)
            if not asked.answer.cancelled():
                asked.answer.set_exception(error)
        else:
            log.info("published v%d as %s in v%d", version.parent, version.publication, version.version)
            if not asked.answer.cancelled():
                asked.answer.set_result(version)
        return True

    async def _publish(self, asked: _Asked) -> Version:
        started = time.monotonic()
        head = await asyncio.to_thread(self._versions.head)
        if head is None:
            raise WrongState("nothing has been merged yet", "submit a checkpoint first")
        check_recorded(asked.publication, self._configuration.merge.rule, head.state_files)
        number = await asyncio.to_thread(self._versions.last_number) + 1
        temporary = self._folder.temporary(number)
        try:
            for folder in (temporary.snapshot, temporary.bases):
                await asyncio.to_thread(make_folder, folder)
            request = self._request(head, asked, temporary)
            result = await self._supervisor.publish(request, asked.report)
            return await asyncio.to_thread(self._commit, head, number, asked, result, temporary, started)
        except CheckpointRefused as error:
            raise RepublicationFailed(error.reason, error.hint) from error
        except WorkFailed as error:
            raise RepublicationFailed(f"it failed: {error.reason}", "the daemon's log has the details") from error
        finally:
            for folder in (temporary.snapshot, temporary.bases):
                await asyncio.to_thread(remove, folder)

    def _request(self, head: Version, asked: _Asked, temporary: Temporaries) -> PublishRequest:
        merge = self._configuration.merge
        return PublishRequest(
            job=replace(job_of(self._folder, merge, self._settings, asked.publication), publish=asked.forms),
            record=head.record,
            accumulated=str(self._folder.accumulated(head.version)),
            bases=(str(temporary.bases), str(self._kept.folder(bases_key(head.state_files, merge)))),
            snapshot_folder=str(temporary.snapshot),
        )

    def _commit(
        self,
        head: Version,
        number: int,
        asked: _Asked,
        result: PublishResult,
        temporary: Temporaries,
        started: float,
    ) -> Version:
        merge = self._configuration.merge
        files = self._sealing.seal_snapshot(
            temporary.snapshot,
            number,
            head.version,
            result,
            change=f"v{head.version} as {asked.publication}",
            submissions=head.submissions,
            publication=asked.publication,
            manifest=variant_manifest(
                number,
                head,
                result,
                base_digest=self._configuration.base_digest,
                merge=merge.to_json(),
                publication=asked.publication,
            ),
        )
        version = replace(
            head,
            version=number,
            parent=head.version,
            created_at=time.time(),
            merge_seconds=time.monotonic() - started,
            publication=asked.publication,
            variant=True,
            gate=None,
            lambda_=result.lambda_,
            files=files,
            aliases=(asked.alias,) if asked.alias else (),
        )
        self._versions.commit_variant(version)
        if self._settings.keep_bases:
            self._kept.add(temporary.bases, bases_key(head.state_files, merge))
        return version
