"""How well single columns are met: their whole distribution, and its tails."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.contest import Contest, Estimate, NoFigureError, halved_error
from sfg_dist.evaluate.judgement import JudgedColumn

TAIL_SHARES = (0.001, 0.01, 0.99, 0.999)

Codes = NDArray[np.int64]


def column_shapes(judged: Rows, held_out: Rows, columns: tuple[JudgedColumn, ...]) -> Rows:
    """The shape of each column between 0 and 1, shape (num_columns,); 1 is best, NaN of a column that is all missing.

    A number: 1 - sup |F_judged - F_held_out|, sdmetrics' KSComplement. A category: 1 - sum |p - q| / 2, its
    TVComplement. Missing values are left out on either side, as sdmetrics does. A column that the judged rows leave
    missing throughout, while held-out rows have values, counts as 0; sdmetrics leaves it out.
    """
    codes, sizes = shared_codes(judged, held_out)
    return _scores(codes[: len(judged)], codes[len(judged) :], sizes, columns)


def shape(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The mean of ``column_shapes``; its error by random halves of both tables."""
    judged, held_out = contest.level(contest.held_out, generator)
    codes, sizes = shared_codes(judged, held_out)

    def mean(first: Codes, second: Codes) -> float:
        scores = _scores(first, second, sizes, contest.columns)
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else np.nan

    both = codes[: len(judged)], codes[len(judged) :]
    value = mean(*both)
    if np.isnan(value):
        raise NoFigureError("every column is missing throughout")
    return {"shape": Estimate(value, contest.error(lambda: halved_error(mean, *both, generator=generator)))}


def shared_codes(judged: Rows, held_out: Rows) -> tuple[Codes, list[int]]:
    """Each value by its rank among the values of both tables, -1 if missing; and how many values a column has."""
    both = np.concatenate([judged, held_out])
    codes = np.empty(both.shape, dtype=np.int64)
    sizes = []
    for k, column in enumerate(both.T):
        values, codes[:, k] = np.unique(column, return_inverse=True)
        codes[np.isnan(column), k] = -1
        sizes.append(len(values))
    return codes, sizes


def _scores(judged: Codes, held_out: Codes, sizes: list[int], columns: tuple[JudgedColumn, ...]) -> Rows:
    scores = np.full(len(columns), np.nan)
    for k, column in enumerate(columns):
        counts = [np.bincount(codes[codes[:, k] >= 0, k], minlength=sizes[k]) for codes in (judged, held_out)]
        if not counts[1].any():
            continue
        if not counts[0].any():
            scores[k] = 0.0
        else:
            apart = counts[0] / counts[0].sum() - counts[1] / counts[1].sum()
            distance = np.abs(apart).sum() / 2 if column.is_discrete else np.abs(np.cumsum(apart)).max()
            scores[k] = 1 - distance
    return scores


def tail_error(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """Mean over number columns and ``TAIL_SHARES`` of |quantile - held-out quantile| / spread of the held-out column.

    The spread is between the outermost of the quantiles, or between the extremes where these are equal. Missing values
    are left out, and so are columns that are constant or missing throughout in held-out rows. One that the judged rows
    alone leave missing throughout is a spread off. The error is by random halves of both tables.
    """
    numbers = [k for k, column in enumerate(contest.columns) if not column.is_discrete]
    judged, held_out = contest.level(contest.held_out, generator)
    spreads = [_spread(held_out[:, k]) for k in numbers]
    kept = [(k, s) for k, s in zip(numbers, spreads, strict=True) if s > 0]
    void = {k for k in numbers if np.isnan(judged[:, k]).all()}
    if not kept:
        raise NoFigureError("no column holds numbers that vary")

    def mean(first: Rows, second: Rows) -> float:
        apart = [
            1.0 if k in void else np.abs(_tails(first[:, k]) - _tails(second[:, k])).mean() / spread
            for k, spread in kept
        ]
        return float(np.mean(apart))

    error = contest.error(lambda: halved_error(mean, judged, held_out, generator=generator, by_extremes=True))
    return {"tail_error": Estimate(mean(judged, held_out), error)}


def _tails(column: Rows) -> Rows:
    present = column[~np.isnan(column)]
    return np.quantile(present, TAIL_SHARES) if len(present) else np.full(len(TAIL_SHARES), np.nan)


def _spread(column: Rows) -> float:
    present = column[~np.isnan(column)]
    if len(present) == 0:
        return 0.0
    low, *_, high = np.quantile(present, TAIL_SHARES)
    return float(high - low) or float(np.ptp(present))
