"""Whether rows cover the data, neither less nor more: alpha precision and beta recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.contest import NUM_RESAMPLES, Contest, Estimate, resampled_error
from sfg_dist.evaluate.neighbours import LOOK_THROUGH, nearest_drawn, nearest_others, nearest_rows

MAX_ROWS = 5_000
NUM_LEVELS = 30


def alpha_precision(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """1 - sum |level - share| / sum level, over ``NUM_LEVELS`` even levels from 0 to 1.

    The share is that of rows within the ball around the mean of the held-out rows that holds ``level`` of these. It is
    synthcity's, in the coordinates of ``Embedding`` instead of a one-class network ("naive" there). The error is by
    resampling both tables.

    References:
        Alaa et al. 2022, How Faithful is your Synthetic Data?, arXiv 2102.08921.
    """
    judged, held_out = _points(contest, generator)
    center = held_out.mean(axis=0)
    distances = [np.linalg.norm(table - center, axis=1) for table in (judged, held_out)]

    def precision(of_judged: Rows, of_held_out: Rows) -> float:
        return _agreement(of_judged, np.quantile(of_held_out, _levels()), len(of_judged))

    error = contest.error(lambda: resampled_error(precision, *distances, generator=generator))
    return {"alpha_precision": Estimate(precision(distances[0], distances[1]), error)}


def beta_recall(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """1 - sum |level - share| / sum level, over the levels of ``alpha_precision``.

    The share is that of held-out rows for which two things hold: the nearest judged row is no further than the nearest
    other held-out row, and it is among the ``level`` of such nearest rows that lie nearest to the mean of the judged
    rows. So rows of the same law reach about one half. It is synthcity's, with the coordinates and the error as of
    ``alpha_precision``.
    """
    judged, held_out = _points(contest, generator)
    neighbours = _Neighbours.of(judged, held_out)
    value = neighbours.recall(np.arange(len(judged)), np.arange(len(held_out)))

    def resampled() -> float:
        sizes = len(judged), len(held_out)
        drawn = [[generator.integers(size, size=size) for size in sizes] for _ in range(NUM_RESAMPLES)]
        return float(np.std([neighbours.recall(*rows) for rows in drawn], ddof=1))

    return {"beta_recall": Estimate(value, contest.error(resampled))}


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """For each held-out row its nearest judged and other held-out rows: distances and numbers, nearest first."""

    to_judged: Rows
    judged_numbers: NDArray[np.int64]
    to_held_out: Rows
    held_out_numbers: NDArray[np.int64]
    from_center: Rows  # of each judged row, to the mean of the judged rows

    @classmethod
    def of(cls, judged: Rows, held_out: Rows) -> _Neighbours:
        return cls(
            *nearest_rows(held_out, judged, LOOK_THROUGH),
            *nearest_others(held_out, LOOK_THROUGH),
            np.linalg.norm(judged - judged.mean(axis=0), axis=1),
        )

    def recall(self, judged: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
        """The beta recall of a resample, given by the numbers of its rows."""
        to_judged, numbers = nearest_drawn(self.to_judged, self.judged_numbers, judged)
        to_held_out, _ = nearest_drawn(self.to_held_out, self.held_out_numbers, held_out)
        distance = self.from_center[numbers[held_out]]
        covered = to_judged[held_out] <= to_held_out[held_out]
        return _agreement(distance[covered], np.quantile(distance, _levels()), len(held_out))


def _points(contest: Contest, generator: np.random.Generator) -> list[Rows]:
    return [contest.embed(table) for table in contest.level(contest.held_out, generator, at_most=MAX_ROWS)]


def _levels() -> Rows:
    return np.linspace(0, 1, NUM_LEVELS)


def _agreement(distances: Rows, radii: Rows, num_all: int) -> float:
    """How well the shares of ``num_all`` rows within each radius agree with the levels."""
    shares = np.searchsorted(np.sort(distances), radii, side="right") / num_all
    return float(1 - np.abs(_levels() - shares).sum() / _levels().sum())
