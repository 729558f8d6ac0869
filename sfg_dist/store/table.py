"""Tables of samples: written as they are made, so their length is bounded by the disk alone."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.errors import ConfigError, StoreError
from sfg_dist.objects import is_url, reason_of
from sfg_dist.store.location import Location
from sfg_dist.store.parts import Draw, ParquetTable, ParquetWriter, Progress, ZarrTable, attributes_of

SUFFIXES = (".zarr", ".parquet", ".csv", ".npy")


def write_table(
    path: str | Path,
    columns: Sequence[str],
    num_rows: int,
    draw: Draw,
    *,
    source: str,
    share: tuple[int, int] = (0, 1),
    on_progress: Progress | None = None,
) -> int:
    """Write rows to .zarr, .parquet, .csv or .npy.

    A .zarr (a group of the array ``X``, names as attribute) and a .parquet at a URL or with a slash at its end (a
    folder of files) are made part by part: what is there of the same source already is kept, so a killed writer goes on
    and several share the work. Any other is one local file, which replaces an older one once it is whole.

    Args:
        path: where; the suffix says the format.
        columns: column names.
        num_rows: how many.
        draw: the rows of ranges within 0 to num_rows.
        source: what decides the rows; two calls of one source make the same table.
        share: (k, m) makes every m-th part from part k on, for a table in parts.
        on_progress: told of rows as they are made.

    Returns:
        Number of rows that are there at the end.

    Raises:
        ConfigError: the suffix is unknown, cannot be written to a URL or cannot be shared, or something else is there.
        StoreError: the place cannot be written.
    """
    name = str(path)
    place, suffix = name.rstrip("/"), Path(name.rstrip("/")).suffix
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: unknown format {suffix!r}; write to one of {', '.join(SUFFIXES)}")
    in_parts = suffix == ".zarr" or (suffix == ".parquet" and (is_url(name) or name.endswith("/")))
    if in_parts:
        kind = ZarrTable if suffix == ".zarr" else ParquetTable
        table = kind(Location(place, create=True), columns, num_rows, source)
        return table.write(draw, share=share, on_progress=on_progress)
    if is_url(name):
        raise ConfigError(f"{path}: only .zarr and .parquet can be written to a URL; write {suffix} to a local file")
    if share != (0, 1):
        raise ConfigError(f"{path}: only a table in parts is shared: a .zarr, or a .parquet with a slash at its end")

    def told() -> Iterable[NDArray[np.float64]]:
        for part in draw([(0, num_rows)] if num_rows else []):
            yield part
            if on_progress is not None:
                on_progress(len(part))

    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".npy": _write_npy}
    target = Path(place)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writers[suffix](partial, columns, told())
        partial.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
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
    if attributes_of(location).get("source") != source:
        raise StoreError(
            f"{path} was drawn from another model or with other keys: run `sfg sample` with this job again"
        )
    group = zarr.open_group(location.zarr_store(read_only=True), mode="r")
    return np.asarray(group["X"][...])  # type: ignore[index]


def _write_parquet(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> None:
    rows = iter(parts)
    first = next(rows, np.empty((0, len(columns))))
    with ParquetWriter(path, columns, first) as write:
        write(first)
        for part in rows:
            write(part)


def _write_csv(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for part in parts:
            writer.writerows(part.tolist())


def _write_npy(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> None:
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
