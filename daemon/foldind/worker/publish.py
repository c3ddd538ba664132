"""The second pass of a fold: from the base and the new state to the merged model, in the base's files and dtypes."""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import INDEX, Checkpoint
from foldind.checkpoints.header import ITEM_BYTES, TensorInfo
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.checkpoints.tensors import TensorReader, bytes_of
from foldind.errors import CheckpointRefused
from foldind.merging.rule import Rule
from foldind.state.accumulators import AccumulatedState
from foldind.state.durable import FileDigest, copy_file
from foldind.state.layout import Representation
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from foldind.worker.blocks import BLOCK_ELEMENTS, Rows, row_blocks
from foldind.worker.messages import FoldRequest, Progress, Report
from foldind.worker.ordered import Parallelism, ordered_map

_BLOCK_BYTES = 4 * 1024 * 1024


def publish_snapshot(
    request: FoldRequest,
    plan: Plan,
    rule: Rule,
    base: Checkpoint,
    lambda_: float,
    parallelism: Parallelism,
    report: Report,
) -> dict[str, FileDigest]:
    """Write the merged model's tensor files, and return their digests. Raises as `fold_submission`."""
    folder = Path(request.snapshot_folder)
    files, done = {}, 0
    with TensorReader(base.folder) as reader, AccumulatedState(Path(request.state_folder)) as state:
        step = PublishStep(plan, rule, reader, state, lambda_)
        for name, header in base.headers.items():
            specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in header.tensors]
            parts = (part for tensor in header.tensors for part in step.parts(tensor))
            with (
                TensorFileWriter(folder / name, specs, {"format": "pt"}) as writer,
                closing(ordered_map(step.publish, parts, part_cost, parallelism)) as results,
            ):
                for tensor in header.tensors:
                    for _ in step.parts(tensor):
                        writer.write(bytes_of(next(results)))
                    done += 1
                    report(Progress("publishing", done, len(plan.tensors), tensor.name))
                files[name] = writer.finish()
    if INDEX in base.files:
        files[INDEX] = copy_file(base.folder / INDEX, folder / INDEX)
    return files


class Part(NamedTuple):
    """Of a tensor of the merged model, what is published at once."""

    tensor: TensorInfo
    bytes: tuple[int, int] | None
    """Of what is copied as it is."""
    rows: Rows = None
    """Of what is merged."""


def part_cost(part: Part) -> int:
    """Return how many bytes publishing a part takes at the most."""
    return _BLOCK_BYTES if part.bytes else 4 * ITEM_BYTES["F32"] * BLOCK_ELEMENTS


class PublishStep:
    """What is done with one part; called from several threads at once."""

    def __init__(self, plan: Plan, rule: Rule, base: TensorReader, state: AccumulatedState, lambda_: float):
        self._plan = plan
        self._rule = rule
        self._base = base
        self._state = state
        self._lambda = lambda_

    def parts(self, tensor: TensorInfo) -> Iterator[Part]:
        """Yield the parts of a tensor, in order."""
        if self._is_as_before(self._plan.by_name[tensor.name]):
            for start in range(0, tensor.nbytes, _BLOCK_BYTES):
                yield Part(tensor, (start, min(start + _BLOCK_BYTES, tensor.nbytes)))
        else:
            for rows in row_blocks(tensor.shape):
                yield Part(tensor, None, rows)

    def _is_as_before(self, tensor: PlannedTensor) -> bool:
        if tensor.treatment is Treatment.FROZEN:
            return True
        return self._state.representation(tensor.tied_to or tensor.name) is Representation.ZERO

    def publish(self, part: Part) -> Tensor:
        """Return a part of the merged model."""
        if part.bytes:
            return self._base.read_bytes(part.tensor, *part.bytes)
        planned = self._plan.by_name[part.tensor.name]
        accumulated = self._state.read(planned.tied_to or planned.name, part.rows)
        merged = self._rule.publish(self._base.read(part.tensor, part.rows), accumulated, self._lambda)
        # A sum is finite only if everything in it is; a sum that is not may have overflowed by itself.
        if not math.isfinite(float(merged.sum(dtype=torch.float32))) and not bool(torch.isfinite(merged).all()):
            raise CheckpointRefused(
                f"merged, tensor {planned.name!r} would leave the range of the base's dtype, {merged.dtype}",
                "check the checkpoint's training run",
            )
        return merged
