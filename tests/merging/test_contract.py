"""What every merge rule promises to whoever streams a model through it."""

import ast
import sys
from itertools import pairwise
from pathlib import Path

import foldind.merging
import pytest
import torch
from foldind.merging import RULES
from foldind.merging.rule import Record, Rule
from torch import Generator, Tensor

from tests.merging.matrices import random

SHAPES = ((40, 24), (24,), (6, 3, 4, 4), (1, 9), (0, 5), (3, 8, 6))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]()


@pytest.fixture
def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def in_blocks(rows: int) -> list[slice]:
    edges = sorted({0, rows // 3, rows // 2, rows})
    return [slice(first, last) for first, last in pairwise(edges)]


class TestContract:
    def test_name_is_that_of_the_registry(self, rule: Rule) -> None:
        assert RULES[rule.name]().name == rule.name

    def test_registry_cannot_be_changed(self) -> None:
        with pytest.raises(TypeError):
            RULES["other"] = RULES["opcm"]  # type: ignore[index]

    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] > 1])
    def test_fold_without_a_basis_is_elementwise(
        self, rule: Rule, shape: tuple[int, ...], generator: Generator
    ) -> None:
        accumulated, task_vector = (torch.randn(shape, generator=generator) for _ in range(2))
        whole = rule.fold(accumulated, task_vector, None)
        parts = [rule.fold(accumulated[rows], task_vector[rows], None) for rows in in_blocks(shape[0])]
        assert torch.equal(whole.accumulated, torch.cat([part.accumulated for part in parts]))
        assert whole.removed_squared == pytest.approx(sum(part.removed_squared for part in parts), rel=1e-12)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] > 1])
    def test_publish_is_elementwise(
        self, rule: Rule, shape: tuple[int, ...], dtype: torch.dtype, generator: Generator
    ) -> None:
        base, accumulated = torch.randn(shape, generator=generator).to(dtype), torch.randn(shape, generator=generator)
        whole = rule.publish(base.clone(), accumulated, 1.7)
        parts = [rule.publish(base[rows].clone(), accumulated[rows], 1.7) for rows in in_blocks(shape[0])]
        assert torch.equal(whole, torch.cat(parts))

    @pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
    def test_published_values_are_rounded_to_nearest_even(self, rule: Rule, dtype: torch.dtype, digits: int) -> None:
        step = 2.0 ** (1 - digits)  # between neighbours in [1, 2)
        base = torch.tensor([1, 1 + step, 1, 1 + step, -1, -1 - step], dtype=dtype)
        halves = torch.tensor([0.5, 0.5, 0.501, 0.499, -0.5, -0.5]) * step
        expected = torch.tensor([1, 1 + 2 * step, 1 + step, 1 + step, -1, -1 - 2 * step], dtype=dtype)
        assert torch.equal(rule.publish(base, halves, 1.0), expected)

    @pytest.mark.parametrize("shape", [*SHAPES, ()])
    def test_shapes_and_dtypes(self, rule: Rule, shape: tuple[int, ...], generator: Generator) -> None:
        accumulated, task_vector = (torch.randn(shape, generator=generator) for _ in range(2))
        folded = rule.fold(accumulated, task_vector, None)
        assert (folded.accumulated.shape, folded.accumulated.dtype) == (shape, torch.float32)
        assert isinstance(folded.removed_squared, float)
        for dtype in DTYPES:
            base = torch.randn(shape, generator=generator).to(dtype)
            merged = rule.publish(base, accumulated, 1.3)
            assert (merged.shape, merged.dtype) == (shape, dtype)

    @pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9), (1, 5), (5, 1)])
    def test_shapes_and_dtypes_with_a_basis(self, rule: Rule, shape: tuple[int, int], generator: Generator) -> None:
        accumulated, task_vector = random(*shape, generator), random(*shape, generator)
        folded = rule.fold(accumulated, task_vector, rule.decompose(accumulated))
        assert (folded.accumulated.shape, folded.accumulated.dtype) == (shape, torch.float32)
        assert isinstance(folded.removed_squared, float)

    @pytest.mark.parametrize("with_basis", [True, False])
    def test_fold_leaves_its_inputs_alone(self, rule: Rule, with_basis: bool, generator: Generator) -> None:
        accumulated, task_vector = random(12, 8, generator), random(12, 8, generator)
        inputs = [accumulated, task_vector]
        before = [tensor.clone() for tensor in inputs]
        basis = rule.decompose(accumulated) if with_basis else None
        if basis is not None:
            inputs += tensors(basis)
            before += [tensor.clone() for tensor in tensors(basis)]
        folded = rule.fold(accumulated, task_vector, basis)
        assert_untouched(inputs, before, folded.accumulated)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_publish_leaves_its_inputs_alone(self, rule: Rule, dtype: torch.dtype, generator: Generator) -> None:
        inputs = [random(12, 8, generator).to(dtype), random(12, 8, generator)]
        before = [tensor.clone() for tensor in inputs]
        assert_untouched(inputs, before, rule.publish(*inputs, 1.7))

    def test_same_input_same_output(self, rule: Rule, generator: Generator) -> None:
        accumulated, task_vector, other = (random(16, 10, generator) for _ in range(3))

        def everything() -> list[Tensor]:
            basis = rule.decompose(accumulated)
            with_basis = rule.fold(accumulated, task_vector, basis)
            without = rule.fold(accumulated, task_vector, None)
            lambda_ = rule.divisor(Record(2, 3.0, 4.0))
            merged = [rule.publish(other.to(dtype), accumulated, lambda_) for dtype in DTYPES[1:]]
            numbers = torch.tensor([with_basis.removed_squared, without.removed_squared, lambda_], dtype=torch.float64)
            return [*tensors(basis), with_basis.accumulated, without.accumulated, *merged, numbers]

        first = [tensor.clone() for tensor in everything()]
        rule.fold(other, accumulated, rule.decompose(other))  # what came between leaves no trace
        for one, again in zip(first, everything(), strict=True):
            assert torch.equal(one, again)

    def test_nothing_folded_publishes_the_base(self, rule: Rule, generator: Generator) -> None:
        for dtype in DTYPES:
            base = random(7, 5, generator).to(dtype)
            assert torch.equal(rule.publish(base.clone(), torch.zeros(7, 5), 1.0), base)


def tensors(basis: object) -> list[Tensor]:
    return [part for part in basis if isinstance(part, Tensor)]  # type: ignore[attr-defined]


def assert_untouched(inputs: list[Tensor], before: list[Tensor], output: Tensor) -> None:
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()


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
