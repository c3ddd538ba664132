"""What the accumulated state knows of each tensor besides its values: a few numbers, in a file beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from foldind.merging.record import TensorRecord
from foldind.state.durable import DurableFile, FileDigest
from foldind.state.layout import RECORDS

Records = Mapping[str, Sequence[TensorRecord]]
"""Tensor -> one record, or one for each of its stacked matrices."""


def read_records(folder: Path) -> Records | None:
    """Read them; None: an earlier Foldin made this state, and wrote none. Raises OSError."""
    try:
        held = json.loads((folder / RECORDS).read_bytes())
    except FileNotFoundError:
        return None
    return {name: [TensorRecord(*record) for record in records] for name, records in held.items()}


def write_records(folder: Path, records: Records) -> FileDigest:
    """Write them durably. Raises OSError."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(list(held))}" for name, held in records.items())
    text = f"{{\n{lines}\n}}\n".encode()
    with DurableFile(folder / RECORDS, len(text)) as file:
        file.write(text)
        return file.finish()
