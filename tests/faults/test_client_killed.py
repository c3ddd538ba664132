"""kill -9 of a client in the middle of an upload."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults import evidence, uploader
from tests.faults.bases import CHUNK_BYTES, CHUNKS_OF_LARGE
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Prepared

IN_FLIGHT = 4


def test_goes_on_where_it_was_killed(large: Prepared, tmp_path: Path, fault_daemon: Callable[..., FaultDaemon]) -> None:
    daemon = fault_daemon(large.copy(tmp_path)).start()
    command = [sys.executable, uploader.__file__, daemon.server, str(large.checkpoints[0])]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        for line in client.stdout:
            if int(line) >= CHUNKS_OF_LARGE // 2 * CHUNK_BYTES:
                client.kill()
                break
    acknowledged = int(line) // CHUNK_BYTES
    assert acknowledged < CHUNKS_OF_LARGE

    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    there, *after_each_chunk = [-(-int(line) // CHUNK_BYTES) for line in again.stdout.splitlines()]
    assert acknowledged <= there <= acknowledged + IN_FLIGHT
    assert after_each_chunk == list(range(there + 1, CHUNKS_OF_LARGE + 1)), "something was sent twice"

    with daemon.client() as reader:
        [submission] = reader.list()
        assert reader.wait(submission.id).version == 1
    assert daemon.terminate() == 0
    evidence.check_stopped(daemon.state)
