"""Files that numpy writes: .npy and .npz, whose headers are read before the arrays, and nothing is unpickled."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DataError


class Header(NamedTuple):
    """What an array declares.

    Attributes:
        shape: of the array.
        dtype: of its values.
        num_bytes: that the file has, or says to have, for its values.
        stored: bytes of it as they lie there, packed or not.
    """

    shape: tuple[int, ...]
    dtype: Any
    num_bytes: int
    stored: int


def check_magic(magic: bytes) -> None:
    """Refuse what does not begin as a .npy file.

    Raises:
        ValueError: in words for behind "cannot be read".
    """
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


def only_array(source: str, stream: Any) -> NDArray[Any]:
    """The array of a .npy file; the header was looked at before.

    Raises:
        DataError: more follows.
    """
    stream.seek(0)
    array: NDArray[Any] = np.load(stream, allow_pickle=False)
    check_end(source, bool(stream.read(1)))
    return array


def npy_header(stream: Any) -> Header:
    """The header of a .npy file."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return _header(stream, size, size)


def open_npz(stream: Any) -> Any:
    """A .npz file, none of whose arrays is read yet.

    Raises:
        ValueError: in words for behind "cannot be read".
    """
    if stream.read(4) not in (b"PK\3\4", b"PK\5\6"):  # else numpy tries to unpickle it
        raise ValueError("it is not a zip archive of arrays")
    stream.seek(0)
    return np.load(stream, allow_pickle=False)


def npz_header(source: str, archive: Any, name: str) -> Header:
    """The header of an array of a .npz file.

    Raises:
        DataError: it is none.
    """
    member = archive.zip.getinfo(name if name in archive.zip.NameToInfo else f"{name}.npy")
    with archive.zip.open(member) as stream:
        if stream.peek(6)[:6] != b"\x93NUMPY":
            raise DataError(f"{source}: {name!r} is not an array")
        return _header(stream, member.file_size, member.compress_size)


def _header(stream: Any, size: int, stored: int) -> Header:
    version = np.lib.format.read_magic(stream)
    # The third version differs from the second in how names are encoded alone.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return Header(shape, dtype, size - stream.tell(), stored)
