"""What every merge rule promises to whoever streams a model through it."""

import ast
import sys
from itertools import pairwise
from pathlib import Path

import foldind.merging
import pytest
import torch
from foldind.checkpoints.tensors import TORCH_DTYPES
from foldind.merging.catalog import ACCUMULATED, CATALOG, DIVIDING, PUBLICATIONS, SPECTRAL, slots_of
from foldind.merging.publications import CANCELLED
from foldind.merging.record import Record, TensorRecord
from foldind.merging.registry import ACCUMULATIONS, make_rule, nothing_merged
from foldind.merging.registry import PUBLICATIONS as FACTORIES
from foldind.merging.rule import Publication, Rule, State, Step
from torch import Generator, Tensor

from tests.merging.matrices import random
from tests.merging.rules import COMBINATIONS, IRREVERSIBLE, RANDOM, Combination, statistics_of
from tests.merging.streaming import Merge

MATRICES = ((12, 8), (8, 12), (2, 2))
OTHERS = ((12, 8), (24,), (6, 3, 4, 4), (1, 9), (0, 5), ())
SHAPES = [(shape, True) for shape in MATRICES] + [(shape, False) for shape in OTHERS]
SHAPE_IDS = [f"{'x'.join(map(str, shape)) or 'scalar'}{' matrix' if matrix else ''}" for shape, matrix in SHAPES]
SEED = 5
shaped = pytest.mark.parametrize(("shape", "matrix"), SHAPES, ids=SHAPE_IDS)


@pytest.fixture(params=CATALOG)
def rule(request: pytest.FixtureRequest) -> Rule:
    return make_rule(request.param)


@pytest.fixture(params=COMBINATIONS, ids=str)
def combination(request: pytest.FixtureRequest) -> Combination:
    return request.param  # type: ignore[no-any-return]


def zeros(rule: Rule, shape: tuple[int, ...], matrix: bool) -> State:
    return nothing_merged(rule.name, shape, matrix=matrix)


def some_state(rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator, folds: int = 2) -> State:
    state = zeros(rule, shape, matrix)
    for number in range(folds):
        task_vector = 2 + torch.randn(shape, generator=generator)  # they agree a little
        state = rule.accumulation.fold(state, task_vector, step_of(rule, shape, matrix, number)).state
    return state


def step_of(rule: Rule, shape: tuple[int, ...], matrix: bool, seed: int) -> Step:
    return Step(matrix, seed, statistics_of(rule.name, shape, matrix, seed))


RECORD = Record(2, 3.0, 4.0)
TENSOR_RECORD = TensorRecord(2, 5.0, 4.0)


def in_blocks(rows: int) -> list[slice]:
    edges = sorted({0, rows // 3, rows // 2, rows})
    return [slice(first, last) for first, last in pairwise(edges)]


def rows_of(state: State, rows: slice) -> State:
    return {slot: values[rows] for slot, values in state.items()}


def rows_of_step(step: Step, rows: slice) -> Step:
    return step._replace(statistics=None if step.statistics is None else step.statistics[rows])


def cat(states: list[State]) -> State:
    return {slot: torch.cat([state[slot] for state in states]) for slot in states[0]}


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for slot, values in one.items():
        assert torch.equal(values, other[slot]), slot


class TestAccumulation:
    def test_name_is_that_of_the_catalog(self, rule: Rule) -> None:
        assert make_rule(rule.name).name == rule.name
        assert rule.name == "opcm" or rule.name in ACCUMULATIONS

    def test_the_catalog_says_what_it_needs(self, rule: Rule) -> None:
        entry, accumulation = CATALOG[rule.name], rule.accumulation
        assert accumulation.whole == entry.whole
        assert (accumulation.projection is not None) == entry.projects
        assert (accumulation.take_out is None) == (rule.name in IRREVERSIBLE)
        assert (accumulation.take_out is not None) == entry.additive
        assert not (entry.all_slots and accumulation.fold_factored), "factors are of the sum alone"

    def test_options_of_the_catalog_are_its_defaults(self, rule: Rule, generator: Generator) -> None:
        options = CATALOG[rule.name].options
        task_vector = random(12, 8, generator)
        made = make_rule(rule.name, options)
        for step in (step_of(rule, (12, 8), matrix, SEED) for matrix in (True, False)):
            state = zeros(rule, (12, 8), step.matrix)
            assert_equal(
                made.accumulation.fold(state, task_vector, step).state,
                rule.accumulation.fold(state, task_vector, step).state,
            )

    @shaped
    def test_slots_are_those_of_the_catalog(
        self, rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator
    ) -> None:
        state = some_state(rule, shape, matrix, generator)
        expected = slots_of(rule.name, shape, matrix=matrix)
        assert {name: tuple(values.shape) for name, values in state.items()} == {
            name: slot.shape for name, slot in expected.items()
        }
        assert {name: values.dtype for name, values in state.items()} == {
            name: TORCH_DTYPES[slot.dtype] for name, slot in expected.items()
        }
        assert next(iter(expected)) == ACCUMULATED

    def test_slots_of_stacked_matrices_are_those_of_each(self, rule: Rule) -> None:
        for stacked, one in (((3, 8, 6), (8, 6)), ((1, 5, 9), (5, 9))):
            slots = slots_of(rule.name, one, matrix=True)
            assert slots_of(rule.name, stacked, matrix=True) == {
                name: slot._replace(shape=(stacked[0], *slot.shape)) for name, slot in slots.items()
            }

    @shaped
    def test_state_does_not_grow(self, rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator) -> None:
        sizes = [
            sum(values.numel() for values in some_state(rule, shape, matrix, generator, folds).values())
            for folds in (1, 2, 7)
        ]
        assert len(set(sizes)) == 1

    @pytest.mark.parametrize("shape", [(40, 24), (24,), (6, 3, 4, 4), (3, 8, 6)])
    def test_rows_can_be_split_unless_it_needs_them_all(
        self, rule: Rule, shape: tuple[int, ...], generator: Generator
    ) -> None:
        if rule.name in RANDOM:  # of which each part has a seed of its own
            rule = make_rule(rule.name, {"density": 1.0})
        task_vector = torch.randn(shape, generator=generator)
        task_vector[: len(task_vector) // 3] *= 10  # the elements that are trimmed are not spread evenly
        state, step = some_state(rule, shape, False, generator), step_of(rule, shape, False, SEED)
        whole = rule.accumulation.fold(state, task_vector, step)
        parts = [
            rule.accumulation.fold(rows_of(state, rows), task_vector[rows], rows_of_step(step, rows))
            for rows in in_blocks(shape[0])
        ]
        together = cat([part.state for part in parts])
        if rule.accumulation.whole:
            if rule.name not in {
                "regression",
                "regmean",
            }:  # which need matrices whole, and are asked for all tensors so
                assert any(not torch.equal(together[slot], whole.state[slot]) for slot in together)
            return
        assert_equal(together, whole.state)
        assert whole.removed_squared == pytest.approx(sum(part.removed_squared for part in parts), rel=1e-9)

    def test_regression_needs_all_rows_of_a_matrix(self, generator: Generator) -> None:
        rule = make_rule("regression")
        task_vector, step = random(40, 24, generator), step_of(rule, (40, 24), True, SEED)
        whole = rule.accumulation.fold(zeros(rule, (40, 24), True), task_vector, step).state
        half = rule.accumulation.fold(zeros(rule, (20, 24), True), task_vector[:20], step).state
        assert not torch.allclose(half["moment"], whole["moment"][:20], rtol=0.1)

    @shaped
    def test_fold_leaves_its_inputs_alone(
        self, rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator
    ) -> None:
        state = some_state(rule, shape, matrix, generator)
        task_vector, step = torch.randn(shape, generator=generator), step_of(rule, shape, matrix, SEED)
        inputs = [*state.values(), task_vector]
        before = [tensor.clone() for tensor in inputs]
        folded = rule.accumulation.fold(state, task_vector, step)
        assert isinstance(folded.removed_squared, float)
        assert folded.removed_squared >= 0
        for output in folded.state.values():
            assert_untouched(inputs, before, output)
        if rule.accumulation.take_out:
            for output in rule.accumulation.take_out(state, task_vector, step).values():
                assert_untouched(inputs, before, output)

    @pytest.mark.parametrize("shape", [*MATRICES, (1, 5), (5, 1)])
    def test_projected_fold(self, rule: Rule, shape: tuple[int, int], generator: Generator) -> None:
        if rule.accumulation.projection is None:
            assert not CATALOG[rule.name].projects
            return
        accumulated, task_vector = random(*shape, generator), random(*shape, generator)
        basis = rule.decomposition.decompose(accumulated)
        inputs = [accumulated, task_vector, *tensors(basis)]
        before = [tensor.clone() for tensor in inputs]
        folded = rule.accumulation.projection.fold(accumulated, task_vector, basis)
        assert (folded.accumulated.shape, folded.accumulated.dtype) == (shape, torch.float32)
        assert isinstance(folded.removed_squared, float)
        assert_untouched(inputs, before, folded.accumulated)

    @shaped
    def test_same_input_same_output(
        self, rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator
    ) -> None:
        state = some_state(rule, shape, matrix, generator)
        task_vector, other = (torch.randn(shape, generator=generator) for _ in range(2))
        first = rule.accumulation.fold(state, task_vector, step_of(rule, shape, matrix, SEED))
        rule.accumulation.fold(
            state, other, step_of(rule, shape, matrix, SEED + 1)
        )  # what came between leaves no trace
        again = rule.accumulation.fold(state, task_vector, step_of(rule, shape, matrix, SEED))
        assert_equal(again.state, first.state)
        assert again.removed_squared == first.removed_squared

    def test_only_what_is_random_depends_on_the_seed(self, rule: Rule, generator: Generator) -> None:
        task_vector, state = random(12, 8, generator), zeros(rule, (12, 8), True)
        step = step_of(rule, (12, 8), True, SEED)
        one, other = (rule.accumulation.fold(state, task_vector, step._replace(seed=seed)).state for seed in (1, 2))
        same = all(torch.equal(one[slot], other[slot]) for slot in one)
        assert same == (rule.name not in RANDOM)

    def test_the_random_state_of_the_process_is_left_alone(self, rule: Rule, generator: Generator) -> None:
        before = torch.get_rng_state()
        some_state(rule, (12, 8), True, generator)
        assert torch.equal(torch.get_rng_state(), before)

    @shaped
    def test_removed_squared_is_what_is_missing(
        self, rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator
    ) -> None:
        """Of the first fold: what of the task vector is not in S."""
        task_vector = torch.randn(shape, generator=generator)
        folded = rule.accumulation.fold(zeros(rule, shape, matrix), task_vector, step_of(rule, shape, matrix, SEED))
        if rule.name == "fisher":  # whose S is weighted
            assert folded.removed_squared == 0
            return
        missing = float((task_vector.double() - folded.state[ACCUMULATED].double()).square().sum())
        assert folded.removed_squared == pytest.approx(missing, rel=1e-6)

    @shaped
    def test_a_zero_task_vector_changes_nothing(
        self, rule: Rule, shape: tuple[int, ...], matrix: bool, generator: Generator
    ) -> None:
        state = some_state(rule, shape, matrix, generator)
        folded = rule.accumulation.fold(state, torch.zeros(shape), step_of(rule, shape, matrix, SEED))
        counted = {"weight", "gram"} if CATALOG[rule.name].statistics else set()  # what it says of itself counts
        for slot in state.keys() - counted:
            assert torch.equal(folded.state[slot], state[slot])
        assert folded.removed_squared == 0


class TestPublication:
    def test_the_catalog_says_what_it_needs(self, combination: Combination) -> None:
        name, publication = combination.publication.partition(":")[0], combination.make().publication
        assert name in FACTORIES
        assert (publication.spectrum is not None) == (name in SPECTRAL)
        assert (publication.divisor is not None) == (name in DIVIDING)
        assert (combination.make().accumulation.projection is not None) == CATALOG[combination.rule].projects

    def test_every_publication_is_in_the_catalog(self) -> None:
        own = {name for name, entry in CATALOG.items() if entry.own is not None}
        assert FACTORIES.keys() == PUBLICATIONS.keys() | own
        assert PUBLICATIONS.keys() > DIVIDING | SPECTRAL

    def test_numbers_of_the_catalog_are_its_defaults(self, combination: Combination, generator: Generator) -> None:
        name = combination.publication.partition(":")[0]
        numbers = PUBLICATIONS.get(name) or CATALOG[combination.rule].own or {}
        implied, given = FACTORIES[name](), FACTORIES[name](**numbers)
        state = some_state(combination.make(), (12, 8), True, generator)
        for one, other in zip(everything(implied, state), everything(given, state), strict=True):
            assert torch.equal(one, other)

    def test_shapes_and_dtypes(self, combination: Combination, generator: Generator) -> None:
        rule = combination.make()
        for shape, matrix in SHAPES:
            update = rule.publication.update(some_state(rule, shape, matrix, generator), TENSOR_RECORD, RECORD)
            assert (tuple(update.shape), update.dtype) == (shape, torch.float32)
            assert update.view(1, *shape).shape == (1, *shape), "as it is asked for of stacked matrices"

    @pytest.mark.parametrize("shape", [(40, 24), (24,), (6, 3, 4, 4)])
    def test_rows_can_be_split_unless_it_needs_them_all(
        self, combination: Combination, shape: tuple[int, ...], generator: Generator
    ) -> None:
        rule = combination.make()
        state = some_state(rule, shape, False, generator)
        whole = rule.publication.update(state, TENSOR_RECORD, RECORD)
        parts = [rule.publication.update(rows_of(state, b), TENSOR_RECORD, RECORD) for b in in_blocks(shape[0])]
        if not rule.publication.whole:
            assert torch.equal(torch.cat(parts), whole)
        elif rule.name not in {
            "regression",
            "regmean",
        }:  # which need the square slots, and these have no rows of the matrix
            assert not torch.equal(torch.cat(parts), whole)

    def test_leaves_its_inputs_alone(self, combination: Combination, generator: Generator) -> None:
        """What it returns is added to in place."""
        rule = combination.make()
        for shape, matrix in SHAPES:
            state = some_state(rule, shape, matrix, generator)
            before = [values.clone() for values in state.values()]
            for submissions in (1, 2):
                record = TENSOR_RECORD._replace(submissions=submissions)
                update = rule.publication.update(state, record, RECORD._replace(submissions=submissions))
                assert_untouched([*state.values()], before, update)

    def test_same_input_same_output(self, combination: Combination, generator: Generator) -> None:
        rule = combination.make()
        state, other = (some_state(rule, (12, 8), True, generator) for _ in range(2))
        first = everything(rule.publication, state)
        everything(rule.publication, other)
        for one, again in zip(first, everything(rule.publication, state), strict=True):
            assert torch.equal(one, again)

    def test_nothing_folded_publishes_nothing(self, combination: Combination) -> None:
        """As where one submission of several changes nothing in a tensor, or all cancel out."""
        rule = combination.make()
        for shape, matrix in SHAPES:
            nothing = zeros(rule, shape, matrix)
            state = rule.accumulation.fold(nothing, torch.zeros(shape), step_of(rule, shape, matrix, SEED)).state
            for tensor in (TensorRecord(0, 0.0, 0.0), TensorRecord(2, 2.0, 0.0)):
                for record in (Record(1, 1.0, 1.0), Record(2, 2.0, 0.0)):
                    update = rule.publication.update(state, tensor, record)
                    assert torch.equal(update, torch.zeros(shape)), (shape, matrix, tensor, record)

    def test_zero_matrices_among_others_stay_zero(self, combination: Combination, generator: Generator) -> None:
        merge = Merge(combination.make())
        for _ in range(2):
            merge.fold({"zero": torch.zeros(8, 6), "other": 2 + random(8, 6, generator)})
        assert torch.equal(merge.update["zero"], torch.zeros(8, 6))
        assert merge.update["other"].any()

    def test_what_cancels_is_not_blown_up(self, combination: Combination, generator: Generator) -> None:
        if combination.rule not in {"average", "task_arithmetic", "iso"} or combination.publication in SPECTRAL:
            return  # what cancels is a sum, and of nothing but rounding there are no singular vectors
        merge = Merge(combination.make())
        task_vector = {"w": random(8, 6, generator), "b": random(1, 6, generator)[0]}
        for factor in (0.1, 0.2, -0.3):
            merge.fold({name: factor * values for name, values in task_vector.items()})
        length = 1e-6 * float(task_vector["w"].norm())
        assert merge.record.accumulated_norm <= CANCELLED
        for values in merge.update.values():
            assert float(values.norm()) <= length

    @pytest.mark.parametrize("matrix", [False, True])
    def test_one_task_vector_comes_back(self, combination: Combination, matrix: bool, generator: Generator) -> None:
        """Times a factor, where there is one: of those that change neither elements nor singular values."""
        rule, name = combination.rule, combination.publication.partition(":")[0]
        made = combination.make(**({"density": 1.0} if "density" in CATALOG[rule].options else {}))
        expected = {
            "norm": 1.0,
            "mean": 1.0,
            "scale": PUBLICATIONS["scale"]["factor"],
            "tensor_norm": 1.0,
            "ties": 1.0,
            "regression": 1.0,
            "model_stock": 1.0,
            "foldin": 1.0,
        }
        if name in SPECTRAL - {"foldin"} and matrix:
            task_vector = random(12, 8, generator)
            merge = Merge(made).fold({"w": task_vector})
            assert not torch.allclose(merge.update["w"], task_vector, rtol=0.01)
            return
        task_vector = random(12, 8, generator) if matrix else random(1, 30, generator)[0]
        update = Merge(made).fold({"w": task_vector}).update["w"]
        torch.testing.assert_close(update, task_vector * expected.get(name, 1.0), rtol=2e-6, atol=2e-6)

    def test_factors_scale_what_is_published(self, combination: Combination, generator: Generator) -> None:
        rule, name = combination.rule, combination.publication.partition(":")[0]
        numbers = PUBLICATIONS.get(name) or CATALOG[rule].own or {}
        if "factor" not in numbers:
            return
        task_vectors = [{"w": random(12, 8, generator)} for _ in range(3)]
        updates = []
        for factor in (1.0, 1.7):
            given = ":".join(str(factor if number == "factor" else value) for number, value in numbers.items())
            merge = Merge(make_rule(rule, publication=f"{name}:{given}"))
            for task_vector in task_vectors:
                merge.fold(task_vector)
            updates.append(merge.update["w"])
        torch.testing.assert_close(updates[1], 1.7 * updates[0], rtol=1e-5, atol=1e-6)


def everything(publication: Publication, state: State) -> list[Tensor]:
    """All that a publication says."""
    found = [publication.update(state, TENSOR_RECORD, RECORD)]
    if publication.spectrum:
        values = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
        spectrum = publication.spectrum(values, TENSOR_RECORD, RECORD)
        assert (spectrum.shape, spectrum.dtype) == ((3,), torch.float64)
        assert torch.equal(values, torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64))
        found.append(spectrum.clone())
    if publication.divisor:
        divisor = publication.divisor(RECORD)
        torch.testing.assert_close(found[0] * divisor, state[ACCUMULATED])
        found.append(torch.tensor(divisor, dtype=torch.float64))
    return found


def tensors(basis: object) -> list[Tensor]:
    return [part for part in basis if isinstance(part, Tensor)]  # type: ignore[attr-defined]


def assert_untouched(inputs: list[Tensor], before: list[Tensor], output: Tensor) -> None:
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)
        if tensor.numel():
            assert tensor.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()


def test_catalog_and_registry_cannot_be_changed() -> None:
    for mapping in (CATALOG, PUBLICATIONS, ACCUMULATIONS, FACTORIES):
        with pytest.raises(TypeError):
            mapping["other"] = mapping[next(iter(mapping))]  # type: ignore[index]
    assert CATALOG.keys() == ACCUMULATIONS.keys() | {"opcm"}


@pytest.mark.parametrize(
    ("rule", "publication", "said"),
    [
        ("ties", "norm", "no publication 'norm'; it has ties"),
        ("average", "ties", "no publication 'ties'; it has norm, mean"),
        ("opcm", "median", "no publication 'median'"),
        ("opcm", "norm:1", "takes 0 numbers, not 1"),
        ("opcm", "scale:much", "is no publication and its numbers"),
        ("opcm", "scale:0", "above 0, not 0"),
        ("opcm", "scale:inf", "above 0, not inf"),
        ("opcm", "scale:nan", "above 0, not nan"),
        ("opcm", "power:1.5", "from 0 to 1, not 1.5"),
        ("opcm", "power:nan", "from 0 to 1, not nan"),
    ],
)
def test_publications_that_there_are_not(rule: str, publication: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_rule(rule, publication=publication)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (rule, {"density": value})
        for rule in ("ties", "dare", "breadcrumbs")
        for value in (0.0, -0.1, 1.01, float("nan"))
    ]
    + [("breadcrumbs", {"outliers": value}) for value in (-0.1, 1.0, float("nan"))]
    + [("opcm", {"alpha": value}) for value in (-0.1, 1.0, float("nan"))],
    ids=str,
)
def test_options_out_of_range(rule: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make_rule(rule, options)


MODULES = sorted(Path(foldind.merging.__file__).parent.rglob("*.py"))
PURE = {
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "math",
    "operator",
    "types",
    "typing",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_merging_imports_linear_algebra_and_nothing_of_ours(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            imported |= {node.module or ""}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "exec", "eval", "__import__"}
    for module in imported:
        top = module.split(".")[0]
        assert top in {"torch", "numpy"} or top in PURE or module.startswith("foldind.merging"), (
            f"{path.name} imports {module}"
        )
    assert sys.stdlib_module_names >= PURE
