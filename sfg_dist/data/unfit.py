"""Columns that cannot be used: all of a table's are found before it is refused, and the message is about the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from sfg_dist.job.errors import DataError

_T = TypeVar("_T")


class UnfitColumnsError(DataError):
    """Columns that cannot be used as they stand; without them the table may do.

    Attributes:
        reasons: why, by the name of the column.
        names: all columns of the table, where they are known.
    """

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)
        self.names: tuple[str, ...] = ()


def each_fit(names: Iterable[str], use: Callable[[str], _T]) -> dict[str, _T]:
    """What ``use`` gives for each column.

    Raises:
        UnfitColumnsError: of all columns for which ``use`` raises one.
    """
    found: dict[str, _T] = {}
    message, reasons = "", dict[str, str]()
    for name in names:
        try:
            found[name] = use(name)
        except UnfitColumnsError as error:
            message, reasons = message or str(error), reasons | error.reasons
    if reasons:
        raise UnfitColumnsError(message, reasons)
    return found


@contextmanager
def columns_are(names: Iterable[str]) -> Iterator[None]:
    """Within, an ``UnfitColumnsError`` is told that these are all columns of the table."""
    try:
        yield
    except UnfitColumnsError as error:
        error.names = tuple(names)
        raise
