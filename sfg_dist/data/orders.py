"""The one order that the dictionaries of several parts of an ordered column agree on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import TypeVar

from sfg_dist.data.column_type import UnfitValueError

_Value = TypeVar("_Value", bound=Hashable)


def add_order(below: dict[_Value, set[_Value]], order: Sequence[_Value]) -> None:
    """Take over an order, ascending, into ``below``: for each value those known to be lower."""
    for value in order:
        below.setdefault(value, set())
    for lower, upper in pairwise(order):
        below[upper].add(lower)


def only_order(below: dict[_Value, set[_Value]]) -> list[_Value]:
    """The one order, ascending, that agrees with all that were added.

    Raises:
        UnfitValueError: two of them contradict each other, or leave open which of two values is lower.

    Examples:
        >>> below: dict[str, set[str]] = {}
        >>> add_order(below, ["low", "high"])
        >>> add_order(below, ["low", "mid", "high"])
        >>> only_order(below)
        ['low', 'mid', 'high']
    """
    sorter, found = TopologicalSorter(below), list[_Value]()
    try:
        sorter.prepare()
    except CycleError as error:
        one, other = error.args[1][:2]
        message = f"has parts with different orders: {one!r} is below {other!r} in one and above it in another"
        raise UnfitValueError(message) from None
    while sorter.is_active():
        lowest = sorter.get_ready()
        if len(lowest) > 1:
            one, other = lowest[:2]
            raise UnfitValueError(f"has parts with different orders: none says which is lower, {one!r} or {other!r}")
        found += lowest
        sorter.done(*lowest)
    return found
