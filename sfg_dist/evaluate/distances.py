"""Distances between two tables that read all columns together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows, scale_columns, subset

C2ST_MAX_ROWS = 20_000
C2ST_MIN_ROWS = 10
C2ST_NUM_FOLDS = 5
SLICED_MAX_ROWS = 20_000
SLICED_NUM_PROJECTIONS = 200
SLICED_NUM_BLOCKS = 8  # one block of projections is held at a time; the number divides SLICED_NUM_PROJECTIONS
ENERGY_MAX_ROWS = 5_000
ENERGY_BLOCK_ROWS = 500


def c2st_auc(rows: Rows, held_out: Rows, *, generator: np.random.Generator) -> tuple[float, float] | None:
    """Classifier two-sample test: area under the ROC curve of boosted trees that tell rows apart, and its error.

    Equal numbers of both kinds, at most ``C2ST_MAX_ROWS`` each, the longer table cut to a random subset. The trees are
    scikit-learn's HistGradientBoostingClassifier as it comes, fitted on four of five stratified folds and scored on the
    fifth: no row is scored by trees that saw it. Scores of different folds are not on one scale, so the area is taken
    within each fold and averaged. 0.5 is perfect; noise falls on both sides of it and is left as it is.

    The standard error is by DeLong's variance of each fold's area. It is that of the rows at hand, with the trees as
    they are, so it does not hold what another training of the sampler would change. ``generator`` draws the subsets,
    the folds and the trees' seeds. None with fewer than ``C2ST_MIN_ROWS`` rows of a kind.

    References:
        Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests, arXiv 1610.06545.
        DeLong, DeLong, Clarke-Pearson 1988, Comparing the areas under two or more correlated receiver operating
        characteristic curves.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    num_each = min(len(rows), len(held_out), C2ST_MAX_ROWS)
    if num_each < C2ST_MIN_ROWS:
        return None
    both = np.concatenate([subset(rows, num_each, generator), subset(held_out, num_each, generator)])
    is_judged = np.repeat([1, 0], num_each)
    return folded_area(
        lambda seed: HistGradientBoostingClassifier(random_state=seed), both, is_judged, generator=generator
    )


def folded_area(
    classifier: Callable[[int], Any], both: Rows, is_judged: NDArray[np.int64], *, generator: np.random.Generator
) -> tuple[float, float]:
    """The mean area under the ROC curve over ``C2ST_NUM_FOLDS`` folds, and its standard error, as of ``c2st_auc``.

    ``classifier`` makes one of scikit-learn's that is not fitted, from a seed; ``both`` holds the rows of both kinds,
    and ``is_judged`` is 1 for one kind and 0 for the other, shape (len(both),).
    """
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    fold_seed, fit_seed = (int(drawn) for drawn in generator.integers(2**31, size=2))
    folds = StratifiedKFold(C2ST_NUM_FOLDS, shuffle=True, random_state=fold_seed)
    areas, variances = [], []
    # One thread: OpenMP waits in a busy loop between its many short regions. Where another process held one of the
    # cores, a fit of 0.3 s took 60 s.
    with threadpool_limits(limits=1, user_api="openmp"):
        for fitted, scored in folds.split(both, is_judged):
            fit = classifier(fit_seed).fit(both[fitted], is_judged[fitted])
            scores = fit.predict_proba(both[scored])[:, 1]
            area, variance = area_and_variance(scores[is_judged[scored] == 1], scores[is_judged[scored] == 0])
            areas.append(area)
            variances.append(variance)
    return float(np.mean(areas)), float(np.sqrt(np.sum(variances)) / C2ST_NUM_FOLDS)


def area_and_variance(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> tuple[float, float]:
    """The area under the ROC curve and DeLong's variance of it; a tie counts one half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))
    # For each row, the share of rows of the other kind that it is ranked rightly against.
    above = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    below = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    parts = [float(share.var(ddof=1)) / len(share) if len(share) > 1 else 0.25 for share in (above, below)]
    return float(above.mean()), sum(parts)


def sliced_wasserstein(rows: Rows, held_out: Rows, train: Rows, *, generator: np.random.Generator) -> float | None:
    """Sliced 2-Wasserstein distance of standardised tables, in standard deviations; None if all columns are constant.

        SW_2^2 = mean over directions u of W_2^2(u . rows, u . held_out)

    ``SLICED_NUM_PROJECTIONS`` random directions, at most ``SLICED_MAX_ROWS`` rows of each table. ``train`` sets the
    scale of each column. A pure shift by a vector s gives about |s| / sqrt(dim). Squares weigh the tails: a
    heavy-tailed column dominates, and the floor shows by how much.

    References:
        Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters of Measures; computed by POT.
    """
    import ot

    deviation, (rows, held_out) = scale_columns(train, rows, held_out)
    if len(deviation) == 0:
        return None
    directions = generator.standard_normal((len(deviation), SLICED_NUM_PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    rows, held_out = subset(rows, SLICED_MAX_ROWS, generator), subset(held_out, SLICED_MAX_ROWS, generator)
    squares = [
        ot.sliced_wasserstein_distance(rows, held_out, projections=block, p=2) ** 2
        for block in np.split(directions, SLICED_NUM_BLOCKS, axis=1)
    ]
    return float(np.sqrt(np.mean(squares)))


def energy_distance(rows: Rows, held_out: Rows, train: Rows, *, generator: np.random.Generator) -> float | None:
    """Energy distance of the standardised tables; None if every column is constant.

        D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    Each mean is over distinct pairs (a U-statistic), so D^2 has no bias and falls below zero about half of the time
    when the laws are equal. D keeps the sign of such an estimate, so the floor shows the noise. ``train`` sets the
    scale of each column. At most ``ENERGY_MAX_ROWS`` rows of each table, in blocks of ``ENERGY_BLOCK_ROWS``: memory
    stays under 40 MB.

    References:
        Szekely and Rizzo 2013, Energy statistics: a class of statistics based on distances.
    """
    deviation, (rows, held_out) = scale_columns(train, rows, held_out)
    if len(deviation) == 0:
        return None
    rows, held_out = subset(rows, ENERGY_MAX_ROWS, generator), subset(held_out, ENERGY_MAX_ROWS, generator)
    between = _distance_sum(rows, held_out) / (len(rows) * len(held_out))
    within = sum(_distance_sum(table, table) / (len(table) * (len(table) - 1)) for table in (rows, held_out))
    squared = 2.0 * between - within
    return float(np.sign(squared) * np.sqrt(abs(squared)))


def _distance_sum(first: Rows, second: Rows) -> float:
    from scipy.spatial.distance import cdist

    blocks = range(0, len(first), ENERGY_BLOCK_ROWS)
    return float(sum(cdist(first[start : start + ENERGY_BLOCK_ROWS], second).sum() for start in blocks))
