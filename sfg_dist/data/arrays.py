"""Files that hold named arrays: .npy, .npz, .h5, .hdf5 and .zarr.

Object arrays, and Zarr arrays with a pickle codec, are refused before a byte of them is decoded: nothing is
ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.location import open_bytes, open_zarr, reading, suffix_of
from sfg_dist.data.surveys import type_of_numpy
from sfg_dist.errors import DataError

DEFAULT_ARRAY = "X"


@dataclass(frozen=True)
class ArrayFile:
    """An open file of named arrays; a file with one unnamed array calls it X.

    Attributes:
        source: path or URL, for messages.
        names: the arrays present.
        read: gives an array by name; numbers as stored, text as str.
        describe: shape and type of an array, for messages.
        node: gives an array that reads what is sliced from it, where the format can (.zarr).
        types: of the columns of X, in a table of samples that ``sfg sample`` wrote.
    """

    source: str
    names: tuple[str, ...]
    read: Callable[[str], NDArray[Any]]
    describe: Callable[[str], str]
    node: Callable[[str], Any] | None = None
    types: tuple[ColumnType, ...] | None = None

    def matrix(self, name: str) -> NDArray[Any]:
        """An array as it is stored, of shape (num_rows, num_columns); one dimension is one column.

        An array of records has one dimension, and its fields are the columns.

        Raises:
            DataError: there is no such array, or it is not a table of numbers, dates or times.
        """
        if name not in self.names:
            raise DataError(f"{self.source} has no array {name!r}; {self.listing()}")
        values = self.read(name)
        label = f"{self.source}: array {name!r}"
        if values.dtype.names is not None and values.ndim == 1:
            return values
        try:
            type_of_numpy(values.dtype)
        except UnfitValueError as error:
            raise DataError(f"{label} {error}") from None
        if values.ndim not in (1, 2):
            raise DataError(f"{label} has shape {values.shape}: expected one or two dimensions, a row a sample")
        return values.reshape(len(values), -1) if values.size else _empty(values)

    def find(self, name: str) -> str:
        """The array meant by ``data.array``: itself, or for the default X the only table there is."""
        if name in self.names or name != DEFAULT_ARRAY:
            return name
        tables = [other for other in self.names if self.describe(other).startswith("2-D")]
        if len(tables) == 1:
            return tables[0]
        return self.names[0] if len(self.names) == 1 else name

    def listing(self) -> str:
        """The arrays present, in words."""
        if not self.names:
            return "the file holds no array"
        shown = ", ".join(f"{name} ({self.describe(name)})" for name in self.names[:20])
        more = f" and {len(self.names) - 20} more" if len(self.names) > 20 else ""
        return f"set data.array to one of: {shown}{more}"


@contextmanager
def open_arrays(source: str) -> Iterator[ArrayFile]:
    """Open a .npy, .npz, .h5, .hdf5 or .zarr source.

    Raises:
        DataError: it does not exist, is empty, or cannot be read as what its suffix says.
    """
    suffix = suffix_of(source)
    if suffix == ".zarr":
        yield _zarr_file(source)
        return
    with open_bytes(source) as stream:
        if suffix == ".npy":
            with reading(source):
                _check_magic(stream.read(6))
                stream.seek(0)
            yield _mapping_file(source, (DEFAULT_ARRAY,), lambda _: np.load(stream, allow_pickle=False))
        elif suffix == ".npz":
            with reading(source):
                archive = np.load(stream, allow_pickle=False)
                if not hasattr(archive, "files"):
                    raise ValueError("it is not a zip archive of arrays")
            with archive:
                yield _mapping_file(source, tuple(archive.files), archive.__getitem__)
        else:
            with reading(source):
                file = _import_h5py(source).File(stream, "r")
            with file:
                yield _hdf5_file(source, file)


def _check_magic(magic: bytes) -> None:
    if magic != b"\x93NUMPY":
        raise ValueError("it does not start as a .npy file does")


def _empty(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim == 2 else values.reshape(0, 1)


def _mapping_file(source: str, names: tuple[str, ...], load: Callable[[str], Any]) -> ArrayFile:
    kept: dict[str, NDArray[Any]] = {}

    def read(name: str) -> NDArray[Any]:
        if name not in kept:
            with reading(source):
                try:
                    value = load(name)
                except ValueError as error:
                    if "Object arrays" not in str(error):
                        raise
                    raise DataError(_object_message(source, name)) from None
                if not isinstance(value, np.ndarray):
                    raise DataError(f"{source}: {name!r} is not an array")
                kept[name] = value
        return kept[name]

    def describe(name: str) -> str:
        try:
            array = read(name)
        except DataError:
            return "not numbers"
        return _shape_text(array.shape, array.dtype)

    return ArrayFile(source, names, read, describe)


def _hdf5_file(source: str, file: Any) -> ArrayFile:
    import h5py

    datasets: dict[str, Any] = {}
    with reading(source):
        # visititems follows neither soft nor external links, so no other file is opened
        file.visititems(lambda name, node: datasets.update({name: node} if isinstance(node, h5py.Dataset) else {}))

    def read(name: str) -> NDArray[Any]:
        with reading(source):
            dataset = datasets[name]
            if h5py.check_string_dtype(dataset.dtype):
                return np.asarray(dataset.asstr()[()], dtype=str)
            if dataset.dtype.kind == "O":
                raise DataError(_object_message(source, name))
            return np.asarray(dataset[()])

    return ArrayFile(
        source, tuple(datasets), read, lambda name: _shape_text(datasets[name].shape, datasets[name].dtype)
    )


def _zarr_file(source: str) -> ArrayFile:
    import zarr

    with _reading_zarr(source):
        node = open_zarr(source)
        arrays = {DEFAULT_ARRAY: node} if isinstance(node, zarr.Array) else dict(_walk_zarr(node))
        named = node.attrs.get("columns") if "columns" not in arrays else None
        types = node.attrs.get("types") if DEFAULT_ARRAY in arrays and node.attrs.get("source") else None
        written = None if types is None else tuple(ColumnType.from_dict(words) for words in types)

    def read(name: str) -> NDArray[Any]:
        if name == "columns" and named is not None:
            return np.asarray(named, dtype=str)
        with _reading_zarr(source):
            values = np.asarray(array_of(name)[...])
            return values.astype(str) if values.dtype.kind == "T" else values

    def array_of(name: str) -> Any:
        array = arrays[name]
        if array.dtype.kind == "O" or _uses_pickle(array.metadata.to_dict()):
            raise DataError(_object_message(source, name))
        return array

    def describe(name: str) -> str:
        return "names" if name not in arrays else _shape_text(arrays[name].shape, arrays[name].dtype)

    names = (*arrays, "columns") if named is not None else tuple(arrays)
    return ArrayFile(source, names, read, describe, array_of, written)


@contextmanager
def _reading_zarr(source: str) -> Iterator[None]:
    import zarr.errors

    with warnings.catch_warnings(), reading(source):
        # text, such as the names of columns, has no final specification in Zarr 3 yet; it reads well
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        # a store of pairs has files of its own beside its arrays
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        yield


def _walk_zarr(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, array in sorted(group.arrays()):
        yield prefix + name, array
    for name, inner in sorted(group.groups()):
        yield from _walk_zarr(inner, f"{prefix}{name}/")


def _uses_pickle(metadata: Any) -> bool:
    """Whether any codec in the metadata, at any depth, is a pickle."""
    if isinstance(metadata, dict):
        return any(_uses_pickle(value) for key, value in metadata.items() if key != "attributes")
    if isinstance(metadata, (list, tuple)):
        return any(_uses_pickle(value) for value in metadata)
    if isinstance(metadata, str):
        return "pickle" in metadata.lower()
    codec_name = getattr(metadata, "codec_id", None) or getattr(metadata, "codec_name", None)
    return isinstance(codec_name, str) and "pickle" in codec_name.lower()


def _object_message(source: str, name: str) -> str:
    return (
        f"{source}: array {name!r} holds Python objects, which would have to be unpickled: "
        "save it as plain numbers or text, for example with .astype(float) or .astype(str)"
    )


def _shape_text(shape: tuple[int, ...], dtype: Any) -> str:
    return f"{len(shape)}-D {' x '.join(map(str, shape))} {dtype}".replace("  ", " ")


def _import_h5py(source: str) -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{source}: reading HDF5 needs h5py: pip install 'sfg_dist[h5]'") from None
    return h5py
