from collections.abc import Callable, Iterator

import pytest

from tests.faults.bases import slow_to_fold, thirty_chunks, write_base
from tests.faults.processes import FaultDaemon
from tests.faults.reference import Prepared, Reference, make_reference
from tests.support.daemon import foldind
from tests.support.models import make_checkpoint


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Submissions, and what they give when nothing goes wrong."""
    return make_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """One submission is merged, so that every further one takes a second or more."""
    folder = tmp_path_factory.mktemp("slow")
    base = write_base(folder / "base", slow_to_fold())
    checkpoints = [make_checkpoint(folder / f"task-{number}", base, seed=number) for number in range(4)]
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(folder / "state"))
    daemon = FaultDaemon(folder / "state").start()
    try:
        with daemon.client() as client:
            client.submit(checkpoints[0], name="first", wait=True)
        assert daemon.terminate() == 0
    finally:
        daemon.kill()
    return Prepared(folder / "state", checkpoints[1:])


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Nothing is merged; a checkpoint takes thirty chunks to send."""
    folder = tmp_path_factory.mktemp("large")
    base = write_base(folder / "base", thirty_chunks())
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(folder / "state"))
    return Prepared(folder / "state", [make_checkpoint(folder / "task", base, seed=1)])


@pytest.fixture
def fault_daemon() -> Iterator[Callable[..., FaultDaemon]]:
    """Make daemons that are killed at the end of the test; they are not started."""
    made: list[FaultDaemon] = []

    def make(*arguments: object, **settings: object) -> FaultDaemon:
        made.append(FaultDaemon(*arguments, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for daemon in made:
        daemon.kill()
