from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from foldin import Client
from safetensors.numpy import save_file

from tests.clients.stand_in import StandIn


@pytest.fixture
def daemon() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.stop()


@pytest.fixture
def client(daemon: StandIn) -> Iterator[Client]:
    with Client(daemon.address, patience=5.0) as client:
        yield client


@pytest.fixture
def save() -> Callable[..., Path]:
    """Writes a real safetensors file of about the given number of bytes."""

    def write(path: Path, size: int = 1024, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = numpy.random.default_rng(seed).standard_normal(size // 4).astype("float32")
        save_file({"weight": values}, path)
        return path

    return write


@pytest.fixture
def checkpoint(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """A folder with one model.safetensors of a little more than ten of the stand-in's chunks."""
    save(tmp_path / "checkpoint" / "model.safetensors", 10 * 64 * 1024)
    return tmp_path / "checkpoint"
