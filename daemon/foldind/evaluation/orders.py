"""The orders in which tasks are merged."""

import math
from collections.abc import Collection, Sequence
from random import Random

from foldind.errors import InvalidRequest

Order = tuple[str, ...]
"""Names of all tasks, the one that is merged first in front."""


def choose_orders(tasks: Sequence[str], given: Sequence[str], shuffles: int, seed: int) -> tuple[Order, ...]:
    """Return the orders to merge in: those given, then shuffled ones; the tasks' own, if neither is asked for.

    No order comes twice. With more shuffles, the first ones stay the same.

    Args:
      tasks: the names.
      given: orders, as names with commas between them.
      shuffles: how many random orders there are besides.
      seed: of these.

    Raises:
      InvalidRequest: an order is not one of the tasks, or there are not as many.
    """
    orders = [_parse(text, tasks) for text in given]
    if twice := next((order for order in orders if orders.count(order) > 1), None):
        raise InvalidRequest(f"the order {','.join(twice)} is given twice", "give it once")
    if not given and not shuffles:
        return (tuple(tasks),)
    if len(orders) + shuffles > (possible := math.factorial(len(tasks))):
        raise InvalidRequest(f"{len(tasks)} tasks have {possible} orders", "ask for fewer shuffles")
    random, names = Random(seed), sorted(tasks)
    while len(orders) < len(given) + shuffles:
        order = tuple(random.sample(names, len(names)))
        if order not in orders:
            orders.append(order)
    return tuple(orders)


def _parse(text: str, tasks: Collection[str]) -> Order:
    order = tuple(name.strip() for name in text.split(","))
    if sorted(order) != sorted(tasks):
        raise InvalidRequest(
            f"the order {text} is not one of the tasks {', '.join(tasks)}", "name every task once, with commas between"
        )
    return order
