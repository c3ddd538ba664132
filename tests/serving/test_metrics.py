"""What /metrics says, against what was done."""

import json
import platform
import shutil
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.daemon import Daemon, wait_for
from tests.support.history import VERSIONS, History
from tests.support.http import OPENMETRICS, ask, scrape
from tests.support.models import base_tensors
from tests.support.wire import SINGLE, Daemons, Wire, fine_tuned, idle_worker, single, state

STAGES = ("wait", "fold", "publish", "commit")
UNITS = ("bytes", "seconds", "ratio", "info")


@pytest.fixture
def fresh(past: History, tmp_path: Path, start_daemon: Daemons) -> Daemon:
    """A daemon of the test's own over a copy of the history."""
    return start_daemon(past.copy(tmp_path / "state"), None, "--allowed-root", str(tmp_path))


def test_openmetrics_is_strictly_so(daemon: Daemon) -> None:
    families = list(text_string_to_metric_families(ask(f"{daemon.http}/metrics", accept=OPENMETRICS).text))
    ours = [family for family in families if family.name.startswith("foldin_")]
    assert len(ours) >= 24
    for family in families:
        assert family.documentation, family.name
        assert family.samples, f"{family.name} has no value on a daemon that has merged"
    for family in ours:
        assert not family.unit or family.name.endswith(f"_{family.unit}")
        assert family.unit or not family.name.endswith(UNITS), family.name


def test_a_history_is_told_after_a_restart(daemon: Daemon, wire: Wire) -> None:
    samples, head = scrape(daemon.http), wire.snapshot()
    for outcome, count in {"merged": VERSIONS, "rejected": 1, "withdrawn": 1, "quarantined": 0}.items():
        assert samples("foldin_submission_outcomes_total", outcome=outcome) == count
        assert samples("foldin_submissions", state=outcome) == count
    assert samples("foldin_submissions", state="receiving") == 1
    assert samples("foldin_queue_length") == samples("foldin_queue_oldest_seconds") == 0
    assert samples("foldin_version") == head.version == VERSIONS
    assert samples("foldin_merged_submissions") == VERSIONS
    assert samples("foldin_lambda") == getattr(head, "lambda")
    assert samples("foldin_accumulated_norm") == head.accumulated_norm
    assert samples("foldin_task_vector_norm_mean") == head.mean_task_vector_norm
    assert samples("foldin_task_vector_norm_last") == head.task_vector_norm


def test_projection_over_the_tensors_of_the_newest_version(daemon: Daemon) -> None:
    samples = scrape(daemon.http)
    manifest = json.loads((daemon.state / "snapshots" / "latest" / "foldin.json").read_text())
    projected = [tensor for tensor in manifest["tensors"].values() if tensor["treatment"] == "projected"]
    for name, key in (("foldin_projection_kept_ratio", "kept"), ("foldin_split_rank", "split_rank")):
        values = [tensor[key] for tensor in projected]
        for statistic, expected in (("min", min), ("median", median), ("max", max)):
            assert samples(name, statistic=statistic) == expected(values)
    assert 0 < samples("foldin_projection_kept_ratio", statistic="max") < 1


def test_one_merge(fresh: Daemon, tmp_path: Path) -> None:
    with Wire(fresh) as wire:
        before = scrape(fresh.http)
        files = single(fine_tuned(base_tensors()))
        assert state(wire.settled(wire.upload(files).id)) == "MERGED"
        path = tmp_path / SINGLE
        path.write_bytes(single(fine_tuned(base_tensors()))[SINGLE])
        assert state(wire.settled(wire.submit_path(path).id)) == "MERGED"
        read = len(wire.read(VERSIONS + 1, SINGLE))
        after = wait_for(
            lambda: s if (s := scrape(fresh.http))("foldin_merge_stage_seconds_count", stage="commit") == 2 else None,
            "the second merge to be observed",
        )
    assert after("foldin_version") == VERSIONS + 2
    assert after("foldin_received_bytes_total", door="grpc") == len(files[SINGLE])
    assert after("foldin_received_bytes_total", door="path") == path.stat().st_size
    assert after("foldin_received_bytes_total", door="inbox") == 0
    assert after("foldin_sent_bytes_total") == read
    for stage in STAGES:
        assert before("foldin_merge_stage_seconds_count", stage=stage) == 0
        assert after("foldin_merge_stage_seconds_count", stage=stage) == 2
    merging = sum(after("foldin_merge_stage_seconds_sum", stage=stage) for stage in STAGES[1:])
    with Wire(fresh) as wire:
        recorded = sum(wire.snapshot(f"v{VERSIONS + number}").merge_seconds for number in (1, 2))
    assert recorded <= merging * 1.01 + 0.01
    assert set(before.values) == set(after.values), "series came or went with a submission"


def test_the_watched_folder_is_a_door(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    settings = {"FOLDIN_INBOX_SETTLE": "0.1", "FOLDIN_INBOX_POLL": "0.2"}
    daemon = start_daemon(past.copy(tmp_path / "state"), None, "--inbox", str(inbox), environment=settings)
    content = single(fine_tuned(base_tensors()))[SINGLE]
    (inbox / "task.safetensors").write_bytes(content)
    wait_for(lambda: scrape(daemon.http)("foldin_version") == VERSIONS + 1, "the drop to be merged", 60)
    samples = scrape(daemon.http)
    assert samples("foldin_received_bytes_total", door="inbox") == len(content)
    assert samples("foldin_received_bytes_total", door="path") == 0


def test_trouble_in_the_watched_folder(past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    inbox = tmp_path / "inbox"
    settings = {"FOLDIN_INBOX_SETTLE": "0.1", "FOLDIN_INBOX_POLL": "0.2", "FOLDIN_INBOX_STALE": "0"}
    daemon = start_daemon(past.copy(tmp_path / "state"), None, "--inbox", str(inbox), environment=settings)

    def drops() -> tuple[float, float, float]:
        samples = scrape(daemon.http)
        return tuple(samples(f"foldin_inbox_{name}") for name in ("drops", "stuck_drops", "failing"))  # type: ignore[return-value]

    assert drops() == (0, 0, 0)
    shutil.rmtree(inbox / "rejected")
    (inbox / "rejected").write_text("in the way")
    (inbox / "wrong.bin").write_text("")
    wait_for(lambda: drops() == (1, 1, 0), "the drop that cannot be filed")
    (inbox / "rejected").unlink()
    wait_for(lambda: drops() == (0, 0, 0), "it to be filed")
    filed = [scrape(daemon.http)("foldin_inbox_filed_total", folder=folder) for folder in ("accepted", "rejected")]
    assert filed == [0, 1]
    inbox.rename(tmp_path / "away")
    wait_for(lambda: drops() == (0, 0, 1), "the folder to be missed")
    (tmp_path / "away").rename(inbox)
    wait_for(lambda: drops() == (0, 0, 0), "it to be found again")


def test_what_is_not_merged_is_not_observed(fresh: Daemon) -> None:
    tensors = fine_tuned(base_tensors())
    tensors["logit_scale"] = tensors["logit_scale"] * float("nan")
    with Wire(fresh) as wire:
        assert state(wire.settled(wire.upload(single(tensors)).id)) == "REJECTED"
    samples = scrape(fresh.http)
    assert samples("foldin_merge_stage_seconds_count", stage="wait") == 0
    assert samples("foldin_submission_outcomes_total", outcome="rejected") == 2


def test_a_queue(fresh: Daemon) -> None:
    with Wire(fresh) as wire, idle_worker(fresh):
        ids = [wire.upload(single(fine_tuned(base_tensors()))).id for _ in range(3)]
        wait_for(lambda: state(wire.get(ids[0])) == "MERGING", "the first to be taken")
        samples = scrape(fresh.http)
        assert samples("foldin_queue_length") == samples("foldin_submissions", state="queued") == 2
        assert samples("foldin_submissions", state="merging") == 1
        assert 0 < samples("foldin_queue_oldest_seconds") < 60


def test_a_worker_that_died(fresh: Daemon) -> None:
    with Wire(fresh) as wire:
        assert state(wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)) == "MERGED"
        peak = scrape(fresh.http)("foldin_worker_peak_resident_bytes")
        worker = fresh.worker
        assert worker is not None
        assert 50e6 < peak < 2e9
        assert scrape(fresh.http)("foldin_worker_restarts_total") == 0
        worker.kill()
        wait_for(lambda: not psutil.pid_exists(worker.pid), "the daemon to notice")
        assert state(wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)) == "MERGED"
    assert scrape(fresh.http)("foldin_worker_restarts_total") == 1


def test_the_disk_is_what_du_says(daemon: Daemon) -> None:
    samples = scrape(daemon.http)
    for part in ("base", "merge", "submissions", "snapshots"):
        files = [path for path in (daemon.state / part).rglob("*") if not path.is_dir() or path.is_symlink()]
        assert samples("foldin_state_bytes", part=part) == sum(path.lstat().st_blocks * 512 for path in files)
    assert samples("foldin_state_bytes", part="ledger") >= (daemon.state / "ledger.sqlite").stat().st_size
    assert samples("foldin_state_capacity_bytes") == shutil.disk_usage(daemon.state).total
    assert 0 < samples("foldin_state_free_bytes") <= shutil.disk_usage(daemon.state).total


def test_files_that_vanish_meanwhile(daemon: Daemon) -> None:
    # Below a part of the state, where the daemon itself does not look.
    place, ended = daemon.state / "base" / "vanishing", Event()
    place.mkdir()

    def churn() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            folder = place / str(number)
            folder.mkdir()
            for name in range(20):
                (folder / str(name)).touch()
            shutil.rmtree(folder)

    thread = Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            assert scrape(daemon.http).has("foldin_state_bytes", part="base")
    finally:
        ended.set()
        thread.join()
        place.rmdir()


def test_build_and_process(daemon: Daemon) -> None:
    samples = scrape(daemon.http)
    assert samples.has("foldin_build_info", python=platform.python_version())
    assert samples("process_resident_memory_bytes") > 10e6
    assert samples("process_open_fds") > 3
