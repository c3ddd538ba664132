"""A stream of rank-16 adapters of every linear layer: at 7B, held and published as factors; smaller, against dense."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.worker.messages import FoldResult

from tests.bench import llama
from tests.bench.adapters import difference, multiply_out, write_adapter, write_whole
from tests.bench.settings import Settings
from tests.bench.worker import Folded, Worker, compute_bases, fold

LARGE, SMALL = "7B", "0.3B"
FOLDS = 20
DENSE_FOLDS = 3
CAPPED = 64
SHOWN = (1, 2, 5, 10, 15, 20)


class Head(NamedTuple):
    """Where a stream stands."""

    state: Path
    result: FoldResult


def run(folder: Path, settings: Settings) -> None:
    """Fold the streams, and print the figures."""
    del settings
    for max_rank in (0, CAPPED):
        _large(folder / f"large-{max_rank}", max_rank)
        shutil.rmtree(folder / f"large-{max_rank}")
    _against_dense(folder / "small")


def _prepare(folder: Path, name: str) -> Plan:
    folder.mkdir()
    plan = make_plan(open_checkpoint(llama.write_streamed(folder / "base", llama.SIZES[name])))
    (folder / "plan.json").write_text(plan.to_json())
    return plan


def _large(folder: Path, max_rank: int) -> None:
    plan = _prepare(folder, LARGE)
    worker, head = Worker(), None
    cap = f"at most rank {max_rank}" if max_rank else "no limit of the rank"
    print(f"## {FOLDS} adapters onto {LARGE} ({plan.float32_bytes / 4e9:.1f}B parameters), {cap}\n")
    print(
        f"The worker after its imports: {worker.imports / 1e6:.0f} MB; the state in dense float32 would take ", end=""
    )
    print(f"{plan.float32_bytes / 1e9:.1f} GB.\n")
    print("| folds | fold | publish the adapter | state | adapter | its rank | dropped | worker's peak |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(1, FOLDS + 1):
        adapter = write_adapter(folder / "adapter", plan, seed=number)
        place = folder / f"v{number}"
        folded = fold(worker, folder, adapter, place, head, publish=("adapter",), max_rank=max_rank)
        if head:
            shutil.rmtree(head.state.parent)
        head = Head(place / "state", folded.result)
        shutil.rmtree(adapter)
        if number in SHOWN:
            print(_row(number, folded), flush=True)
    worker.end()
    print()


def _row(number: int, folded: Folded) -> str:
    result = folded.result
    assert result.adapter
    state, published = (_size(files) for files in (result.state_files, result.snapshot_files))
    times = f"{folded.folding:.1f} s | {folded.publishing:.1f} s"
    sizes = f"{state / 1e6:.0f} MB | {published / 1e6:.0f} MB | {result.adapter.rank}"
    return f"| {number} | {times} | {sizes} | {result.dropped:.1%} | {result.peak_resident_bytes / 1e6:.0f} MB |"


def _size(files: dict[str, object]) -> int:
    return sum(digest.size for digest in files.values())


def _against_dense(folder: Path) -> None:
    plan = _prepare(folder, SMALL)
    worker, head = Worker(), None
    print(f"## {DENSE_FOLDS} adapters, one after the other, against the same as whole models ({SMALL})\n")
    print("| fold | held | fold | publish | state | worker's peak | difference |")
    print("|---|---|---|---|---|---|---|")
    for number in range(1, DENSE_FOLDS + 1):
        adapter = write_adapter(folder / f"adapter-{number}", plan, seed=number)
        place = folder / f"v{number}"
        factored = fold(worker, folder, adapter, place, head, publish=("adapter",))
        if head:  # the first has nothing to be orthogonal to
            dense = _fold_dense(worker, folder, plan, head, number)
            apart = difference(place / "state", folder / f"whole-v{number}" / "state", plan)
            _print_pair(number, factored, dense, apart)
        head = Head(place / "state", factored.result)
    worker.end()
    print()


def _fold_dense(worker: Worker, folder: Path, plan: Plan, head: Head, number: int) -> Folded:
    start, bases = folder / f"dense-{number}", folder / f"bases-{number}"
    multiply_out(head.state, start, plan)
    compute_bases(worker, plan, start, bases)
    whole = write_whole(folder / f"whole-{number}", folder / "base", plan, seed=number)
    return fold(worker, folder, whole, folder / f"whole-v{number}", Head(start, head.result), bases)


def _print_pair(number: int, factored: Folded, dense: Folded, apart: float) -> None:
    rows: Sequence[tuple[str, Folded, str]] = (
        ("as factors, published as an adapter", factored, f"{apart:.1e}"),
        ("dense, bases ready, published as a model", dense, ""),
    )
    for held, folded, told in rows:
        state, peak = _size(folded.result.state_files), folded.result.peak_resident_bytes
        times = f"{folded.folding:.2f} s | {folded.publishing:.2f} s"
        print(f"| {number} | {held} | {times} | {state / 1e6:.0f} MB | {peak / 1e6:.0f} MB | {told} |", flush=True)
