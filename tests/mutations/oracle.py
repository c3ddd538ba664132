"""What a submission claims, whatever its form."""

import json
from pathlib import Path

from foldind.checkpoints.checkpoint import ADAPTER, ADAPTER_CONFIG

from tests.mutations.bases import Base
from tests.mutations.claim import Claim, Contradiction, exact, load, load_model, of_model, of_names
from tests.mutations.claim_adapter import of_adapter
from tests.mutations.claim_coded import decoded


def claims(submission: Path, base: Base, *, partial: bool) -> dict[str, Claim]:
    """The task vector of every tensor that it says something of. Raises Contradiction."""
    if (submission / ADAPTER).exists():
        config = json.loads((submission / ADAPTER_CONFIG).read_bytes())
        return of_adapter(load(submission / ADAPTER).tensors, config, base)
    kind, files = load_model(submission)
    found = [decoded(file) if kind == "compressed_task_vector" else file.tensors for file in files]
    tensors = {name: tensor for file in found for name, tensor in file.items()}
    if sum(map(len, found)) > len(tensors):
        raise Contradiction("a tensor is in several files")
    if kind == "model":
        return of_model(tensors, base, partial=partial)
    if kind not in ("task_vector", "compressed_task_vector"):
        raise Contradiction(f"its kind is {kind!r}")
    return {name: exact(values) for name, values in of_names(tensors, base).items()}
