"""Files that numpy writes: .npy and .npz. Their headers are read before their arrays, and nothing is unpickled."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.array_file import DEFAULT_ARRAY, ArrayFile, object_message, shape_text
from sfg_dist.data.declared_sizes import check_held, check_stored
from sfg_dist.data.sources import reading
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import size_of


class Header(NamedTuple):
    """What an array declares."""

    shape: tuple[int, ...]  # of the array
    dtype: Any
    num_bytes: int  # that the file has for its values, or says that it has
    stored: int  # bytes that they take in the file, packed or not


def check_end(source: str, follows: bool) -> None:
    """Refuse a .npy file that holds more than its first array: nothing else of it would be read."""
    if follows:
        raise DataError(
            f"{source} holds more behind its first array, as where np.save wrote several into one file: write each "
            "array to its own file, or all to a .npz"
        )


def open_npy(source: str, stream: Any) -> ArrayFile:
    """A .npy file, whose array is called X."""
    with reading(source):
        if stream.read(6) != b"\x93NUMPY":
            raise ValueError("it does not start as a .npy file does")

    def load(_: str) -> NDArray[Any]:
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
        check_end(source, bool(stream.read(1)))
        return array

    def header(_: str) -> Header:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        return _header(stream, size, size)

    return _array_file(source, (DEFAULT_ARRAY,), load, header)


@contextmanager
def open_npz(source: str, stream: Any) -> Iterator[ArrayFile]:
    """Open a .npz file; none of its arrays is read yet."""
    with reading(source):
        if stream.read(4) not in (b"PK\3\4", b"PK\5\6"):  # else numpy tries to unpickle it
            raise ValueError("it is not a zip archive of arrays")
        stream.seek(0)
        archive = np.load(stream, allow_pickle=False)
    with archive:
        yield _array_file(
            source, tuple(archive.files), archive.__getitem__, lambda name: _npz_header(source, archive, name)
        )


def _npz_header(source: str, archive: Any, name: str) -> Header:
    member = archive.zip.getinfo(name if name in archive.zip.NameToInfo else f"{name}.npy")
    with archive.zip.open(member) as stream:
        if stream.peek(6)[:6] != b"\x93NUMPY":
            raise DataError(f"{source}: {name!r} is not an array")
        return _header(stream, member.file_size, member.compress_size)


def _header(stream: Any, size: int, stored: int) -> Header:
    version = np.lib.format.read_magic(stream)
    # The third version differs from the second only in the encoding of names.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return Header(shape, dtype, size - stream.tell(), stored)


def _array_file(
    source: str, names: tuple[str, ...], load: Callable[[str], Any], header: Callable[[str], Header]
) -> ArrayFile:
    kept: dict[str, NDArray[Any]] = {}

    @cache
    def declared(name: str) -> tuple[tuple[int, ...], Any]:
        with reading(source):
            shape, dtype, num_bytes, stored = header(name)
            if dtype.hasobject:
                raise DataError(object_message(source, name))
            what = f"array {name!r} ({shape_text(shape, dtype)})"
            if (needed := math.prod(shape) * dtype.itemsize) > num_bytes:
                raise ValueError(f"{what} takes {size_of(needed)}, and the file has {size_of(num_bytes)} for it")
            check_stored(source, what, shape, dtype, stored)
        return shape, dtype

    def read(name: str) -> NDArray[Any]:
        if name not in kept:
            shape, dtype = declared(name)
            check_held(source, f"array {name!r} ({shape_text(shape, dtype)})", shape, dtype)
            with reading(source):
                kept[name] = load(name)
        return kept[name]

    def describe(name: str) -> str:
        try:
            return shape_text(*declared(name))
        except DataError:
            return "not numbers"

    return ArrayFile(source, names, read, describe, lambda name: declared(name)[0], lambda name: declared(name)[1])
