"""Whether a conditional generator is calibrated: several samples for each held-out condition, beside what happened.

With num_draws draws X of a column for a condition, the value y that the held-out row has, and an independent copy X'
of a draw:

    rank      u = (number of draws below y + v (1 + number of draws equal to y)) / (num_draws + 1),   v uniform
    coverage  f = share of draws that lie nearer to a point picked without looking than the held-out row does
    CRPS      E d(X, y) - E d(X, X') / 2,    d(a, b) = |a - b| / deviation of the column, or 1 where categories differ

For a calibrated generator u and f are uniform on [0, 1], whatever the law. The spread 12 E (u - 1/2)^2 of the ranks is
then 1: it is larger where the generator's law is too narrow, and smaller where it is too wide. The ranks of a generator
that ignores its condition are even too. Its CRPS is not right: this score is lowest for the true law. A calibrated
generator has on average the CRPS E d(X, X') / 2 of its own draws, which is the floor here. That of a generator which
ignores its condition is as high as its CRPS, so the floor does not say whether the condition tells anything. The
training rows whose conditions lie nearest do.

Errors are standard errors over the held-out rows, which are taken as independent.

References:
    Hamill 2001, Interpretation of rank histograms for verifying ensemble forecasts.
    Lemos et al. 2023, Sampling-based accuracy testing of posterior estimators, arXiv 2302.03026 (expected coverage).
    Gneiting and Raftery 2007, Strictly proper scoring rules (CRPS, and its form for any distance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.contest import NoFigureError
from sfg_dist.evaluate.judgement import Figure, FigureKind, JudgedColumn
from sfg_dist.job.plan import Stream, random_generator

MIN_ROWS, MIN_DRAWS = 20, 8
FEW_WEIGHTS = 30.0
"""Below this effective number of rows a law is hardly estimated."""
_INDEX = 300  # its own place in the EVALUATE stream, past the figures and the pictures

_KINDS = (
    FigureKind(
        "rank_distance", "calibration", "Ranks", 0.0, "low",
        "How far the ranks of held-out values among their draws are from even, the largest gap, mean over the columns.",
        by_floor=True,
    ),
    FigureKind(
        "rank_spread", "calibration", "Spread of the ranks", 1.0, "at",
        "Whether draws spread as held-out values do: above 1 the draws are too narrow, below 1 too wide.",
    ),
    FigureKind(
        "coverage_50", "calibration", "Coverage at 50 %", 0.5, "at",
        "How often a region that should hold one half of the outcomes, in all columns together, holds what happened.",
    ),
    FigureKind(
        "coverage_90", "calibration", "Coverage at 90 %", 0.9, "at",
        "How often a region that should hold nine tenths of the outcomes holds what happened.",
    ),
    FigureKind(
        "crps", "calibration", "CRPS", 0.0, "low",
        "How far draws lie from what happened less how far they lie from each other, in standard deviations; the floor "
        "is what a calibrated law of the same width has, and copy the training rows whose conditions lie nearest.",
        by_floor=True,
    ),
    FigureKind(
        "effective_rows", "calibration", "Effective training rows of a condition", float("inf"), "high",
        "How many training rows of equal weight would say as much of the law for a held-out condition; the median.",
    ),
)  # fmt: skip
CALIBRATION_KINDS: Mapping[str, FigureKind] = MappingProxyType({kind.name: kind for kind in _KINDS})


@dataclass(frozen=True, eq=False)
class Draws:
    """What is judged: draws for each condition of held-out rows, in the user's units, missing values NaN."""

    columns: tuple[JudgedColumn, ...]  # the columns that are drawn
    held_out: Rows  # what happened, shape (num_rows, num_columns)
    drawn: NDArray[np.float64]  # shape (num_rows, num_draws, num_columns)
    train: Rows  # training rows of these columns, for the law without a condition
    # effective number of training rows behind the law of each condition, shape (num_rows,)
    effective_rows: NDArray[np.float64]
    # numbers of the training rows whose conditions lie nearest to that of each held-out row, shape (num_rows, number):
    # a law given the condition that no generator made
    nearest: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ColumnCalibration:
    """The calibration of one column; ranks are for numbers and dates alone."""

    column: str
    rank_distance: float | None
    rank_spread: float | None
    crps: float
    crps_floor: float


@dataclass(frozen=True)
class Calibration:
    """The figures by name, in the order of ``CALIBRATION_KINDS``, and the columns, the worst first."""

    figures: Mapping[str, Figure]
    columns: tuple[ColumnCalibration, ...]
    num_rows: int
    num_draws: int


def calibration(draws: Draws, *, seed: int) -> Calibration:
    """The calibration of draws.

    Raises:
        NoFigureError: there are too few held-out rows or draws, or no columns.
    """
    num_rows, num_draws, _ = draws.drawn.shape
    if num_rows < MIN_ROWS or num_draws < MIN_DRAWS:
        raise NoFigureError(
            f"there are {num_rows} held-out rows with {num_draws} draws each, and at least {MIN_ROWS} rows and "
            f"{MIN_DRAWS} draws are needed"
        )
    if not draws.columns:
        raise NoFigureError("no column varies but those of the condition")
    generator = random_generator(seed, Stream.EVALUATE, _INDEX)
    ranks = {
        place: found
        for place, column in enumerate(draws.columns)
        if not column.is_discrete
        and len(found := _ranks(draws.held_out[:, place], draws.drawn[:, :, place], generator)) >= MIN_ROWS
    }
    scales = [_scale(column, values) for column, values in zip(draws.columns, draws.train.T, strict=True)]
    without = draws.train[generator.integers(len(draws.train), size=(num_rows, num_draws))]
    scores, floors, unconditional, nearby = [], [], [], []
    for place, scale in enumerate(scales):
        score, floor = _scores(draws.held_out[:, place], draws.drawn[:, :, place], scale)
        scores.append(score)
        floors.append(floor)
        unconditional.append(_scores(draws.held_out[:, place], without[:, :, place], scale)[0])
        if draws.nearest is not None:
            nearby.append(_scores(draws.held_out[:, place], draws.train[draws.nearest, place], scale)[0])
    figures = [*_rank_figures(list(ranks.values())), *_coverage_figures(draws, scales, generator)]
    row_scores = np.mean(scores, axis=0)
    figures.append(
        Figure(
            "crps", *_mean(row_scores), floor=float(np.mean(floors)),
            copy=float(np.mean(nearby)) if nearby else None, independent=float(np.mean(unconditional)),
        )
    )  # fmt: skip
    figures.append(_effective_figure(draws.effective_rows, generator))
    columns = [
        ColumnCalibration(
            column.name,
            _distance(ranks[place]) if place in ranks else None,
            _spread(ranks[place])[0] if place in ranks else None,
            float(np.mean(scores[place])),
            float(np.mean(floors[place])),
        )
        for place, column in enumerate(draws.columns)
    ]
    worst = sorted(columns, key=lambda column: column.crps_floor - column.crps)
    return Calibration({figure.name: figure for figure in figures}, tuple(worst), num_rows, num_draws)


def _ranks(truth: Rows, drawn: Rows, generator: np.random.Generator) -> NDArray[np.float64]:
    """u of each row whose value is there, among the draws that are; shape (at most num_rows,)."""
    known = ~np.isnan(truth) & ~np.isnan(drawn).all(axis=1)
    truth, drawn = truth[known, None], drawn[known]
    below, equal, number = (part.sum(axis=1) for part in (drawn < truth, drawn == truth, ~np.isnan(drawn)))
    ranks: NDArray[np.float64] = (below + generator.random(len(truth)) * (1 + equal)) / (number + 1)
    return ranks


def _distance(uniform: NDArray[np.float64]) -> float:
    """The Kolmogorov-Smirnov distance of values from the uniform law."""
    steps = np.arange(len(uniform) + 1) / len(uniform)
    ordered = np.sort(uniform)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def _spread(uniform: NDArray[np.float64]) -> tuple[float, float]:
    """12 E (u - 1/2)^2 with its standard error."""
    return _mean(12 * (uniform - 0.5) ** 2)


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _rank_figures(ranks: Sequence[NDArray[np.float64]]) -> list[Figure]:
    """Means over the columns. Columns of one row depend on each other, so the error of a mean is that of one column."""
    if not ranks:
        return []
    number = min(map(len, ranks))
    floor = _KS_MEAN / np.sqrt(number)
    spreads = [_spread(column) for column in ranks]
    return [
        Figure("rank_distance", float(np.mean([_distance(column) for column in ranks])),
               float(_KS_ERROR / np.sqrt(number)), floor=float(floor), copy=None, independent=None),
        Figure("rank_spread", float(np.mean([value for value, _ in spreads])),
               float(np.mean([error for _, error in spreads])), floor=1.0, copy=None, independent=None),
    ]  # fmt: skip


_KS_MEAN, _KS_ERROR = 0.8687, 0.2603
"""Mean and deviation of sqrt(n) times the distance of n uniform values, by Kolmogorov's law."""


def _coverage_figures(draws: Draws, scales: Sequence[float | None], generator: np.random.Generator) -> list[Figure]:
    """Expected coverage of all columns together; the point that is picked for a row is another held-out row."""
    num_rows = len(draws.held_out)
    points = np.roll(draws.held_out, int(generator.integers(1, num_rows)), axis=0)
    own, theirs = np.zeros(num_rows), np.zeros(draws.drawn.shape[:2])
    for place, scale in enumerate(scales):
        own += _distances(draws.held_out[:, place], points[:, place], scale) ** 2
        theirs += _distances(draws.drawn[:, :, place], points[:, place, None], scale) ** 2
    nearer = _ranks(own, theirs, generator)
    return [
        Figure(f"coverage_{level}", *_mean((nearer < level / 100).astype(np.float64)), floor=level / 100, copy=None,
               independent=None)
        for level in (50, 90)
    ]  # fmt: skip


def _scale(column: JudgedColumn, values: NDArray[np.float64]) -> float | None:
    """The deviation of a column of numbers; None for categories."""
    if column.is_discrete:
        return None
    known = values[~np.isnan(values)]
    deviation = float(known.std()) if len(known) else 0.0
    return deviation if deviation > 0 else 1.0


def _distances(first: Rows, second: Rows, scale: float | None) -> NDArray[np.float64]:
    """d of the module's docstring; 1 where one of two values is missing, 0 where both are."""
    gap = (first != second).astype(np.float64) if scale is None else np.abs(first - second) / scale
    missing = np.isnan(first).astype(np.int8) + np.isnan(second)
    distances: NDArray[np.float64] = np.where(missing == 0, gap, missing == 1)
    return distances


def _scores(truth: Rows, drawn: Rows, scale: float | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The CRPS of each row, unbiased in the number of draws, and E d(X, X') / 2; both of shape (num_rows,)."""
    to_truth = _distances(drawn, truth[:, None], scale).mean(axis=1)
    num_draws = drawn.shape[1]
    half = np.zeros(len(drawn))
    for step in range(1, num_draws):  # all pairs of draws, in memory of one copy
        half += _distances(drawn[:, step:], drawn[:, :-step], scale).sum(axis=1)
    half /= num_draws * (num_draws - 1)
    return to_truth - half, half


def _effective_figure(numbers: NDArray[np.float64], generator: np.random.Generator) -> Figure:
    """The median with its error by the bootstrap."""
    again = np.median(numbers[generator.integers(len(numbers), size=(200, len(numbers)))], axis=1)
    return Figure("effective_rows", float(np.median(numbers)), float(again.std(ddof=1)), None, None, None)
