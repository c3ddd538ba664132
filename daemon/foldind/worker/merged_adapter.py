"""The second pass of a fold, in its other form: from the new state to the merged update as a PEFT adapter."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from foldind.checkpoints.adapterlayout import AdapterLayout, Factors, Whole, lay_out_adapter
from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG, Checkpoint
from foldind.checkpoints.header import ITEM_BYTES
from foldind.checkpoints.plan import Plan
from foldind.checkpoints.tensors import TensorReader, bytes_of
from foldind.merging.backend import BACKENDS, Backend
from foldind.merging.leading import leading_part
from foldind.merging.norm import frobenius_norm
from foldind.merging.rule import Factored, Record, Rule
from foldind.state.accumulators import AccumulatedState
from foldind.state.durable import DurableFile, FileDigest, make_folder
from foldind.state.layout import Representation
from foldind.state.snapshots import ADAPTER_FOLDER
from foldind.state.tensorfile import TensorFileWriter, TensorSpec
from foldind.worker.blocks import BLOCK_ELEMENTS, row_blocks
from foldind.worker.messages import AdapterStatistics, FoldRequest, Progress, Report
from foldind.worker.ordered import Parallelism, ordered_map
from foldind.worker.publish import require_in_range


def publish_adapter(
    request: FoldRequest,
    plan: Plan,
    rule: Rule,
    base: Checkpoint,
    record: Record,
    parallelism: Parallelism,
    report: Report,
) -> tuple[dict[str, FileDigest], AdapterStatistics]:
    """Write the merged update as an adapter, and return the digests of its files and what it holds.

    A matrix whose update has a higher rank than the adapter gets the best approximation of that rank, and of every
    rank below it: the factors are in the order of the singular values.

    Raises:
      CheckpointRefused: a tensor that goes in whole would leave the range of its dtype.
      OSError: a disk is full or failing.
    """
    folder = Path(request.snapshot_folder) / ADAPTER_FOLDER
    make_folder(folder)
    config = _base_config(base)
    with TensorReader(base.folder) as reader, AccumulatedState(Path(request.state_folder)) as state:
        held = {tensor.name for tensor in plan.folded if state.representation(tensor.name) is not Representation.ZERO}
        layout = lay_out_adapter(plan, held, config)
        rank = _rank(layout, state, request.adapter_rank)
        step = _AdapterStep(rule, BACKENDS[request.backend], base, reader, state, rule.divisor(record), rank)
        specs = [spec for entry in layout.entries for spec in step.specs(entry)]
        kept_squared, whole_squared = [0.0] * rank, 0.0
        with (
            TensorFileWriter(folder / ADAPTER, specs, {"format": "pt"}) as writer,
            closing(ordered_map(step.publish, layout.entries, step.cost, parallelism)) as results,
        ):
            for done, (entry, part) in enumerate(zip(layout.entries, results, strict=True), 1):
                for values in part.tensors:
                    writer.write(bytes_of(values))
                whole_squared += part.whole_squared
                for number, squared in enumerate(part.kept_squared):
                    kept_squared[number] += squared
                report(Progress("publishing adapter", done, len(layout.entries), entry.tensor.name))
            weights = writer.finish()
    text = json.dumps(layout.configuration(rank, str(config.get("_name_or_path") or "")), indent=1).encode() + b"\n"
    with DurableFile(folder / ADAPTER_CONFIG, len(text)) as file:
        file.write(text)
        files = {ADAPTER: weights, ADAPTER_CONFIG: file.finish()}
    total = record.accumulated_norm**2
    statistics = AdapterStatistics(
        rank,
        # Rounding may have a whole be less than its parts.
        tuple(min(1.0, (whole_squared + kept) / total) if total else 1.0 for kept in accumulate(kept_squared)),
        tuple(tensor.name for tensor in layout.left_out),
    )
    return {f"{ADAPTER_FOLDER}/{name}": digest for name, digest in files.items()}, statistics


def _base_config(base: Checkpoint) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        config = json.loads((base.folder / "config.json").read_bytes())
        return config if isinstance(config, dict) else {}
    return {}


def _rank(layout: AdapterLayout, state: AccumulatedState, highest: int) -> int:
    """Return the rank of all factors: what the update needs, and at most the highest allowed (0: any)."""
    matrices = (entry.tensor for entry in layout.entries if isinstance(entry, Factors))
    needed = max((min(*matrix.shape, state.rank(matrix.name) or min(matrix.shape)) for matrix in matrices), default=1)
    return max(1, min(needed, highest or needed))


class _Part(NamedTuple):
    tensors: tuple[Tensor, ...]
    """In the order of the specs."""
    kept_squared: Sequence[float] = ()
    """Of factors: squares of the singular values of S that they have, descending."""
    whole_squared: float = 0.0
    """Of what goes in whole: the squared norm of its S."""


class _AdapterStep:
    """What is done with one tensor; called from several threads at once."""

    def __init__(
        self,
        rule: Rule,
        backend: Backend,
        base: Checkpoint,
        reader: TensorReader,
        state: AccumulatedState,
        lambda_: float,
        rank: int,
    ):
        self._rule = rule
        self._backend = backend
        self._base_tensors = base.tensors
        self._reader = reader
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

    def cost(self, entry: Factors | Whole) -> int:
        """Return how many bytes `publish` takes at the most."""
        if isinstance(entry, Whole):
            return 4 * self._base_tensors[entry.tensor.name].nbytes
        m, n = entry.tensor.shape
        k = min(m, n)
        factors = 4 * ITEM_BYTES["F32"] * self._rank * (m + n)
        if self._state.representation(entry.tensor.name) is Representation.FACTORED:
            return factors
        wide = ITEM_BYTES["F32"] * m * n if m < n else 0
        return factors + wide + 4 * ITEM_BYTES["F64"] * k * k + 12 * BLOCK_ELEMENTS

    def publish(self, entry: Factors | Whole) -> _Part:
        """Return the tensors of an entry."""
        name = entry.tensor.name
        if isinstance(entry, Whole):
            accumulated = self._state.read(name, None)
            merged = self._rule.publish(self._reader.read(self._base_tensors[name]), accumulated, self._lambda)
            require_in_range(merged, name)
            return _Part((merged,), whole_squared=frobenius_norm(accumulated) ** 2)
        left, singular_values, right = self._leading_part(name)
        room = self._rank - len(singular_values)
        roots = (singular_values / self._lambda).sqrt().float()
        up, down = pad(left * roots, (0, room)), pad(roots[:, None] * right, (0, 0, 0, room))
        return _Part((up.mT, down.mT) if entry.transposed else (down, up), singular_values.square().tolist())

    def _leading_part(self, name: str) -> Factored:
        if self._state.representation(name) is Representation.FACTORED:
            left, singular_values, right = self._state.factors(name)
            return Factored(left[:, : self._rank], singular_values[: self._rank], right[: self._rank])
        m, n = self._state.shape(name)
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
