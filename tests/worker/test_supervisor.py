"""What a worker answers reaches the caller as a result or as an error."""

import asyncio
import errno
from pathlib import Path

import pytest
from foldind.errors import LONGEST_REASON
from foldind.worker.messages import BasisRequest, BasisTarget
from foldind.worker.supervisor import Supervisor, WorkerDied, WorkFailed


def test_work_that_fails_is_raised_and_the_worker_lives_on(tmp_path: Path) -> None:
    nothing = BasisRequest("opcm", {}, "torch", 1, str(tmp_path / "gone"), ())
    unknown = BasisRequest(
        "n" * 2 * LONGEST_REASON, {}, "torch", 1, str(tmp_path), (BasisTarget("t", None, str(tmp_path / "basis")),)
    )

    async def ask() -> None:
        supervisor = Supervisor(threads=1, memory_budget=2**30)
        try:
            with pytest.raises(OSError, match="the accumulated state is damaged or gone") as gone:
                await supervisor.compute_bases(nothing)
            assert gone.value.errno == errno.EIO
            with pytest.raises(WorkFailed, match="nnn") as failed:
                await supervisor.compute_bases(unknown)
            assert len(failed.value.reason) == LONGEST_REASON + len("...")
            assert supervisor.restarts == 0
        finally:
            await supervisor.stop()
        with pytest.raises(WorkerDied, match="stopping"):
            await supervisor.compute_bases(nothing)

    asyncio.run(ask())
