"""Whether rows cover the data, neither less nor more: alpha precision and beta recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.contest import NUM_PARTS, Contest, Estimate, halved_error, random_part
from sfg_dist.evaluate.neighbours import LOOK_THROUGH, nearest_drawn, nearest_others, nearest_rows

MAX_ROWS = 5_000
NUM_LEVELS = 30
_PART = 0.65  # of the judged rows: with half of them the nearest ones are too far away, and with most they hardly vary


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

    error = contest.error(lambda: halved_error(precision, *distances, generator=generator))
    return {"alpha_precision": Estimate(precision(distances[0], distances[1]), error)}


def beta_recall(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """1 - sum |level - share| / sum level, over the levels of ``alpha_precision``.

    The share is that of held-out rows for which two things hold: the nearest judged row is no further than the nearest
    other held-out row, and it is among the ``level`` of such nearest rows that lie nearest to the mean of the judged
    rows. So rows of the same law reach about one half. It is synthcity's, with the coordinates of ``alpha_precision``.
    The error is by random parts of the judged rows, and counts those of the floor too.
    """
    judged, held_out = _points(contest, generator)
    neighbours = _Neighbours.of(judged, held_out)
    value = neighbours.recall(np.arange(len(judged)))

    def error() -> float:
        parts = [neighbours.recall(random_part(len(judged), _PART, generator)) for _ in range(NUM_PARTS)]
        return float(np.sqrt(2 * _PART / (1 - _PART)) * np.std(parts, ddof=1))

    return {"beta_recall": Estimate(value, contest.error(error))}


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """For each held-out row its nearest judged rows, and how far the nearest other held-out row is."""

    to_judged: Rows
    judged_numbers: NDArray[np.int64]
    to_held_out: Rows  # shape (num_held_out,)
    from_center: Rows  # of each judged row, to the mean of the judged rows

    @classmethod
    def of(cls, judged: Rows, held_out: Rows) -> _Neighbours:
        nearest_held_out = nearest_others(held_out, 1)[0][:, 0]
        from_center = np.linalg.norm(judged - judged.mean(axis=0), axis=1)
        return cls(*nearest_rows(held_out, judged, LOOK_THROUGH), nearest_held_out, from_center)

    def recall(self, drawn: NDArray[np.int64]) -> float:
        """The beta recall of judged rows that are given by their numbers."""
        to_judged, numbers = nearest_drawn(self.to_judged, self.judged_numbers, drawn)
        distance = self.from_center[numbers]
        covered = to_judged <= self.to_held_out
        return _agreement(distance[covered], np.quantile(distance, _levels()), len(distance))


def _points(contest: Contest, generator: np.random.Generator) -> list[Rows]:
    return [contest.embed(table) for table in contest.level(contest.held_out, generator, at_most=MAX_ROWS)]


def _levels() -> Rows:
    return np.linspace(0, 1, NUM_LEVELS)


def _agreement(distances: Rows, radii: Rows, num_all: int) -> float:
    """How well the shares of ``num_all`` rows within each radius agree with the levels."""
    shares = np.searchsorted(np.sort(distances), radii, side="right") / num_all
    return float(1 - np.abs(_levels() - shares).sum() / _levels().sum())
