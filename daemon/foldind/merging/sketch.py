"""Sketches of task vectors: a few kilobytes of each, from which the cosine of any two can be estimated later.

A tensor is taken as a matrix, its last dimension across (a vector as one column). Where a chunk of c rows and a column
cross is a cell, and the cells go round W buckets; in bucket w is

    s_w = sum over its elements (i, j) of  a_i b_qj tau_ij,    q = i // c

with random signs a of every row and b of every cell. So tau is read once, by one product a^T tau a chunk, and what is
left of it is a sixteenth. Sketches add up: that of a model is the sum of those of its tensors, or of their row blocks.

Unbiased: <s(x), s(y)> = sum of a_i b_qj a_k b_rl x_ij y_kl over the pairs that share a bucket. Pairs of an element with
itself give <x, y>; in every other product a sign stands alone, of a row or of a cell, and has mean zero.

Standard error of a cosine: (1 - cos^2) sqrt(1 / W + 1 / C). C is the number of cells that hold most of x or y: of whole
models it does not count, and of a single matrix of m rows and stable rank r it may be as small as m r / c. Seven real
fine-tunings of a sentence encoder (22.7M parameters, cosines of 0.002 to 0.034, eight sets of signs) err by 0.016,
their linear layers cut to rank 8 by 0.017, and to rank 1 by 0.020, where 1 / sqrt(W) is 0.016; with 1,024 buckets by
0.03, with 16,384 by 0.008 to 0.014. With 4,096 (16 KB), what repeats another shows at once, and a cosine of 0.1 too.

Source: Charikar, Chen & Farach-Colton, "Finding frequent items in data streams", 2002 (signs and buckets).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foldind.merging.rule import LowRank

WIDTH = 4096
"""W, how many buckets."""

_CHUNK_ROWS = 16
"""c, at the most: a tensor has cells for all buckets, or one for every element."""

_CELLS_AT_ONCE = 2**20
"""Of a task vector of low rank, so that memory does not grow with its matrix."""


def sketch(name: str, shape: Sequence[int], first: int, task_vector: Tensor) -> Tensor:
    """Return the sketch of rows of a task vector, (WIDTH,) float32.

    Args:
      name: of the tensor, which alone decides the signs.
      shape: of the whole tensor.
      first: the first of the rows, along the first dimension.
      task_vector: these rows, float32, contiguous.
    """
    rows = task_vector.reshape(-1, shape[-1] if len(shape) > 1 else 1)
    first *= math.prod(shape[1:-1])
    return _in_buckets(name, shape, first, _chunk_sums(name, shape, first, rows))


def sketch_factored(name: str, shape: Sequence[int], task_vector: LowRank) -> Tensor:
    """Return the same of a task vector of low rank, which is not multiplied out: (a^T B) A."""
    step = _chunk_rows(shape) * max(1, _CELLS_AT_ONCE // shape[-1])
    total = torch.zeros(WIDTH)
    for first in range(0, shape[0], step):
        sums = _chunk_sums(name, shape, first, task_vector.up[first : first + step])
        total += _in_buckets(name, shape, first, sums @ task_vector.down)
    return total


def _chunk_rows(shape: Sequence[int]) -> int:
    return min(_CHUNK_ROWS, max(1, math.prod(shape) // WIDTH))


def _chunk_sums(name: str, shape: Sequence[int], first: int, rows: Tensor) -> Tensor:
    """Return a^T tau of each chunk that the rows have a part of: (chunks, columns)."""
    if (c := _chunk_rows(shape)) == 1:
        return rows  # a is all ones: the sign of a cell is that of its only element
    signs = _signs(_stream(name, "rows"), first, len(rows))
    head = min(-first % c, len(rows))
    tail = len(rows) - (len(rows) - head) % c
    sums = [torch.bmm(signs[head:tail].view(-1, 1, c), rows[head:tail].view(-1, c, rows.shape[1]))[:, 0]]
    if head:
        sums.insert(0, signs[None, :head] @ rows[:head])
    if tail < len(rows):
        sums.append(signs[None, tail:] @ rows[tail:])
    return torch.cat(sums) if len(sums) > 1 else sums[0]


def _in_buckets(name: str, shape: Sequence[int], first: int, sums: Tensor) -> Tensor:
    count = sums.numel()
    before = first // _chunk_rows(shape) * sums.shape[1]
    stream = _stream(name, "cells")
    start = (before + int(stream.random_raw())) % WIDTH
    turns = -(-(start + count) // WIDTH)
    buckets = torch.zeros(turns * WIDTH)
    torch.mul(sums.reshape(-1), _signs(stream, before, count), out=buckets[start : start + count])
    return buckets.view(turns, WIDTH).sum(0)


def _signs(stream: np.random.PCG64, first: int, count: int) -> Tensor:
    """Return signs [first, first + count) of those that a stream has in store, float32."""
    skipped, before = divmod(first, 64)
    words = stream.advance(skipped).random_raw(-(-(before + count) // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8))[before : before + count]
    return torch.from_numpy(bits).float().mul_(2).sub_(1)


def _stream(name: str, purpose: str) -> np.random.PCG64:
    # Both promise the same words from the same seed on every machine and in every release.
    seed = np.frombuffer(f"{purpose} {name}".encode(), np.uint8).astype(np.uint32)
    return np.random.PCG64(np.random.SeedSequence(seed))
