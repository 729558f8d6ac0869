"""How many bytes a store takes on disk, exactly, and how many an actor takes in memory, about.

On disk a chunk is stored whole, padded where the array ends within it, with a crc32c of 4 bytes behind. Under the
sharding codec inner chunks that hold nothing but the fill value are left out, and an index of 16 bytes a chunk with a
crc32c of its own closes the object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.flow.clusters import FAN, LEAF_ROWS, moment_order
from sfg_dist.plan import Plan
from sfg_dist.store.frame import ARRAYS, MAX_CHUNK_BYTES, _create_array, _layout

GIB = 2**30
_CRC_BYTES = 4
_INDEX_BYTES = 16  # offset and length of an inner chunk
COMMIT_BYTES = 620  # of a commit record, before one was seen
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
        metadata: zarr.json files and plan.json.
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
    num_queries: int = 0,
) -> StoreBytes:
    """Bytes of a finished store of this plan.

    Args:
        plan: what it holds.
        num_reference: rows of the reference set.
        has_order: whether their order in clusters is kept.
        transform_arrays: the column transform's arrays.
        transform_metadata: the rest of the transform.
        num_queries: the user's own query points, 0 where latents are drawn.
    """
    tables = _tables(plan, num_reference, has_order, num_queries)
    frame = {name: array_bytes(*form) for name, form in tables.items()}
    shards = sum(shard_bytes(plan, rows) * count for rows, count in shard_sizes(plan).items())
    return StoreBytes(
        latents=shards,
        labels=shards,
        reference=frame["reference/rows"],
        order=frame.get("reference/order", 0),
        transform=sum(map(_small_bytes, transform_arrays.values())),
        queries=frame.get("queries/rows", 0),
        metadata=_metadata_bytes(plan, tables, transform_arrays, transform_metadata),
        commits=plan.num_shards * COMMIT_BYTES,
        logs=plan.num_shards * EVENT_BYTES + 4096,
    )


def shard_sizes(plan: Plan) -> dict[int, int]:
    """How many shards have how many rows."""
    sizes: dict[int, int] = {}
    for shard in range(plan.num_shards):
        start, stop = plan.shard_range(shard)
        sizes[stop - start] = sizes.get(stop - start, 0) + 1
    return sizes


def shard_bytes(plan: Plan, rows: int) -> int:
    """Bytes of one array's object for a shard of so many rows."""
    return object_bytes(rows, plan.dim, 4, plan.shard_rows)


def object_bytes(rows: int, dim: int, itemsize: int, object_rows: int) -> int:
    """Bytes of a storage object of ``object_rows`` rows of which the first ``rows`` are written.

    Args:
        rows: rows that hold values; the rest is fill value.
        dim: columns.
        itemsize: bytes of a number.
        object_rows: rows of the object's place in the array.
    """
    (chunk_rows, *_), shards = _layout((object_rows, dim), f"V{itemsize}", object_rows)
    chunk = chunk_rows * dim * itemsize + _CRC_BYTES
    if shards is None:
        return chunk
    return -(-rows // chunk_rows) * chunk + object_rows // chunk_rows * _INDEX_BYTES + _CRC_BYTES


def array_bytes(rows: int, dim: int, itemsize: int, object_rows: int) -> int:
    """Bytes of a whole array of which every row is written."""
    whole, rest = divmod(rows, object_rows)
    return whole * object_bytes(object_rows, dim, itemsize, object_rows) + (
        object_bytes(rest, dim, itemsize, object_rows) if rest else 0
    )


def _tables(plan: Plan, num_reference: int, has_order: bool, num_queries: int) -> dict[str, tuple[int, int, int, int]]:
    """(rows, columns, bytes of a number, rows of an object) of the arrays that the frame fills."""

    def form(rows: int, dim: int, itemsize: int) -> tuple[int, int, int, int]:
        return rows, dim, itemsize, min(rows, max(1, MAX_CHUNK_BYTES // (itemsize * dim)))

    tables = {"reference/rows": form(num_reference, plan.dim, 4)}
    if has_order:
        tables["reference/order"] = form(num_reference, 1, 8)
    if num_queries:
        tables["queries/rows"] = form(num_queries, plan.dim, 4)
    return tables


def _small_bytes(values: NDArray[Any]) -> int:
    """Bytes of one of the transform's arrays, which is one object; none where it holds nothing but the fill value."""
    if values.size == 0:
        return 0
    object_rows = max(1, *values.shape[:1])
    chunks, shards = _layout(values.shape, values.dtype.str, object_rows)
    chunk_rows = chunks[0] if chunks else 1
    rows = values.reshape(object_rows, -1)
    is_fill = (np.isnan(rows) if values.dtype.kind == "f" else rows == 0).all(axis=1)
    kept = sum(not is_fill[first : first + chunk_rows].all() for first in range(0, object_rows, chunk_rows))
    written = kept * (values.nbytes // object_rows * chunk_rows + _CRC_BYTES)
    return written + object_rows // chunk_rows * _INDEX_BYTES + _CRC_BYTES if shards and kept else written


def _metadata_bytes(
    plan: Plan,
    tables: Mapping[str, tuple[int, int, int, int]],
    transform_arrays: Mapping[str, NDArray[Any]],
    transform_metadata: Mapping[str, Any],
) -> int:
    """Bytes of plan.json and of the zarr.json files, from the arrays laid out in memory and left empty."""
    import zarr
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    group = zarr.open_group(
        MemoryStore(content), mode="a", attributes={"format": f"sfg_dist.pairs {plan.format_version}"}
    )
    forms = dict.fromkeys(ARRAYS, ((plan.num_pairs, plan.dim), "float32", plan.shard_rows))
    for name, (rows, dim, itemsize, object_rows) in tables.items():
        shape, dtype = ((rows, dim), "float32") if itemsize == 4 else ((rows,), "int64")
        forms[name] = (shape, dtype, object_rows)  # type: ignore[assignment]
    for name, form in forms.items():
        _create_array(group, name, form[0], form[1], *_layout(*form))
    transform = group.require_group("transform")
    transform.attrs["metadata"] = json.dumps(transform_metadata, sort_keys=True)
    for name, values in transform_arrays.items():
        form = (values.shape, values.dtype.str, max(1, *values.shape[:1]))
        _create_array(transform, name, form[0], form[1], *_layout(*form))
    return sum(len(document) for document in content.values()) + len(plan.to_json())


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
