"""Files that hold named arrays: .npy, .npz, .h5, .hdf5, .nc (netCDF 4) and .zarr.

Values are decoded as the attributes of their array say (``cf``). Chunks that were never written are no data: an array
that lacks some is refused, unless its fill value is declared to be missing.

Object arrays, and Zarr arrays with a pickle codec, are refused before a byte of them is decoded: nothing is
ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import hdf5
from sfg_dist.data.cf import Packing, packing_of
from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.location import HDF5_SUFFIXES, open_bytes, open_zarr, reading, suffix_of
from sfg_dist.data.surveys import type_of_numpy
from sfg_dist.data.zarr_chunks import written_chunks
from sfg_dist.errors import DataError

DEFAULT_ARRAY = "X"
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
        values = self.read(name)
        label = f"{self.source}: array {name!r}"
        if values.dtype.names is not None and values.ndim == 1:
            return values
        try:
            type_of_numpy(values.dtype)
        except UnfitValueError as error:
            hint = "; a table of pandas is read as it writes it with format='fixed'" if name.endswith("/table") else ""
            raise DataError(f"{label} {error}{hint}") from None
        if values.ndim not in (1, 2):
            raise DataError(f"{label} has shape {values.shape}: expected one or two dimensions, a row a sample")
        values = values.reshape(len(values), -1) if values.size else _empty(values)
        packing = self.packing(name, values.dtype)
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
                _check_magic(stream.read(6))
                stream.seek(0)
            yield _mapping_file(source, (DEFAULT_ARRAY,), lambda _: _only_array(source, stream))
        elif suffix == ".npz":
            with reading(source):
                if stream.read(2) != b"PK":
                    raise ValueError("it is not a zip archive of arrays")
                stream.seek(0)
                archive = np.load(stream, allow_pickle=False)
                if not hasattr(archive, "files"):
                    raise ValueError("it is not a zip archive of arrays")
            with archive:
                yield _mapping_file(source, tuple(archive.files), archive.__getitem__)
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


def _check_magic(magic: bytes) -> None:
    if magic != b"\x93NUMPY":
        raise ValueError("it does not start as a .npy file does")


def check_end(source: str, follows: bool) -> None:
    """Refuse a .npy file that holds more than its first array, which is all that would be read.

    Raises:
        DataError: something follows the array.
    """
    if follows:
        raise DataError(
            f"{source} goes on behind its first array, as where np.save wrote several into one file: write one array a "
            "file, or a .npz"
        )


def _only_array(source: str, stream: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.load(stream, allow_pickle=False)
    check_end(source, bool(stream.read(1)))
    return array


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

    return ArrayFile(source, names, read, describe, lambda name: read(name).shape)


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

        # visititems follows neither soft nor external links, so no other file is opened
        file.visititems(visit)

    def read(name: str) -> NDArray[Any]:
        with reading(source):
            if name in frames:
                return hdf5.read_frame(source, name, frames[name])
            dataset = datasets[name]
            if h5py.check_string_dtype(dataset.dtype):
                return np.asarray(dataset.asstr()[()], dtype=str)
            if dataset.dtype.kind == "O":
                raise DataError(_object_message(source, name))
            return np.asarray(dataset[()])

    def describe(name: str) -> str:
        if name in frames:
            return f"2-D {' x '.join(map(str, hdf5.frame_shape(frames[name])))} of pandas"
        return _shape_text(datasets[name].shape, datasets[name].dtype)

    def labels(name: str) -> tuple[str, ...] | None:
        return hdf5.frame_names(frames[name]) if name in frames else hdf5.column_labels(datasets[name])

    return ArrayFile(
        source,
        (*frames, *datasets),
        read,
        describe,
        lambda name: hdf5.frame_shape(frames[name]) if name in frames else datasets[name].shape,
        attributes=lambda name: {} if name in frames else dict(datasets[name].attrs),
        labels=labels,
        written=lambda name: (1, 1, None) if name in frames else hdf5.written_chunks(datasets[name]),
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
            values = np.asarray(array_of(name)[...])
            return np.asarray(values.tolist(), dtype=str) if values.dtype.kind == "T" else values

    def array_of(name: str) -> Any:
        array = arrays[name]
        if array.dtype.kind == "O" or _uses_pickle(array.metadata.to_dict()):
            raise DataError(_object_message(source, name))
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
            array = arrays[name]
            return *written_chunks(array), array.fill_value

    names = (*arrays, "columns") if named is not None else tuple(arrays)
    return ArrayFile(
        source,
        names,
        read,
        describe,
        lambda name: arrays[name].shape,
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
