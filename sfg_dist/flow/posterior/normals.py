"""What the nodes of the clusters are as normal laws: principal axes, and the sizes of what these leave out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow.posterior.clusters import FAN, Clusters

F = np.float32
WIDEST = 1.0  # of a node's largest spread to sigma; wider ones stand for their rows only where these weigh nothing
FULL_DIM = 12  # in more columns than these a node keeps RANK axes
RANK = 4
_CHUNK_NODES = 1 << 12


class NormalNodes:
    """The nodes of clusters that keep second moments, as the kernels of ``cpu.normal_laws`` take them.

    Args:
        clusters: of at most ``clusters.MAX_COVARIANCE_DIM`` columns.

    Attributes:
        rank: one item for each axis that is kept; empty where all are, and laws have the whole matrix.
        values: eigenvalues of the axes, and the mean of the others: float32, flat of (num_nodes / FAN, axes + 1, FAN).
        vectors: the axes, float32, flat of (num_nodes / FAN, axes, dim, FAN).
        sizes: number of rows, sizes of what is left out of the second, third and fourth cumulants, and the largest
            sigma at which a node is wide: float32, flat of (num_nodes / FAN, 5, FAN).
    """

    def __init__(self, clusters: Clusters) -> None:
        dim, bounds, num_nodes = clusters.dim, clusters.bounds, len(clusters.moments)
        num_axes = dim if dim <= FULL_DIM else RANK
        self.rank = () if dim <= FULL_DIM else tuple(range(RANK))
        self._axes = tuple(range(dim))
        values, vectors = np.empty((num_nodes, num_axes + 1), F), np.empty((num_nodes, num_axes, dim), F)
        second, third, frobenius = np.zeros(num_nodes, F), np.empty(num_nodes, F), np.empty(num_nodes, F)
        rows, columns = np.triu_indices(dim)
        twice = np.where(rows == columns, 1.0, 2.0)  # pairs off the diagonal are counted twice in third moments
        for first in range(0, num_nodes, _CHUNK_NODES):
            part = slice(first, first + _CHUNK_NODES)
            table = clusters.moments[part]
            found, axes = np.linalg.eigh(table[:, 1 : 1 + dim, :dim].astype(np.float64))
            found = found[:, ::-1].clip(0)
            values[part, :num_axes], others = found[:, :num_axes], found[:, num_axes:]
            vectors[part] = axes[:, :, ::-1].transpose(0, 2, 1)[:, :num_axes]
            mean = others.mean(axis=1) if num_axes < dim else np.zeros(len(found))
            values[part, num_axes] = mean
            second[part] = np.linalg.norm(others - mean[:, None], axis=1)
            square = np.einsum("nk,nk->n", found, found)
            frobenius[part] = square
            if clusters.moment_order >= 3:
                cubes = table[:, 1 + dim : 1 + dim + len(rows), :dim]
                third[part] = np.sqrt(np.einsum("npk,npk,p->n", cubes, cubes, 1 / twice))
            else:
                third[part] = square**0.75
        square, fourth = bounds[:, 3 * dim + 2], bounds[:, 3 * dim + 4]
        grouped = frobenius.reshape(-1, FAN)
        fourth = grouped + np.abs(fourth - square * square - 2 * grouped)
        widest = np.sqrt(bounds[:, 3 * dim + 3]) / F(WIDEST)
        left_out = [second.reshape(-1, FAN), third.reshape(-1, FAN), fourth]
        self.sizes = np.stack([bounds[:, 3 * dim], *left_out, widest], axis=1).reshape(-1)
        self.values = _by_groups(values)
        self.vectors = _by_groups(vectors.reshape(num_nodes, -1))

    def at(self, sigma_sq: float) -> NDArray[np.float32]:
        """The numbers of each node for one sigma^2 = beta^2 / alpha^2, flat; see ``cpu.normal_laws.normal_laws``."""
        from sfg_dist.flow.posterior.cpu.normal_laws import law_rows, normal_laws

        laws = np.empty(len(self.sizes) // 5 * law_rows(len(self._axes), len(self.rank)), F)
        normal_laws(self.values, self.vectors, self.sizes, float(sigma_sq), self._axes, self.rank, laws)
        return laws


def _by_groups(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers of nodes, shape (num_nodes, numbers), as the kernels read them: flat of (groups, numbers, FAN)."""
    return np.ascontiguousarray(rows.reshape(-1, FAN, rows.shape[1]).transpose(0, 2, 1)).reshape(-1)
