"""Files of HDF5 and netCDF 4: arrays with their coordinates and chunks never written, and frames of pandas."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.array_file import ArrayFile, object_message, shape_text
from sfg_dist.data.cf import KEYS, MEANINGS, NETCDF_FILLS
from sfg_dist.data.declared_sizes import check_held, check_stored, declared_bytes
from sfg_dist.data.naming import listed
from sfg_dist.data.sources import reading, suffix_of
from sfg_dist.data.unpacking import GROWTH, unpacked_bytes
from sfg_dist.job.errors import DataError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.words import size_of

_TICKS = re.compile(r"(datetime|timedelta)64(\[(s|ms|us|ns)\])?")  # what pandas says of whole numbers
_DEFLATE = 1  # HDF5's number of the filter
_MOST_ATTRIBUTE = 1 << 16
_TEXTS_AT_ONCE, _MOST_TEXT = 256, 16 << 20


@contextmanager
def open_hdf5(source: str, stream: Any) -> Iterator[ArrayFile]:
    """Open a .h5, .hdf5 or .nc file."""
    if stream.read(3) == b"CDF":
        raise DataError(
            f"{source} is a netCDF file of the classic format: convert it to netCDF 4, for example by "
            "`nccopy -k nc4 OLD NEW`"
        )
    stream.seek(0)
    try:
        import h5py
    except ImportError:
        raise DataError(f"{source}: reading HDF5 needs h5py: pip install 'sfg_dist[h5]'") from None
    with reading(source):
        file = h5py.File(stream, "r")
    with file:
        yield _array_file(source, file)


def _array_file(source: str, file: Any) -> ArrayFile:
    import h5py

    datasets: dict[str, h5py.Dataset] = {}
    frames: dict[str, h5py.Group] = {}
    with reading(source):

        def visit(name: str, node: Any) -> None:
            if "_i_" in name.rpartition("/")[0]:  # an index that PyTables made of a table
                return
            if isinstance(node, h5py.Dataset):
                datasets[name] = node
            elif isinstance(node, h5py.Group) and is_frame(node):  # netCDF stores its types beside
                frames[name] = node

        # visititems follows neither soft nor external links; check refuses the other ways to other files
        file.visititems(visit)

    notes: list[str] = []

    def read_named(name: str) -> NDArray[Any]:
        with reading(source):
            if name in frames:
                if has_row_names(source, frames[name]):
                    notes.append("row names of pandas left out")
                return read_frame(source, name, frames[name])
            if names := h5py.check_enum_dtype(dtype_of(name)):
                notes.append(f"{name!r} read as numbers without their names ({listed(sorted(names, key=names.get))})")
            return read(source, datasets[name])

    def dtype_of(name: str) -> Any:
        if name in frames:
            with reading(source):
                return frame_dtype(source, name, frames[name])
        dtype = stored_dtype(datasets[name])
        if h5py.check_string_dtype(dtype):
            return np.dtype(str)
        if dtype.hasobject:
            raise DataError(object_message(source, name))
        return dtype

    def describe(name: str) -> str:
        if name in frames:
            return f"2-D {' x '.join(map(str, frame_shape(frames[name])))} of pandas"
        return shape_text(datasets[name].shape, datasets[name].dtype)

    def labels(name: str) -> tuple[str, ...] | None:
        return None if name in frames else column_labels(source, datasets[name])

    return ArrayFile(
        source,
        (*frames, *datasets),
        read_named,
        describe,
        lambda name: frame_shape(frames[name])[:1] if name in frames else datasets[name].shape,
        dtype_of,
        attributes=lambda name: {} if name in frames else attributes(source, datasets[name]),
        labels=labels,
        written=lambda name: (1, 1, None) if name in frames else written_chunks(source, datasets[name]),
        default_fill=default_fill(file, suffix_of(source) == ".nc"),
        notes=notes,
    )


def check(source: str, dataset: Any) -> None:
    """Refuse a dataset whose values lie elsewhere, or which declares more than the file and the memory hold."""
    what = f"dataset {dataset.name.lstrip('/')!r}"
    if dataset.external:
        raise DataError(
            f"{source}: {what} keeps its values in another file, {dataset.external[0][0]!r} (external storage), which "
            "is not read: copy them into this one"
        )
    if dataset.is_virtual:
        raise DataError(
            f"{source}: {what} is put together of datasets in other files (a virtual dataset), which are not read: "
            "copy its values into this file"
        )
    what += f" ({' x '.join(map(str, dataset.shape or ()))} {dataset.dtype})"
    check_stored(source, what, dataset.shape or (), dataset.dtype, dataset.id.get_storage_size())
    check_held(source, what, dataset.shape or (), dataset.dtype)


def _check_chunks(source: str, dataset: Any) -> None:
    """Refuse packed chunks that grow into more than a chunk holds: HDF5 would unpack them to the end."""
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    if dataset.chunks is None or _DEFLATE not in filters:
        return
    held = int(np.prod(dataset.chunks, dtype=np.int64)) * dataset.dtype.itemsize
    sizes: list[tuple[int, tuple[int, ...]]] = []
    dataset.id.chunk_iter(lambda info: sizes.append((info.size, info.chunk_offset)))
    for size, place in sizes:
        is_more = filters.count(_DEFLATE) > 1 or size > 2 * held + 4096
        if not is_more and size * GROWTH["zlib"] > max(4 * held, usable_bytes() >> 3):
            mask, packed = dataset.id.read_direct_chunk(place)
            is_packed = not mask >> filters.index(_DEFLATE) & 1
            is_more = is_packed and _unpacks_to_more(packed, 2 * held + 4096)
        if is_more:
            name = dataset.name.lstrip("/")
            raise DataError(
                f"{source}: dataset {name!r} has a chunk at {place} that unpacks to more than the {size_of(held)} of a "
                "chunk, or is packed twice: the file is damaged"
            )


def _unpacks_to_more(packed: bytes, most: int) -> bool:
    try:
        return unpacked_bytes("zlib", packed, most) > most
    except (EOFError, ValueError, zlib.error):
        return False  # HDF5 says what is wrong with it


def read(source: str, dataset: Any) -> NDArray[Any]:
    """All values of a dataset, text as str.

    Raises:
        DataError: they are not in the file, are more than it can hold, or are Python objects.
    """
    import h5py

    check(source, dataset)
    _check_chunks(source, dataset)
    if not h5py.check_string_dtype(dataset.dtype):
        values = np.asarray(dataset[()])
        return values.view(bool) if stored_dtype(dataset).kind == "b" else values
    texts: list[str] = []
    named = dataset.asstr("utf-8")  # also where the file says ASCII, as PyTables does
    for start in range(0, dataset.size, _TEXTS_AT_ONCE):  # many texts may be one long text in the file
        texts += map(str, named[start : start + _TEXTS_AT_ONCE] if dataset.shape else [named[()]])
        if sum(map(len, texts)) > _MOST_TEXT:
            raise DataError(f"{source}: {dataset.name.lstrip('/')!r} holds more text than names of columns have")
    return np.asarray(texts, dtype=str).reshape(dataset.shape)


def attributes(source: str, dataset: Any) -> Mapping[str, Any]:
    """The attributes that say what the values mean."""
    found = {key: attribute(source, dataset, key) for key in (*KEYS, *MEANINGS, "_Unsigned")}
    return {key: value for key, value in found.items() if value is not None}


def attribute(source: str, dataset: Any, key: str) -> Any:
    """An attribute of a dataset, None where it has none of that name, or an empty one."""
    with reading(source):
        if key not in dataset.attrs:
            return None
        identity = dataset.attrs.get_id(key)
        if identity.shape is None:  # as netCDF's library writes a text without letters
            return None
        if declared_bytes(identity.shape, identity.dtype) > _MOST_ATTRIBUTE:
            raise DataError(f"{source}: the attribute {key} of {dataset.name.lstrip('/')!r} has no single value")
        return dataset.attrs[key]


def stored_dtype(dataset: Any) -> np.dtype[Any]:
    """The type of a dataset's values: truth values where PyTables wrote them as bits, which h5py has as numbers."""
    import h5py

    is_bits = isinstance(dataset.id.get_type(), h5py.h5t.TypeBitfieldID) and dataset.dtype.itemsize == 1
    return np.dtype(bool) if is_bits else dataset.dtype


def _own(group: Any, name: str) -> Any:
    """A member of a group that is in the file itself; None where there is none, since links lead to other files."""
    import h5py

    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def column_labels(source: str, dataset: Any) -> tuple[str, ...] | None:
    """The texts of the coordinate of the second dimension, if it has texts."""
    import h5py

    if dataset.ndim != 2 or not len(dataset.dims[1]):
        return None
    texts = dataset.dims[1][0]
    is_named = texts.shape == dataset.shape[1:] and h5py.check_string_dtype(texts.dtype)
    return tuple(map(str, read(source, texts))) if is_named else None


def written_chunks(source: str, dataset: Any) -> tuple[int, int, Any]:
    """The number of stored chunks, of all chunks, and the fill value."""
    check(source, dataset)
    if not dataset.size:
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
    return _own(node, "block0_values") is not None and None not in (_axis(node, 0), _axis(node, 1))


def _axis(group: Any, number: int) -> Any:
    """The names of a frame's columns (0) or rows (1); where these have several levels, the codes of the first."""
    plain = _own(group, f"axis{number}")
    return _own(group, f"axis{number}_label0") if plain is None else plain


def frame_shape(group: Any) -> tuple[int, int]:
    """Rows and columns of a frame."""
    return len(_axis(group, 1)), len(_axis(group, 0))


def has_row_names(source: str, group: Any) -> bool:
    """Whether the rows of a frame have names that do not only count them from 0."""
    rows = _own(group, "axis1")
    return rows is None or rows.dtype.kind not in "iu" or not np.array_equal(read(source, rows), np.arange(len(rows)))


def frame_dtype(source: str, name: str, group: Any) -> np.dtype[Any]:
    """The records of a frame: its columns in their order, each in its own type.

    Raises:
        DataError: the file declares more than it holds; or a column is no field of records, or has values that pandas
            pickled, or stamps with a time zone.
    """
    if _own(group, "axis0") is None:
        raise DataError(
            f"{source}: the columns of {name!r} have names of several levels: join them before pandas writes the file, "
            'as in frame.columns = frame.columns.map("_".join)'
        )
    shape = frame_shape(group)
    parts = (group[part] for part in group if _own(group, part) is not None)
    stored = sum(part.id.get_storage_size() for part in parts if hasattr(part, "dtype"))
    check_stored(source, f"frame {name!r}", shape, None, stored)
    check_held(source, f"frame {name!r}", shape)
    kinds: dict[str, Any] = {}
    for items, block in _blocks(source, name, group):
        what = f"{source}: {'columns' if len(items) > 1 else 'column'} {listed(items)} of {name!r}"
        dtype = stored_dtype(block)
        if dtype.kind not in "fiub":
            raise DataError(
                f"{what}: text and Python objects are not read from HDF5: leave them out before pandas writes the "
                "file, or write .parquet"
            )
        if "tz" in block.attrs:
            raise DataError(f"{what}: stamps with a time zone are not read from HDF5: write .parquet")
        if said := _TICKS.fullmatch(_as_text(attribute(source, block, "value_type"))):
            dtype = np.dtype(f"{said[1]}64[{said[3] or 'ns'}]")
        kinds |= dict.fromkeys(items, dtype)
    names = [_as_text(value) for value in read(source, group["axis0"])]
    counts = Counter(names)
    if odd := [each for each in names if not each or counts[each] > 1 or each not in kinds]:
        raise DataError(f"{source}: a column of {name!r} is named {odd[0]!r}: give each a name of its own")
    return np.dtype([(each, kinds[each]) for each in names])


def read_frame(source: str, name: str, group: Any) -> NDArray[Any]:
    """The rows of a frame as records, the columns of its blocks in the order of their names."""
    rows = np.empty(frame_shape(group)[0], frame_dtype(source, name, group))
    for items, block in _blocks(source, name, group):
        values = read(source, block).reshape(len(rows), len(items))
        for place, item in enumerate(items):
            rows[item] = values[:, place].view(rows.dtype[item]) if rows.dtype[item].kind in "mM" else values[:, place]
    return rows


def _blocks(source: str, name: str, group: Any) -> Iterator[tuple[list[str], Any]]:
    """The columns of each block of a frame, and its values."""
    number = 0
    while (named := _own(group, f"block{number}_items")) is not None:
        if (block := _own(group, f"block{number}_values")) is None:
            raise DataError(f"{source}: {name!r} lacks the values of its block {number}: the file is damaged")
        yield [_as_text(value) for value in read(source, named)], block
        number += 1


def _as_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
