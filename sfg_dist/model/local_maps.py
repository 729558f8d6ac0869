"""Linear maps of parts of the space, which give samples the local covariances of the data.

A network fitted by squared error leaves samples beside the thin sheets on which the rows of many tables lie. No map of
one or two columns brings them back where more columns are bound together. Parts of the space with soft borders,

    w_k(x) = exp(-|x - c_k|^2 / 2 s^2) / sum over l of exp(-|x - c_l|^2 / 2 s^2)

have the centers c_k of k-means of the reference. The square of s is WIDTH times the mean square of a row's distance to
its center, a column. In each part the map between two Gaussians takes the weighted mean and covariance of the samples
to those of the reference. A sample moves by

    x -> x + sum over k of w_k(x) (x A_k + b_k)

and a monotone map of each column follows, since the marginals move a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DocumentError
from sfg_dist.model.column_maps import gaussian_map, quantile_maps
from sfg_dist.model.interpolation import map_columns, move_by_parts
from sfg_dist.model.saved import check_arrays

NUM_PARTS = 64
WIDTH = 0.3
MAX_REFERENCE_ROWS = 100_000  # whose weights take 50 MB
MIN_ROWS_A_COLUMN = 20  # a part with fewer rows or samples moves nothing
MOST_GAIN = 8.0  # of a direction in which the samples of a part are too thin
MAX_DIM = 32  # of a wider table the covariances are too many numbers

TABLES = ("parts", "width", "maps", "shifts", "knots", "values")

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalMaps:
    """Linear maps that are mixed by the place of a sample, then a monotone map of each column."""

    parts: _Array  # centers of the parts, shape (num_parts, dim); without a part all stays as it is
    width: _Array  # s, > 0, shape (1,)
    maps: _Array  # A, shape (num_parts, dim, dim)
    shifts: _Array  # b, shape (num_parts, dim)
    knots: _Array  # places of the column maps, ascending, shape (dim, num_knots)
    values: _Array  # their images, ascending, the same shape

    @classmethod
    def none(cls) -> LocalMaps:
        """The identity."""
        flat = np.zeros((0, 2))
        return cls(flat, np.ones(1), np.zeros((0, 2, 2)), flat, flat, flat)

    @classmethod
    def fit(cls, rows: _Array, reference: _Array) -> LocalMaps:
        """Fit the maps.

        Args:
            rows: samples, shape (num_rows, dim).
            reference: rows of the wanted law, shape (num_reference, dim); at most MAX_REFERENCE_ROWS of them are used.

        Returns:
            The maps; the identity where there are more than MAX_DIM columns or too few rows for the parts.
        """
        from scipy.special import softmax
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        dim = reference.shape[1]
        least = MIN_ROWS_A_COLUMN * dim
        if not 2 <= dim <= MAX_DIM or min(len(reference), len(rows)) < NUM_PARTS * least:
            return cls.none()
        if len(reference) > MAX_REFERENCE_ROWS:
            reference = reference[np.random.default_rng(0).permutation(len(reference))[:MAX_REFERENCE_ROWS]]
        means = MiniBatchKMeans(NUM_PARTS, random_state=0, n_init=1, batch_size=4096, max_iter=30)
        with threadpool_limits(1):  # beside the encoder's fit more threads would wait for each other
            means.fit(reference)
        parts = np.asarray(means.cluster_centers_, dtype=np.float64)
        square = float(((reference - parts[means.labels_]) ** 2).mean())
        if not square > 0:
            return cls.none()
        width = np.sqrt([WIDTH * square])
        weights = [softmax(_logits(table, parts, width), axis=1) for table in (rows, reference)]
        maps, shifts = np.zeros((NUM_PARTS, dim, dim)), np.zeros((NUM_PARTS, dim))
        for k in range(NUM_PARTS):
            of_rows, of_reference = (table[:, k] for table in weights)
            if min(of_rows.sum(), of_reference.sum()) < least:
                continue
            (mean, covariance), (wanted, wanted_covariance) = _moments(rows, of_rows), _moments(reference, of_reference)
            if not np.trace(wanted_covariance) > 0:
                continue
            linear = _bounded(gaussian_map(covariance, wanted_covariance))
            maps[k], shifts[k] = linear - np.eye(dim), wanted - mean @ linear
        found = cls(parts, width, maps, shifts, *np.zeros((2, dim, 2)))
        return cls(parts, width, maps, shifts, *quantile_maps(found._moved(rows), reference))

    def __len__(self) -> int:
        return len(self.parts)

    def __call__(self, rows: _Array) -> _Array:
        """Mapped rows, float64, shape (num_rows, dim) in and out."""
        return map_columns(self._moved(rows), self.knots, self.values) if len(self) else rows

    def _moved(self, rows: _Array) -> _Array:
        if rows.shape[1] != self.parts.shape[1]:  # compiled code looks at no bounds
            raise ValueError(f"rows have {rows.shape[1]} columns, the maps have {self.parts.shape[1]}")
        moved: _Array = move_by_parts(
            np.ascontiguousarray(rows), self.parts, float(self.width[0]), self.maps, self.shifts
        )
        return moved

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in TABLES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], dim: int) -> LocalMaps:
        """The maps of saved arrays, of rows with so many columns.

        Raises:
            DocumentError: they do not fit together, or are of other rows.
        """
        if arrays.keys() != set(TABLES) or arrays["parts"].ndim != 2 or arrays["knots"].ndim != 2:
            raise DocumentError(f"calibration: its local maps are not {', '.join(TABLES)}")
        num_parts, num_knots = len(arrays["parts"]), arrays["knots"].shape[1]
        row, table = (num_parts, dim), (dim, num_knots)
        shapes: dict[str, tuple[int, ...]] = {"parts": row, "width": (1,), "maps": (*row, dim), "shifts": row}
        check_arrays(arrays, shapes | {"knots": table, "values": table}, ("knots", "values"), "calibration of parts")
        if not num_parts or num_knots < 2 or not min(arrays["width"], arrays["width"] ** 2) > 0:
            raise DocumentError("calibration: local maps without a part, with fewer than two knots or no width")
        return cls(**arrays)


def _logits(rows: _Array, parts: _Array, width: _Array) -> _Array:
    """Logarithms of w_k, shape (num_rows, num_parts), without what is the same for all parts of a row."""
    found: _Array = (rows @ parts.T - (parts**2).sum(axis=1) / 2) / width**2
    return found


def _bounded(linear: _Array) -> _Array:
    """A symmetric map whose eigenvalues are at most MOST_GAIN."""
    eigenvalues, vectors = np.linalg.eigh(linear)
    found: _Array = (vectors * np.minimum(eigenvalues, MOST_GAIN)) @ vectors.T
    return found


def _moments(rows: _Array, weights: _Array) -> tuple[_Array, _Array]:
    """Weighted mean and covariance."""
    shares = weights / weights.sum()
    mean = shares @ rows
    return mean, (rows - mean).T * shares @ (rows - mean)
