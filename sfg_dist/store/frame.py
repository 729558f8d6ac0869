"""The frame of a store: empty arrays, the reference and the column transform, laid out before the plan is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.plan import Plan
from sfg_dist.store.location import Location

if TYPE_CHECKING:
    import zarr

MAX_CHUNK_BYTES = 4 << 20
ARRAYS = ("latents", "labels")


def write_frame(
    location: Location,
    plan: Plan,
    reference: NDArray[np.float32],
    transform_arrays: Mapping[str, NDArray[Any]],
    transform_metadata: Mapping[str, Any],
    queries: NDArray[np.float32] | None,
    cluster_order: NDArray[np.int64] | None = None,
) -> None:
    """Create the arrays of a store and write the reference, its order, the transform and the query points."""
    import zarr

    # overwrite=False: a driver that was killed here left the same frame, and a second one writes the same bytes.
    group = zarr.open_group(
        location.zarr_store(), mode="a", attributes={"format": f"sfg_dist.pairs {plan.format_version}"}
    )
    for name in ARRAYS:
        _fit_array(group, name, (plan.num_pairs, plan.dim), "float32", plan.shard_rows)
    tables = {"reference/rows": reference} | ({} if queries is None else {"queries/rows": queries})
    for name, rows in tables.items():
        chunk_rows = min(len(rows), max(1, MAX_CHUNK_BYTES // (4 * plan.dim)))
        _fit_array(group, name, rows.shape, "float32", chunk_rows)[...] = rows
    if cluster_order is not None:
        chunk_rows = min(len(cluster_order), MAX_CHUNK_BYTES // 8)
        _fit_array(group, "reference/order", cluster_order.shape, "int64", chunk_rows)[...] = cluster_order
    transform = group.require_group("transform")
    transform.attrs["metadata"] = json.dumps(transform_metadata, sort_keys=True)
    for name in set(transform.array_keys()) - set(transform_arrays):
        del transform[name]
    for name, values in transform_arrays.items():
        _fit_array(transform, name, values.shape, values.dtype.str, max(1, *values.shape[:1]))[...] = values


def _fit_array(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, object_rows: int) -> Any:
    """The array of this form; one that a frame cut off before its plan left in another form is made anew."""
    wanted = _layout(shape, dtype, object_rows)
    if name in group:
        array: Any = group[name]
        if (array.shape, array.chunks, array.shards, array.dtype) == (shape, *wanted, np.dtype(dtype)):
            return array
        del group[name]
    return _create_array(group, name, shape, dtype, *wanted)


def _layout(shape: tuple[int, ...], dtype: str, object_rows: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """(chunks, shards) for storage objects of ``object_rows`` rows, cut into chunks of a few MiB where larger."""
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape[1:], dtype=np.int64))
    chunk_rows = object_rows
    while chunk_rows * row_bytes > MAX_CHUNK_BYTES and chunk_rows % 2 == 0:
        chunk_rows //= 2
    trailing = tuple(max(1, size) for size in shape[1:])
    shards = None if chunk_rows == object_rows else (object_rows, *trailing)
    return (max(1, chunk_rows), *trailing) if shape else (), shards


def _create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
) -> Any:
    from zarr.codecs import Crc32cCodec

    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[Crc32cCodec()],  # noise does not compress, and zarr's default checks no data
        fill_value=np.nan if np.dtype(dtype).kind == "f" else 0,
    )
