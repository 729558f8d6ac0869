"""Figures that rest on distances to nearest rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfg_dist.evaluate.compared_rows import Rows, scale_columns, subset
from sfg_dist.job.errors import DataError

NEAREST_MAX_ROWS = 5_000
KL_MAX_HELD_OUT = 10_000
KL_MAX_ROWS = 100_000
KL_NEIGHBOUR = 5
LOOK_THROUGH = 8  # neighbours of a row, of which a resample of the table holds none once in 3000 times


def nearest_train_distance(rows: Rows, held_out: Rows, train: Rows, *, generator: np.random.Generator) -> float | None:
    """How far rows keep from the training rows, as a multiple of how far held-out rows do.

        median over rows of min_j |row - x_j|  /  the same for held-out rows,    standardised columns

    1 is right. Far below 1, training rows are given back (memorised); above 1, rows stray from the data. All training
    rows are searched, and set the scale of each column; at most ``NEAREST_MAX_ROWS`` rows of the other two tables are
    asked. ``rows`` must not be the training rows themselves, see ``floor``.

    None if every column is constant, or if half of the held-out rows are found among the training rows: in such a
    discrete table, to be equal to a training row says nothing.
    """
    deviation, (rows, held_out, train) = scale_columns(train, rows, held_out, train)
    if len(deviation) == 0:
        return None
    medians = [
        float(np.median(neighbour_distances(subset(table, NEAREST_MAX_ROWS, generator), train, 1)[:, 0]))
        for table in (rows, held_out)
    ]
    return medians[0] / medians[1] if medians[1] > 0 else None


def kl_divergence(
    rows: Rows,
    held_out: Rows,
    train: Rows,
    *,
    log_density: Callable[[NDArray[np.float64]], ArrayLike],
    generator: np.random.Generator,
) -> float | None:
    """KL(true law || law of rows) in nats, from a known density and nearest neighbours.

        log q(x) = psi(k) - log n - log V_d - d log r_k(x)
        KL = mean over held-out x of log p(x) - log q(x)

    n rows, V_d the volume of the unit ball, r_k(x) the distance from x to its k-th nearest row, k = ``KL_NEIGHBOUR``.
    Distances are taken in columns standardised by ``train``, and the densities brought back to the user's units. A
    distance of zero (ties) stands for the smallest positive one. At most ``KL_MAX_HELD_OUT`` held-out rows are asked
    and ``KL_MAX_ROWS`` rows searched. The estimate may be a little negative, and its bias grows with dim: read it
    beside the floor. None for rows that have no density: a column is constant, there are no more than ``KL_NEIGHBOUR``
    rows, or no distance is positive.

    Raises:
        DataError: ``log_density`` gave another shape, NaN or infinity.

    References:
        Wang, Kulkarni and Verdu 2009, Divergence estimation for multidimensional densities via k-nearest-neighbor
        distances.
    """
    from scipy.special import digamma, gammaln

    rows, held_out = subset(rows, KL_MAX_ROWS, generator), subset(held_out, KL_MAX_HELD_OUT, generator)
    log_true = np.asarray(log_density(held_out), dtype=np.float64)
    if log_true.shape != (len(held_out),):
        raise DataError(f"log_density: expected shape ({len(held_out)},), found {log_true.shape}")
    if not np.isfinite(log_true).all():
        num_bad = int((~np.isfinite(log_true)).sum())
        raise DataError(f"log_density: {num_bad} of {len(held_out)} held-out rows gave NaN or infinity")
    num_rows, dim = rows.shape
    deviation, (rows, held_out) = scale_columns(train, rows, held_out)
    if len(deviation) < dim or num_rows <= KL_NEIGHBOUR:
        return None
    radius = neighbour_distances(held_out, rows, KL_NEIGHBOUR)[:, -1]
    if not (radius > 0).any():
        return None
    radius = np.maximum(radius, radius[radius > 0].min())
    log_ball = 0.5 * dim * np.log(np.pi) - gammaln(0.5 * dim + 1)
    log_rows = digamma(KL_NEIGHBOUR) - np.log(num_rows) - log_ball - dim * np.log(radius)
    return float(np.mean(log_true - (log_rows - np.log(deviation).sum())))


def neighbour_distances(queries: Rows, table: Rows, num_neighbours: int) -> Rows:
    """Distances from each query to its nearest rows, nearest first, shape (num_queries, num_neighbours)."""
    return nearest_rows(queries, table, num_neighbours)[0]


def nearest_rows(queries: Rows, table: Rows, num_neighbours: int) -> tuple[Rows, NDArray[np.int64]]:
    """Distances from each query to its nearest rows, nearest first, and their numbers in ``table``.

    Both have shape (num_queries, num_neighbours), or fewer columns where the table has fewer rows. The search may find
    neighbours through |a|^2 - 2ab + |b|^2, which loses small distances to rounding; they are computed again from the
    differences, so that a copied row is at distance 0.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(num_neighbours, len(table))).fit(table)
    found = search.kneighbors(queries, return_distance=False)
    squared = np.stack([np.square(queries - table[column]).sum(axis=1) for column in found.T], axis=1)
    order = np.argsort(squared, axis=1, kind="stable")
    return np.sqrt(np.take_along_axis(squared, order, axis=1)), np.take_along_axis(found, order, axis=1)


def nearest_others(table: Rows, num_neighbours: int) -> tuple[Rows, NDArray[np.int64]]:
    """``nearest_rows`` of a table in itself, where no row finds itself."""
    distances, numbers = nearest_rows(table, table, num_neighbours + 1)
    itself = numbers == np.arange(len(table))[:, None]
    itself[~itself.any(axis=1), 0] = True  # among more equal rows than were looked for: one of them is left out
    return distances[~itself].reshape(len(table), -1), numbers[~itself].reshape(len(table), -1)


def nearest_drawn(
    distances: Rows, numbers: NDArray[np.int64], drawn: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.int64]]:
    """Distance and number of the nearest row that is among those ``drawn``, each of shape (num_queries,).

    The first two arguments are from ``nearest_rows`` with ``LOOK_THROUGH`` neighbours; where none is drawn, the
    furthest counts.
    """
    is_drawn = np.zeros(max(int(numbers.max()), int(drawn.max())) + 1, dtype=bool)
    is_drawn[drawn] = True
    found = is_drawn[numbers]
    found[:, -1] = True
    first = found.argmax(axis=1)[:, None]
    return np.take_along_axis(distances, first, axis=1)[:, 0], np.take_along_axis(numbers, first, axis=1)[:, 0]
