"""What is done by several threads comes back in order, within its budget."""

from threading import Event, Lock

import pytest
from foldind.worker.ordered import Parallelism, ordered_map

NO_LIMIT = 10**9


def test_in_order_whatever_ends_first() -> None:
    second_done = Event()

    def function(item: int) -> int:
        if item == 0:
            assert second_done.wait(30)
        if item == 1:
            second_done.set()
        return item * item

    results = ordered_map(function, range(20), lambda _: 1, Parallelism(2, 1, NO_LIMIT, NO_LIMIT))
    assert list(results) == [item * item for item in range(20)]


@pytest.mark.parametrize(("at_once", "budget"), [(1, NO_LIMIT), (3, NO_LIMIT), (4, 25), (4, 5), (2, -1)])
def test_takes_no_more_than_the_budget_allows(at_once: int, budget: int) -> None:
    costs = [1, 10, 10, 30, 1, 1, 1, 1, 10, 10, 10, 2]
    lock, running, most = Lock(), [0], [0]
    begun: set[int] = set()
    taken: set[int] = set()

    def function(item: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            begun.add(item)
            held = begun - taken
            assert sum(costs[number] for number in held) <= max(budget, *costs) or len(held) == 1
            running[0] -= 1
        return item

    for item in ordered_map(
        function, range(len(costs)), lambda item: costs[item], Parallelism(at_once, 1, budget, NO_LIMIT)
    ):
        with lock:
            taken.add(item)
    assert most[0] <= at_once
    assert begun == set(range(len(costs)))


def test_an_error_comes_in_its_place() -> None:
    def function(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = ordered_map(function, range(10), lambda _: 1, Parallelism(4, 1, NO_LIMIT, NO_LIMIT))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_left_early_it_begins_nothing_more() -> None:
    begun = []
    results = ordered_map(begun.append, range(1000), lambda _: 1, Parallelism(2, 1, NO_LIMIT, NO_LIMIT))
    next(results)
    results.close()
    assert len(begun) <= 4
