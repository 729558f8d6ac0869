"""What the nodes of the clusters are as normal laws: principal axes, and what these leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow.posterior.clusters import FAN, Clusters, moment_order

F = np.float32
_GROUPS = 1 << 10  # looked at together
_CUMULANT_NODES = 1 << 12  # whose cumulants are summed together
WIDEST = 1.0  # of a node's largest spread to sigma; wider ones stand for their rows only where these weigh nothing
FULL_DIM = 12  # in more columns than these a node keeps RANK axes
RANK = 4
_SIZES = 5


class NormalNodes:
    """The nodes of clusters that keep second moments, as the kernels of ``cpu.normal_laws`` take them.

    Args:
        clusters: of at most ``clusters.MAX_COVARIANCE_DIM`` columns.
        done: called after each part of the nodes.

    Attributes:
        rank: one item for each axis that is kept; empty where all are, and laws have the whole matrix.
        values: eigenvalues of the axes, and the mean of the others: float32, flat of (num_nodes / FAN, axes + 1, FAN).
        series: (0,) where nodes above the leaves keep their third and fourth cumulants, else ().
        cumulants: these, float32, flat of (groups above the leaves, num_cumulants, FAN); see ``cpu.normal_series``.
        vectors: the axes, float32, flat of (num_nodes / FAN, axes, dim, FAN).
        sizes: number of rows, sizes of what is left out of the second, third and fourth cumulants, and the largest
            sigma at which a node is wide: float32, flat of (num_nodes / FAN, 5, FAN).
    """

    def __init__(self, clusters: Clusters, *, done: Callable[[], None] = lambda: None) -> None:
        dim, num_groups = clusters.dim, len(clusters.bounds)
        num_axes = num_kept_axes(dim)
        self.rank = () if num_axes == dim else tuple(range(num_axes))
        self._axes = tuple(range(dim))
        self.values = np.empty(num_groups * (num_axes + 1) * FAN, F)
        self.vectors = np.empty(num_groups * num_axes * dim * FAN, F)
        self.sizes = np.empty(num_groups * _SIZES * FAN, F)
        for first in range(0, num_groups, _GROUPS):
            self._fill(clusters, slice(first, min(first + _GROUPS, num_groups)), num_axes)
            done()
        from sfg_dist.flow.posterior.cpu.normal_series import contractions

        self.series = (0,) if clusters.moment_order >= 3 else ()
        self._first = int(clusters.offsets[1]) // FAN
        self.cumulants = self._cumulants(clusters, done) if self.series else np.empty(0, F)
        self._contractions = contractions(dim) if self.series else np.empty(0, np.int64)

    def _fill(self, clusters: Clusters, groups: slice, num_axes: int) -> None:
        """Write what some groups of nodes are."""
        dim, bounds = clusters.dim, clusters.bounds[groups]
        table = clusters.moments[groups.start * FAN : groups.stop * FAN]
        found, axes = np.linalg.eigh(table[:, 1 : 1 + dim, :dim].astype(np.float64))
        found = found[:, ::-1].clip(0)
        kept, others = found[:, :num_axes], found[:, num_axes:]
        mean = others.mean(axis=1) if num_axes < dim else np.zeros(len(found))
        rows, columns = np.triu_indices(dim)
        twice = np.where(rows == columns, 1.0, 2.0)  # pairs off the diagonal are counted twice in third moments
        squared = np.einsum("nk,nk->n", found, found)
        if clusters.moment_order >= 3:
            cubes = table[:, 1 + dim : 1 + dim + len(rows), :dim]
            third = np.sqrt(np.einsum("npk,npk,p->n", cubes, cubes, 1 / twice))
        else:
            third = squared**0.75
        square, fourth = bounds[:, 3 * dim + 2], bounds[:, 3 * dim + 4]
        frobenius = squared.astype(F).reshape(-1, FAN)
        fourth = frobenius + np.abs(fourth - square * square - 2 * frobenius)
        second = np.linalg.norm(others - mean[:, None], axis=1)
        left_out = [second.astype(F).reshape(-1, FAN), third.astype(F).reshape(-1, FAN), fourth]
        widest = np.sqrt(bounds[:, 3 * dim + 3]) / F(WIDEST)
        _write(self.sizes, groups, np.stack([bounds[:, 3 * dim], *left_out, widest], axis=1))
        _write(self.values, groups, _by_groups(np.column_stack([kept, mean])))
        _write(self.vectors, groups, _by_groups(axes[:, :, ::-1].transpose(0, 2, 1)[:, :num_axes]))

    def _cumulants(self, clusters: Clusters, done: Callable[[], None]) -> NDArray[np.float32]:
        """The third and fourth cumulants of the nodes above the leaves; the size of the fourth is written anew."""
        from sfg_dist.flow.posterior.cpu.normal_series import index_table, multiplicities, node_cumulants

        index, offsets = index_table(clusters.dim), clusters.offsets
        num_thirds = int((index[:, 3] < 0).sum())
        table = np.zeros((len(clusters.bounds) - self._first) * len(index) * FAN, F)
        _, rows_a_node, width = clusters.moments.shape
        flat = (clusters.blocks.reshape(-1), clusters.bounds.reshape(-1), clusters.moments.reshape(-1))
        for level, size in enumerate(clusters.sizes[1:], 1):
            for start in range(0, size, _CUMULANT_NODES):
                node_cumulants(
                    *flat, width, rows_a_node, offsets, clusters.sizes, level, start,
                    min(start + _CUMULANT_NODES, size), index, num_thirds, table, self._axes,
                )  # fmt: skip
                done()
        fourths = table.reshape(-1, len(index), FAN)[:, num_thirds:]
        times = multiplicities(clusters.dim)[num_thirds:]
        found = np.sqrt(np.einsum("gpl,gpl,p->gl", fourths, fourths, times, dtype=F))
        self.sizes.reshape(-1, _SIZES, FAN)[self._first :, 3] = found
        return table

    def at(self, sigma_sq: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The numbers of each node for one sigma^2 = beta^2 / alpha^2, and those of its series, flat.

        See ``cpu.normal_laws.normal_laws`` and ``cpu.normal_series.series_terms``.
        """
        from sfg_dist.flow.posterior.cpu.normal_laws import law_rows, normal_laws
        from sfg_dist.flow.posterior.cpu.normal_series import num_cumulants, num_terms, series_terms

        dim = len(self._axes)
        law_size = law_rows(dim, len(self.rank))
        laws = np.empty(len(self.sizes) // _SIZES * law_size, F)
        normal_laws(self.values, self.vectors, self.sizes, float(sigma_sq), self._axes, self.rank, laws)
        if not self.series:
            return laws, np.empty(0, F)
        num = num_cumulants(dim)
        terms = np.empty(len(self.cumulants) // num * num_terms(dim), F)
        series_terms(
            laws, law_size, self._first, self.cumulants, num, self._contractions, float(sigma_sq), terms, self._axes
        )
        return laws, terms


def num_kept_axes(dim: int) -> int:
    """How many principal axes a node keeps."""
    return dim if dim <= FULL_DIM else RANK


def numbers_a_node(dim: int) -> int:
    """How many numbers of float32 ``NormalNodes`` holds for a node, with those at one sigma."""
    from sfg_dist.flow.posterior.cpu.normal_laws import law_rows
    from sfg_dist.flow.posterior.cpu.normal_series import num_cumulants, num_terms

    num_axes = num_kept_axes(dim)
    # One node in FAN is above the leaves, and a few more are above these.
    series = -(-(num_cumulants(dim) + num_terms(dim)) // (FAN - 1)) if moment_order(dim) >= 3 else 0
    return num_axes + 1 + num_axes * dim + _SIZES + law_rows(dim, 0 if num_axes == dim else num_axes) + series


def _by_groups(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of nodes, shape (num_nodes, ...), as the kernels read them: shape (groups, numbers, FAN)."""
    return rows.reshape(len(rows) // FAN, FAN, -1).transpose(0, 2, 1)


def _write(into: NDArray[np.float32], groups: slice, values: NDArray[Any]) -> None:
    into.reshape(-1, *values.shape[1:])[groups] = values
