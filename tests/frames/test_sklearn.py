"""The estimator keeps scikit-learn's rules, as far as a density estimator can that needs rows enough for a split."""

import copy
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from frames.kinds import is_same_schema
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from sfg_dist.sklearn import OneStepGenerator

TINY = {
    "max_time_s": None, "num_pairs": 256, "num_epochs": 1, "width": 8, "depth": 1,
    "keys": {
        "labels": {"num_evaluations": 4},
        "train": {"num_threads": 1, "encoder_steps": 10, "encoder_width": 8, "encoder_depth": 1},
    },
}  # fmt: skip
EXPECTED = {
    "check_estimators_pickle": "a fitted estimator is saved by its generator, and refuses to be pickled",
    "check_fit2d_1feature": "10 rows are fewer than a split into training and held-out rows takes",
    "check_n_features_in_after_fitting": "15 rows are fewer than a split into training and held-out rows takes",
}


def table(num_rows=100):
    draws = np.random.default_rng(0)
    return pd.DataFrame({"x": draws.normal(size=num_rows), "word": draws.choice(["a", "b"], num_rows)})


@pytest.mark.slow
@parametrize_with_checks([OneStepGenerator(**TINY, encoder=False)], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_a_frame_is_fitted_scored_and_sampled():
    frame = table()
    estimator = OneStepGenerator(**TINY, random_state=3).fit(frame)
    assert list(estimator.feature_names_in_) == ["x", "word"]
    assert is_same_schema(estimator.sample(7), frame)
    assert estimator.sample(7).equals(estimator.sample(7, random_state=3))
    assert not estimator.sample(7).equals(estimator.sample(7, random_state=4))
    scores = estimator.score_samples(frame)
    assert scores.shape == (100,)
    assert estimator.score(frame) == pytest.approx(scores.mean())
    with pytest.raises(ValueError, match="feature names"):
        estimator.score_samples(frame.rename(columns={"x": "y"}))


@pytest.mark.slow
def test_polars_and_arrays():
    frame = pl.from_pandas(table())
    assert is_same_schema(OneStepGenerator(**TINY, encoder=False).fit(frame).sample(5), frame)
    array = table()[["x"]].to_numpy()
    estimator = OneStepGenerator(**TINY, encoder=False).fit(array)
    assert estimator.sample(5).shape == (5, 1)
    assert not hasattr(estimator, "score_samples")
    with pytest.raises(ValueError, match="Expected 2D array"):
        estimator.fit(array[:, 0])


@pytest.mark.slow
def test_parameters_are_cloned_and_decide():
    estimator = OneStepGenerator(**TINY, encoder=False)
    twin = clone(estimator.set_params(num_pairs=300, random_state=np.random.RandomState(1)))
    assert twin.get_params()["num_pairs"] == 300
    assert twin.fit(table()).generator_.job["labels"]["num_pairs"] == 300
    assert twin.generator_.job["train"]["width"] == 8
    with pytest.raises(NotFittedError):
        clone(twin).sample(3)


@pytest.mark.slow
def test_only_what_is_not_fitted_is_pickled():
    estimator = OneStepGenerator(**TINY, encoder=False)
    assert pickle.loads(pickle.dumps(estimator)).get_params() == estimator.get_params()  # noqa: S301
    estimator.fit(table())
    for take in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"is not pickled: save it by estimator.generator_.save\(directory\)"):
            take(estimator)


@pytest.mark.slow
def test_a_search_over_parameters():
    search = GridSearchCV(OneStepGenerator(**TINY), {"width": [4, 8]}, cv=2, refit=False)
    found = search.fit(table(120)[["x"]].to_numpy())
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
