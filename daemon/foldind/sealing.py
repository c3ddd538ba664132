"""How what the worker wrote of a merged model becomes the snapshot of a version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foldind.config import Configuration, ServeSettings
from foldind.documents import LINEAGE_SHOWN, model_cards
from foldind.state.durable import FileDigest, seal
from foldind.state.folder import StateFolder
from foldind.state.snapshots import companion_files, complete_snapshot
from foldind.state.versions import Versions
from foldind.worker.messages import FoldResult, PublishResult


class Sealing:
    """What all snapshots have in common: the state folder, its settings, and its versions."""

    def __init__(self, folder: StateFolder, configuration: Configuration, settings: ServeSettings, versions: Versions):
        self._folder = folder
        self._rule = configuration.merge.rule
        self._companions = "model" in settings.publish
        self._versions = versions

    def seal_snapshot(
        self,
        temporary: Path,
        number: int,
        parent: int,
        result: FoldResult | PublishResult,
        *,
        change: str,
        submissions: int,
        publication: str,
        manifest: Mapping[str, Any],
    ) -> dict[str, FileDigest]:
        """Add to a snapshot everything but its tensors, durably, and give its folder the final name.

        Args:
          temporary: the folder of the snapshot.
          number: of the version.
          parent: number of the version it was made from; 0 for the base.
          result: of what made it.
          change: what distinguishes it from that, in a few words.
          submissions: how many it holds.
          publication: how the state was published.
          manifest: its manifest but for the files.

        Returns:
          The digests of all its files.

        Raises:
          StateError: another folder lies in the place of the state folder.
          OSError: a disk is full or failing.
        """
        self._folder.check_in_place()
        files = complete_snapshot(
            temporary,
            companion_files(self._folder.base) if self._companions else (),
            cards=model_cards(
                number,
                change,
                self._versions.lineage(parent, LINEAGE_SHOWN) if parent else [],
                result,
                submissions=submissions,
                rule=f"`{self._rule}`, published as `{publication}`",
            ),
            manifest=manifest,
            tensor_files=result.snapshot_files,
        )
        seal(temporary, self._folder.snapshot(number))
        return files
