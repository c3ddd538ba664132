"""How much memory the steps of a merge take at the most: the bounds by their numbers, and what real folds take."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.header import read_header
from foldind.checkpoints.plan import PlannedTensor, Treatment, make_plan
from foldind.merging.basis import decompose
from foldind.merging.catalog import CATALOG
from foldind.state.bases import basis_bytes
from foldind.state.basisfile import write_basis
from foldind.worker.blocks import Block, FactoredMatrix, tensor_blocks
from foldind.worker.estimates import adapter_factors_bytes, basis_computation_bytes, fold_bytes, publish_bytes
from torch import Generator, Tensor

from tests.bench.worker import Worker, fold
from tests.checkpoints.folding import DENSE, EMBEDDING, fine_tuned, write
from tests.checkpoints.statistics import fishers, grams, put


def block(shape: tuple[int, ...], rows: tuple[int, int], treatment: Treatment) -> Block:
    projected = treatment is Treatment.PROJECTED
    return Block(PlannedTensor("a.weight", "F32", shape, treatment), rows, "basis" if projected else "")


BLOCKS = {
    "tall": block((96, 64), (0, 96), Treatment.PROJECTED),
    "wide": block((64, 96), (0, 64), Treatment.PROJECTED),
    "expert": block((3, 96, 64), (1, 2), Treatment.PROJECTED),
    "large": block((16384, 1024), (0, 2048), Treatment.PROJECTED),
    "rows": block((1000, 64), (10, 20), Treatment.SUMMED),
}
IN_FLOAT32 = (122_880, 122_880, 122_880, 41_943_040, 12_800)
PROJECTED = (25_428_736, 25_428_736, 25_428_736, 46_137_344, 12_800)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        *((rule, PROJECTED) for rule in ("opcm", "foldin")),
        *((rule, IN_FLOAT32) for rule in ("average", "task_arithmetic", "dare", "magmax", "iso")),
        ("ties", (368_640, 368_640, 368_640, 125_829_120, 38_400)),
        ("breadcrumbs", (221_184, 221_184, 221_184, 75_497_472, 23_040)),
        ("regression", (401_408, 565_248, 401_408, 125_829_120, 23_040)),
        ("fisher", (417_792, 417_792, 417_792, 142_606_336, 43_520)),
        ("regmean", (679_936, 1_007_616, 679_936, 209_715_200, 33_280)),
        ("model_stock", (270_336, 270_336, 270_336, 92_274_688, 28_160)),
    ],
)
def test_fold(rule: str, expected: tuple[int, ...]) -> None:
    assert tuple(fold_bytes(part, CATALOG[rule]) for part in BLOCKS.values()) == expected


@pytest.mark.parametrize(("rank", "expected"), [(0, 0), (1, 5_200), (8, 46_080)])
def test_fold_of_factors(rank: int, expected: int) -> None:
    assert fold_bytes(FactoredMatrix(BLOCKS["tall"].tensor, rank), CATALOG["opcm"]) == expected


@pytest.mark.parametrize(
    ("rule", "by_spectrum", "expected"),
    [
        ("average", False, (98_304, 98_304, 98_304, 33_554_432, 10_240)),
        ("opcm", True, (140_032, 140_032, 140_032, 104_869_888)),
        ("ties", False, (172_032, 172_032, 172_032, 58_720_256, 17_920)),
        ("fisher", False, (270_336, 270_336, 270_336, 92_274_688, 28_160)),
    ],
)
def test_publication(rule: str, by_spectrum: bool, expected: tuple[int, ...]) -> None:
    parts = [part for part in BLOCKS.values() if part.basis_file or not by_spectrum]
    assert tuple(publish_bytes(part, CATALOG[rule], by_spectrum=by_spectrum) for part in parts) == expected


def test_basis_computation() -> None:
    expected = {"tall": 25_428_736, "wide": 25_428_736, "expert": 25_428_736, "large": 163_590_144}
    assert {name: basis_computation_bytes(BLOCKS[name]) for name in expected} == expected


def test_factors_of_an_adapter() -> None:
    assert adapter_factors_bytes((96, 64), 8, dense=False) == 20_480
    assert adapter_factors_bytes((96, 64), 8, dense=True) == 25_407_488


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7), (1, 6)])
def test_basis_is_as_large_as_its_file(shape: tuple[int, int], generator: Generator, tmp_path: Path) -> None:
    write_basis(tmp_path / "basis", decompose(torch.randn(shape, generator=generator), alpha=0.5))
    tensors = read_header(tmp_path / "basis").tensors
    assert sum(tensor.nbytes for tensor in tensors if tensor.name != "sha256") == basis_bytes(*shape)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One with next to no memory budget: it does one step at a time, and returns memory that is free."""
    worker = Worker(budget=1)
    yield worker
    worker.end()


OVERHEAD = 6 * 1024 * 1024
"""What does not grow with the tensor, such as the memory of a new thread; 3 to 4 MB measured."""

STATISTICS: dict[str, Callable[[dict[str, Tensor], Generator], dict[str, Tensor]]] = {
    "": lambda tensors, generator: {},
    "like": fishers,
    "gram": lambda tensors, generator: grams(tensors, generator, list(tensors)),
}


@pytest.mark.parametrize(
    ("rule", "name", "shape"),
    [
        ("opcm", DENSE[0], (1536, 512)),
        ("opcm", DENSE[1], (512, 1536)),
        ("foldin", EMBEDDING, (8192, 512)),
        ("average", EMBEDDING, (8192, 512)),
        ("ties", DENSE[0], (1536, 512)),
        ("fisher", EMBEDDING, (8192, 512)),
        ("regression", DENSE[1], (512, 1024)),
        ("regmean", DENSE[1], (512, 1024)),
    ],
)
def test_a_fold_takes_no_more(
    rule: str, name: str, shape: tuple[int, int], worker: Worker, generator: Generator, tmp_path: Path
) -> None:
    base = {name: torch.randn(shape, generator=generator)}
    plan = make_plan(open_checkpoint(write(tmp_path / "base", base)))
    (tmp_path / "plan.json").write_text(plan.to_json())
    resident, before = 0, None
    for number in range(3):  # only the last is measured: what the first two bring into memory remains there
        submission = write(tmp_path / f"submission{number}", fine_tuned(base, generator))
        if statistics := STATISTICS[CATALOG[rule].statistics](base, generator):
            put(submission, statistics)
        resident = psutil.Process(worker.pid).memory_info().rss
        place = tmp_path / f"fold{number}"
        result = fold(worker, tmp_path, submission, place, before, budget=1, rule=rule).result
        before = (place / "state", result)
    parts = tensor_blocks(0, plan.folded[0], whole=CATALOG[rule].whole)
    taken, estimate = result.peak_resident_bytes - resident, max(fold_bytes(part, CATALOG[rule]) for part in parts)
    assert estimate / 4 <= taken <= estimate + OVERHEAD
