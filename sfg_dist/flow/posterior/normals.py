"""What the nodes of the clusters are as normal laws: covariances and the sizes of the cumulants beyond them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow.posterior.clusters import FAN, Clusters

F = np.float32
_GROUPS = 1 << 13  # looked at together
WIDEST = 1.0  # of a node's largest spread to sigma; wider ones stand for their rows only where these weigh nothing


class NormalNodes:
    """The nodes of clusters that keep second moments, as the kernels of ``cpu.normal_rows`` take them.

    Args:
        clusters: of at most ``clusters.MAX_COVARIANCE_DIM`` columns.
        done: called after each part of the nodes.

    Attributes:
        covariance: upper triangles of the covariances, float32, shape (num_nodes / FAN, pairs, FAN).
        third: sizes of the third cumulants, float32, shape (num_nodes / FAN, FAN).
        fourth: the same of the fourth.
    """

    def __init__(self, clusters: Clusters, *, done: Callable[[], None] = lambda: None) -> None:
        dim, bounds = clusters.dim, clusters.bounds
        pairs = dim * (dim + 1) // 2
        self._clusters = clusters
        self.covariance = np.empty((len(bounds), pairs, FAN), F)
        self.third, self.fourth = np.empty((2, len(bounds), FAN), F)
        self._count = np.ascontiguousarray(bounds[:, 3 * dim])
        self._widest = np.sqrt(bounds[:, 3 * dim + 3]) / F(WIDEST)
        for first in range(0, len(bounds), _GROUPS):
            self._fill(slice(first, first + _GROUPS))
            done()

    def _fill(self, groups: slice) -> None:
        """Write what some groups of nodes are."""
        dim, bounds = self._clusters.dim, self._clusters.bounds[groups]
        table = self._clusters.moments[groups.start * FAN : groups.stop * FAN]
        rows, columns = np.triu_indices(dim)
        pairs = len(rows)
        upper = table[:, 1 + rows, columns]
        self.covariance[groups] = upper.reshape(-1, FAN, pairs).transpose(0, 2, 1)
        twice = np.where(rows == columns, F(1), F(2))
        frobenius = np.einsum("np,np,p->n", upper, upper, twice).reshape(-1, FAN)
        square, fourth = bounds[:, 3 * dim + 2], bounds[:, 3 * dim + 4]
        self.fourth[groups] = frobenius + np.abs(fourth - square * square - 2 * frobenius)
        if self._clusters.moment_order >= 3:
            cubes = table[:, 1 + dim : 1 + dim + pairs, :dim]  # pairs off the diagonal are counted twice in them
            self.third[groups] = np.sqrt(np.einsum("npk,npk,p->n", cubes, cubes, 1 / twice)).reshape(-1, FAN)
        else:
            self.third[groups] = frobenius**0.75

    def at(self, sigma_sq: float) -> NDArray[np.float32]:
        """The numbers of each node for one sigma^2 = beta^2 / alpha^2; see ``cpu.normal_rows.normal_laws``."""
        from sfg_dist.flow.posterior.cpu.normal_rows import EXTRA, normal_laws

        groups, pairs = self.covariance.shape[:2]
        laws = np.empty((groups, pairs + EXTRA, FAN), F)
        normal_laws(
            self.covariance.reshape(-1), self._count, float(sigma_sq), self.third, self.fourth, self._widest,
            tuple(range(self._clusters.dim)), laws.reshape(-1),
        )  # fmt: skip
        return laws
