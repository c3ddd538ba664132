"""Work done by several threads at once, its results taken in order, within a budget of memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from foldind.memory import resident_bytes, return_free_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class Parallelism(NamedTuple):
    """How much is done at the same time."""

    at_once: int
    """Calls, at the most."""
    threads: int
    """That each of them may use for a matrix product."""
    budget: int
    """Bytes that all of them may take; one call is made whatever it costs."""
    limit: int
    """Resident memory in bytes above which free blocks are given back rather than kept for the next call."""


def parallelism_of(threads: int, memory_budget: int) -> Parallelism:
    """Return how much this process does at once, and let it use so many threads for a product.

    Args:
      threads: for each product.
      memory_budget: resident memory in bytes.
    """
    torch.set_num_threads(threads)
    at_once = max(1, len(os.sched_getaffinity(0)) // threads)
    return Parallelism(at_once, threads, memory_budget - resident_bytes("VmRSS"), memory_budget)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    cost: Callable[[Item], int],
    parallelism: Parallelism,
) -> Generator[Result, None, None]:
    """Yield function(item) for every item, in order; what it raises is raised in its place.

    The next result is computed while the caller is busy with the last one. A generator: close it when it is left early.

    Args:
      function: called in threads of its own.
      items: the items.
      cost: of an item: bytes that its function and its result take, until the next result is asked for.
      parallelism: how much is done at the same time.
    """
    at_once, threads, budget, limit = parallelism
    under_way: deque[tuple[int, Future[Result]]] = deque()
    taken = 0
    with ThreadPoolExecutor(at_once, "fold", initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for item in items:
                needed = cost(item)
                while under_way and (len(under_way) > at_once or taken + needed > budget):
                    yield under_way[0][1].result()
                    taken -= under_way.popleft()[0]
                if resident_bytes("VmRSS") + needed > limit:
                    return_free_memory()
                under_way.append((needed, pool.submit(function, item)))
                taken += needed
            while under_way:
                yield under_way[0][1].result()
                under_way.popleft()
        finally:
            for _, future in under_way:
                future.cancel()
