"""The linear algebra is chosen by measuring it."""

import json
import subprocess
from collections.abc import Callable

import pytest
from foldind.errors import FoldinError
from foldind.merging.backend import BACKENDS
from foldind.worker import choice


def test_the_faster_one() -> None:
    chosen = choice.choose_backend(1)
    assert chosen.name in BACKENDS
    assert all(name in chosen.figures for name in BACKENDS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the measurement have a result."""

    def answer(returncode: int = 0, stderr: str = "", **errors: tuple[float, float]) -> None:
        figures = {
            name: {"product_seconds": seconds, "decomposition_seconds": 0.1, "error": error}
            for name, (seconds, error) in errors.items()
        }
        run = subprocess.CompletedProcess([], returncode, json.dumps(figures), stderr)
        monkeypatch.setattr(choice.subprocess, "run", lambda *_, **__: run)

    return answer


def test_exact_ones_only(measured: Callable[..., None]) -> None:
    measured(torch=(0.01, 3e-3), numpy=(0.02, 3e-7))
    assert choice.choose_backend(1).name == "numpy"
    measured(torch=(0.01, 3e-7), numpy=(0.02, 3e-7))
    assert choice.choose_backend(1).name == "torch"


def test_none_is_exact(measured: Callable[..., None]) -> None:
    measured(torch=(0.01, 3e-3), numpy=(0.02, float("nan")))
    with pytest.raises(FoldinError, match="exact to float32"):
        choice.choose_backend(1)


def test_the_measurement_fails(measured: Callable[..., None]) -> None:
    measured(returncode=1, stderr="no such library")
    with pytest.raises(FoldinError, match="no such library; choose one with --backend"):
        choice.choose_backend(1)
