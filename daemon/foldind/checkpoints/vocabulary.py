"""Submissions whose vocabulary was extended or cut: which tensors are of vocabulary size, and the rows in common.

Tokens keep their ids when a vocabulary grows or shrinks at its end, so the common rows are the first ones, and padding
rows are rows like any other. Everything here is about names and shapes; nothing is read.
"""

from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.errors import CheckpointRefused

_EMBEDDINGS = frozenset(
    {
        "embed_in",
        "embed_tokens",
        "embeddings",
        "shared",
        "tok_embeddings",
        "token_embedding",
        "token_embeddings",
        "word_embedding",
        "word_embeddings",
        "wte",
    }
)
"""What modules are called that turn tokens into vectors."""

_OUTPUT_LAYERS = frozenset({"embed_out", "lm_head", "output_layer"})
"""What modules are called that turn vectors into scores of tokens."""

_OUTPUT_LAYERS_BESIDE_EMBEDDINGS = frozenset(
    {"decoder", "generator_lm_head", "lm_loss", "output", "predictions", "proj_out", "vocab_projector"}
)
"""The same, of names that other modules have too: only where they have as many rows as an embedding of tokens."""

_BIAS_OF_SCORES = "final_logits_bias"
"""(1, vocabulary), and no module's."""


class VocabPolicy(StrEnum):
    """What is done with a submission whose vocabulary has another size than the base's."""

    SAME = "same"
    """It is refused."""
    COMMON = "common"
    """The rows that both have are folded; the base's other rows are unchanged."""


class RowCounts(NamedTuple):
    """Rows of a tensor of vocabulary size."""

    submission: int
    base: int

    @property
    def common(self) -> int:
        """How many are folded."""
        return min(self)


def vocabulary_sizes(plan: Plan) -> dict[str, int]:
    """Return the sizes of the base's tensors of vocabulary size, by name; a linear layer is none of them.

    They are the embeddings of tokens, the output layers and their biases, by their names, and what is tied to them.
    """
    root_of = {tensor.name: tensor.tied_to or tensor.name for tensor in plan.tensors}
    certain = {
        root_of[tensor.name]: tensor.shape[0]
        for tensor in plan.tensors
        if _is_table(tensor) and _module(tensor.name) in _EMBEDDINGS | _OUTPUT_LAYERS
    }
    sizes = {name: certain[root] for name, root in root_of.items() if root in certain}
    known = set(sizes.values())
    for tensor in plan.tensors:
        if tensor.shape and (size := _size(tensor.name, tensor.shape)) in known and _is_of_scores(tensor):
            sizes[tensor.name] = size
    return sizes


def token_embeddings(plan: Plan) -> frozenset[str]:
    """Return the names of the folded tensors whose rows are the embeddings of tokens, a row each."""
    sizes = vocabulary_sizes(plan)
    return frozenset(
        tensor.name
        for tensor in plan.folded
        if tensor.treatment is Treatment.SUMMED and tensor.name in sizes and _is_table(tensor)
    )


def resized_tensors(shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> dict[str, RowCounts]:
    """Return the base's tensors of the vocabularies that have another size in a submission, by name.

    Args:
      shapes: of the submission's tensors, by their names in the base.
      plan: of the base.

    Raises:
      CheckpointRefused: its tensors do not agree on the size, or it has no row.
    """
    sizes = vocabulary_sizes(plan)
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for name, size in sizes.items():
        if name in shapes and is_resized(name, shapes[name], plan.by_name[name].shape):
            found[size].setdefault(_size(name, shapes[name]), name)
    resized = {}
    for size, submitted in found.items():
        if len(submitted) > 1:
            told = ", ".join(f"{name!r} has {rows}" for rows, name in submitted.items())
            raise CheckpointRefused(
                f"its tensors disagree on the size of the vocabulary, which is {size} in the base: {told}",
                "resize all of them, say with model.resize_token_embeddings(...), and save the model anew",
            )
        ((rows, name),) = submitted.items()
        if rows == 0:
            raise CheckpointRefused(f"tensor {name!r} has 0 rows and the base's has {size}", "submit it with its rows")
        if rows != size:
            resized[size] = RowCounts(rows, size)
    return {name: resized[size] for name, size in sizes.items() if size in resized}


def check_shape(name: str, shape: tuple[int, ...], planned: PlannedTensor, plan: Plan) -> None:
    """Check that a tensor of a submission has the shape of the base's.

    Args:
      name: that the submission has it under.
      shape: that it has there.
      planned: the base's tensor.
      plan: of the base.

    Raises:
      CheckpointRefused: it has another.
    """
    if shape == planned.shape:
        return
    resized = is_resized(planned.name, shape, planned.shape)
    if resized and (size := vocabulary_sizes(plan).get(planned.name)):
        rows = _size(planned.name, shape)
        raise CheckpointRefused(
            f"tensor {name!r} has {rows} rows and the base's has {size}",
            f"`foldin submit --vocab common` folds the {min(rows, size)} that both have; it holds for all tensors of "
            "the vocabulary",
        )
    if resized and len(shape) == 2:
        raise CheckpointRefused(
            f"tensor {name!r} has {shape[0]} rows and the base's has {planned.shape[0]}",
            "check which base it was fine-tuned from",
        )
    raise CheckpointRefused(
        f"tensor {name!r} has shape {list(shape)} and the base's has {list(planned.shape)}",
        "check which base it was fine-tuned from",
    )


def is_resized(name: str, shape: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Tell whether a shape is that of the base's tensor but for the rows."""
    return bool(base) and len(shape) == len(base) and shape == with_rows(name, base, _size(name, shape))


def with_rows(name: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Return the shape that a tensor of vocabulary size has with so many rows."""
    axis = _axis(name, shape)
    return (*shape[:axis], rows, *shape[axis + 1 :])


def is_output_layer(name: str) -> bool:
    """Tell whether a tensor of vocabulary size is of an output layer, by its name, and not of an embedding."""
    return _module(name) in _OUTPUT_LAYERS | _OUTPUT_LAYERS_BESIDE_EMBEDDINGS


def size_is_last(name: str) -> bool:
    """Tell whether a tensor of vocabulary size has that size in its last dimension, and not in its first."""
    return name.rpartition(".")[2] == _BIAS_OF_SCORES


def _is_table(tensor: PlannedTensor) -> bool:
    return len(tensor.shape) == 2 and min(tensor.shape) > 1 and tensor.name.endswith(".weight")


def _is_of_scores(tensor: PlannedTensor) -> bool:
    """Whether it is an output layer or the bias of one, by its name."""
    module = _module(tensor.name)
    if len(tensor.shape) == 1 and tensor.name.endswith(".bias"):
        return module in _OUTPUT_LAYERS | _OUTPUT_LAYERS_BESIDE_EMBEDDINGS
    return size_is_last(tensor.name) or (_is_table(tensor) and module in _OUTPUT_LAYERS_BESIDE_EMBEDDINGS)


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _axis(name: str, shape: tuple[int, ...]) -> int:
    return len(shape) - 1 if size_is_last(name) else 0


def _size(name: str, shape: tuple[int, ...]) -> int:
    return shape[_axis(name, shape)]
