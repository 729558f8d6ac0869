"""What is reported of a prepared table: dictionaries for JSON, with the types of their entries."""

from __future__ import annotations

from typing import TypedDict


class Ties(TypedDict, total=False):
    """What was found in a column with tied values or a grid.

    ``share`` of the rows have a value that another row has too. ``step`` is None where there is no grid, else
    ``off_grid_share`` of the rows lie beside it.
    """

    share: float
    step: float | None
    reason: str
    offset: float
    off_grid_share: float


class RepeatedValue(TypedDict):
    """A single value that repeats, with its rows and their share of all rows."""

    value: float | str
    count: int
    share: float


class RepeatedValues(TypedDict):
    """The single values of a column that repeat; ``held`` says whether the transform gives them back exactly."""

    held: bool
    values: list[RepeatedValue]


class TableReport(TypedDict):
    """What was read, dropped, found and split.

    ``kept_words`` has the categories by column that elsewhere stand for a missing value, ``missing`` the share of the
    kept rows without a value, ``determined`` the column that determines each one that the flow leaves out for that
    reason.
    """

    source: str
    read_as: str
    num_rows_read: int
    num_rows_dropped: int
    constant: dict[str, float | str]
    categories: dict[str, int]
    kept_words: dict[str, list[str]]
    missing: dict[str, float]
    determined: dict[str, str]
    ties: dict[str, Ties]
    atoms: dict[str, RepeatedValues]
    split: dict[str, int]
    num_duplicate_train_rows: int | None
