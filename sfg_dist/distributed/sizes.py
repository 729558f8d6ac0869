"""How many bytes a store takes on disk, exactly, and how many an actor takes in memory, about.

What lies on disk is asked of the store, which lays it out; what lies in memory is added up from the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sfg_dist import store
from sfg_dist.flow.clusters import FAN, LEAF_ROWS, moment_order
from sfg_dist.plan import Plan

GIB = 2**30
COMMIT_BYTES = 870  # of a commit record, before one was seen
EVENT_BYTES = 180  # of a shard's line in the event log

# Measured: the resident size of an actor with torch, numba's compiled code and Ray, before it opens a store. Usual
# values, not measured: the CUDA libraries, and their context on the device.
ACTOR_BYTES = int(0.45 * GIB)
CUDA_HOST_BYTES = int(1.5 * GIB)
CUDA_DEVICE_BYTES = int(0.6 * GIB)
RAY_BYTES = int(0.4 * GIB)  # Ray's own processes on a node


@dataclass(frozen=True)
class StoreBytes:
    """Bytes of a store.

    Attributes:
        latents: of all shards' objects.
        labels: likewise.
        reference: the transformed reference set.
        order: its order in clusters; 0 where labels use none.
        transform: the column transform's arrays.
        queries: the user's own query points; 0 where latents are drawn.
        metadata: zarr.json files, the plan with its copy, and the manifest of the frame.
        commits: commit records, an estimate.
        logs: the event log and the job, an estimate.
    """

    latents: int
    labels: int
    reference: int
    order: int
    transform: int
    queries: int
    metadata: int
    commits: int
    logs: int

    @property
    def arrays(self) -> int:
        """All arrays, exact."""
        return self.latents + self.labels + self.reference + self.order + self.transform + self.queries

    @property
    def total(self) -> int:
        """Everything that labelling writes."""
        return self.arrays + self.metadata + self.commits + self.logs


def store_bytes(
    plan: Plan,
    *,
    num_reference: int,
    has_order: bool,
    transform_arrays: Mapping[str, NDArray[Any]],
    transform_metadata: Mapping[str, Any],
    num_queries: int | None = None,
) -> StoreBytes:
    """Bytes of a finished store of this plan.

    Args:
        plan: what it holds.
        num_reference: rows of the reference set.
        has_order: whether their order in clusters is kept.
        transform_arrays: the column transform's arrays.
        transform_metadata: the rest of the transform.
        num_queries: the user's own query points, None where latents are drawn.
    """
    arrays = store.store_bytes(
        plan,
        num_reference=num_reference,
        transform_arrays=transform_arrays,
        num_queries=num_queries,
        has_order=has_order,
    )
    return StoreBytes(
        latents=arrays["latents"],
        labels=arrays["labels"],
        reference=arrays["reference/rows"],
        order=arrays.get("reference/order", 0),
        transform=sum(size for name, size in arrays.items() if name.startswith("transform/")),
        queries=arrays.get("queries/rows", 0),
        metadata=store.metadata_bytes(
            plan,
            transform_metadata,
            num_reference=num_reference,
            transform_arrays=transform_arrays,
            num_queries=num_queries,
            has_order=has_order,
        ),
        commits=plan.num_shards * COMMIT_BYTES,
        logs=plan.num_shards * EVENT_BYTES + 4096,
    )


def reference_memory(num_rows: int, dim: int, *, has_clusters: bool, on_device: bool = False) -> int:
    """Peak bytes of preparing a reference set, above what the process had before: an estimate from its arrays.

    The peak is either in centring the rows, which is done in float64, or in building the clusters over them.

    Args:
        num_rows: rows of the reference set.
        dim: columns.
        has_clusters: whether clusters are built.
        on_device: count what lies on a GPU, where rows in blocks take the place of clusters.
    """
    row = 4 * dim
    keys = row + 4
    # On the host the stored rows and their order, on top the float64 table, a float64 temporary and the centred rows.
    centring = (0 if on_device else row + 8 * has_clusters) + 2 * row + row + 4 * row
    if on_device:
        return num_rows * max(centring, keys + 3 * row)
    if not has_clusters:
        return num_rows * max(centring, keys + row + 3 * keys)
    nodes = num_rows / LEAF_ROWS * FAN / (FAN - 1)
    padded, pairs = -(-dim // 8) * 8, dim * (dim + 1) // 2
    moment_rows = {1: 1, 2: 1 + dim, 3: 2 + dim + pairs}[moment_order(dim)]
    tables = 4 * nodes * (3 * dim + 5 + moment_rows * padded)
    eigenvalues = 16 * min(nodes, 65536) * dim**2 if moment_order(dim) >= 2 else 0
    clusters = num_rows * (keys + 8 + 2 * row) + tables + max(eigenvalues, num_rows * 2 * keys)
    return math.ceil(max(num_rows * centring, clusters))


def shard_memory(plan: Plan) -> int:
    """Bytes of the arrays that a shard passes through while it is integrated, written and read back."""
    return 8 * 4 * min(plan.shard_rows, plan.num_pairs) * plan.dim
