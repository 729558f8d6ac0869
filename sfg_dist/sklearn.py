"""The generator as an estimator of scikit-learn: a density estimator that draws.

    >>> from sfg_dist.sklearn import OneStepGenerator
    >>> estimator = OneStepGenerator(max_time_s=30).fit(table)      # doctest: +SKIP
    >>> rows, scores = estimator.sample(1000), estimator.score_samples(table)      # doctest: +SKIP

This module stands beside the rooms, as ``sfg_dist`` itself does: it is for users, and no room imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from sfg_dist.data.frames import is_frame
from sfg_dist.data.preparation import MIN_ROWS
from sfg_dist.pipeline.fit import MAX_TIME_S, fit

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from sfg_dist.model.generator import Generator

_SEEDS = 2**31 - 1


def _has_encoder(estimator: OneStepGenerator) -> bool:
    return estimator.encoder


class OneStepGenerator(DensityMixin, BaseEstimator):
    """A one-step generator with the methods of scikit-learn's density estimators.

    Args:
        max_time_s: the seconds for labels and training together; None for no limit. See ``sfg_dist.fit``.
        num_pairs: the most pairs of latents and labels, ``labels.num_pairs``; None for what the time allows, or 100,000
            without a limit.
        num_epochs: the most passes over the pairs, ``train.num_epochs``; None for what the time allows, or 50.
        width: units of an inner layer, ``train.width``.
        depth: number of inner layers, ``train.depth``.
        encoder: whether the network of ``score_samples`` is fitted too, which takes part of the time.
        keys: any other tables of a job, as in ``{"data": {"split": [0.9, 0.05, 0.05]}}``.
        random_state: None for seed 0, a whole number, or a generator of numpy: of the split, the latents, the weights
            and, where ``sample`` is not told otherwise, the samples.

    Attributes:
        generator_: the fitted ``sfg_dist.Generator``, which is saved and loaded by its own methods.
        n_features_in_: number of columns.
        feature_names_in_: their names, where ``X`` has names that are all text.

    Examples:
        >>> OneStepGenerator(num_pairs=4096).get_params()["num_pairs"]
        4096
    """

    def __init__(
        self,
        *,
        max_time_s: float | None = MAX_TIME_S,
        num_pairs: int | None = None,
        num_epochs: int | None = None,
        width: int = 192,
        depth: int = 3,
        encoder: bool = True,
        keys: Mapping[str, Mapping[str, Any]] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.max_time_s = max_time_s
        self.num_pairs = num_pairs
        self.num_epochs = num_epochs
        self.width = width
        self.depth = depth
        self.encoder = encoder
        self.keys = keys
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the generator.

        Args:
            X: a table: a frame of pandas or polars, a table of pyarrow, or an array, shape (n_samples, n_features).
            y: not used.

        Raises:
            ConfigError: a parameter is wrong.
            DataError: the table cannot be used; the message names the column.
        """
        table = self._table(X, reset=True)
        seed = self._seed(self.random_state)
        document: dict[str, Any] = {name: dict(section) for name, section in (self.keys or {}).items()}
        for name, key, value in (
            ("data", "seed", seed),
            ("labels", "seed", seed),
            ("train", "seed", seed),
            ("labels", "num_pairs", self.num_pairs),
            ("train", "num_epochs", self.num_epochs),
            ("train", "width", self.width),
            ("train", "depth", self.depth),
            ("train", "encoder", self.encoder),
        ):
            if value is not None:
                document.setdefault(name, {}).setdefault(key, value)
        self.generator_: Generator = fit(table, max_time_s=self.max_time_s, **document)
        return self

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw rows, as a table of the kind that was fitted.

        Args:
            n_samples: how many.
            random_state: as of the estimator; by default its own.
        """
        check_is_fitted(self)
        chosen = self.random_state if random_state is None else random_state
        return self.generator_.sample(n_samples, seed=self._seed(chosen))

    @available_if(_has_encoder)
    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Log density of each row of a table of the fitted columns, in nats, shape (n_samples,)."""
        check_is_fitted(self)
        return self.generator_.log_prob(self._table(X, reset=False))

    @available_if(_has_encoder)
    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of a table's rows, in nats."""
        return float(np.mean(self.score_samples(X)))

    def _table(self, X: Any, *, reset: bool) -> Any:
        """The table, after scikit-learn's look at it: whole for a frame, at its names alone otherwise."""
        if is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        rows = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan")
        if reset and len(rows) < MIN_ROWS:  # after the columns, which scikit-learn looks at first
            raise ValueError(
                f"Found array with {len(rows)} sample(s) (shape={rows.shape}) while a minimum of {MIN_ROWS} is "
                f"required by {type(self).__name__}."
            )
        return rows

    @staticmethod
    def _seed(random_state: int | np.random.RandomState | None) -> int:
        if random_state is None or isinstance(random_state, int | np.integer):
            return int(random_state or 0)
        return int(check_random_state(random_state).randint(_SEEDS))

    def __getstate__(self) -> Any:
        """Refuse to be pickled once fitted; without a fit there are parameters alone.

        Raises:
            TypeError: it is fitted.
        """
        if hasattr(self, "generator_"):
            raise TypeError(
                "a fitted OneStepGenerator is not pickled: save it by estimator.generator_.save(directory), and read "
                "it by sfg_dist.Generator.load(directory)"
            )
        return super().__getstate__()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.non_deterministic = self.max_time_s is not None
        return tags
