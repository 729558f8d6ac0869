"""Tables of samples: written as they are made, so their length is bounded by the disk alone."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, Array, ColumnType
from sfg_dist.data.naming import listed
from sfg_dist.job.errors import ConfigError, StoreError
from sfg_dist.job.object_stores import is_url, reason_of
from sfg_dist.job.paths import expanded, free_disk, nearest_there
from sfg_dist.job.words import size_of
from sfg_dist.store.checked import check_declared, checked_store, reading
from sfg_dist.store.location import Location
from sfg_dist.store.parts import Draw, ParquetTable, ParquetWriter, Progress, ZarrTable, attributes_of
from sfg_dist.store.text import check_csv, check_parquet, csv_header, csv_lines, npy_dtype, npy_rows

_LEAST_BYTES = {".zarr": 8.0, ".csv": 2.0, ".parquet": 1 / 64}  # of a cell; a .parquet may write one value many times
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.,]*(?:[eE][+-]?\d+)?%?$)")  # signed numbers are none
SUFFIXES = (".zarr", ".parquet", ".csv", ".npy")


def write_table(
    path: str | Path,
    columns: Sequence[str],
    num_rows: int,
    draw: Draw,
    *,
    source: str,
    types: Sequence[ColumnType] = (),
    share: tuple[int, int] = (0, 1),
    on_progress: Progress | None = None,
) -> int:
    """Write rows to .zarr, .parquet, .csv or .npy, each column in its own type.

    A .zarr (a group of the array ``X``, names as attribute) and a .parquet at a URL or with a slash at its end (a
    folder of files) are made part by part: what is there of the same source already is kept, so a killed writer goes on
    and several share the work. Any other is one local file, which replaces an older one once it is whole.

    A .zarr holds float64 of value - offset, and says the types with their offsets. A .npy has one type
    for all columns where one carries them, else records.

    Args:
        path: where; the suffix says the format, in upper or lower case.
        columns: column names.
        num_rows: how many.
        draw: the rows of ranges within 0 to num_rows, value - offset.
        source: what decides the rows; two calls of one source make the same table.
        types: of the columns; float64 for all if not given.
        share: (k, m) makes every m-th part from part k on, for a table in parts.
        on_progress: told of rows as they are made.

    Returns:
        Number of rows that are there at the end.

    Raises:
        ConfigError: the suffix is unknown, cannot be written to a URL, cannot be shared or cannot hold the types, or
            something else is there.
        StoreError: the place cannot be written.
    """
    name = str(path) if is_url(path) else expanded(os.fspath(path))
    place, suffix = name.rstrip("/"), Path(name.rstrip("/")).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: unknown format {suffix!r}; write to one of {', '.join(SUFFIXES)}")
    types = tuple(types) or (FLOAT,) * len(columns)
    if suffix == ".parquet":
        check_parquet(str(path), columns, types)
    is_in_parts = suffix == ".zarr" or (suffix == ".parquet" and (is_url(name) or name.endswith("/")))
    if not is_url(name):
        _require_kind(path, Path(place), is_folder=is_in_parts)
        _require_disk(path, Path(place), _LEAST_BYTES.get(suffix, 1.0) * len(columns) * num_rows / share[1], num_rows)
    if suffix == ".zarr":
        return ZarrTable(place, columns, num_rows, source, types).write(draw, share=share, on_progress=on_progress)
    if is_in_parts:
        return ParquetTable(place, columns, num_rows, source, types).write(draw, share=share, on_progress=on_progress)
    if is_url(name):
        raise ConfigError(f"{path}: only .zarr and .parquet can be written to a URL; write {suffix} to a local file")
    if share != (0, 1):
        raise ConfigError(f"{path}: only a table in parts is shared: a .zarr, or a .parquet with a slash at its end")

    def told() -> Iterable[NDArray[np.float64]]:
        for part in draw([(0, num_rows)] if num_rows else []):
            yield part
            if on_progress is not None:
                on_progress(len(part))

    _write_file(Path(place), columns, types, told())
    return num_rows


def _write_file(path: Path, columns: Sequence[str], types: Sequence[ColumnType], parts: Iterable[Array]) -> None:
    """One local file, which has its name once it is whole."""
    suffix = path.suffix.lower()
    dtype = npy_dtype(str(path), columns, types) if suffix == ".npy" else np.dtype(np.float64)
    if suffix == ".csv":
        check_csv(str(path), columns, types)
        _warn_of_formulas(path, columns, types)
    writers: dict[str, Callable[[BinaryIO], None]] = {
        ".parquet": lambda file: _write_parquet(file, columns, types, parts),
        ".csv": lambda file: _write_csv(file, columns, types, parts),
        ".npy": lambda file: _write_npy(file, path, columns, types, dtype, parts),
    }
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:  # never one that is there, nor what a link of that name leads to
            writers[suffix](file)
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _require_kind(path: str | Path, place: Path, *, is_folder: bool) -> None:
    """Refuse a place that something of another kind has taken, before the first row."""
    there = nearest_there(place)
    if there != place.absolute():
        if not there.is_dir():
            raise ConfigError(f"{path}: {there} is a file, so nothing can lie in it: choose another place")
    elif is_folder and not place.is_dir():
        otherwise = "" if place.suffix.lower() == ".zarr" else "leave out the slash at the end to replace it, or "
        raise ConfigError(
            f"{path}: {place} is a file, and a table in parts is a folder: {otherwise}choose another name"
        )
    elif not is_folder and place.is_dir():
        otherwise = f"write {place}/ for a table in parts, or " if place.suffix.lower() == ".parquet" else ""
        raise ConfigError(f"{path} is a folder, and this table is one file: {otherwise}choose another name")


def _require_disk(path: str | Path, place: Path, least_bytes: float, num_rows: int) -> None:
    """Refuse a table that cannot fit, before its first row; what lies there already is part of it, or is replaced."""
    free = free_disk(place)
    if least_bytes <= free:
        return
    there = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place.is_dir() else 0
    if least_bytes > free + there:
        raise ConfigError(
            f"{path}: {num_rows:,} rows take {size_of(least_bytes)} at the least, and {size_of(free + there)} are free "
            f"there: draw fewer, or choose a place with more room"
        )


def read_table(path: str | Path, *, source: str) -> NDArray[np.float64]:
    """Rows of a .zarr table that ``write_table`` made of ``source``, float64 of value - offset.

    Raises:
        StoreError: there is none, or another source made it.
    """
    import zarr

    location = Location(path) if is_url(path) or Path(path).is_dir() else None
    if location is None or not location.exists("zarr.json"):
        raise StoreError(f"{path} does not exist: run `sfg sample` with this job first")
    if attributes_of(location).get("source") != source:
        raise StoreError(
            f"{path} was drawn from another model or with other keys: run `sfg sample` with this job again"
        )
    with reading(f"{path}/X", "run `sfg sample` with this job again"):
        group = zarr.open_group(checked_store(location, read_only=True), mode="r", zarr_format=3)
        array: Any = group["X"]
        check_declared(location, "X", array)
        return np.asarray(array[...])


def _write_parquet(file: BinaryIO, columns: Sequence[str], types: Sequence[ColumnType], parts: Iterable[Array]) -> None:
    rows = iter(parts)
    first = next(rows, np.empty((0, len(columns))))
    with ParquetWriter(file, columns, types, first) as write:
        write(first)
        for part in rows:
            write(part)


def _warn_of_formulas(path: str | Path, columns: Sequence[str], types: Sequence[ColumnType]) -> None:
    """Say which texts a spreadsheet would take for formulas: they are written as they were given, to be read again."""
    for what, texts in (("names", columns), ("categories", [text for type_ in types for text in type_.categories])):
        if formulas := [text for text in texts if _FORMULA.match(text)]:
            warnings.warn(
                f"{path}: {listed(formulas)} would be taken for a formula by a spreadsheet, and {what} are written as "
                f"they are: import the file as text, or change them in the table",
                stacklevel=4,
            )


def _write_csv(file: BinaryIO, columns: Sequence[str], types: Sequence[ColumnType], parts: Iterable[Array]) -> None:
    text = io.TextIOWrapper(file, newline="", encoding="utf-8")
    text.write(csv_header(columns))
    for part in parts:
        text.write(csv_lines(types, part))
    text.flush()
    text.detach()


def _write_npy(
    file: BinaryIO,
    path: Path,
    columns: Sequence[str],
    types: Sequence[ColumnType],
    dtype: np.dtype[Any],
    parts: Iterable[Array],
) -> None:
    # The header of a .npy names the number of rows, so it is written over once they are counted.
    shape = (len(types),) if dtype.names is None else ()
    header = {"descr": np.lib.format.dtype_to_descr(dtype.newbyteorder("<")), "fortran_order": False}
    num_rows = 0
    np.lib.format.write_array_header_1_0(file, header | {"shape": (2**62, *shape)})
    length = file.tell()
    for part in parts:
        file.write(npy_rows(str(path), columns, types, part, dtype.newbyteorder("<")).tobytes())
        num_rows += len(part)
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header | {"shape": (num_rows, *shape)})
    assert file.tell() == length  # numpy pads headers to 64 bytes, so a shorter number takes the same room
