"""The log: a line for every transition, the submission in a field of its own, whatever the worker prints."""

import json
import re
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, wait_for
from tests.support.history import History
from tests.support.models import base_tensors
from tests.support.wire import SINGLE, Daemons, Wire, fine_tuned, single, state

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def records(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.read_text().splitlines()]


def checkpoint(**terms: Any) -> dict[str, bytes]:
    return single(fine_tuned(base_tensors()))


def test_json_has_every_transition(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    daemon = start_daemon(
        past.copy(tmp_path / "state"), None, "--log-format", "json", environment={"FOLDIN_MAX_ATTEMPTS": "1"}
    )
    with Wire(daemon) as wire:
        merged = wire.settled(wire.upload(checkpoint()).id).id
        wire.rollback()
        rejected = wire.upload({SINGLE: b"no tensors"}).id
        tensors = fine_tuned(base_tensors())
        tensors["logit_scale"] = tensors["logit_scale"] * float("nan")
        refused = wire.settled(wire.upload(single(tensors)).id).id
        withdrawn = wire.withdraw(wire.create({SINGLE: b"12345678"}).submission.id).id
        worker = daemon.worker
        assert worker is not None
        daemon.wait_for_bases()
        worker.suspend()
        quarantined = wire.upload(checkpoint()).id
        wait_for(
            lambda: daemon.log.read_text().count("into v6") == 2, "the merge to begin"
        )  # the refused one was to be v6 too
        worker.kill()
        assert state(wire.settled(quarantined)) == "QUARANTINED"
        wire.retry(quarantined)
        assert state(wire.settled(quarantined)) == "MERGED"
    assert daemon.terminate() == 0

    found = records(daemon)
    assert all(MOMENT.fullmatch(record["time"]) for record in found)
    assert {record["level"] for record in found} <= {"INFO", "WARNING", "ERROR"}
    told = {
        submission_id: "\n".join(r["message"] for r in found if r.get("submission") == submission_id)
        for submission_id in (merged, rejected, refused, withdrawn, quarantined)
    }
    for submission_id, words in {
        merged: [
            "queued,",
            "folding into v",
            "folding tensor",
            "publishing tensor",
            "merged in v5",
            "v5 was rolled back",
        ],
        rejected: ["rejected: "],
        refused: ["queued,", "rejected: it has NaN"],
        withdrawn: ["withdrawn by its submitter"],
        quarantined: ["an attempt failed", "quarantined: 1 attempts", "queued again, retried", "merged in v"],
    }.items():
        text = told[submission_id]
        positions = [text.find(word) for word in words]
        assert -1 not in positions, (words, text)
        assert positions == sorted(positions), text
    for submission_id in told:
        named = [record for record in found if submission_id in json.dumps(record)]
        assert all(record["submission"] == submission_id for record in named), "a line concerns it and has no field"
    failed = next(record for record in found if record["message"] == "an attempt failed")
    assert "Traceback" in failed["exc_info"]


def test_console_lines(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    daemon = start_daemon(past.copy(tmp_path / "state"))
    tensors = fine_tuned(base_tensors())
    tensors["evil\n2026-01-01T00:00:00.000Z INFO    all is well\x1b[2J"] = tensors["logit_scale"].clone()
    with Wire(daemon) as wire:
        merged = wire.settled(wire.upload(checkpoint(), name="task").id).id
        rejected = wire.upload(single(tensors)).id
    lines = daemon.log.read_text().splitlines()
    assert all(MOMENT.match(line) for line in lines), "a line begins with a text of a submitter's"
    assert "\x1b" not in daemon.log.read_text()
    assert any(f"INFO    submission {merged}: merged in v5" in line for line in lines)
    assert any(f"WARNING submission {rejected}: rejected: " in line and "evil" in line for line in lines)


def test_what_the_worker_prints(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    # The interpreter's own words on standard error: what it imports, line by line.
    daemon = start_daemon(
        past.copy(tmp_path / "state"), None, "--log-format", "json", environment={"PYTHONVERBOSE": "1"}
    )
    wait_for(lambda: "is ready" in daemon.log.read_text(), "the worker to be ready", 120)
    assert daemon.terminate() == 0
    text = daemon.log.read_text()
    relayed = [line for line in text.splitlines() if "worker: import 'torch" in line]
    assert len(relayed) > 100
    assert all("WARNING" in line for line in relayed)
    assert all(json.loads(line)["logger"] == "foldind.worker.chatter" for line in relayed)
