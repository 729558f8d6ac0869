"""Sums over clusters as normal laws, with the certified engine for rows that these do not serve."""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.flow.posterior.clusters import Clusters
from sfg_dist.flow.posterior.cpu.engine import Sums, cluster_sums, queries_of, share_out
from sfg_dist.flow.posterior.cpu.normal_rows import MOST_OPEN, ROWS_TOGETHER, normal_rows
from sfg_dist.flow.posterior.cpu.traversal import LEAST_MASS
from sfg_dist.flow.posterior.moments import Request
from sfg_dist.flow.posterior.normals import NormalNodes

MOST_ROWS = 1024  # of a task: for so many each leaf comes from memory once


def normal_sums(request: Request, clusters: Clusters, nodes: NormalNodes, threshold: float, tolerance: float) -> Sums:
    """Means within what was measured of ``threshold``; rows that it does not serve are within ``tolerance``, certified.

    Args:
        request: rows of one time, without variances.
        clusters: of the whole reference.
        nodes: the same as normal laws.
        threshold: of the error that a node may be expected to add, > 0; see ``normal_rows``.
        tolerance: certified bound for the rows that are left.
    """
    queries = queries_of(request)
    sums = queries.room()
    if len(queries.rows):
        inv_sigma_sq = queries.inv_sigma_sq[queries.rows[0]]
        laws, terms = nodes.at(1 / inv_sigma_sq)

    def work(part: NDArray[np.int64]) -> None:
        found, counts, sums64 = sums.take(part), np.empty(len(part), np.int64), np.zeros((len(part), 2))
        normal_rows(
            queries.x[part], queries.inv_sigma_sq[part], threshold, clusters.offsets, clusters.sizes,
            clusters.bounds.reshape(-1), laws, nodes.vectors, nodes.cumulants, terms, clusters.blocks.reshape(-1),
            *found[:3], found.work, counts, sums64, *_lists(len(part)), tuple(range(clusters.dim)), nodes.rank,
            nodes.series,
        )  # fmt: skip
        found.log_kernel_sum[:] += queries.log_shift[part]
        served = (counts >= 0) & (sums64[:, 0] > LEAST_MASS) & np.isfinite(found.mean).all(axis=1)
        found.bound[:] = np.where(served, np.nan, -1)
        sums.put(part, found)

    each = -(-len(queries.rows) // (2 * torch.get_num_threads()))
    share_out(work, queries.rows, min(MOST_ROWS, max(ROWS_TOGETHER, each)))
    left = np.flatnonzero(sums.bound == -1)
    if len(left):
        sums.put(left, cluster_sums(request.take(torch.from_numpy(left)), clusters, tolerance))
    return sums


_room = threading.local()


def _lists(rows: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A thread's own room for lists of nodes, int32, shapes (rows, MOST_OPEN) and (ROWS_TOGETHER, MOST_OPEN).

    It is kept from call to call: a system clears new memory before it is used, which would take as long as the sums.
    """
    kept: NDArray[np.int32] | None = getattr(_room, "lists", None)
    if kept is None or len(kept) < rows + ROWS_TOGETHER:
        kept = _room.lists = np.empty((rows + ROWS_TOGETHER, MOST_OPEN), np.int32)
    return kept[ROWS_TOGETHER:], kept[:ROWS_TOGETHER]
