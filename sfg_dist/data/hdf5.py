"""What HDF5 files say beside their arrays: coordinates, chunks never written, and frames that pandas wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.cf import NETCDF_FILLS
from sfg_dist.errors import DataError


def column_labels(dataset: Any) -> tuple[str, ...] | None:
    """The texts of the coordinate of the second dimension, where it has such."""
    if dataset.ndim != 2 or not len(dataset.dims[1]):
        return None
    return texts_of(dataset.dims[1][0], dataset.shape[1])


def texts_of(dataset: Any, number: int) -> tuple[str, ...] | None:
    """So many texts, None where it holds something else."""
    import h5py

    if dataset.shape != (number,) or not h5py.check_string_dtype(dataset.dtype):
        return None
    return tuple(map(str, dataset.asstr()[()]))


def written_chunks(dataset: Any) -> tuple[int, int, Any]:
    """Stored chunks, all of them, and the fill value."""
    if dataset.is_virtual or dataset.external or not dataset.size:
        return 1, 1, None
    fill = dataset.fillvalue if dataset.dtype.kind in "fiub" else None
    if dataset.chunks is None:
        return int(dataset.id.get_storage_size() > 0), 1, fill
    total = int(np.prod([-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]))
    return int(dataset.id.get_num_chunks()), total, fill


def default_fill(file: Any, is_netcdf: bool) -> Callable[[Any], Any]:
    """The value that netCDF's library writes where nothing was written, by type; None in other files."""
    if not is_netcdf and "_NCProperties" not in file.attrs:
        return lambda _: None
    return lambda dtype: NETCDF_FILLS.get(np.dtype(dtype).str[1:])


def is_frame(node: Any) -> bool:
    """Whether a group is a frame that pandas wrote in its fixed format."""
    return "axis0" in node and "block0_items" in node and "block0_values" in node


def frame_names(group: Any) -> tuple[str, ...]:
    """The names of a frame's columns."""
    return tuple(_as_text(value) for value in group["axis0"][()])


def frame_shape(group: Any) -> tuple[int, int]:
    """Rows and columns of a frame."""
    return len(group["axis1"]), len(group["axis0"])


def read_frame(source: str, name: str, group: Any) -> NDArray[np.float64]:
    """The values of a frame, its blocks put side by side in the order of its names.

    Raises:
        DataError: a column holds text or objects.
    """
    names = frame_names(group)
    values = np.empty(frame_shape(group))
    number = 0
    while f"block{number}_items" in group:
        items = [_as_text(value) for value in group[f"block{number}_items"][()]]
        block = group[f"block{number}_values"]
        if block.dtype.kind not in "fiub":
            raise DataError(
                f"{source}: columns {', '.join(items)} of {name!r} hold text or Python objects: leave them out before "
                "pandas writes the file, or write .parquet"
            )
        values[:, [names.index(item) for item in items]] = block[()].reshape(len(values), len(items))
        number += 1
    return values


def _as_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
