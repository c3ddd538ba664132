"""From the base and the accumulated state to the merged model, in the base's files and dtypes."""

import errno
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foldind.checkpoints.checkpoint import INDEX, Checkpoint
from foldind.checkpoints.header import TensorInfo
from foldind.checkpoints.plan import Plan, PlannedTensor, Treatment
from foldind.checkpoints.tensors import TensorReader, bytes_of
from foldind.checkpoints.vocabulary import token_embeddings
from foldind.errors import CheckpointRefused
from foldind.merging.basis import Basis, above_rounding
from foldind.merging.catalog import CATALOG
from foldind.merging.norm import frobenius_norm
from foldind.merging.record import Record, TensorRecord
from foldind.merging.rule import Rule
from foldind.state.accumulators import AccumulatedState
from foldind.state.basisfile import open_basis
from foldind.state.durable import FileDigest, copy_file
from foldind.state.layout import Representation
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from foldind.state.tensorrecords import Records
from foldind.worker.blocks import Block, block_shape, row_blocks, tensor_blocks
from foldind.worker.estimates import fold_bytes, publish_bytes
from foldind.worker.messages import Progress, Report
from foldind.worker.ordered import Parallelism, ordered_map

_BLOCK_BYTES = 4 * 1024 * 1024


class MergedModel(NamedTuple):
    """One that is written."""

    files: dict[str, FileDigest]
    norm: float
    """Of the merged task vector."""


def publish_model(
    step: "PublishStep", base: Checkpoint, folder: Path, parallelism: Parallelism, report: Report
) -> MergedModel:
    """Write the merged model's tensor files into a folder. Raises as `publish`."""
    files: dict[str, FileDigest] = {}
    norms: list[float] = []
    done = 0
    for name, header in base.headers.items():
        specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in header.tensors]
        parts = (part for tensor in header.tensors for part in step.parts(tensor))
        with (
            TensorFileWriter(folder / name, specs, {"format": "pt"}) as writer,
            closing(ordered_map(step.publish, parts, step.cost, parallelism)) as results,
        ):
            for tensor in header.tensors:
                for _ in step.parts(tensor):
                    merged, norm = next(results)
                    writer.write(bytes_of(merged))
                    norms.append(norm)
                done += 1
                report(Progress("publishing", done, step.tensors, tensor.name))
            files[name] = writer.finish()
    if INDEX in base.files:
        files[INDEX] = copy_file(base.folder / INDEX, folder / INDEX)
    return MergedModel(files, math.hypot(*norms))


class Part(NamedTuple):
    """Of a tensor of the merged model, what is published at once."""

    tensor: TensorInfo
    bytes: tuple[int, int] | None
    """Of what is copied as it is."""
    block: Block | None = None
    """Of what is merged: which rows."""


class MergedPart(NamedTuple):
    """A part of the merged model, in its dtype."""

    values: Tensor
    norm: float
    """Of its part of the merged task vector; 0 of what is copied, or tied to what is counted elsewhere."""


class PublishStep:
    """What is done with one part; called from several threads at once.

    Args:
      plan: of the base.
      rule: the merge rule.
      matmul: computes products.
      base: its tensors.
      state: the accumulated state.
      bases: where the bases of its matrices lie, if the rule publishes by them.
      records: of its tensors; None: they are not known.
      record: of the model.
    """

    def __init__(
        self,
        plan: Plan,
        rule: Rule,
        matmul: Callable[[Tensor, Tensor], Tensor],
        base: TensorReader,
        state: AccumulatedState,
        bases: Sequence[Path],
        records: Records | None,
        record: Record,
    ):
        self._plan = plan
        self._publication = rule.publication
        self._entry = CATALOG[rule.name]
        self._matmul = matmul
        self._base = base
        self._state = state
        self._bases = bases
        self._records = records
        self._record = record
        self._tables = token_embeddings(plan)
        self._numbers = {tensor.name: number for number, tensor in enumerate(plan.folded)}

    @property
    def tensors(self) -> int:
        """How many the model has."""
        return len(self._plan.tensors)

    def parts(self, tensor: TensorInfo) -> Iterator[Part]:
        """Yield the parts of a tensor, in order."""
        folded = self._folded(tensor.name)
        if folded is None:
            for start in range(0, tensor.nbytes, _BLOCK_BYTES):
                yield Part(tensor, (start, min(start + _BLOCK_BYTES, tensor.nbytes)))
        elif self._publication.whole or self._by_matrix(folded):
            blocks = tensor_blocks(self._numbers[folded.name], folded, whole=self._publication.whole)
            yield from (Part(tensor, None, block) for block in blocks)
        else:
            yield from (Part(tensor, None, Block(folded, rows)) for rows in row_blocks(tensor.shape))

    def cost(self, part: Part) -> int:
        """Return how many bytes publishing a part takes at the most."""
        if part.block is None:
            return _BLOCK_BYTES
        if self._publication.whole:
            return fold_bytes(part.block, self._entry)
        return publish_bytes(part.block, self._entry, by_spectrum=self._by_spectrum(part.block.tensor))

    def publish(self, part: Part) -> MergedPart:
        """Return a part of the merged model."""
        if part.block is None:
            assert part.bytes is not None
            return MergedPart(self._base.read_bytes(part.tensor, *part.bytes), 0.0)
        tensor = part.block.tensor
        update = self._spectral(part.block) if self._by_spectrum(tensor) else self._update(part.block)
        norm = frobenius_norm(update) if part.tensor.name == tensor.name else 0.0
        base = self._base.read(part.tensor, part.block.rows)
        merged = update.view(base.shape).add_(base).to(base.dtype)
        # A sum is finite only if everything in it is; a sum that is not may have overflowed by itself.
        if not math.isfinite(float(merged.sum(dtype=torch.float32))) and not bool(torch.isfinite(merged).all()):
            raise CheckpointRefused(
                f"merged, tensor {part.tensor.name!r} would leave the range of the base's dtype, {merged.dtype}",
                "check the checkpoint's training run",
            )
        return MergedPart(merged, norm)

    def _folded(self, name: str) -> PlannedTensor | None:
        """Return the folded tensor that a tensor of the model is made from; None: it is as it was in the base."""
        planned = self._plan.by_name[name]
        folded = self._plan.by_name[planned.tied_to or name]
        if planned.treatment is Treatment.FROZEN or self._state.representation(folded.name) is Representation.ZERO:
            return None
        return folded

    def _by_matrix(self, tensor: PlannedTensor) -> bool:
        """Tell whether stacked matrices are published one by one: each has a record of its own."""
        return self._publication.divisor is None and tensor.treatment is Treatment.PROJECTED

    def _by_spectrum(self, tensor: PlannedTensor) -> bool:
        return self._publication.spectrum is not None and tensor.treatment is Treatment.PROJECTED

    def _update(self, block: Block) -> Tensor:
        state = self._state.read_state(block.tensor.name, block.rows)
        if block.basis_file:
            state = {slot: values.flatten(0, -2) for slot, values in state.items()}
        return self._publication.update(state, self._tensor_record(block), self._record)

    def _spectral(self, block: Block) -> Tensor:
        record = self._tensor_record(block)
        basis = above_rounding(self._basis(block), record.taken_from)
        if not len(basis.singular_values):
            return torch.zeros(block_shape(block.tensor, block.rows))
        assert self._publication.spectrum is not None
        values = self._publication.spectrum(basis.singular_values, record, self._record)
        return self._matmul(basis.left * values.float(), basis.right)

    def _basis(self, block: Block) -> Basis:
        """Return the basis of a matrix, with the block's rows of U."""
        name, rows = block.tensor.name, block.rows if block.of_large else None
        if self._state.representation(name) is Representation.FACTORED:
            left, singular_values, right = self._state.factors(name)
            return Basis(left[slice(*rows)] if rows else left, singular_values, right, 0)
        for folder in self._bases:
            if file := open_basis(folder / block.basis_file):
                with file:
                    return file.read_right()._replace(left=file.read_left(rows))
        raise OSError(errno.EIO, f"the basis {block.basis_file} is damaged or gone")

    def _tensor_record(self, block: Block) -> TensorRecord:
        if self._records is None:
            return TensorRecord(self._record.submissions, 0.0, 0.0, block.tensor.name in self._tables)
        records = self._records[block.tensor.name]
        return records[block.matrix] if len(records) > 1 else records[0]
