"""Rows in the place of samples, and the rows that they are compared with.

Each figure is measured four times: of the samples, and of three tables in their place that say what the number means.
``floor`` is real rows, ``copy`` is training rows, and ``independent`` is training rows with each column permuted.

Two tables are compared by equally many rows, the fewest that any of them has. So the four numbers of a figure are on
one footing, also where a figure depends on the number of rows, and its error is that of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows, subset
from sfg_dist.evaluate.embedding import Embedding
from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables
from sfg_dist.evaluate.rules import Rule, find_rules
from sfg_dist.job.errors import DataError
from sfg_dist.job.fingerprint import fingerprint

JUDGED_MAX_ROWS = 20_000
MAX_TABLE_ROWS = 200_000  # of a table that are kept: copies, codes and coordinates take its memory many times over
MIN_ROWS = 10
NUM_PARTS = 32  # of the rows, whose spread is an error


class NoFigureError(Exception):
    """A figure has no value for these tables; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Estimate:
    """A number, and its standard error where that was asked for.

    The error is of the number beside that of real rows: for samples of the same law, the two lie within two errors of
    each other about 19 times in 20. Both tables in the place of samples vary; rows that both are compared with do not.
    """

    value: float
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Contest:
    """Rows in the place of samples, ``judged``, and the rows that they are compared with; all that are kept."""

    shared: Contests
    judged: Rows
    held_out: Rows
    train: Rows | None  # the rows that the judged ones come from
    with_error: bool = False
    is_close: bool = True  # whether it may be hard to tell: samples and real rows, not copies and independent columns

    @property
    def columns(self) -> tuple[JudgedColumn, ...]:
        """The columns of all tables."""
        return self.shared.columns

    def known_train(self) -> Rows:
        """The training rows; ``NoFigureError`` without."""
        if self.train is None:
            raise NoFigureError("the training rows were not given")
        return self.train

    def embed(self, rows: Rows) -> Rows:
        """Rows as points, see ``Embedding``."""
        return self.shared.embedding(rows)

    def level(
        self, others: Rows, generator: np.random.Generator, *, at_most: int = JUDGED_MAX_ROWS
    ) -> tuple[Rows, Rows]:
        """Equally many random rows of the judged table and of another: as many as every contest has.

        The others are drawn first, so that they are the same for all that is judged.
        """
        num_rows = min(self.shared.num_rows, at_most)
        drawn = subset(others, num_rows, generator)
        return subset(self.judged, num_rows, generator), drawn

    def error(self, measured: Callable[[], float]) -> float | None:
        """What ``measured`` gives, where an error is asked for; None if too little is known for one."""
        found = measured() if self.with_error else np.nan
        return found if np.isfinite(found) else None


def halved_error(
    statistic: Callable[..., float], *tables: NDArray[Any], generator: np.random.Generator, by_extremes: bool = False
) -> float:
    """The error of ``statistic`` beside the floor, from its spread over random halves of the rows of both tables.

    A mean over one half of the rows, drawn without replacement, varies about the mean over all rows as much as that
    does about its law. No row is drawn twice, which figures of extremes would not bear. Value and floor have the other
    table in common, so their difference varies as much as either alone where both tables move the figure alike. Where
    the largest values move it, value and floor have a quarter of their variance in common, and the difference has 1.5
    times one's. NaN with fewer than two parts that have a value.
    """
    parts = [statistic(*(table[random_part(len(table), 0.5, generator)] for table in tables)) for _ in range(NUM_PARTS)]
    known = [value for value in parts if np.isfinite(value)]
    return float(np.sqrt(1.5 if by_extremes else 1.0) * np.std(known, ddof=1)) if len(known) > 1 else np.nan


def random_part(size: int, share: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of a random ``share`` of ``size`` rows, rounded up."""
    return generator.permutation(size)[: int(np.ceil(size * share))]


def mean_error(values: Rows) -> float:
    """The standard error of a mean of independent rows beside the mean of equally many other rows."""
    return float(np.sqrt(2 * values.var(ddof=1) / len(values)))


def share_error(share: float, num_rows: int) -> float:
    """That of a share. Half a row is added to either side, so that a share of 0 has an error too."""
    smoothed = (share * num_rows + 0.5) / (num_rows + 1)
    return float(np.sqrt(2 * smoothed * (1 - smoothed) / num_rows))


class Contests:
    """The contests of a judgement."""

    def __init__(self, tables: JudgedTables, generator: np.random.Generator) -> None:
        self.columns = tables.columns
        self.notes: list[str] = []  # what is not looked at, in sentences
        self.samples = self._kept("samples", tables.samples, generator)
        self.held_out = self._kept("held-out rows", tables.held_out, generator)
        self.train = None if tables.train is None else self._kept("training rows", tables.train, generator)
        self.all_train = None if tables.train is None else np.asarray(tables.train, dtype=np.float64)
        if self.train is None:  # half of the held-out rows stand for real rows, the others are what is compared with
            order = generator.permutation(len(self.held_out))
            self.real = self.held_out[np.sort(order[: len(order) // 2])]
            self.held_out = self.held_out[np.sort(order[len(order) // 2 :])]
        else:
            self.real = self.train
        self.permuted = np.stack([generator.permutation(column) for column in self.real.T], axis=1)
        order = generator.permutation(len(self.real))
        self.halves = (self.real[order[: len(order) // 2]], self.real[order[len(order) // 2 :]])
        self.num_rows = min(len(self.samples), len(self.real), len(self.held_out), JUDGED_MAX_ROWS)
        self.num_fitted = min(len(self.samples), len(self.real))
        names = [column.name for column in self.columns]
        if tables.target is not None and tables.target not in names:
            raise DataError(f"target {tables.target!r}: no such column; the columns are {', '.join(names)}")
        self.target = None if tables.target is None else names.index(tables.target)

    def _kept(self, name: str, table: Rows, generator: np.random.Generator) -> Rows:
        """A table, or ``MAX_TABLE_ROWS`` random rows of it."""
        rows = _checked(name, table, len(self.columns))
        if len(rows) > MAX_TABLE_ROWS:
            self.notes.append(f"Of {len(rows):,} {name} {MAX_TABLE_ROWS:,} random ones are looked at.")
        return subset(rows, MAX_TABLE_ROWS, generator)

    @cached_property
    def embedding(self) -> Embedding:
        """Distances are measured in columns that are scaled by the real rows."""
        return Embedding(self.columns, self.real, self.samples, self.held_out)

    @cached_property
    def footing(self) -> Hashable:
        """What decides the figures of all contests but that of the samples."""
        tables = (self.held_out, self.permuted, self.real if self.all_train is None else self.all_train)
        sizes = (self.num_rows, self.num_fitted, self.all_train is None)
        return (self.columns, self.target, sizes, self.embedding.layout, *(fingerprint(table) for table in tables))

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What every training row keeps."""
        return () if self.train is None else find_rules(self.train, self.columns, self.notes.append)

    def of_samples(self) -> Contest:
        """The contest that the samples are in."""
        return Contest(self, self.samples, self.held_out, self.train, with_error=True)

    def of_copies(self) -> Contest:
        """Training rows in place of samples; ``NoFigureError`` without."""
        return Contest(self, self.of_real().known_train(), self.held_out, self.train, is_close=False)

    def of_independent(self) -> Contest:
        """Real rows with each column permuted in place of samples."""
        return Contest(self, self.permuted, self.held_out, self.train, is_close=False)

    def of_real(self) -> Contest:
        """Real rows in place of samples, for what is compared with held-out rows alone."""
        return Contest(self, self.real, self.held_out, self.train)

    def of_held_out(self) -> Contest:
        """Held-out rows in place of samples, for what is compared with training rows alone."""
        return Contest(self, self.held_out, self.held_out, self.train)

    def of_halves(self) -> Contest:
        """One half of the training rows in place of samples, the other half as training rows."""
        return Contest(self, self.halves[0], self.held_out, None if self.train is None else self.halves[1])


def _checked(name: str, table: Rows, num_columns: int) -> Rows:
    rows = np.asarray(table, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != num_columns:
        raise DataError(f"{name}: expected a table of {num_columns} columns, found shape {rows.shape}")
    infinite = np.isinf(rows)
    if infinite.any():
        row, column = (int(found[0]) for found in np.nonzero(infinite))
        raise DataError(f"{name}: row {row}, column {column} is infinite; leave such rows out")
    return rows
