"""The law of a column beyond its outermost training rows: a generalised Pareto law, fitted to the rows before them.

    excess    e > 0, the distance from the outermost row
    hazard    h(e) = log(1 + shape e / scale) / shape,    exp(-h(e)) is the share of the law beyond e
    score     (s^2 - s_end^2) / 2 = h(e) - log((1 - exp(h(e) - h(room))) / (1 - exp(-h(room))))

Here s is the score, s_end that of the outermost row, and room the distance from there to the end of the range, infinite
where that is open. r = exp((s_end^2 - s^2) / 2) is about uniform beyond the row. So a narrow room is filled evenly, and
in a wide one the density falls off as the fitted law does, by a power of the distance. A straight curve would have a
row far out cost half the square of its score, hundreds of nats.

Scale and shape come from the largest rows' distances y from the row below them, ascending, by the probability-weighted
moments

    a_r = mean of y (1 - F)^r = scale / ((r + 1) (r + 1 - shape)),    r = 1, 2

in which the outermost row has no weight, so that an outlier decides nothing. The scale then moves out to that row,
scale + shape y, but no further than to where so many rows may be expected to reach. The shape is held within
``LEAST_SHAPE`` and ``MOST_SHAPE``: with the least one, a row a thousand scales out costs 51 nats instead of a thousand.

The rows of an atom, and those behind it, say nothing of a law beyond it. Where fewer than 12 rows are left, or the
largest are equal, the law has the least shape, and its scale is that of the curve's own slope. An end that is itself an
atom, or a missing value, has no law: a row beyond it costs half the square of its score.

References:
    Pickands 1975, Statistical inference using extreme order statistics (the law of excesses); Hosking, Wallis 1987,
    Parameter and quantile estimation for the generalized Pareto distribution (moments weighted by probability);
    Diebolt et al. 2007, Asymptotic behavior of the probability-weighted moments (weights of higher order).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.quantile import MIN_GAP, Curve

_Array = NDArray[np.float64]

LEAST_TAIL = 2.0**-20  # of the tail's probability: a value at the very end goes to a score of about 6
LEAST_SHAPE, MOST_SHAPE = 0.1, 1.5
LARGEST_LOG = 200.0  # of 1 + shape e / scale, for scores of any size
_FITTED_ROWS = 2.0  # times the square root of the number of rows
_MOST_SHARE = 0.25  # of the rows


@dataclass(frozen=True)
class Tail:
    """The law beyond the outermost training row at one end."""

    side: int  # 1 at the upper end, -1 at the lower one
    value: float  # of the outermost row
    score: float  # of the outermost row
    rate: float  # 1 / scale, per unit of the column, > 0
    room: float  # hazard at the end of the range; infinite where it is open, or ends at the row itself
    shape: float = 0.0  # 0 for an exponential law
    is_drawn: bool = True  # whether the range goes on beyond the row, so that samples do

    @classmethod
    def of(cls, curve: Curve, end: float, side: int, law: _Array) -> Tail | None:
        """The tail of a curve towards an end of the range, by its scale and shape.

        The scale is 0 in models of version 0.1.0. Then a range that has an end beyond the row has an exponential law of
        the curve's own slope, and any other goes on straight: None. It is None behind an atom too.
        """
        inner, outer = (-2, -1) if side > 0 else (1, 0)
        value, score = float(curve.values[inner]), float(curve.scores[inner])
        if _is_atom(curve, side):
            return None
        (scale, shape), room = law.tolist(), float(side * (end - value))
        is_drawn = room > 4 * abs(value) * MIN_GAP
        if scale > 0:
            rate = 1 / scale
        elif is_drawn and room < np.inf:
            rate = abs(score) * abs(float((curve.scores[outer] - score) / (curve.values[outer] - value)))
        else:
            return None
        found = cls(side, value, score, rate, np.inf, shape, is_drawn)
        if not is_drawn or room == np.inf:
            return found
        return cls(side, value, score, rate, float(found.hazard(np.array(room))), shape)

    def hazard(self, excess: _Array) -> _Array:
        """-log of the share of the law beyond an excess in units of the column, same shape."""
        scaled: _Array = self.rate * excess
        return np.log1p(self.shape * scaled) / self.shape if self.shape else scaled

    def to_values(self, scores: _Array, values: _Array) -> _Array:
        """The values, with those replaced whose scores lie beyond the outermost row."""
        beyond = self.side * (scores - self.score) > 0
        fall = (scores[beyond] ** 2 - self.score**2) / 2
        filled = np.log(np.maximum(-np.expm1(-fall), 1e-300))
        hazard = -np.logaddexp(-fall, filled - self.room)
        if self.shape:
            hazard = np.expm1(np.minimum(self.shape * hazard, LARGEST_LOG)) / self.shape
        values[beyond] = self.value + self.side * hazard / self.rate
        return values

    def to_scores(self, values: _Array, scores: _Array) -> _Array:
        """The scores, with those replaced whose values lie beyond the outermost row."""
        beyond, _, hazard, left = self._beyond(values)
        scores[beyond] = self.side * self._scores(hazard, left)
        return scores

    def log_slope(self, values: _Array, slopes: _Array) -> _Array:
        """log dz/dx, replaced where values lie beyond the outermost row."""
        beyond, excess, hazard, left = self._beyond(values)
        slope = np.log(self.rate / (left * self._scores(hazard, left)))
        slopes[beyond] = slope - np.log1p(self.shape * self.rate * excess)
        return slopes

    def _beyond(self, values: _Array) -> tuple[NDArray[np.bool_], _Array, _Array, _Array]:
        """Which values lie beyond the row, how far, their hazards, and the share in the room that lies behind each."""
        beyond = self.side * (values - self.value) > 0
        excess = self.side * (values[beyond] - self.value)
        hazard = self.hazard(excess)
        return beyond, excess, hazard, np.maximum(-np.expm1(np.minimum(hazard - self.room, 0.0)), LEAST_TAIL)

    def _scores(self, hazard: _Array, left: _Array) -> _Array:
        fall = hazard - np.log(left) + np.log(-np.expm1(-self.room))
        scores: _Array = np.sqrt(self.score**2 + 2 * fall)
        return scores


def tails(curve: Curve, ends: _Array, laws: _Array) -> list[Tail]:
    """The tails of a curve within a range, by the scale and shape of the lower and the upper one, shape (2, 2)."""
    found = [Tail.of(curve, end, side, law) for end, side, law in zip(ends, (-1, 1), laws, strict=True)]
    return [tail for tail in found if tail]


def fit_tails(values: _Array, curve: Curve, held: _Array | None = None) -> _Array:
    """Scale and shape beyond the lower and the upper end of a column's training values, shape (2, 2).

    The values are those that the curve was fitted to, shape (num_rows,), two at least. No law is fitted to the values
    ``held``, shape (num_held,), or across them; None stands for the curve's atoms. A scale of 0 says that an atom is
    the end.

    Examples:
        >>> from sfg_dist.data.quantile import fit_curve
        >>> values = np.random.default_rng(0).standard_t(2, 20_000)
        >>> fit_tails(values, fit_curve(values, None))[:, 1].round(1).tolist()  # 1 / 2 in truth
        [0.5, 0.5]
    """
    held = curve.atoms.values if held is None else held
    laws = np.zeros((2, 2))
    for place, side in enumerate((-1, 1)):
        if _is_atom(curve, side):
            continue
        inner, outer = (-2, -1) if side > 0 else (1, 0)
        end, score = float(curve.values[inner]), abs(float(curve.scores[inner]))
        turned = side * values
        law = _fit_upper(turned[turned > (side * held).max(initial=-np.inf)], side * end)
        if not law:  # the curve goes on by one score, and an end's score near 0 would throw samples far out
            law = abs(float(curve.values[outer]) - end) / max(score, 1.0), LEAST_SHAPE
        least = max(4 * MIN_GAP * abs(end), 1e-100)  # beside a far outlier, less is lost in rounding
        laws[place] = max(law[0], least), law[1]
    return laws


def _is_atom(curve: Curve, side: int) -> bool:
    """Whether the upper (1) or lower (-1) end of a curve is an atom."""
    return len(curve.atoms) > 0 and bool(np.isinf((curve.atoms.high[-1], curve.atoms.low[0])[side < 0]))


def _fit_upper(values: _Array, end: float) -> tuple[float, float] | None:
    """Scale and shape beyond ``end``, where the curve's outermost knot lies; None for values too few or too equal."""
    num = min(int(_MOST_SHARE * len(values)), round(_FITTED_ROWS * math.sqrt(len(values))))
    if num < 3:
        return None
    largest = np.sort(np.partition(values, len(values) - num - 1)[-num - 1 :])
    with np.errstate(over="ignore"):
        excesses = largest[1:] - largest[0]
    place = np.arange(num)
    weights = (num - 1 - place) / (num - 1)
    first, second = float((weights * excesses).mean()), float((weights * (num - 2 - place) * excesses).mean())
    second /= num - 2
    if not (math.isfinite(first) and second > 0):
        return None
    ratio = 2 * first / (3 * second)
    shape = (2 * ratio - 3) / (ratio - 1) if ratio > 1 else -math.inf
    shape = min(max(shape, LEAST_SHAPE), MOST_SHAPE)
    scale = 2 * first * (2 - shape)
    reach = max(end - float(largest[0]), 0.0)
    return min(scale + shape * reach, scale * (2 * num) ** shape), shape
