"""Files that hold named arrays: .npy, .npz, .h5, .hdf5, .nc (netCDF 4) and .zarr.

Values are decoded as the attributes of their array say (``cf``). Chunks that were never written are no data: an array
that lacks some is refused, unless its fill value is declared to be missing.

Object arrays, and Zarr arrays with a pickle codec, are refused before a byte of them is decoded: nothing is
ever unpickled. Sizes are held against the file and the memory before an array is read (``sizes``), and no other file
is read: neither by HDF5's external storage and virtual datasets, nor by links.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import hdf5
from sfg_dist.data.cf import Packing, packing_of
from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.location import HDF5_SUFFIXES, open_bytes, open_zarr, reading, suffix_of
from sfg_dist.data.numpy_files import Header, check_magic, npy_header, npz_header, only_array, open_npz
from sfg_dist.data.sizes import SMALL_BYTES, check_held, check_stored, declared_bytes
from sfg_dist.data.surveys import type_of_numpy
from sfg_dist.data.zarr_chunks import written_chunks
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import size_of

DEFAULT_ARRAY = "X"
_MANY_CHUNKS = 1_000_000
_WRITE_THEM = "write them (zarr.config.set({'array.write_empty_chunks': True}))"


@dataclass(frozen=True)
class ArrayFile:
    """An open file of named arrays; a file with one unnamed array calls it X.

    Attributes:
        source: path or URL, for messages.
        names: the arrays present.
        read: gives an array by name; numbers as stored, text as str.
        describe: shape and type of an array, for messages.
        shape: of an array.
        dtype: of an array as it is stored; text is of kind U, S or T.
        node: gives an array that reads what is sliced from it, where the format can (.zarr).
        types: of the columns of X, in a table of samples that ``sfg sample`` wrote.
        attributes: of an array, by name.
        labels: names of an array's columns by its own coordinates, or None.
        written: stored chunks of an array, all of them, and its fill value.
        default_fill: the stored value that is missing where attributes name none, by type.
        notes: what was done to read it, in words.
    """

    source: str
    names: tuple[str, ...]
    read: Callable[[str], NDArray[Any]]
    describe: Callable[[str], str]
    shape: Callable[[str], tuple[int, ...]]
    dtype: Callable[[str], Any]
    node: Callable[[str], Any] | None = None
    types: tuple[ColumnType, ...] | None = None
    attributes: Callable[[str], Mapping[str, Any]] = lambda _: {}
    labels: Callable[[str], tuple[str, ...] | None] = lambda _: None
    written: Callable[[str], tuple[int, int, Any]] = lambda _: (1, 1, None)
    default_fill: Callable[[Any], Any] = lambda _: None
    notes: list[str] = field(default_factory=list)

    def matrix(self, name: str) -> NDArray[Any]:
        """An array as it is stored, of shape (num_rows, num_columns); one dimension is one column.

        An array of records has one dimension, and its fields are the columns.

        Raises:
            DataError: there is no such array, or it is not a table of numbers, dates or times.
        """
        if name not in self.names:
            raise DataError(f"{self.source} has no array {name!r}; {self.listing()}")
        dtype, shape = self.dtype(name), self.shape(name)
        label = f"{self.source}: array {name!r}"
        if dtype.names is not None and len(shape) == 1:
            return self.read(name)
        try:
            type_of_numpy(dtype)
        except UnfitValueError as error:
            hint = "; a table of pandas is read as it writes it with format='fixed'" if name.endswith("/table") else ""
            raise DataError(f"{label} {error}{hint}") from None
        if len(shape) not in (1, 2):
            raise DataError(f"{label} has shape {shape}: expected one or two dimensions, a row a sample")
        packing = self.packing(name, dtype)
        values = self.read(name)
        values = values.reshape(len(values), -1) if values.size else _empty(values)
        return values if packing is None else packing.unpack(values)

    def packing(self, name: str, dtype: Any) -> Packing | None:
        """How an array's stored values stand for others; None as they are.

        Raises:
            DataError: an attribute is not a number; or chunks were never written, and are not declared missing.
        """
        label = f"{self.source}: array {name!r}"
        packing = packing_of(label, self.attributes(name), dtype, self.default_fill(dtype))
        if packing is not None and packing.words:
            self.note(f"{', '.join(packing.words)} of {name!r} applied")
        stored, total, fill = self.written(name)
        if stored < total:
            how_many = f"{total - stored:,} of {total:,} chunks"
            is_missing = fill is not None and (np.isnan(fill) or (packing is not None and packing.is_missing(fill)))
            if not is_missing:
                why, remedy = (
                    (f", or hold nothing but the fill value {fill}, which Zarr leaves out", _WRITE_THEM)
                    if suffix_of(self.source) == ".zarr"
                    else ("", "write them")
                )
                raise DataError(
                    f"{label} lacks {how_many}: they were never written{why}; {remedy}, or let the fill value be NaN, "
                    "or the attribute _FillValue, where absent chunks are missing values"
                )
            self.note(f"{how_many} of {name!r} were never written: missing values")
        return packing

    def note(self, words: str) -> None:
        """Keep what was done, once."""
        if words not in self.notes:
            self.notes.append(words)

    def column_names(self, name: str, appended: Sequence[tuple[str, int]] = ()) -> tuple[str, ...]:
        """Names of the columns of an array and of those put behind it.

        By the array ``columns``, by the texts of the array's own coordinate, or by the name of an array of one
        dimension; c0, c1, ... for any other.

        Args:
            name: of the array; its columns are one where it has one dimension.
            appended: name and number of columns of each array put behind it.
        """
        shape = self.shape(name)
        width = shape[1] if len(shape) > 1 else 1
        behind = [f"{more}_{index}" if number > 1 else more for more, number in appended for index in range(number)]
        if (labels := self.labels(name)) is not None:
            return (*labels, *behind)
        if "columns" in self.names and name != "columns":
            stored: NDArray[Any] = self.read("columns")
            if stored.dtype.kind in "US" and stored.ndim == 1:
                found = np.char.decode(stored, "utf-8") if stored.dtype.kind == "S" else stored
                texts = tuple(str(text) for text in found)
                if len(texts) == width + len(behind) and behind:
                    return texts
                if len(texts) == width:
                    return (*texts, *behind)
                self.note(f"the array 'columns' not used: it has {len(texts):,} names, {name!r} has {width:,} columns")
        if len(shape) == 1 and name != DEFAULT_ARRAY:
            return (name.rpartition("/")[2], *behind)
        return (*(f"c{index}" for index in range(width)), *behind)

    def find(self, name: str) -> str:
        """The array meant by ``data.array``: itself, or for the default X the only table there is."""
        if name.lstrip("/") in self.names:
            return name.lstrip("/")
        if name != DEFAULT_ARRAY:
            return name
        tables = [other for other in self.names if self.describe(other).startswith("2-D")]
        frames = [other for other in tables if self.describe(other).endswith("of pandas")]
        tables = frames or tables
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
    """Open a .npy, .npz, .h5, .hdf5, .nc or .zarr source.

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
                check_magic(stream.read(6))
            yield _mapping_file(
                source, (DEFAULT_ARRAY,), lambda _: only_array(source, stream), lambda _: npy_header(stream)
            )
        elif suffix == ".npz":
            with reading(source):
                archive = open_npz(stream)
            with archive:
                yield _mapping_file(
                    source,
                    tuple(archive.files),
                    archive.__getitem__,
                    lambda name: npz_header(source, archive, name),
                )
        else:
            assert suffix in HDF5_SUFFIXES
            if stream.read(3) == b"CDF":
                raise DataError(
                    f"{source} is a netCDF file of the classic format: convert it to netCDF 4, for example by "
                    "`nccopy -k nc4 OLD NEW`"
                )
            stream.seek(0)
            with reading(source):
                file = _import_h5py(source).File(stream, "r")
            with file:
                yield _hdf5_file(source, file)


def _empty(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim == 2 else values.reshape(0, 1)


def _mapping_file(
    source: str,
    names: tuple[str, ...],
    load: Callable[[str], Any],
    header: Callable[[str], Header],
) -> ArrayFile:
    kept: dict[str, NDArray[Any]] = {}

    @cache
    def declared(name: str) -> tuple[tuple[int, ...], Any]:
        with reading(source):
            shape, dtype, num_bytes, stored = header(name)
            if dtype.hasobject:
                raise DataError(_object_message(source, name))
            what = f"array {name!r} ({_shape_text(shape, dtype)})"
            if (needed := math.prod(shape) * dtype.itemsize) > num_bytes:
                raise ValueError(f"{what} takes {size_of(needed)}, and the file has {size_of(num_bytes)} for it")
            check_stored(source, what, shape, dtype, stored)
        return shape, dtype

    def read(name: str) -> NDArray[Any]:
        if name not in kept:
            shape, dtype = declared(name)
            check_held(source, f"array {name!r} ({_shape_text(shape, dtype)})", shape, dtype)
            with reading(source):
                kept[name] = load(name)
        return kept[name]

    def describe(name: str) -> str:
        try:
            return _shape_text(*declared(name))
        except DataError:
            return "not numbers"

    return ArrayFile(source, names, read, describe, lambda name: declared(name)[0], lambda name: declared(name)[1])


def _hdf5_file(source: str, file: Any) -> ArrayFile:
    import h5py

    datasets: dict[str, Any] = {}
    frames: dict[str, Any] = {}
    with reading(source):

        def visit(name: str, node: Any) -> None:
            if "_i_" in name.rpartition("/")[0]:  # PyTables' indices of a table
                return
            if isinstance(node, h5py.Dataset):
                datasets[name] = node
            elif hdf5.is_frame(node):
                frames[name] = node

        # visititems follows neither soft nor external links; hdf5.check refuses the other ways to other files
        file.visititems(visit)

    def read(name: str) -> NDArray[Any]:
        with reading(source):
            if name in frames:
                return hdf5.read_frame(source, name, frames[name])
            dtype_of(name)
            return hdf5.read(source, datasets[name])

    def dtype_of(name: str) -> Any:
        if name in frames:
            return np.dtype(np.float64)
        dtype = datasets[name].dtype
        if h5py.check_string_dtype(dtype):
            return np.dtype(str)
        if dtype.hasobject:
            raise DataError(_object_message(source, name))
        return dtype

    def describe(name: str) -> str:
        if name in frames:
            return f"2-D {' x '.join(map(str, hdf5.frame_shape(frames[name])))} of pandas"
        return _shape_text(datasets[name].shape, datasets[name].dtype)

    def labels(name: str) -> tuple[str, ...] | None:
        return hdf5.frame_names(source, frames[name]) if name in frames else hdf5.column_labels(source, datasets[name])

    return ArrayFile(
        source,
        (*frames, *datasets),
        read,
        describe,
        lambda name: hdf5.frame_shape(frames[name]) if name in frames else datasets[name].shape,
        dtype_of,
        attributes=lambda name: {} if name in frames else hdf5.attributes(source, datasets[name]),
        labels=labels,
        written=lambda name: (1, 1, None) if name in frames else hdf5.written_chunks(source, datasets[name]),
        default_fill=hdf5.default_fill(file, suffix_of(source) == ".nc"),
    )


def _zarr_file(source: str) -> ArrayFile:
    import zarr

    with _reading_zarr(source):
        node = open_zarr(source)
        arrays = {DEFAULT_ARRAY: node} if isinstance(node, zarr.Array) else dict(_walk_zarr(node))
        named = node.attrs.get("columns") if "columns" not in arrays else None
        types = node.attrs.get("types") if DEFAULT_ARRAY in arrays and node.attrs.get("source") else None
        of_samples = None if types is None else tuple(ColumnType.from_dict(words) for words in types)

    def read(name: str) -> NDArray[Any]:
        if name == "columns" and named is not None:
            return np.asarray(named, dtype=str)
        with _reading_zarr(source):
            array = array_of(name)
            check_held(source, what(array, name), array.shape, array.dtype)
            values = np.asarray(array[...])
            return np.asarray(values.tolist(), dtype=str) if values.dtype.kind == "T" else values

    def what(array: Any, name: str) -> str:
        return f"array {name!r} ({_shape_text(array.shape, array.dtype)})"

    @cache
    def array_of(name: str) -> Any:
        array = arrays[name]
        if array.dtype.kind != "T" and array.dtype.hasobject:
            raise DataError(_object_message(source, name))
        if declared_bytes(array.shape, array.dtype) > SMALL_BYTES or array.nchunks > _MANY_CHUNKS:
            stored = array.nbytes_stored()
            check_stored(source, what(array, name), array.shape, array.dtype, stored)
            if array.nchunks > _MANY_CHUNKS + stored:
                raise DataError(
                    f"{source}: {what(array, name)} declares {array.nchunks:,} chunks, and {size_of(stored)} are "
                    "stored: the file is damaged"
                )
        return array

    def describe(name: str) -> str:
        return "names" if name not in arrays else _shape_text(arrays[name].shape, arrays[name].dtype)

    def attributes(name: str) -> Mapping[str, Any]:
        array = arrays[name]
        found = dict(array.attrs)
        # What xarray writes to Zarr 2 has its _FillValue there, and none where nothing is missing.
        if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in found and array.fill_value is not None:
            found.setdefault("_FillValue", array.fill_value)
        return found

    def labels(name: str) -> tuple[str, ...] | None:
        array = arrays[name]
        dimensions: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
        if array.ndim != 2 or not dimensions or len(dimensions) != 2 or dimensions[1] is None:
            return None
        beside = f"{name.rpartition('/')[0]}/{dimensions[1]}".lstrip("/")
        if beside not in arrays or arrays[beside].shape != array.shape[1:] or arrays[beside].dtype.kind not in "UT":
            return None
        return tuple(map(str, read(beside)))

    def written(name: str) -> tuple[int, int, Any]:
        with _reading_zarr(source):
            array = array_of(name)
            return *written_chunks(array), array.fill_value

    names = (*arrays, "columns") if named is not None else tuple(arrays)
    return ArrayFile(
        source,
        names,
        read,
        describe,
        lambda name: arrays[name].shape if name in arrays else (len(named or ()),),
        lambda name: array_of(name).dtype if name in arrays else np.dtype(str),
        array_of,
        types=of_samples,
        attributes=attributes,
        labels=labels,
        written=written,
    )


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
