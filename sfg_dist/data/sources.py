"""Where a table lies: a local path or an S3 object, opened as bytes, by ranges of bytes, or as a Zarr node.

``sfg_dist.job.object_stores`` says how object stores are opened.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from sfg_dist.job.errors import DataError
from sfg_dist.job.memory import usable_bytes
from sfg_dist.job.object_stores import NO_CREDENTIALS, is_url, lacks_credentials, open_objects, plain_reason
from sfg_dist.job.paths import expanded
from sfg_dist.job.words import size_of

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
HDF5_SUFFIXES = (".h5", ".hdf5", ".nc")
KNOWN_SUFFIXES = (".npy", ".npz", *TEXT_SUFFIXES, ".parquet", *HDF5_SUFFIXES, ".zarr")
_PACKED_SUFFIXES = (".gz", ".zst", ".bz2")


def suffix_of(source: str) -> str:
    """The format of a source by its name, in lower case, with the dot; empty if the name has none.

    Examples:
        >>> suffix_of("s3://bucket/run.ZARR/"), suffix_of("table.csv.gz")
        ('.zarr', '.csv')
    """
    path = PurePosixPath(source.rstrip("/"))
    inner = PurePosixPath(path.stem).suffix.lower()
    if path.suffix.lower() in _PACKED_SUFFIXES and inner in TEXT_SUFFIXES:
        return inner
    return path.suffix.lower()


def is_text(source: str) -> bool:
    """Whether a source is text by its name: .csv, .tsv or .txt, packed or not."""
    return suffix_of(source) in TEXT_SUFFIXES


def local_path(source: str) -> Path:
    """A local source as a path; a ``~`` at its front is the home, and in ``./~/a.csv`` a name."""
    return Path(expanded(source))


class AbsentError(DataError):
    """A source is not there."""


def existing_path(source: str) -> Path:
    """The path of a local source.

    Raises:
        AbsentError: it does not exist.
    """
    path = local_path(source)
    if not path.exists():
        raise AbsentError(f"{path} does not exist (current directory: {Path.cwd()})")
    return path


@contextmanager
def open_bytes(source: str) -> Iterator[BinaryIO]:
    """Open a file, or fetch an object, as a binary stream that can seek; an empty one is refused.

    Raises:
        AbsentError: it does not exist.
    """
    if is_url(source):
        data = _fetch(source)
        if not data:
            raise DataError(f"{source} is empty (0 bytes): expected a table")
        yield io.BytesIO(data)
        return
    path = existing_path(source)
    if path.is_dir():
        raise DataError(f"{source} is a folder: expected a file")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{source} cannot be opened: {error.strerror}") from error
    with stream:
        if path.stat().st_size == 0:
            raise DataError(f"{source} is empty (0 bytes): expected a table")
        yield stream


@contextmanager
def open_ranges(source: str) -> Iterator[Any]:
    """Open a file, or an object, of which parts are read.

    Raises:
        AbsentError: it does not exist.
    """
    if not is_url(source):
        with open_bytes(source) as stream:
            yield stream
        return
    store, key = open_bucket(source)
    with reading(source):
        try:
            object_ = _ObjectFile(store, key)
        except FileNotFoundError:
            raise AbsentError(f"{source} does not exist") from None
    with io.BufferedReader(object_, buffer_size=1 << 20) as buffered:
        yield buffered


def open_zarr(source: str) -> Any:
    """Open a Zarr group or array for reading; ``CheckedStore`` checks what is read of it."""
    import zarr
    import zarr.storage

    from sfg_dist.data.zarr_store import CheckedStore

    if is_url(source):
        bucket, prefix = open_bucket(source)
        store = CheckedStore(zarr.storage.ObjectStore(bucket, read_only=True), source)
    else:
        root, prefix = existing_path(source), ""
        store = CheckedStore(zarr.storage.LocalStore(root, read_only=True), source, root)
    with reading(source):
        try:
            return zarr.open(store, path=prefix, mode="r")
        except FileNotFoundError:
            raise DataError(f"{source} holds no Zarr group or array (no zarr.json, .zgroup or .zarray)") from None


def open_bucket(url: str) -> tuple[Any, str]:
    """The bucket of an ``s3://bucket/key`` URL as an obstore store, and the key."""
    from obstore.exceptions import BaseError

    parts = urlsplit(url)
    key = parts.path.strip("/")
    if parts.scheme != "s3":
        raise DataError(f"{url}: expected a local path or an s3:// URL, found the scheme {parts.scheme}://")
    if not parts.netloc or not key:
        raise DataError(f"{url}: expected s3://bucket/key")
    try:
        return open_objects(f"s3://{parts.netloc}"), key
    except BaseError as error:
        raise DataError(f"{url} cannot be opened: {plain_reason(error)}") from error


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn whatever a format's library raises over a damaged file into one DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # anything may come here, from struct.error to SyntaxError
        if is_url(source) and lacks_credentials(error):
            raise DataError(f"{source} cannot be fetched: {NO_CREDENTIALS}") from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        # What pyarrow and json say is for developers.
        helps = suffix_of(source) != ".parquet" and not type(error).__module__.startswith(("pyarrow", "json"))
        said = f" ({reason})" if helps else ""
        raise DataError(
            f"{source} cannot be read as {suffix_of(source)}: the file is damaged or of another format{said}"
        ) from error


def _fetch(url: str) -> bytes:
    import obstore
    from obstore.exceptions import BaseError

    store, key = open_bucket(url)
    try:
        found = obstore.get(store, key)
        if (size := found.meta["size"]) > (memory := usable_bytes()):
            raise DataError(
                f"{url} has {size_of(size)}, and {size_of(memory)} are all the memory that may be used: put fewer rows "
                "or columns into it"
            )
        return bytes(found.bytes())
    except FileNotFoundError:
        raise AbsentError(f"{url} does not exist") from None
    except (BaseError, OSError) as error:
        raise DataError(f"{url} cannot be fetched: {plain_reason(error)}") from error


class _ObjectFile(io.RawIOBase):
    """An object of a bucket as a file: every read is one request for a range."""

    def __init__(self, store: Any, key: str) -> None:
        import obstore

        self._store, self._key, self._place = store, key, 0
        self._size = int(obstore.head(store, key)["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        import obstore

        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0
        buffer[:length] = memoryview(obstore.get_range(self._store, self._key, start=self._place, length=length))
        self._place += length
        return length
