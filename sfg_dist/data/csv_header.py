"""Whether the first line of a table of cells holds names; the lines below it decide.

A name stands over values of another kind. Names that are numbers, such as those that pandas gives columns, are known
by their form: 0, 1, 2 over decimals. Where line 1 could be names or values, the answer is the reason why.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from sfg_dist.data.csv_columns import MISSING
from sfg_dist.data.csv_lines import kind_of

_WHOLE = re.compile(r"-?\d+")
_FEW_ROWS = 5
_STEPPED_NAMES = 5  # numbers at equal distances that may be names, such as wavelengths
_CHANCE = 0.2  # if more of the data lines count in equal steps, a first line that does proves nothing

Cells = Sequence[str]


def has_header(first: Cells, body: Sequence[Cells], missing: Cells = MISSING) -> bool | str:
    """Whether the cells of the first line are names, or why that cannot be told; ``body`` are many lines below.

    ``missing`` are the cells that stand for a missing value.

    Examples:
        >>> has_header(["a", "b"], [["1", "2"]]), has_header(["0.5", "", "1"], [["1", "2", "3"]])
        (True, False)
        >>> has_header(["0", "1", "2"], [["1", "2", "3"]])
        'it holds 0, 1, 2, ..., as names from pandas do'
    """
    kinds = [kind_of(cell, missing) for cell in first]
    below = [
        {kind_of(row[place], missing) for row in body if place < len(row)} - {"missing"} for place in range(len(first))
    ]
    names = [
        kind != "missing" and kind != "number" and under == {"number"} for kind, under in zip(kinds, below, strict=True)
    ]
    numbers = [cell for cell, kind in zip(first, kinds, strict=True) if kind == "number"]
    if not body:
        names = [kind == "text" for kind in kinds]
    if any(names):
        if not numbers or (_are_whole(numbers) and _is_rising(numbers)):
            return True
        return f"it holds names ({first[names.index(True)]!r}) and numbers ({numbers[0]})"
    if "text" in kinds:
        if not numbers:
            return not any(kind == "date" for kind in kinds)
        return False if not _are_whole(numbers) else "it holds text and numbers, as the lines below it do"
    if any(kind in ("date", "truth") for kind in kinds):
        return False
    return _numbers_are_names(first, numbers, body)


def _numbers_are_names(first: Cells, numbers: Cells, body: Sequence[Cells]) -> bool | str:
    if not numbers:
        return "it holds no value" if body else False
    if not _are_whole(numbers):
        if len(numbers) == len(first) >= _STEPPED_NAMES and _is_stepped(numbers) and _share_stepped(body) < _CHANCE:
            return "it holds numbers in equal steps, as names do"
        return False
    values = [int(cell) for cell in numbers]
    counts = values == list(range(len(values)))
    if first[0] == "" and len(numbers) == len(first) - 1:
        is_filled = bool(body) and all(row[0] != "" for row in body)
        if counts and is_filled and (len(values) > 1 or counts_rows([row[0] for row in body])):
            return True
        stepped = len(values) > 1 and _is_stepped(numbers)
        return "its first cell is empty and the others count" if is_filled and (counts or stepped) else False
    if len(numbers) < len(first):
        return False
    columns = [[row[place] for row in body if place < len(row) and row[place]] for place in range(len(first))]
    if len(set(values)) == len(values) and all(_keeps_places(column) for column in columns):
        return True if _is_rising(numbers) else "it holds whole numbers, and the lines below it decimals"
    if counts:
        is_decimal = bool(body) and all(not _WHOLE.fullmatch(cell) for column in columns for cell in column)
        return True if is_decimal and len(values) > 2 else "it holds 0, 1, 2, ..., as names from pandas do"
    if len(values) > 2 and _is_stepped(numbers) and _share_stepped(body) < _CHANCE:
        return "it holds whole numbers in equal steps, as names do"
    return False


def counts_rows(cells: Sequence[str]) -> bool:
    """Whether cells are consecutive whole numbers, as row numbers are."""
    if not all(_WHOLE.fullmatch(cell) for cell in cells):
        return False
    values = [int(cell) for cell in cells]
    return bool(values) and values == list(range(values[0], values[0] + len(values)))


def _keeps_places(column: Cells) -> bool:
    """Whether a column's writer gives every number its decimals, also where they are 0."""
    tails = [cell.replace(",", ".").partition(".")[2] for cell in column]
    if len(tails) < _FEW_ROWS or not all(tails) or any("e" in tail.lower() for tail in tails):
        return False
    return len(set(map(len, tails))) == 1 or any(tail == "0" for tail in tails)


def _are_whole(cells: Cells) -> bool:
    return all(_WHOLE.fullmatch(cell) for cell in cells)


def _is_rising(cells: Cells) -> bool:
    values = [int(cell) for cell in cells]
    return all(low < high for low, high in itertools.pairwise(values))


def _is_stepped(cells: Cells) -> bool:
    try:
        values = [float(cell.replace(",", ".")) for cell in cells]
    except ValueError:
        return False
    steps = [high - low for low, high in itertools.pairwise(values)]
    return len(steps) > 0 and steps[0] > 0 and all(abs(step - steps[0]) <= 1e-9 * abs(values[-1]) for step in steps)


def _share_stepped(body: Sequence[Cells]) -> float:
    return sum(map(_is_stepped, body)) / len(body) if body else 0.0
