"""What a model is worth that was fitted to rows in the place of samples: how well it predicts held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows, subset
from sfg_dist.evaluate.contest import MIN_ROWS, Contest, Estimate, NoFigureError
from sfg_dist.evaluate.detection import tree_rows
from sfg_dist.evaluate.distances import area_and_variance
from sfg_dist.evaluate.judgement import JudgedColumn

MAX_FITTED = 10_000
MAX_PREDICTED = 10_000
MAX_CLASSES = 10  # the rarest categories beyond are one class
NUM_TREES = 100  # of numbers and of two classes; of more classes half as many for each two of them, at least 20
NUM_HALVES = 8  # fits to one half of the rows, of which the error is taken


def utility(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate | NoFigureError]:
    """Predictions of the target column, for held-out rows, by boosted trees that were fitted to the judged rows.

    ``utility``: for categories the area under the ROC curve of each against all others, on average over those that
    occur in held-out rows; for numbers R2, 1 - sum of squared errors / sum of squares around the mean.
    ``utility_calibration``, for categories alone: the Brier score, the mean over rows and classes of the squared
    difference of the probability from 1 for the class that it is and from 0 for others. An error of calibration by bins
    would be 0 for trees that predict shares, which are of no use.

    Rows whose target is missing are left out. Where the judged rows have no other, the predictions are those of chance:
    an area of one half, or an R2 of 0. The error is the spread of fits to random halves of the rows, times the
    root of 2 for that of the floor; held-out rows are the same for both.
    """
    target = contest.shared.target
    if target is None:
        raise NoFigureError("no target column is named")
    present = [table[~np.isnan(table[:, target])] for table in (contest.judged, contest.held_out)]
    if 0 < len(present[0]) < MIN_ROWS or len(present[1]) < MIN_ROWS:
        raise NoFigureError(f"fewer than {MIN_ROWS} rows have a target")
    fitted = subset(present[0], min(MAX_FITTED, contest.shared.num_fitted), generator)
    task = _task(contest.columns, target, fitted, subset(present[1], MAX_PREDICTED, generator))
    seed = int(generator.integers(2**31))
    values = task.measured(np.arange(len(fitted)), seed)
    halves = [generator.permutation(len(fitted))[: len(fitted) // 2] for _ in range(NUM_HALVES)]
    found = [task.measured(half, seed) for half in halves] if contest.with_error else []

    def error(name: str) -> float:
        return float(np.sqrt(2) * np.std([of_half[name] for of_half in found], ddof=1))

    measured: dict[str, Estimate | NoFigureError] = {
        name: Estimate(value, contest.error(partial(error, name))) for name, value in values.items()
    }
    if task.num_classes == 0:
        measured["utility_calibration"] = NoFigureError("the target is a number, which has no probabilities")
    return measured


@dataclass(frozen=True, eq=False)
class _Task:
    """Rows without the target, as trees read them, and the target: numbers, or classes 0, 1, 2 and so on."""

    fitted: Rows
    fitted_target: NDArray[np.float64]
    asked: Rows
    asked_target: NDArray[np.float64]
    categorical: list[bool]
    num_classes: int  # 0 of numbers

    def measured(self, chosen: NDArray[np.int64], seed: int) -> Mapping[str, float]:
        """The figures of a fit to the chosen rows."""
        if self.num_classes == 0:
            return {"utility": self._r2(chosen, seed)}
        probabilities = self._probabilities(chosen, seed)
        is_class = self.asked_target[:, None] == np.arange(self.num_classes)
        areas = [
            area_and_variance(column[is_it], column[~is_it])[0]
            for column, is_it in zip(probabilities.T, is_class.T, strict=True)
            if is_it.any() and not is_it.all()
        ]
        if not areas:
            raise NoFigureError("held-out rows have one category of the target")
        return {
            "utility": float(np.mean(areas)),
            "utility_calibration": float(np.square(probabilities - is_class).mean()),
        }

    def _r2(self, chosen: NDArray[np.int64], seed: int) -> float:
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits

        around = np.square(self.asked_target - self.asked_target.mean()).sum()
        if around == 0:
            raise NoFigureError("the target is constant in held-out rows")
        if len(chosen) == 0:
            return 0.0
        trees = HistGradientBoostingRegressor(
            max_iter=NUM_TREES, early_stopping=False, categorical_features=self.categorical, random_state=seed
        )
        with threadpool_limits(limits=1, user_api="openmp"):  # for the reason in ``distances.folded_area``
            predicted = trees.fit(self.fitted[chosen], self.fitted_target[chosen]).predict(self.asked)
        return float(1 - np.square(self.asked_target - predicted).sum() / around)

    def _probabilities(self, chosen: NDArray[np.int64], seed: int) -> Rows:
        """Of each class for each row that is asked for; 0 of a class that no fitted row has."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        probabilities = np.zeros((len(self.asked), self.num_classes))
        classes = np.unique(self.fitted_target[chosen]).astype(np.int64)
        if len(classes) < 2:
            probabilities[:, classes] = 1.0
            return probabilities
        trees = HistGradientBoostingClassifier(
            max_iter=max(20, 2 * NUM_TREES // len(classes)),
            early_stopping=False,
            categorical_features=self.categorical,
            random_state=seed,
        )
        with threadpool_limits(limits=1, user_api="openmp"):
            trees.fit(self.fitted[chosen], self.fitted_target[chosen])
            probabilities[:, classes] = trees.predict_proba(self.asked)
        return probabilities


def _task(columns: tuple[JudgedColumn, ...], target: int, fitted: Rows, asked: Rows) -> _Task:
    others = tuple(column for k, column in enumerate(columns) if k != target)
    if not others:
        raise NoFigureError("the target is the only column")
    both = np.concatenate([fitted, asked])
    rows, categorical = tree_rows(np.delete(both, target, axis=1), others, num_fitted=len(fitted))
    values, num_classes = both[:, target], 0
    if columns[target].is_discrete:
        distinct, counts = np.unique(asked[:, target], return_counts=True)
        kept = distinct[np.argsort(-counts, kind="stable")[: MAX_CLASSES - 1]]
        order = np.argsort(kept)
        place = np.minimum(np.searchsorted(kept[order], values), len(kept) - 1)
        values = np.where(kept[order][place] == values, order[place], len(kept)).astype(np.float64)
        num_classes = int(values.max()) + 1
    size = len(fitted)
    return _Task(rows[:size], values[:size], rows[size:], values[size:], categorical, num_classes)
