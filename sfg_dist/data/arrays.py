"""Opens files that hold named arrays: .npy, .npz, .h5, .hdf5, .nc (netCDF 4) and .zarr.

Nothing is ever unpickled: arrays of objects, and Zarr arrays with a pickle codec, are refused before a byte of them is
decoded. Declared sizes are checked against the file and the memory before an array is read (``declared_sizes``). No
other file is read: neither by HDF5's external storage and virtual datasets, nor by links.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sfg_dist.data.array_file import ArrayFile
from sfg_dist.data.hdf5 import open_hdf5
from sfg_dist.data.numpy_files import open_npy, open_npz
from sfg_dist.data.sources import HDF5_SUFFIXES, open_bytes, suffix_of
from sfg_dist.data.zarr_arrays import open_zarr_arrays


@contextmanager
def open_arrays(source: str) -> Iterator[ArrayFile]:
    """Open a .npy, .npz, .h5, .hdf5, .nc or .zarr source."""
    suffix = suffix_of(source)
    if suffix == ".zarr":
        yield open_zarr_arrays(source)
        return
    with open_bytes(source) as stream:
        if suffix == ".npy":
            yield open_npy(source, stream)
        elif suffix == ".npz":
            with open_npz(source, stream) as file:
                yield file
        else:
            assert suffix in HDF5_SUFFIXES
            with open_hdf5(source, stream) as file:
                yield file
