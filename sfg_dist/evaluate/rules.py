"""Rules that every training row keeps: ranges and known categories, sums, and columns that decide others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.judgement import ColumnKind, JudgedColumn

MAX_DECIDING = 0.1  # distinct values of a column that may decide another, as a share of the rows
MIN_DECIDED = 20  # rows beside a row of the same deciding value, whose decided value is not the most frequent one
MIN_KEPT = 100  # rows to find a sum or a decision in: fewer keep rules by chance
MAX_SUM_COLUMNS = MAX_DECISION_COLUMNS = 40  # the first of those that a rule may be about
SUM_TOLERANCE = 1e-6  # of the three sizes of a row together: float32 rounds each by 6e-8
DATE_TOLERANCE = 1e-9  # the same of sums with a date, whose seconds since 1970 are large
_FIRST_LOOK = 50  # rows that a rule is tried on before it is tried on all
_YEARS_S = 250_000_000_000  # seconds from 1970 to about the year 9900

Broken = Callable[[Rows], NDArray[np.bool_]]
Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule in words, and which of the rows of a table break it, shape (num_rows,)."""

    words: str
    broken: Broken


def find_rules(
    train: Rows, columns: tuple[JudgedColumn, ...], left_out: Callable[[str], None] = lambda said: None
) -> tuple[Rule, ...]:
    """The rules of a table, shape (num_rows, num_columns).

    A number has the range of its values, a category is one of those that occur, and a value is missing only in columns
    that have missing values. Three numbers are a sum where first + second = third in all rows but those with a missing
    value: exactly for whole numbers, else to ``SUM_TOLERANCE`` or ``DATE_TOLERANCE``. A column decides another where
    rows that agree in the first agree in the second. By chance they all may; so the first has values that repeat, and
    at least ``MIN_DECIDED`` rows that another row agrees with have a decided value other than the most frequent. A
    deciding value that no training row has breaks nothing. Sums are looked for in the first ``MAX_SUM_COLUMNS`` columns
    of numbers that vary, and decisions in the first ``MAX_DECISION_COLUMNS`` whose values repeat; ``left_out`` is told
    of others, in a sentence.
    """
    if len(train) == 0:
        return ()
    rules = [_range(train[:, k], k, column) for k, column in enumerate(columns)]
    if len(train) >= MIN_KEPT:
        rules += _sums(train, columns, left_out) + _decisions(train, columns, left_out)
    return tuple(rules)


def _range(values: Rows, k: int, column: JudgedColumn) -> Rule:
    may_miss, present = bool(np.isnan(values).any()), np.unique(values[~np.isnan(values)])

    def broken(rows: Rows) -> NDArray[np.bool_]:
        asked = rows[:, k]
        if len(present) == 0:
            outside = ~np.isnan(asked)
        elif column.is_discrete:
            outside = ~np.isin(asked, present) & ~np.isnan(asked)
        else:
            outside = (asked < present[0]) | (asked > present[-1])
        return outside if may_miss else outside | np.isnan(asked)

    if len(present) == 0:
        return Rule(f"{column.name} is missing", broken)
    if column.is_discrete:
        return Rule(f"{column.name} is one of its {len(present)} categories", broken)
    low, high = (_in_words(value, column) for value in (present[0], present[-1]))
    return Rule(f"{column.name} lies between {low} and {high}", broken)


def _in_words(value: float, column: JudgedColumn) -> str:
    """A number, or the day and time of seconds since 1970."""
    if column.kind != "datetime" or not abs(value) < _YEARS_S:
        return f"{value:.6g}"
    return str(np.datetime64(int(value), "s")).removesuffix("T00:00:00")


def _sums(train: Rows, columns: tuple[JudgedColumn, ...], left_out: Callable[[str], None]) -> list[Rule]:
    numbers = [
        k
        for k, column in enumerate(columns)
        if not column.is_discrete
        and not np.isnan(train[:, k]).all()
        and np.nanmax(train[:, k]) > np.nanmin(train[:, k])
    ]
    if len(numbers) > MAX_SUM_COLUMNS:
        left_out(f"Sums were looked for in the first {MAX_SUM_COLUMNS} of {len(numbers)} columns of numbers.")
        numbers = numbers[:MAX_SUM_COLUMNS]
    first_rows = train[:: max(1, len(train) // _FIRST_LOOK)]
    found = []
    for total in numbers:
        for first, second in combinations([k for k in numbers if k != total], 2):
            broken = _breaks_sum(first, second, total, _tolerance({columns[k].kind for k in (first, second, total)}))
            if not broken(first_rows).any() and not broken(train).any():
                known = ~np.isnan(train[:, [first, second, total]]).any(axis=1)
                if known.sum() >= MIN_KEPT:
                    names = [columns[k].name for k in (first, second, total)]
                    found.append(Rule(f"{names[0]} + {names[1]} = {names[2]}", broken))
    return found


def _tolerance(kinds: set[ColumnKind]) -> float:
    if kinds == {"integer"}:
        return 0.0
    return DATE_TOLERANCE if "datetime" in kinds else SUM_TOLERANCE


def _breaks_sum(first: int, second: int, total: int, tolerance: float) -> Broken:
    def broken(rows: Rows) -> NDArray[np.bool_]:
        a, b, c = (rows[:, k] for k in (first, second, total))
        return np.asarray(np.abs(a + b - c) > tolerance * (np.abs(a) + np.abs(b) + np.abs(c)))

    return broken


def _decisions(train: Rows, columns: tuple[JudgedColumn, ...], left_out: Callable[[str], None]) -> list[Rule]:
    few = [k for k, column in enumerate(train.T) if 1 < len(np.unique(column)) <= MAX_DECIDING * len(train)]
    if len(few) > MAX_DECISION_COLUMNS:
        left_out(
            f"Columns that decide others were looked for in the first {MAX_DECISION_COLUMNS} of {len(few)} columns "
            f"whose values repeat."
        )
        few = few[:MAX_DECISION_COLUMNS]
    coded = {k: np.unique(train[:, k], return_inverse=True) for k in few}
    step = max(1, len(train) // _FIRST_LOOK)
    found = []
    for deciding, decided in permutations(few, 2):
        (keys, codes), (values, outcomes) = coded[deciding], coded[decided]
        if len(values) > len(keys):
            continue  # as many values as keys at most can be decided
        if _decided(len(keys), codes[::step], outcomes[::step]) is None:
            continue
        first = _decided(len(keys), codes, outcomes)
        if first is None:
            continue
        others = outcomes != np.bincount(outcomes).argmax()
        if (others & (np.bincount(codes)[codes] > 1)).sum() >= MIN_DECIDED:
            words = f"{columns[deciding].name} decides {columns[decided].name}"
            found.append(Rule(words, _breaks_decision(deciding, decided, keys, values[first])))
    return found


def _decided(num_keys: int, codes: Codes, outcomes: Codes) -> Codes | None:
    """The outcome of each key, 0 where no row has it; None where rows of a key have different ones."""
    first = np.zeros(num_keys, dtype=np.int64)
    first[codes[::-1]] = outcomes[::-1]
    return first if (first[codes] == outcomes).all() else None


def _breaks_decision(deciding: int, decided: int, keys: Rows, outcomes: Rows) -> Broken:
    def broken(rows: Rows) -> NDArray[np.bool_]:
        place = np.minimum(np.searchsorted(keys, rows[:, deciding]), len(keys) - 1)
        known = (keys[place] == rows[:, deciding]) | (np.isnan(keys[place]) & np.isnan(rows[:, deciding]))
        right = (outcomes[place] == rows[:, decided]) | (np.isnan(outcomes[place]) & np.isnan(rows[:, decided]))
        return np.asarray(known & ~right)

    return broken
