"""Asks the gate about new versions, one after the other, beside whatever is merged meanwhile."""

import asyncio
import itertools
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping

from foldind.changes import Changes
from foldind.config import ServeSettings
from foldind.errors import LONGEST_REASON
from foldind.gate.verdict import LONGEST_ANSWER, judge
from foldind.metrics import Metrics, Outcome
from foldind.programs import run_program
from foldind.state.folder import StateFolder
from foldind.state.records import Gate, GateVerdict, Version
from foldind.state.versions import Versions

log = logging.getLogger(__name__)

MOST_LINES = 1000
"""Of a run's standard error, in the log."""
_SECRETS = frozenset({"FOLDIN_HTTP_TOKEN"})


class GateKeeper:
    """Runs the gate's command on the versions that wait for it, oldest first."""

    def __init__(
        self, folder: StateFolder, versions: Versions, settings: ServeSettings, changes: Changes, metrics: Metrics
    ):
        self._folder = folder
        self._versions = versions
        self._settings = settings
        self._changes = changes
        self._metrics = metrics

    async def run(self) -> None:
        """Go on until it is cancelled; a command that runs then is ended, and is run again at the next start."""
        while True:
            seen = self._changes.count
            try:
                if not await self._next():
                    await self._changes.wait(seen)
            except Exception as error:  # whatever is wrong with a gate, the daemon goes on merging and serving
                trouble = isinstance(error, OSError | sqlite3.Error)
                log.warning("the gate waits: %s", error, exc_info=None if trouble else error)
                await asyncio.sleep(self._settings.retry_disk_every)

    async def _next(self) -> bool:
        version = await asyncio.to_thread(self._versions.waiting)
        if version and self._settings.gate:
            await self._ask(version)
        elif version:
            gate = Gate(GateVerdict.SKIPPED, "the gate was removed from the settings before this version was judged")
            await asyncio.to_thread(self._versions.settle_gate, version.version, gate, self._settings.gate_alias)
        return version is not None

    async def _ask(self, version: Version) -> None:
        if not await asyncio.to_thread(self._versions.start_gate, version.version):
            return  # it was pruned or rolled back this moment
        self._changes.announce()
        alias, name = self._settings.gate_alias, f"v{version.version}"
        log.info("the gate is asked about %s", name)
        started = time.monotonic()
        environment = await asyncio.to_thread(self._environment, version)
        try:
            ended = await run_program(
                [sys.executable, "-m", "foldind.gate.guard", self._settings.gate],
                self._settings.gate_timeout,
                LONGEST_ANSWER + 1,
                environment=environment,
                held=True,
                hear=_teller(name),
            )
            gate = judge(ended, self._settings.gate_timeout)
        except OSError as error:
            gate = Gate(GateVerdict.FAILED, f"the gate's command cannot be run: {error.strerror}")
        seconds = time.monotonic() - started
        gate = Gate(gate.verdict, gate.reason[:LONGEST_REASON], gate.scores, time.time(), seconds)
        moved = await asyncio.to_thread(self._versions.settle_gate, version.version, gate, alias)
        outcome: Outcome = "passed" if gate.verdict is GateVerdict.PASSED else "failed"
        self._metrics.observe_gate(outcome, seconds)
        self._changes.announce()
        scores = ", ".join(f"{score} {value:.4g}" for score, value in gate.scores.items()) or "no scores"
        if gate.verdict is GateVerdict.PASSED:
            log.info("%s passed the gate (%s); %s %s", name, scores, alias, "names it" if moved else "stays")
        else:
            log.warning("%s did not pass the gate (%s); %s stays: %s", name, scores, alias, gate.reason)

    def _environment(self, version: Version) -> Mapping[str, str]:
        environment = {name: value for name, value in os.environ.items() if name.upper() not in _SECRETS}
        environment["FOLDIN_SNAPSHOT"] = str(self._folder.snapshot(version.version))
        environment["FOLDIN_VERSION"] = str(version.version)
        environment["FOLDIN_ALIAS"] = self._settings.gate_alias
        if named := self._versions.aliased(self._settings.gate_alias):
            environment["FOLDIN_PASSED_SNAPSHOT"] = str(self._folder.snapshot(named.version))
            environment["FOLDIN_PASSED_VERSION"] = str(named.version)
            environment["FOLDIN_PASSED_SCORES"] = json.dumps(dict(named.gate.scores) if named.gate else {})
        return environment


def _teller(version: str) -> Callable[[str], None]:
    """Return what puts the lines of one run into the log, so many and no more."""
    numbers = itertools.count(1)

    def tell(line: str) -> None:
        if (number := next(numbers)) <= MOST_LINES:
            log.info("gate of %s: %s", version, line)
        elif number == MOST_LINES + 1:
            log.warning("gate of %s: it says more than %d lines, and the rest is left out", version, MOST_LINES)

    return tell
