"""Classifiers that tell rows in the place of samples from held-out or training rows.

The errors are DeLong's times the root of 3. DeLong's takes the folds as independent. Where two laws are alike they are
not: how the rows of two folds lie to each other decides how a fit to the first scores the second, and the reverse as
well. So each such part counts twice, and the variance is twice DeLong's. The area of the floor varies as much; it has
the same other rows, and so has a quarter of the variance in common. The difference has 2 (2 - 2/4) = 3 times DeLong's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.contest import Contest, Estimate, NoFigureError
from sfg_dist.evaluate.distances import folded_area
from sfg_dist.evaluate.judgement import JudgedColumn

MAX_ROWS = 10_000  # of each kind
REFERENCE_MAX_ROWS = 4_000  # of copies and of independent columns, which are told apart more easily
MAX_TREE_CATEGORIES = 254  # of a column, all that scikit-learn's trees take; the rarest beyond are one
MIN_PRESENT = 50
MIN_TREE_ROWS = 25  # of each kind: a fit has four fifths of both, and trees do not split fewer than 40 rows


def trees_held_out(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """Area under the ROC curve of boosted trees that tell the rows from held-out rows.

    The trees are those of ``distances.c2st_auc``, with categories as categories and missing values as they are. With
    fewer than ``MIN_TREE_ROWS`` rows there is no figure.
    """
    return {"c2st_trees_held_out": _trees(contest, contest.held_out, generator)}


def trees_train(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The same against training rows. Published figures are of this kind; it rewards copies, which fall below 0.5."""
    return {"c2st_trees_train": _trees(contest, contest.known_train(), generator)}


def linear_held_out(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The same by logistic regression, in the coordinates of ``Embedding``; it is blind to what columns share."""
    return {"c2st_linear_held_out": _linear(contest, contest.held_out, generator)}


def linear_train(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """Logistic regression against training rows."""
    return {"c2st_linear_train": _linear(contest, contest.known_train(), generator)}


def _trees(contest: Contest, others: Rows, generator: np.random.Generator) -> Estimate:
    if contest.shared.num_rows < MIN_TREE_ROWS:
        raise NoFigureError(
            f"there are {contest.shared.num_rows} rows to compare, and trees need at least {MIN_TREE_ROWS}"
        )
    both, is_judged = _both(contest, others, generator)
    rows, categorical = tree_rows(both, contest.columns)
    return _estimate(partial(boosted_classifier, categorical), rows, is_judged, generator)


def _linear(contest: Contest, others: Rows, generator: np.random.Generator) -> Estimate:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    both, is_judged = _both(contest, others, generator)

    def classifier(_: int) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))

    return _estimate(classifier, contest.embed(both), is_judged, generator)


def _both(contest: Contest, others: Rows, generator: np.random.Generator) -> tuple[Rows, NDArray[np.int64]]:
    at_most = MAX_ROWS if contest.is_close else REFERENCE_MAX_ROWS
    judged, drawn = contest.level(others, generator, at_most=at_most)
    return np.concatenate([judged, drawn]), np.repeat([1, 0], [len(judged), len(drawn)])


def _estimate(
    classifier: Callable[[int], Any], rows: Rows, is_judged: NDArray[np.int64], generator: np.random.Generator
) -> Estimate:
    area, error = folded_area(classifier, rows, is_judged, generator=generator)
    return Estimate(area, float(np.sqrt(3)) * error)


def boosted_classifier(categorical: list[bool], seed: int) -> Any:
    """scikit-learn's trees as they come, not fitted, for rows of ``tree_rows``."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=seed, categorical_features=categorical)


def tree_rows(
    rows: Rows, columns: tuple[JudgedColumn, ...], *, num_fitted: int | None = None
) -> tuple[Rows, list[bool]]:
    """Rows as boosted trees read them, and which columns are categories.

    A category is a number below ``MAX_TREE_CATEGORIES``. A column that at most ``MIN_PRESENT`` and half of the first
    ``num_fitted`` rows have (of all, if None) is read as whether it is there: scikit-learn's trees refuse a column that
    is missing in all rows of a fit, and a fit may have half of the rows.
    """
    coded = rows.copy()
    for k, column in enumerate(columns):
        present = ~np.isnan(rows[:, k])
        if column.is_discrete:
            values, codes, counts = np.unique(rows[present, k], return_inverse=True, return_counts=True)
            rank = np.empty(len(values), dtype=np.int64)
            rank[np.argsort(-counts, kind="stable")] = np.arange(len(values))
            coded[present, k] = np.minimum(rank[codes], MAX_TREE_CATEGORIES - 1)
        if present[:num_fitted].sum() <= min(MIN_PRESENT, len(rows[:num_fitted]) // 2):
            coded[:, k] = present
    return coded, [column.is_discrete for column in columns]
