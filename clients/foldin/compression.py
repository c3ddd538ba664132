"""Making a compressed task vector of a model and its base, tensor by tensor.

Invariants: what is in memory is a few times one tensor; equal inputs give equal bytes, so that an upload that broke off
is found again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foldin.checkpoint import ADAPTER, SINGLE, STATISTICS, CheckpointFile, find_checkpoint
from foldin.coding import encode_int8, encode_ternary
from foldin.errors import CheckpointError, listed
from foldin.layout import CompressedWriter
from foldin.modelfile import FLOATS, StoredTensor, as_bfloat16, read_tensors
from foldin.models import Progress
from foldin.recipe import Coding, Recipe
from foldin.tally import Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PLAIN = 4096
"""Tensors of fewer elements, and all of one dimension, are kept in bfloat16: they weigh little and matter much."""

_BLOCK_ELEMENTS = 2**20


def compress_model(
    model_files: Sequence[CheckpointFile],
    recipe: Recipe,
    partial: bool,
    folder: Path,
    on_progress: Callable[[Progress], None],
) -> CheckpointFile:
    """Write what a model differs from its base by, compressed, and return the file to send.

    Args:
      model_files: of the model, found whole.
      recipe: how, and where the base lies.
      partial: tensors of the base that the model lacks count as unchanged.
      folder: where it is written; an empty one.
      on_progress: told of `compressing`, in bytes of the model in float32.

    Raises:
      CheckpointError: the base is none of this model, they are equal, or a value is NaN or infinite.
    """
    base_files = [file for file in find_checkpoint(recipe.base) if file.name != STATISTICS]
    for files, what in ((model_files, "what is submitted"), (base_files, "the base")):
        if any(file.name in ADAPTER for file in files):
            raise CheckpointError(f"{what} is an adapter: adapters are small already, and submitted as they are.")
    stamps = _stamps((*model_files, *base_files))
    try:
        model, base = read_tensors(model_files), read_tensors(base_files)
        path = folder / SINGLE
        with CompressedWriter(path) as writer:
            _write(writer, _pair(model, base, partial), recipe, on_progress)
            if writer.empty:
                raise CheckpointError("the model equals the base: there is nothing to submit.")
            writer.finish()
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder} cannot be read or written: {error.strerror}.") from None
    if _stamps((*model_files, *base_files)) != stamps:
        raise CheckpointError(
            "the model or the base changed while it was being compressed: wait until whatever writes it has finished, "
            "then submit it again."
        )
    return CheckpointFile(SINGLE, path)


def _pair(
    model: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor], partial: bool
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Name -> the model's tensor and the base's, of all that are merged."""
    if extra := [name for name in model if name not in base and model[name].merged]:
        raise CheckpointError(
            f"the base lacks {_count(extra)} of the model: {listed(extra)}. Give the base that it was fine-tuned from, "
            "or save the model without them (a task head, say)."
        )
    pairs, missing = {}, []
    for name, original in base.items():
        if not original.merged:
            continue
        found = model.get(name) or _tied(name, model, base)
        if found is None:
            missing.append(name)
            continue
        if found.shape != original.shape:
            raise CheckpointError(
                f"tensor {name} has shape {list(found.shape)} in the model and {list(original.shape)} in the base: "
                "give the base that it was fine-tuned from, or, if the vocabulary was resized, submit the model with "
                "--vocab common and without --compress."
            )
        if not found.merged:
            raise CheckpointError(
                f"tensor {name} has dtype {found.dtype} in the model: save it as one of {', '.join(FLOATS)}."
            )
        pairs[name] = (found, original)
    if missing and not partial:
        raise CheckpointError(
            f"the model lacks {_count(missing)} of the base: {listed(missing)}. Give the base that it was fine-tuned "
            "from, or say that they are unchanged (--partial)."
        )
    return pairs


def _tied(name: str, model: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The model's tensor that stands for one it lacks, since the two are one in the base: written once, by custom."""
    lacking = base[name]
    if len(lacking.shape) < 2:
        return None
    for other, tensor in base.items():
        alike = other in model and (tensor.dtype, tensor.shape) == (lacking.dtype, lacking.shape)
        if alike and all(np.array_equal(tensor.read(*span), lacking.read(*span)) for span in _spans(lacking.elements)):
            return model[other]
    return None


def _write(
    writer: CompressedWriter,
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]],
    recipe: Recipe,
    on_progress: Callable[[Progress], None],
) -> None:
    tally = Tally("compressing", sum(4 * original.elements for _, original in pairs.values()), on_progress)
    for name, (found, original) in pairs.items():
        task_vector = _task_vector(name, found, original)
        if task_vector is not None and task_vector.any():
            shape = original.shape
            if len(shape) < 2 or len(task_vector) < MOST_PLAIN:
                writer.write_plain(name, shape, as_bfloat16(task_vector))
            elif recipe.coding is Coding.TERNARY:
                writer.write_coded(name, recipe.coding, shape, encode_ternary(task_vector, recipe.density))
            else:
                writer.write_coded(name, recipe.coding, shape, encode_int8(task_vector, shape))
        tally.add(name, 4 * original.elements)


def _task_vector(name: str, found: StoredTensor, original: StoredTensor) -> "NDArray[np.float32] | None":
    """Of all elements; None where the base has infinite ones, a mask, which is not merged."""
    task_vector = np.empty(original.elements, np.float32)
    for first, last in _spans(original.elements):
        base = original.read(first, last)
        if not np.isfinite(base).all():
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(found.read(first, last), base, out=task_vector[first:last])
        if not np.isfinite(task_vector[first:last]).all():
            raise CheckpointError(
                f"tensor {name} has NaN or infinite values: the training run diverged or overflowed; submit a "
                "checkpoint from before that."
            )
    return task_vector


def _spans(elements: int) -> Iterator[tuple[int, int]]:
    for first in range(0, elements, _BLOCK_ELEMENTS):
        yield first, min(first + _BLOCK_ELEMENTS, elements)


def _stamps(files: Sequence[CheckpointFile]) -> list[tuple[int, int, int]]:
    try:
        statuses = [file.path.stat() for file in files]
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in statuses]


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
