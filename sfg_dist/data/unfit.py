"""Columns that cannot be used: all of a table's are found before it is refused, and the message is about the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from sfg_dist.job.errors import DataError

_T = TypeVar("_T")


class UnfitColumnsError(DataError):
    """Columns that cannot be used as they stand; without them the table may do.

    Attributes:
        fact: the message without the advice.
        advice: what to do, by the keys of a job.
        reasons: why, by the name of the column.
        names: all columns of the table, where they are known.
    """

    def __init__(self, fact: str, reasons: Mapping[str, str], advice: str = "") -> None:
        super().__init__(f"{fact}; {advice}" if advice else fact)
        self.fact, self.advice = fact, advice
        self.reasons = dict(reasons)
        self.names: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:  # an exception is made anew from its message alone
        return type(self), (self.fact, self.reasons, self.advice), self.__dict__


def each_fit(names: Iterable[str], use: Callable[[str], _T]) -> dict[str, _T]:
    """What ``use`` gives for each column.

    Raises:
        UnfitColumnsError: of all columns for which ``use`` raises one.
    """
    found: dict[str, _T] = {}
    first: UnfitColumnsError | None = None
    reasons: dict[str, str] = {}
    for name in names:
        try:
            found[name] = use(name)
        except UnfitColumnsError as error:
            first, reasons = first or error, reasons | error.reasons
    if first is not None:
        raise UnfitColumnsError(first.fact, reasons, first.advice)
    return found


@contextmanager
def columns_are(names: Iterable[str]) -> Iterator[None]:
    """Within, an ``UnfitColumnsError`` is told that these are all columns of the table."""
    try:
        yield
    except UnfitColumnsError as error:
        error.names = tuple(names)
        raise
