"""The figures of metrics.json: how far a table of rows is from held-out rows of the same law.

All of them read columns in the user's own units. Where columns are compared with each other, they are standardised by
the training mean and deviation, and columns that are constant in the training rows are left out. A figure that has no
value (the correlation of one column, a divergence from an unknown density) is None. No figure is at its best value for
finite samples of the same law: ``floor`` gives the same figures for real rows against real rows.

Every random choice (subsets, projections, folds) is drawn from (seed, EVALUATE, figure). So a figure depends on the
tables and the seed, not on which other figures were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfg_dist.evaluate import distances, marginals, neighbours
from sfg_dist.evaluate.compared_rows import Rows, checked_rows
from sfg_dist.job.config import METRICS
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.plan import Stream, random_generator

METRIC_NAMES = METRICS
_SPLIT_INDEX = len(METRIC_NAMES)

LogDensity = Callable[[NDArray[np.float64]], ArrayLike]


def measure(
    rows: ArrayLike,
    held_out: ArrayLike,
    train: ArrayLike,
    *,
    metrics: Sequence[str] = METRIC_NAMES,
    seed: int = 0,
    log_density: LogDensity | None = None,
) -> dict[str, float | None]:
    """Compare ``rows`` with held-out rows.

    ==========================  =====  ==================================================================
    figure                      right  what it is
    ==========================  =====  ==================================================================
    ``c2st_auc``                0.5    how well a classifier tells the two apart
    ``sliced_wasserstein``      0      transport distance over random directions, standard deviations
    ``energy_distance``         0      distances between the tables against distances within each
    ``ks_mean``                 0      Kolmogorov-Smirnov distance of each column
    ``marginal_kl_mean``        0      KL of each column's histogram, nats
    ``correlation_error``       0      difference of rank correlations
    ``nearest_train_distance``  1      distance to the nearest training row; far below 1 is memorising
    ``kl``                      0      KL of the whole law, nats
    ==========================  =====  ==================================================================

    Each is defined, with its limits, in ``distances``, ``marginals`` or ``neighbours``.

    Args:
        rows: what is judged (samples or labels), shape (num_rows, dim). Not rows of ``train``: their distance to the
            nearest training row is a trivial zero; ``floor`` judges training rows.
        held_out: rows of the data that nothing was fitted to, shape (num_held_out, dim).
        train: rows of the data that the samples come from, shape (num_train, dim).
        metrics: which figures to compute, names of ``METRIC_NAMES``.
        seed: the job's seed.
        log_density: log density of the data's law where it is known, (num_rows, dim) in the user's units to
            (num_rows,) in nats.

    Returns:
        The figures that were asked for, in the order of ``METRIC_NAMES``; None where a figure has no value.

    Raises:
        ConfigError: a name that is not a metric.
        DataError: a table with NaN or infinity, of another width, or with fewer than 2 rows.
    """
    unknown = [name for name in metrics if name not in METRIC_NAMES]
    if unknown:
        raise ConfigError(f"unknown metric {unknown[0]!r}; the metrics are {', '.join(METRIC_NAMES)}")
    held_out = checked_rows("held-out rows", held_out)
    dim = held_out.shape[1]
    rows = checked_rows("judged rows", rows, dim=dim)
    train = checked_rows("training rows", train, dim=dim)
    return {
        name: _figure(name, rows, held_out, train, seed=seed, log_density=log_density)
        for name in METRIC_NAMES
        if name in metrics
    }


def _figure(
    name: str, rows: Rows, held_out: Rows, train: Rows, *, seed: int, log_density: LogDensity | None
) -> float | None:
    generator = random_generator(seed, Stream.EVALUATE, METRIC_NAMES.index(name))
    match name:
        case "c2st_auc":
            found = distances.c2st_auc(rows, held_out, generator=generator)
            return None if found is None else found[0]
        case "sliced_wasserstein":
            return distances.sliced_wasserstein(rows, held_out, train, generator=generator)
        case "energy_distance":
            return distances.energy_distance(rows, held_out, train, generator=generator)
        case "ks_mean":
            return marginals.ks_mean(rows, held_out)
        case "marginal_kl_mean":
            return marginals.marginal_kl_mean(rows, held_out)
        case "correlation_error":
            return marginals.correlation_error(rows, held_out)
        case "nearest_train_distance":
            return neighbours.nearest_train_distance(rows, held_out, train, generator=generator)
        case _:
            if log_density is None:
                return None
            return neighbours.kl_divergence(rows, held_out, train, log_density=log_density, generator=generator)


def classifier_test(rows: ArrayLike, held_out: ArrayLike, *, seed: int = 0) -> tuple[float, float] | None:
    """The ``c2st_auc`` of ``measure``, to the bit, with its standard error; None with too few rows.

    Raises:
        DataError: a table with NaN or infinity, of another width, or with fewer than 2 rows.
    """
    held_out = checked_rows("held-out rows", held_out)
    rows = checked_rows("judged rows", rows, dim=held_out.shape[1])
    generator = random_generator(seed, Stream.EVALUATE, METRIC_NAMES.index("c2st_auc"))
    return distances.c2st_auc(rows, held_out, generator=generator)


def floor(
    held_out: ArrayLike,
    train: ArrayLike,
    *,
    metrics: Sequence[str] = METRIC_NAMES,
    seed: int = 0,
    log_density: LogDensity | None = None,
) -> dict[str, float | None]:
    """What ``measure`` gives for perfect samples: one random half of the training rows, judged as if generated.

    The other half plays the training rows, so that the distance to the nearest training row is not the trivial zero of
    a row to itself. The arguments are those of ``measure``; ``train`` has at least 4 rows, and ``seed`` also draws the
    halves.

    Raises:
        ConfigError: a name that is not a metric.
        DataError: a table with NaN or infinity, of another width, or with too few rows.
    """
    train = checked_rows("training rows", train, min_rows=4)
    order = random_generator(seed, Stream.EVALUATE, _SPLIT_INDEX).permutation(len(train))
    judged, kept = np.sort(order[: len(train) // 2]), np.sort(order[len(train) // 2 :])
    return measure(train[judged], held_out, train[kept], metrics=metrics, seed=seed, log_density=log_density)
