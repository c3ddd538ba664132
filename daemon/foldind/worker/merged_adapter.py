"""From the accumulated state to the merged update as a PEFT adapter."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from foldind.checkpoints.adapterlayout import AdapterLayout, Factors, Whole, lay_out_adapter
from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG, Checkpoint
from foldind.checkpoints.header import ITEM_BYTES
from foldind.checkpoints.plan import Plan, PlannedTensor
from foldind.checkpoints.tensors import bytes_of
from foldind.merging.backend import BACKENDS, Backend
from foldind.merging.leading import leading_part
from foldind.merging.rule import Factored
from foldind.state.accumulators import AccumulatedState
from foldind.state.durable import DurableFile, FileDigest, make_folder
from foldind.state.layout import Representation
from foldind.state.snapshots import ADAPTER_FOLDER
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from foldind.worker.blocks import row_blocks
from foldind.worker.estimates import adapter_factors_bytes
from foldind.worker.merged_model import Part, PublishStep
from foldind.worker.messages import AdapterStatistics, Progress, PublishRequest, Report
from foldind.worker.ordered import Parallelism, ordered_map


def publish_adapter(
    step: PublishStep,
    request: PublishRequest,
    plan: Plan,
    base: Checkpoint,
    state: AccumulatedState,
    lambda_: float,
    parallelism: Parallelism,
    report: Report,
) -> tuple[dict[str, FileDigest], AdapterStatistics]:
    """Write the merged update as an adapter, and return the digests of its files and what it holds.

    Nothing is written of a model that has no matrix PEFT could adapt; the rank is then 0.

    A matrix whose update has a higher rank than the adapter gets the best approximation of that rank, and of every
    rank below it: the factors are in the order of the singular values.

    Raises:
      CheckpointRefused: a tensor that goes in whole would leave the range of its dtype.
      OSError: a disk is full or failing.
    """
    config = _base_config(base)
    held = {tensor.name for tensor in plan.folded if state.representation(tensor.name) is not Representation.ZERO}
    layout = lay_out_adapter(plan, held, config)
    left_out = tuple(tensor.name for tensor in layout.left_out)
    if not layout.target_modules:
        return {}, AdapterStatistics(0, (0.0,), left_out)
    folder = Path(request.snapshot_folder) / ADAPTER_FOLDER
    make_folder(folder)
    rank = _rank(layout, state, request.job.adapter_rank)
    adapter_step = _AdapterStep(step, BACKENDS[request.job.backend], base, state, lambda_, rank)
    specs = [spec for entry in layout.entries for spec in adapter_step.specs(entry)]
    parts = (part for entry in layout.entries for part in adapter_step.parts(entry))
    kept_squared, whole_squared = [0.0] * rank, 0.0
    with (
        TensorFileWriter(folder / ADAPTER, specs, {"format": "pt"}) as writer,
        closing(ordered_map(adapter_step.publish, parts, adapter_step.cost, parallelism)) as results,
    ):
        for done, entry in enumerate(layout.entries, 1):
            for _ in adapter_step.parts(entry):
                published = next(results)
                for values in published.tensors:
                    writer.write(bytes_of(values))
                whole_squared += published.whole_squared
                for number, squared in enumerate(published.kept_squared):
                    kept_squared[number] += squared
            report(Progress("publishing adapter", done, len(layout.entries), entry.tensor.name))
        weights = writer.finish()
    text = json.dumps(layout.configuration(rank, str(config.get("_name_or_path") or "")), indent=1).encode() + b"\n"
    with DurableFile(folder / ADAPTER_CONFIG, len(text)) as file:
        file.write(text)
        files = {ADAPTER: weights, ADAPTER_CONFIG: file.finish()}
    total = request.record.accumulated_norm**2
    # Rounding may have a whole be less than its parts.
    retained = (min(1.0, (whole_squared + kept) / total) if total else 1.0 for kept in accumulate(kept_squared))
    statistics = AdapterStatistics(rank, tuple(retained), left_out)
    return {f"{ADAPTER_FOLDER}/{name}": digest for name, digest in files.items()}, statistics


def _base_config(base: Checkpoint) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        config = json.loads((base.folder / "config.json").read_bytes())
        return config if isinstance(config, dict) else {}
    return {}


def _rank(layout: AdapterLayout, state: AccumulatedState, highest: int) -> int:
    """Return the rank of all factors: what the update needs, and at most the highest allowed (0: any)."""
    needed = 1
    for entry in layout.entries:
        if isinstance(entry, Factors):
            match state.representation(entry.tensor.name):
                case Representation.DENSE:
                    needed = max(needed, min(entry.tensor.shape))
                case Representation.FACTORED:
                    needed = max(needed, state.rank(entry.tensor.name))
    return min(needed, highest or needed)


class _Published(NamedTuple):
    tensors: tuple[Tensor, ...]
    """In the order of the specs, or a part of one."""
    kept_squared: Sequence[float] = ()
    """Of factors: squares of the singular values of S that they have, descending."""
    whole_squared: float = 0.0
    """Of what goes in whole: the squared norm of its S."""


class _AdapterStep:
    """What is done with one matrix, or one part of another tensor; called from several threads at once."""

    def __init__(
        self,
        whole: PublishStep,
        backend: Backend,
        base: Checkpoint,
        state: AccumulatedState,
        lambda_: float,
        rank: int,
    ):
        self._whole = whole
        self._backend = backend
        self._base_tensors = base.tensors
        self._state = state
        self._lambda = lambda_
        self._rank = rank

    def specs(self, entry: Factors | Whole) -> Iterator[TensorSpec]:
        """Yield what the header says of the entry's tensors."""
        tensor = entry.tensor
        if isinstance(entry, Whole):
            yield TensorSpec(entry.name, tensor.dtype, tensor.shape, self._base_tensors[tensor.name].nbytes)
            return
        outputs, inputs = reversed(tensor.shape) if entry.transposed else tensor.shape
        for name, shape in ((entry.down_name, (self._rank, inputs)), (entry.up_name, (outputs, self._rank))):
            yield TensorSpec(name, "F32", shape, ITEM_BYTES["F32"] * shape[0] * shape[1])

    def parts(self, entry: Factors | Whole) -> Iterator[Factors | Part]:
        """Yield what is published of an entry at once, in order."""
        if isinstance(entry, Factors):
            yield entry
        else:
            yield from self._whole.parts(self._base_tensors[entry.tensor.name])

    def cost(self, part: Factors | Part) -> int:
        """Return how many bytes `publish` takes at the most."""
        if isinstance(part, Part):
            return 2 * self._whole.cost(part)  # for safety
        dense = self._state.representation(part.tensor.name) is Representation.DENSE
        return adapter_factors_bytes(part.tensor.shape, self._rank, dense=dense)

    def publish(self, part: Factors | Part) -> _Published:
        """Return the factors of a matrix, or a part of another tensor."""
        if isinstance(part, Part):
            merged, norm = self._whole.publish(part)
            return _Published((merged,), whole_squared=(self._lambda * norm) ** 2)
        left, singular_values, right = self._leading_part(part.tensor)
        room = self._rank - len(singular_values)
        roots = (singular_values / self._lambda).sqrt().float()
        up, down = pad(left * roots, (0, room)), pad(roots[:, None] * right, (0, 0, 0, room))
        return _Published((up.mT, down.mT) if part.transposed else (down, up), singular_values.square().tolist())

    def _leading_part(self, tensor: PlannedTensor) -> Factored:
        name, (m, n) = tensor.name, tensor.shape
        match self._state.representation(name):
            case Representation.ZERO:
                return Factored(torch.empty(m, 0), torch.empty(0, dtype=torch.float64), torch.empty(0, n))
            case Representation.FACTORED:
                left, singular_values, right = self._state.factors(name)
                return Factored(left[:, : self._rank], singular_values[: self._rank], right[: self._rank])
        if m >= n:
            return leading_part(
                lambda: (self._state.read(name, rows) for rows in row_blocks((m, n))), self._rank, self._backend
            )
        lying = self._state.read(name, None)
        columns = [slice(*rows) for rows in row_blocks((n, m)) if rows]
        right, singular_values, left = leading_part(
            lambda: (lying[:, chunk].mT for chunk in columns), self._rank, self._backend
        )
        return Factored(left.mT, singular_values, right.mT)
