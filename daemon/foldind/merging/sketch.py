"""Sketches of task vectors: a few kilobytes of each, from which the cosine of any two can be estimated later.

A tensor is taken as a matrix, its last dimension across (a vector as one column), and its sketch is

    s_w = sum over the elements (i, j) in bucket w of  a_i b_qj tau_ij,    q = i // c

with random signs a_i of every row and b_qj of every column of every chunk of c rows; elements of a chunk that stand in
one column share a bucket, and else they go round the buckets. So each chunk is one product, a^T tau, and what is left
of it is a sixteenth. Sketches add up: that of a model is the sum of those of its tensors, or of their row blocks.

Of <s(x), s(y)> = sum of sigma_e sigma_f x_e y_f over the elements e, f that share a bucket, sigma_e = a_i b_qj, the
terms with e = f are <x, y>; in all others a sign occurs once, independent of the rest, so that their mean is zero.

Standard error of a cosine: sqrt((1 + cos^2) / WIDTH) by what meets in a bucket, 0.016 to 0.022, and of two equal ones
nothing. What a chunk adds is sqrt(2 c / (m r)) for one matrix of m rows and stable rank r, and less by the root of
their number for many.

Source: Charikar, Chen & Farach-Colton, "Finding frequent items in data streams", 2002 (signs and buckets).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foldind.merging.rule import LowRank

WIDTH = 4096
"""Buckets."""

_CHUNK_ROWS = 16
"""c, the most; fewer where a tensor would leave buckets empty."""


def sketch(name: str, shape: Sequence[int], first: int, task_vector: Tensor) -> Tensor:
    """Return the sketch of rows of a task vector, (WIDTH,) float32.

    Args:
      name: of the tensor, which alone decides the signs.
      shape: of the whole tensor.
      first: the first of the rows, along the first dimension.
      task_vector: these rows, float32, contiguous.
    """
    columns = _columns(shape)
    rows = task_vector.reshape(-1, columns)
    first *= math.prod(shape[1:-1])
    return _in_buckets(name, shape, first, _chunk_sums(name, shape, first, rows))


def sketch_factored(name: str, shape: Sequence[int], task_vector: LowRank) -> Tensor:
    """Return the same of a task vector of low rank, which is not multiplied out: (a^T B) A."""
    return _in_buckets(name, shape, 0, _chunk_sums(name, shape, 0, task_vector.up) @ task_vector.down)


def _columns(shape: Sequence[int]) -> int:
    return shape[-1] if len(shape) > 1 else 1


def _chunk_rows(shape: Sequence[int]) -> int:
    return min(_CHUNK_ROWS, max(1, math.prod(shape) // WIDTH))


def _chunk_sums(name: str, shape: Sequence[int], first: int, rows: Tensor) -> Tensor:
    """Return a^T of each chunk that the rows have a part of: (chunks, columns)."""
    c = _chunk_rows(shape)
    signs = _signs(name, "rows", first, len(rows))
    head = min(-first % c, len(rows))
    tail = len(rows) - (len(rows) - head) % c
    sums = torch.bmm(signs[head:tail].view(-1, 1, c), rows[head:tail].view(-1, c, rows.shape[1]))[:, 0]
    if head == 0 and tail == len(rows):
        return sums
    ends = [(signs[part] @ rows[part])[None] for part in (slice(head), slice(tail, None)) if len(signs[part])]
    return torch.cat([*ends[: head > 0], sums, *ends[head > 0 :]])


def _in_buckets(name: str, shape: Sequence[int], first: int, sums: Tensor) -> Tensor:
    count = sums.numel()
    before = first // _chunk_rows(shape) * sums.shape[1]
    start = (before + int(_stream(name, "start").random_raw())) % WIDTH
    turns = -(-(start + count) // WIDTH)
    buckets = torch.zeros(turns * WIDTH)
    torch.mul(sums.view(-1), _signs(name, "columns", before, count), out=buckets[start : start + count])
    return buckets.view(turns, WIDTH).sum(0)


def _signs(name: str, purpose: str, first: int, count: int) -> Tensor:
    """Return signs [first, first + count) of a random sequence of a tensor's, float32."""
    skipped, before = divmod(first, 64)
    words = _stream(name, purpose).advance(skipped).random_raw(-(-(before + count) // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8))[before : before + count]
    return torch.from_numpy(bits).float().mul_(2).sub_(1)


def _stream(name: str, purpose: str) -> np.random.PCG64:
    # Both promise the same words from the same seed on every machine and in every release.
    seed = np.frombuffer(f"{purpose} {name}".encode(), np.uint8).astype(np.uint32)
    return np.random.PCG64(np.random.SeedSequence(seed))
