"""Tables of samples: written part by part, so their length is bounded by the disk alone."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.errors import ConfigError, StoreError
from sfg_dist.objects import reason_of

CHUNK_ROWS = 65_536
SUFFIXES = (".zarr", ".parquet", ".csv", ".npy")


def write_table(
    path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]], *, source: str | None = None
) -> int:
    """Write rows to .zarr, .parquet, .csv or .npy; an older table is replaced once the new one is whole.

    Args:
        path: where; the suffix says the format. A .zarr is a group of the array ``X``, names as attribute.
        columns: column names.
        parts: tables of rows, shape (some rows, number of columns) each.
        source: what the rows were made by, kept in the attributes of a .zarr.

    Returns:
        Number of rows written.

    Raises:
        ConfigError: the suffix is unknown.
        StoreError: the place cannot be written.
    """
    writers = {".zarr": _write_zarr, ".parquet": _write_parquet, ".csv": _write_csv, ".npy": _write_npy}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: unknown format {path.suffix!r}; write to one of {', '.join(SUFFIXES)}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        num_rows = writers[path.suffix](partial, columns, parts)
        if source is not None and path.suffix == ".zarr":
            import zarr

            zarr.open_group(partial, mode="r+").attrs["source"] = source
        _remove(path)
        partial.rename(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason_of(error)}") from error
    return num_rows


def read_table(path: Path, *, source: str) -> NDArray[np.float64]:
    """Rows of a .zarr table that ``write_table`` made.

    Raises:
        StoreError: there is none, or another source made it.
    """
    import zarr

    if not path.exists():
        raise StoreError(f"{path} does not exist: run `sfg sample` with this job first")
    group = zarr.open_group(path, mode="r")
    if group.attrs.get("source") != source:
        raise StoreError(
            f"{path} was drawn from another model or with other keys: run `sfg sample` with this job again"
        )
    return np.asarray(group["X"][...])  # type: ignore[index]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_zarr(path: Path, columns: Sequence[str], parts: Iterable[NDArray[np.float64]]) -> int:
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(path, attributes={"columns": list(columns)})
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
