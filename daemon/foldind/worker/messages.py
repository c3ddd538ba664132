"""What daemon and worker say to each other: one JSON object a line over a pipe."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from foldind.checkpoints.plan import Treatment
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.config import PublishedAs
from foldind.merging.record import Record
from foldind.state.durable import FileDigest

WorkStage = Literal["folding", "decomposing", "publishing", "publishing adapter"]
"""What the worker is at; a stage that has nothing to do is left out."""


@dataclass(frozen=True)
class Job:
    """What is the same in every request of a merge. Paths are absolute."""

    base: str
    """Folder of the base."""
    plan: str
    """File of the plan."""
    rule: str
    """Name of the merge rule."""
    hyper_parameters: Mapping[str, Any]
    """Those of the merge rule."""
    publication: str
    """How the state is published; see merging.catalog.parse_publication."""
    backend: str
    """Name of the linear algebra."""
    threads: int
    """Threads per matrix product."""
    memory_budget: int
    """Resident memory in bytes within which as much is done at once as there are processors for."""
    publish: tuple[PublishedAs, ...]
    """As what the merged model is published."""
    adapter_rank: int
    """The highest rank of a published adapter; 0: any."""


@dataclass(frozen=True)
class FoldRequest:
    """Daemon to worker: fold one submission. Paths are absolute."""

    job: Job
    record: Record
    """The record of the accumulated state to start from."""
    max_rank: int
    """The highest rank of tensors that are held as factors; 0: any."""
    submission: str
    """Folder of the checkpoint handed in."""
    vocab: VocabPolicy
    """What is done with a vocabulary of another size than the base's."""
    seed: str
    """Of whatever is random in the fold; the submission's own."""
    take_out: bool
    """Whether it was merged before, and is to be taken out again."""
    accumulated: str
    """Folder of the accumulated state to start from; empty before the first merge."""
    bases: str
    """Folder of its bases, as far as they are there."""
    state_folder: str
    """Existing empty folder to write the new accumulated state to."""
    new_bases: str
    """Existing empty folder to write its bases to, if the rule publishes by them."""
    snapshot_folder: str
    """Existing empty folder to write the merged model's tensor files to."""


@dataclass(frozen=True)
class PublishRequest:
    """Daemon to worker: publish an accumulated state. Paths are absolute."""

    job: Job
    record: Record
    """The record of the accumulated state."""
    accumulated: str
    """Folder of the accumulated state."""
    bases: tuple[str, ...]
    """Folders where its bases may lie; those that are needed and missing are written to the first."""
    snapshot_folder: str
    """Existing empty folder to write the merged model's tensor files to."""


@dataclass(frozen=True)
class BasisTarget:
    """One matrix of the accumulated state, and where its basis goes."""

    tensor: str
    """Name of the tensor."""
    rows: tuple[int, int] | None
    """Of the tensor, [first, last), that are the matrix."""
    file: str
    """To write; a temporary name."""


@dataclass(frozen=True)
class BasisRequest:
    """Daemon to worker: compute bases of the accumulated state, side by side. Paths are absolute."""

    rule: str
    """Name of the merge rule, and its hyper-parameters."""
    hyper_parameters: Mapping[str, Any]
    backend: str
    """Name of the linear algebra."""
    threads: int
    """Threads per matrix product."""
    accumulated: str
    """Folder of the accumulated state."""
    targets: tuple[BasisTarget, ...]


@dataclass(frozen=True)
class TensorStatistics:
    """What a fold did to one tensor."""

    name: str
    treatment: Treatment
    task_vector_norm: float
    """||tau||."""
    kept: float
    """||P(tau)|| / ||tau||; 1 where nothing is projected."""
    split_rank: int
    """r; of stacked experts the largest."""
    rank: int = 0
    """Of what is merged, where it is held as factors; else 0."""


@dataclass(frozen=True)
class AdapterStatistics:
    """What an adapter holds of the merged update."""

    rank: int
    """r, of all its factors."""
    retained: tuple[float, ...]
    """Share of the squared norm of the update that it holds if it is cut to rank 1, 2, ..., r."""
    left_out: tuple[str, ...]
    """Tensors of the update that PEFT has no place for."""


@dataclass(frozen=True)
class Ready:
    """Worker to daemon, once: its imports are done."""

    resident_bytes: int
    """Resident memory after the imports."""


@dataclass(frozen=True)
class Progress:
    """Worker to daemon: how far a fold is."""

    stage: WorkStage
    done: int
    """Tensors done in this stage, of `total`."""
    total: int
    tensor: str
    """The tensor just done."""


@dataclass(frozen=True)
class FoldResult:
    """Worker to daemon: everything is written and durable, under the temporary names."""

    record: Record
    """The record of the accumulated state after the fold."""
    task_vector_norm: float
    lambda_: float
    """||S|| over the norm of the merged task vector."""
    dropped: float
    """Share of the norm of the accumulated state that `max_rank` took out of it in this fold."""
    tensors: tuple[TensorStatistics, ...]
    bases_computed: int
    """How many bases were not kept from before."""
    adapter: AdapterStatistics | None
    """Of the adapter, if one was published."""
    sketch: str
    """Of the task vector, see merging.sketch: float32, little-endian, in base64."""
    state_files: Mapping[str, FileDigest]
    snapshot_files: Mapping[str, FileDigest]
    peak_resident_bytes: int
    """Peak resident memory of the worker during the fold."""


@dataclass(frozen=True)
class PublishResult:
    """Worker to daemon: the merged model is written and durable, under its temporary name."""

    lambda_: float
    """||S|| over the norm of the merged task vector."""
    adapter: AdapterStatistics | None
    """Of the adapter, if one was published."""
    snapshot_files: Mapping[str, FileDigest]
    peak_resident_bytes: int
    """Peak resident memory of the worker meanwhile."""


@dataclass(frozen=True)
class BasisDone:
    """Worker to daemon: the bases are written and durable, under the temporary names."""


@dataclass(frozen=True)
class Refused:
    """Worker to daemon: the values of the checkpoint cannot be merged."""

    reason: str
    hint: str
    """What to do next; may be empty."""


@dataclass(frozen=True)
class Failed:
    """Worker to daemon: what was asked failed for no fault of the checkpoint's."""

    message: str
    disk_errno: int = field(default=0)
    """errno, if the disk is to blame (ENOSPC, EIO, ...); else 0."""


Report = Callable[[Progress], None]
"""How a worker tells how far it is."""

Request = FoldRequest | PublishRequest | BasisRequest
"""What the worker can be asked to do."""

Message = Request | Ready | Progress | FoldResult | PublishResult | BasisDone | Refused | Failed

_ADAPTERS = {kind.__name__: TypeAdapter[Message](kind) for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Return a message as one line."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message that `encode` wrote, equal to it in every field and type."""
    fields = json.loads(line)
    return _ADAPTERS[fields.pop("kind")].validate_python(fields)
