"""Tables of samples: written part by part, so their length is bounded by the disk alone."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.errors import ConfigError, StoreError
from sfg_dist.objects import is_url, reason_of
from sfg_dist.store.location import Location

if TYPE_CHECKING:
    from zarr.storage import ObjectStore

    ZarrPlace = Path | ObjectStore[Any]

CHUNK_ROWS = 65_536
SUFFIXES = (".zarr", ".parquet", ".csv", ".npy")


def write_table(
    path: str | Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]], *, source: str | None = None
) -> int:
    """Write rows to .zarr, .parquet, .csv or .npy; a local older table is replaced once the new one is whole.

    Args:
        path: where; the suffix says the format. A .zarr is a group of the array ``X``, names as attribute, and may be
            at an s3:// URL.
        columns: column names.
        parts: tables of rows, shape (some rows, number of columns) each.
        source: what the rows were made by, kept in the attributes of a .zarr, and written last.

    Returns:
        Number of rows written.

    Raises:
        ConfigError: the suffix is unknown, or cannot be written to a URL.
        StoreError: the place cannot be written.
    """
    writers = {".zarr": _write_zarr, ".parquet": _write_parquet, ".csv": _write_csv, ".npy": _write_npy}
    if is_url(path):
        return _write_remote_zarr(str(path).rstrip("/"), columns, parts, source)
    path = Path(path)
    if path.suffix not in writers:
        raise ConfigError(f"{path}: unknown format {path.suffix!r}; write to one of {', '.join(SUFFIXES)}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        num_rows = writers[path.suffix](partial, columns, parts)
        if source is not None and path.suffix == ".zarr":
            _set_source(partial, source)
        _remove(path)
        partial.rename(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason_of(error)}") from error
    return num_rows


def _write_remote_zarr(
    url: str, columns: Sequence[str], parts: Iterable[NDArray[np.float64]], source: str | None
) -> int:
    """An object store has no rename: what was there is removed first, and ``source`` makes the new table whole."""
    if not url.endswith(".zarr"):
        raise ConfigError(f"{url}: only a .zarr can be written to a URL; write another format to a local file")
    from obstore.exceptions import BaseError

    location = Location(url)
    for entry in list(location.list()):
        location.delete(entry.key)
    try:
        num_rows = _write_zarr(location.zarr_store(), columns, parts)
        if source is not None:
            _set_source(location.zarr_store(), source)
    except (BaseError, OSError) as error:
        raise StoreError(f"cannot write {location.url}: {reason_of(error)}") from error
    return num_rows


def read_table(path: str | Path, *, source: str) -> NDArray[np.float64]:
    """Rows of a .zarr table that ``write_table`` made.

    Args:
        path: a directory or an s3:// URL.
        source: what must have made it.

    Raises:
        StoreError: there is none, or another source made it.
    """
    import zarr

    location = Location(path) if is_url(path) or Path(path).is_dir() else None
    if location is None or not location.exists("zarr.json"):
        raise StoreError(f"{path} does not exist: run `sfg sample` with this job first")
    group = zarr.open_group(location.zarr_store(read_only=True), mode="r")
    if group.attrs.get("source") != source:
        raise StoreError(
            f"{path} was drawn from another model or with other keys: run `sfg sample` with this job again"
        )
    return np.asarray(group["X"][...])  # type: ignore[index]


def _set_source(place: ZarrPlace, source: str) -> None:
    import zarr

    zarr.open_group(place, mode="r+").attrs["source"] = source


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_zarr(place: ZarrPlace, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> int:
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(place, attributes={"columns": list(columns)})
    array = group.create_array(
        "X",
        shape=(0, len(columns)),
        chunks=(CHUNK_ROWS, len(columns)),
        dtype="float64",
        compressors=[Crc32cCodec()],
        fill_value=np.nan,
    )
    num_rows = 0
    for part in parts:
        array.resize((num_rows + len(part), len(columns)))
        array[num_rows : num_rows + len(part)] = part
        num_rows += len(part)
    return num_rows


def _write_parquet(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> int:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.float64()) for name in columns])
    num_rows = 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            writer.write_table(pyarrow.table(list(part.T), schema=schema))
            num_rows += len(part)
    return num_rows


def _write_csv(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> int:
    num_rows = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for part in parts:
            writer.writerows(part.tolist())
            num_rows += len(part)
    return num_rows


def _write_npy(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> int:
    # The header of a .npy names the number of rows, so it is written over once they are counted.
    header = {"descr": "<f8", "fortran_order": False}
    num_rows = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (2**62, len(columns))})
        length = file.tell()
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f8").tobytes())
            num_rows += len(part)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (num_rows, len(columns))})
        assert file.tell() == length  # numpy pads headers to 64 bytes, so a shorter number takes the same room
    return num_rows
