"""What a judgement looks at, and what it says: three tables, and figures with all that a reader needs beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sfg_dist.evaluate.compared_rows import Rows

ColumnKind = Literal["number", "integer", "category", "boolean", "datetime"]
Aspect = Literal["fidelity", "diversity", "privacy", "utility", "calibration"]


@dataclass(frozen=True)
class JudgedColumn:
    """How the numbers of a column are compared."""

    name: str
    kind: ColumnKind
    categories: tuple[str, ...] = ()  # the names of the codes 0, 1, 2 and so on, of "category" and "boolean"

    @property
    def is_discrete(self) -> bool:
        """Whether the numbers are codes without an order."""
        return self.kind in ("category", "boolean")


@dataclass(frozen=True, eq=False)
class JudgedTables:
    """Rows of shape (num_rows, dim) in the user's units: a category by its code, a missing value as NaN."""

    columns: tuple[JudgedColumn, ...]
    samples: Rows
    held_out: Rows  # rows of the data that nothing was fitted to
    train: Rows | None  # rows that the samples come from; None leaves out what needs them
    target: str | None = None  # the column that utility predicts


@dataclass(frozen=True)
class FigureKind:
    """What is known of a figure before it is measured."""

    name: str  # in metrics.json
    aspect: Aspect
    title: str  # on the page
    best: float  # of perfect samples without noise
    direction: Literal["low", "high", "at"]  # whether less is better, more is, or only ``best`` is right
    meaning: str  # one sentence for a person who never heard of it
    by_floor: bool = False  # whether real rows do not reach ``best``, so that only their figure says what is right


@dataclass(frozen=True)
class Figure:
    """A figure of the samples, with what it would be for others; None where it has no value."""

    name: str
    value: float | None
    error: float | None  # standard error of ``value`` less ``floor``
    floor: float | None  # of real rows in place of samples
    copy: float | None  # of training rows as samples
    independent: float | None  # of training rows with each column permuted


@dataclass(frozen=True)
class ColumnShape:
    """How well one column is met: 1 minus its Kolmogorov-Smirnov or total variation distance."""

    column: str
    score: float
    floor: float


@dataclass(frozen=True)
class PairTrend:
    """How well two columns go together: the similarity of correlations or of contingency tables."""

    columns: tuple[str, str]
    score: float
    floor: float


@dataclass(frozen=True)
class BrokenRule:
    """A rule that holds in the training rows, and the share of rows that break it."""

    rule: str  # in words
    share: float
    floor: float


@dataclass(frozen=True)
class Judgement:
    """All that was measured of one table of samples."""

    figures: Mapping[str, Figure]  # by name, in the order of the page
    shapes: tuple[ColumnShape, ...]  # every column, the worst first
    trends: tuple[PairTrend, ...]  # every pair that was measured, the worst first
    rules: tuple[BrokenRule, ...] = ()  # the most often broken first
    target: str | None = None  # what utility predicts; None: there is none
    notes: tuple[str, ...] = field(default=())  # what was left out, and why
