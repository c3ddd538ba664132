"""Whether the statistics of a submission fit it, by their names, shapes and dtypes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from foldind.checkpoints.checkpoint import INDEX, check_file_names, choose_files, open_checkpoint
from foldind.checkpoints.plan import Plan, make_plan
from foldind.checkpoints.statistics import Kind, check_statistics
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import CheckpointRefused
from torch import Generator, Tensor

from tests.checkpoints.folding import DENSE, EMBEDDING, FROZEN, QUERY, fine_tuned, write
from tests.checkpoints.statistics import STATISTICS, fishers, grams, put
from tests.support.models import base_tensors

KINDS: Mapping[Kind, Callable[[Mapping[str, Tensor], Generator], dict[str, Tensor]]] = {"like": fishers, "gram": grams}
Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(open_checkpoint(write(tmp_path_factory.mktemp("base") / "base", base_tensors())))


def without(name: str) -> Change:
    return lambda found: {other: tensor for other, tensor in found.items() if other != name}


def check(plan: Plan, place: Path, kind: Kind, vocab: VocabPolicy = VocabPolicy.SAME) -> str:
    """What is said of the statistics in a folder; nothing, if they are taken."""
    try:
        check_statistics(open_checkpoint(place), plan, kind, vocab)
    except CheckpointRefused as error:
        assert error.hint
        return error.reason
    return ""


REFUSED: Mapping[str, tuple[Kind, Change, str]] = {
    "an embedding lacks": ("like", without(EMBEDDING), f"{STATISTICS} lacks {EMBEDDING}, which the submission changes"),
    "a layer lacks": ("gram", without(QUERY), f"{STATISTICS} lacks {QUERY}, which the submission changes"),
    "all lack": ("like", lambda _: {"other": torch.ones(1)}, "and 3 more, which the submission changes"),
    "other names": (
        "gram",
        lambda found: {f"module.{name}": tensor for name, tensor in found.items()},
        f"{STATISTICS} lacks {QUERY}, {DENSE[0]}, {DENSE[1]}, which",
    ),
    "a Fisher of another shape": (
        "like",
        lambda found: found | {QUERY: torch.ones(24, 23)},
        f"{QUERY!r} has shape [24, 23], which is not that of the statistics of a parameter of [24, 24]",
    ),
    "a Fisher for a Gram matrix": (
        "gram",
        lambda found: found | {DENSE[0]: torch.ones(48, 24)},
        f"{DENSE[0]!r} has shape [48, 24], which is not that of the statistics of a parameter of [48, 24]",
    ),
    "a Gram matrix of the outputs": (
        "gram",
        lambda found: found | {DENSE[0]: torch.ones(48, 48)},
        "has shape [48, 48]",
    ),
    "a Gram matrix for a Fisher": ("like", lambda found: found | {DENSE[0]: torch.ones(24, 24)}, "has shape [24, 24]"),
    "more rows than the checkpoint": ("like", lambda found: found | {EMBEDDING: torch.ones(44, 24)}, "shape [44, 24]"),
    "one number": ("like", lambda found: found | {QUERY: torch.ones(())}, "has shape []"),
    "float64": (
        "like",
        lambda found: found | {QUERY: found[QUERY].double()},
        f"in {STATISTICS}, {QUERY!r} has dtype F64",
    ),
    "integers": ("gram", lambda found: found | {QUERY: found[QUERY].int()}, f"{QUERY!r} has dtype I32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, plan: Plan, generator: Generator, tmp_path: Path) -> None:
    kind, change, words = REFUSED[what]
    base = base_tensors()
    place = write(tmp_path / "s", fine_tuned(base, generator))
    put(place, change(KINDS[kind](base, generator)))
    assert words in check(plan, place, kind)


@pytest.mark.parametrize("kind", KINDS)
class TestTaken:
    def test_as_they_are(self, kind: Kind, plan: Plan, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        place = put(write(tmp_path / "s", fine_tuned(base, generator), 3), KINDS[kind](base, generator))
        assert check(plan, place, kind) == ""

    def test_with_more_than_is_asked_for(self, kind: Kind, plan: Plan, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        more = {"classifier.weight": torch.ones(3, 3), FROZEN: torch.ones(3, dtype=torch.int64)}
        place = put(write(tmp_path / "s", fine_tuned(base, generator)), KINDS[kind](base, generator) | more)
        assert check(plan, place, kind) == ""

    def test_of_what_is_changed(self, kind: Kind, plan: Plan, generator: Generator, tmp_path: Path) -> None:
        base = base_tensors()
        known = KINDS[kind](base, generator)
        place = put(write(tmp_path / "s", {QUERY: fine_tuned(base, generator)[QUERY]}), {QUERY: known[QUERY]})
        assert check(plan, place, kind) == ""

    def test_missing(self, kind: Kind, plan: Plan, generator: Generator, tmp_path: Path) -> None:
        place = write(tmp_path / "s", fine_tuned(base_tensors(), generator))
        assert f"it comes without {STATISTICS}" in check(plan, place, kind)

    @pytest.mark.parametrize("content", [b"", b"no safetensors at all", (2**40).to_bytes(8, "little")], ids=len)
    def test_no_safetensors(self, kind: Kind, content: bytes, plan: Plan, generator: Generator, tmp_path: Path) -> None:
        place = write(tmp_path / "s", fine_tuned(base_tensors(), generator))
        (place / STATISTICS).write_bytes(content)
        assert check(plan, place, kind).startswith(STATISTICS)


@pytest.mark.parametrize("rows", [38, 44])
def test_another_vocabulary(rows: int, plan: Plan, generator: Generator, tmp_path: Path) -> None:
    base = base_tensors()
    model = fine_tuned(base, generator) | {EMBEDDING: torch.ones(rows, 24)}
    for number, fisher_rows in enumerate((rows, 40, rows + 1)):
        known = fishers(base, generator) | {EMBEDDING: torch.ones(fisher_rows, 24)}
        place = put(write(tmp_path / f"s{number}", model), known)
        told = check(plan, place, "like", VocabPolicy.COMMON)
        assert (told == "") == (fisher_rows == rows)
        assert told == "" or f"{EMBEDDING!r} has shape [{fisher_rows}, 24]" in told


class TestFiles:
    @pytest.mark.parametrize(
        "names",
        [["model.safetensors"], ["adapter_config.json", "adapter_model.safetensors"], [INDEX, "a.safetensors"]],
        ids=len,
    )
    def test_beside_any_checkpoint(self, names: list[str]) -> None:
        check_file_names([*names, STATISTICS])
        assert choose_files([*names, STATISTICS]) == names
        assert choose_files([*names, STATISTICS], statistics=True) == [*names, STATISTICS]
        assert choose_files(names, statistics=True) == names

    def test_alone_they_are_no_checkpoint(self) -> None:
        with pytest.raises(CheckpointRefused, match="no weights were sent"):
            check_file_names([STATISTICS])
        assert choose_files([STATISTICS], statistics=True) == []

    def test_an_index_cannot_name_them(self, generator: Generator, tmp_path: Path) -> None:
        place = write(tmp_path / "s", fine_tuned(base_tensors(), generator), 2)
        text = (place / INDEX).read_text()
        (place / INDEX).write_text(text.replace("model-00001-of-00002.safetensors", STATISTICS))
        with pytest.raises(CheckpointRefused, match="which is no name of a shard"):
            open_checkpoint(place)
