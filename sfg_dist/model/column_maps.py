"""The maps of which a calibration is made: between Gaussians, and of each column by its quantiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_KNOTS = 512
MIN_VARIANCE_SHARE = 1e-6

_Array = NDArray[np.float64]


def quantile_maps(rows: _Array, target: _Array) -> tuple[_Array, _Array]:
    """Knots of each column of the rows and their images, quantiles of the target's, both of shape (dim, num_knots)."""
    levels = _levels(min(len(target), len(rows)))
    knots, values = (np.ascontiguousarray(np.quantile(table, levels, axis=0).T) for table in (rows, target))
    return knots, values


def _levels(num_rows: int) -> _Array:
    """Levels of the quantiles: evenly spaced ones, and others even in normal scores, which resolve the tails."""
    from scipy.special import ndtr

    lowest = 2.0 / num_rows
    half = max(8, min(MAX_KNOTS, num_rows // 4) // 2)
    even = np.linspace(lowest, 1 - lowest, half)
    scores = ndtr(np.linspace(-3.7, 3.7, half))
    levels = np.concatenate([even, scores[(scores > lowest) & (scores < 1 - lowest)]])
    return np.unique(levels)


def gaussian_map(source: _Array, target: _Array) -> _Array:
    """The symmetric T with T C_s T = C_x. A ridge bounds it where the samples hardly vary."""
    source, target = np.atleast_2d(source), np.atleast_2d(target)
    ridge = MIN_VARIANCE_SHARE * np.trace(target) / len(target) * np.eye(len(target))
    root = _root(source + ridge)
    inverse = np.linalg.inv(root)
    found: _Array = inverse @ _root(root @ (target + ridge) @ root) @ inverse
    return found


def _root(matrix: _Array) -> _Array:
    """Symmetric square root of a symmetric positive matrix."""
    eigenvalues, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    found: _Array = (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
    return found
