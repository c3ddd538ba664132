"""A few tensors streamed through a rule in memory: the algebra that the worker does on files."""

from collections.abc import Mapping
from typing import Self

import torch
from foldind.merging.catalog import ACCUMULATED
from foldind.merging.record import Record, TensorRecord
from foldind.merging.registry import nothing_merged
from foldind.merging.rule import Rule, State, Step
from torch import Tensor

from tests.merging.rules import statistics_of

TaskVector = Mapping[str, Tensor]


TABLE = "words"
"""The tensor of this name has the embeddings of tokens."""


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Other two-dimensional tensors count as weights of linear layers here."""
    return name != TABLE and tensor.dim() == 2 and min(tensor.shape) > 1


class Merge:
    """Task vectors folded one by one, all of the same names and shapes."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.states: dict[str, State] = {}
        self._folded: list[TaskVector] = []

    def fold(self, task_vector: TaskVector, seed: int = 0) -> Self:
        """Fold one; `seed` is the submission's."""
        accumulation = self.rule.accumulation
        for number, (name, values) in enumerate(task_vector.items()):
            state = self.states.get(name)
            if state is None:
                state = nothing_merged(self.rule.name, values.shape, matrix=is_matrix(name, values))
            if accumulation.projection and is_matrix(name, values) and state[ACCUMULATED].any():
                basis = self.rule.decomposition.decompose(state[ACCUMULATED])
                folded = accumulation.projection.fold(state[ACCUMULATED], values, basis)
                self.states[name] = {ACCUMULATED: folded.accumulated}
            else:
                self.states[name] = accumulation.fold(state, values, _step(self.rule, name, values, seed, number)).state
        self._folded.append(task_vector)
        return self

    def take_out(self, task_vector: TaskVector, seed: int = 0) -> Self:
        """Take one out again that was folded."""
        take_out = self.rule.accumulation.take_out
        assert take_out is not None
        for number, (name, values) in enumerate(task_vector.items()):
            self.states[name] = take_out(self.states[name], values, _step(self.rule, name, values, seed, number))
        self._folded = [other for other in self._folded if other is not task_vector]
        return self

    @property
    def record(self) -> Record:
        """Of the model."""
        norms = [_norm(*task_vector.values()) for task_vector in self._folded]
        return Record(len(norms), sum(norms), _norm(*(state[ACCUMULATED] for state in self.states.values())))

    def tensor_record(self, name: str) -> TensorRecord:
        """Of one tensor."""
        norms = [_norm(task_vector[name]) for task_vector in self._folded]
        return TensorRecord(
            sum(norm > 0 for norm in norms),
            sum(norm**2 for norm in norms),
            _norm(self.states[name][ACCUMULATED]),
            name == TABLE,
        )

    @property
    def update(self) -> dict[str, Tensor]:
        """The merged task vector."""
        return {name: self._update(name, state) for name, state in self.states.items()}

    def _update(self, name: str, state: State) -> Tensor:
        publication = self.rule.publication
        if publication.spectrum is None or not is_matrix(name, state[ACCUMULATED]):
            return publication.update(state, self.tensor_record(name), self.record)
        basis = self.rule.decomposition.decompose(state[ACCUMULATED])
        if not len(basis.singular_values):
            return torch.zeros_like(state[ACCUMULATED])
        values = publication.spectrum(basis.singular_values, self.tensor_record(name), self.record)
        return basis.left * values.float() @ basis.right


def _step(rule: Rule, name: str, values: Tensor, seed: int, number: int) -> Step:
    matrix, seed = is_matrix(name, values), 1000 * seed + number
    return Step(matrix, seed, statistics_of(rule.name, tuple(values.shape), matrix, seed), name == TABLE)


def _norm(*tensors: Tensor) -> float:
    return sum(float(values.double().square().sum()) for values in tensors) ** 0.5
