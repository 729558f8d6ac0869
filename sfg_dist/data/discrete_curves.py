"""Curves of columns whose values are all atoms, and of columns with missing values.

A missing value is an atom at one end of the curve of the others. With share m, at the lower end,

    z = Phi^-1(m + (1 - m) F(x)),    and all scores below Phi^-1(m) give the missing value.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts are imported when they are first used
from numpy.typing import NDArray

from sfg_dist.data.quantile import Curve

_Array = NDArray[np.float64]

_LEAST_WEIGHT = 0.5  # rows: what all values that no training row has are given together
_APART = 1 / 8  # of the range of the values: how far beyond it a missing value stands


def atoms_curve(counts: NDArray[np.intp]) -> Curve:
    """The curve of a column of the values 0, 1, 2 and so on, of each of which there are so many training rows.

    Values without a row share half a row, in the lower tail if they stand first there.

    Examples:
        >>> curve = atoms_curve(np.array([30, 70]))
        >>> curve.atoms.shares().round(3).tolist()
        [0.3, 0.7]
    """
    is_absent = counts == 0
    weights = np.where(is_absent, _LEAST_WEIGHT / max(int(is_absent.sum()), 1), counts)
    above = np.cumsum(weights)
    total, least = above[-1], weights.min() / 4
    ends = np.stack([above - weights, above], axis=1).ravel()
    levels = ends.clip(least, total - least) / total
    lower, upper = scipy.special.ndtri(levels), -scipy.special.ndtri((total - ends).clip(least, None) / total)
    scores = np.where(levels < 0.5, lower, upper)  # each tail has its own digits
    scores[2::2] = scores[1:-1:2]  # neighbours meet
    places = np.repeat(np.arange(len(counts), dtype=np.float64), 2)
    values = np.concatenate([[places[0] - 1], places, [places[-1] + 1]])
    return Curve(values, np.concatenate([[scores[0] - 1], scores, [scores[-1] + 1]]))


def with_missing(curve: Curve, num_rows: int, num_missing: int, *, is_above: bool) -> tuple[Curve, float, float]:
    """The curve of a column that has missing values too, from that of its other training values.

    Returns:
        The curve, the number that stands for a missing value, and the end of the values that it lies beyond.
    """
    if is_above:
        turned, missing, end = with_missing(_turned(curve), num_rows, num_missing, is_above=False)
        return _turned(turned), -missing, -end
    weight = max(num_missing, _LEAST_WEIGHT)
    share = weight / (num_rows - num_missing + weight)
    inner, scores = curve.values[1:-1], curve.scores[1:-1]
    ndtr, ndtri = scipy.special.ndtr, scipy.special.ndtri
    upper = -ndtri((1 - share) * ndtr(-scores))
    moved = np.where(upper > 0, upper, ndtri(share + (1 - share) * ndtr(scores)))
    moved[0] = ndtri(share)  # the values begin where the missing ones end
    reach = float(inner[-1] - inner[0])
    end = float(inner[0])
    missing = end - max(reach * _APART, 8 * np.spacing(abs(end)), 1e-100)
    least = ndtri(min(_LEAST_WEIGHT / 2 / num_rows, share / 4))
    values = np.concatenate([[missing - max(reach, 1e-100)], [missing, missing], inner, curve.values[-1:]])
    scores = np.concatenate([[least - 1, least], moved[:1], moved, moved[-1:] + 1])
    return Curve(values, scores), missing, end


def _turned(curve: Curve) -> Curve:
    """The curve of the negative values."""
    return Curve(-curve.values[::-1], -curve.scores[::-1])
