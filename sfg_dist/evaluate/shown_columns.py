"""A column as pictures show it: categories by their names, the most frequent first, and dates as dates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.judgement import JudgedColumn

if TYPE_CHECKING:
    from matplotlib.axis import Axis

MAX_NAME_LENGTH = 22
MAX_BARS = 12  # of a column of categories; the others share one more
MAX_BAR_NAMES, MAX_BAR_LETTERS = 6, 10  # below an axis
SHOWN_SHARE = 0.99  # of the data lie within the limits of an axis, before its margin is added
OTHERS = "others"
_DAY_S = 86_400
_DATES = (-719_000.0, 2_932_000.0)  # days since 1970 of the years that a calendar of Matplotlib has, 1 to 9999


@dataclass(frozen=True, eq=False)
class ShownColumn:
    """The values of a column in two tables, and what stands at its axis."""

    name: str
    held_out: NDArray[np.float64]  # as they are drawn, missing values NaN, shape (num_held_out,)
    samples: NDArray[np.float64]  # the same of the samples, shape (num_samples,)
    bars: tuple[str, ...] | None = None  # the names of the values 0, 1, 2 and so on of categories
    is_date: bool = False  # whether the values are days since 1970

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of an axis, by the held-out rows."""
        if self.bars is not None:
            return -0.6, len(self.bars) - 0.4
        low, high = robust_limits(known(self.held_out)) if len(known(self.held_out)) else (0.0, 1.0)
        return (max(low, _DATES[0]), min(high, _DATES[1])) if self.is_date else (low, high)

    @property
    def missing(self) -> tuple[float, float]:
        """The share of missing values in the held-out rows and in the samples."""
        return float(np.isnan(self.held_out).mean()), float(np.isnan(self.samples).mean())

    def spread(self, values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
        """Values for a cloud of points: those of categories do not lie on one line."""
        return values if self.bars is None else values + generator.uniform(-0.32, 0.32, len(values))

    def name_ticks(self, axis: Axis, number: int) -> None:
        """Put names, dates or numbers at an axis, ``number`` of them at most."""
        from matplotlib.dates import AutoDateFormatter, AutoDateLocator
        from matplotlib.ticker import MaxNLocator

        if self.bars is not None:
            number = min(len(self.bars), MAX_BAR_NAMES)
            places = np.unique(np.linspace(0, len(self.bars) - 1, number).round().astype(int)).tolist()
            labels = [short_name(self.bars[place], MAX_BAR_LETTERS) for place in places]
            axis.set_ticks(places, labels=labels, parse_math=False)
            axis.set_tick_params(labelsize=7)
        elif self.is_date:
            locator = AutoDateLocator(minticks=2, maxticks=5)  # fewer have no fitting step for some spans
            axis.set_major_locator(locator)
            axis.set_major_formatter(AutoDateFormatter(locator))
            axis.set_tick_params(labelsize=7)
        else:
            axis.set_major_locator(MaxNLocator(number))

    @property
    def has_words(self) -> bool:
        """Whether the ticks are words or dates, which take more room than numbers."""
        return self.bars is not None or self.is_date


def shown_column(column: JudgedColumn, held_out: NDArray[np.float64], samples: NDArray[np.float64]) -> ShownColumn:
    """A column of two tables, whose values are as a judgement has them."""
    if column.is_discrete:
        return _bars(column, held_out, samples)
    if column.kind == "datetime":
        days = [values / _DAY_S for values in (held_out, samples)]
        ends = known(days[0])
        if len(ends) and _DATES[0] < ends.min() and ends.max() < _DATES[1]:
            return ShownColumn(column.name, days[0], days[1], is_date=True)
    return ShownColumn(column.name, held_out, samples)


def shown_columns(columns: Sequence[JudgedColumn], held_out: Rows, samples: Rows) -> list[ShownColumn]:
    """All columns of two tables."""
    return [shown_column(*column) for column in zip(columns, held_out.T, samples.T, strict=True)]


def _bars(column: JudgedColumn, held_out: NDArray[np.float64], samples: NDArray[np.float64]) -> ShownColumn:
    """Categories as 0, 1, 2 and so on, in the order of their shares; those of booleans as they are."""
    codes, counts = np.unique(known(held_out), return_counts=True)
    if column.kind == "boolean":
        order = np.arange(len(column.categories), dtype=np.float64)
    else:
        order = codes[np.argsort(-counts, kind="stable")]
        if len(order) > MAX_BARS + 1:
            order = order[:MAX_BARS]
    names = [_category(column, code) for code in order]
    places = [_places(values, order) for values in (held_out, samples)]
    if any((known(values) == len(order)).any() for values in places):
        names.append(OTHERS)
    return ShownColumn(column.name, places[0], places[1], bars=tuple(names or [OTHERS]))


def _places(values: NDArray[np.float64], order: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of each value in ``order``, len(order) for those that are not in it; NaN stays."""
    by_value = np.argsort(order)
    at = np.searchsorted(order[by_value], values).clip(0, max(len(order) - 1, 0))
    found = order[by_value][at] == values if len(order) else np.zeros(len(values), dtype=bool)
    places = np.where(found, by_value[at] if len(order) else 0, float(len(order)))
    return np.where(np.isnan(values), np.nan, places)


def _category(column: JudgedColumn, code: float) -> str:
    place = int(code)
    return column.categories[place] if place == code and 0 <= place < len(column.categories) else f"{code:g}"


def known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values that are not missing."""
    return values[~np.isnan(values)]


def short_name(name: str, letters: int = MAX_NAME_LENGTH) -> str:
    """A name, cut to what fits under an axis."""
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return printable if len(printable) <= letters else printable[: letters - 1] + "…"


def robust_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Limits that hold ``SHOWN_SHARE`` of the values and a margin: one outlier does not flatten a plot."""
    tail = (1 - SHOWN_SHARE) / 2
    low, high = (float(limit) for limit in np.quantile(values, [tail, 1 - tail]))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) if high > low else max(1.0, abs(low)) * 0.5
    return low - margin, high + margin
