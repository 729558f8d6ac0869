"""A table larger than memory, prepared in passes over its rows: cleaned, split and mapped, and never held whole.

The result is that of ``prepare`` for the same keys, bit for bit. In memory lie at a time a block of rows, and as many
whole columns as the budget allows, one at least: grids, quantiles and spreads are of whole columns. The rows keep the
file's order (``data.shuffle = "none"``), because a shuffle would read the file at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import Bounds, check_bounds, check_inside, moved_bounds
from sfg_dist.data.cleaning import atoms_report, find_constants, find_grids, missing_values, value_too_large
from sfg_dist.data.column_type import steps_of
from sfg_dist.data.grid import Grid
from sfg_dist.data.naming import check_columns
from sfg_dist.data.prepare import Prepared, check_parts, noise_rows, part_sizes, prepare
from sfg_dist.data.rows import RowReader, has_row_ranges, open_rows
from sfg_dist.data.table import BUILTIN_NAMES
from sfg_dist.data.transform import MAX_VALUE, Transform
from sfg_dist.job.errors import DataError

SCAN_ROWS = 1 << 16
EVALUATED_ROWS = 200_000  # of each part at most are held for the figures of a report
_COPIES = 5  # of a column while its curve is fitted: itself, spread out, sorted, counted

_Array = NDArray[np.float64]
Opener = Callable[[], AbstractContextManager[RowReader]]


@dataclass(frozen=True, eq=False)
class LargePrepared(Prepared):
    """A large table ready for the flow; ``train``, ``validation`` and ``test`` hold their first rows only.

    Attributes:
        open: opens the table.
        kept: rows of each scanned block that are complete, added up, shape (num_blocks + 1,).
        grids: of the columns that have one.
    """

    open: Opener
    kept: NDArray[np.int64]
    grids: Mapping[str, Grid]

    @property
    def is_whole(self) -> bool:
        """Not so: the rows are read again for each pass."""
        return False

    def train_blocks(self, block_rows: int) -> Iterator[_Array]:
        """All training rows in the user's units, ``block_rows`` at a time; on their grids."""
        with self.open() as reader:
            for start in range(0, self.num_train, block_rows):
                stop = min(start + block_rows, self.num_train)
                yield _snapped(_kept_rows(reader, self.kept, start, stop, self.columns), self.columns, self.grids)


def prepare_large(
    open_: Opener,
    *,
    missing: str = "refuse",
    constant: str = "refuse",
    dequantize: str | Mapping[str, float] = "auto",
    bounds: Bounds = "observed",
    max_rows: int | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    kind: str = "quantile",
    memory_bytes: int,
) -> LargePrepared:
    """Prepare a table in passes; arguments as for ``prepare``, with ``shuffle = "none"``.

    Args:
        open_: opens the table, columns chosen; called once for these passes and once for each later one.
        memory_bytes: what columns and their copies may take at a time; one column is taken in any case.

    Raises:
        DataError: the table cannot be used as it stands; the message says where and which key would help.
    """
    if missing not in ("refuse", "drop"):
        raise DataError(f'data.missing = {missing!r}: expected "refuse" or "drop"')
    with open_() as reader:
        source, names = reader.source, reader.columns
        types = dict(zip(names, reader.types, strict=True))
        kept = _scan(reader, missing)
        num_kept = int(kept[-1])
        sizes = part_sizes(min(num_kept, max_rows or num_kept), split)
        check_parts(source, num_kept, reader.num_rows, sizes, max_rows)
        num_train = sizes["train"]
        ends = _ends(reader, kept, num_kept)
        train_ends = _ends(reader, kept, num_train)
        everywhere = find_constants(source, ends, names, constant, types=reader.types)
        constants = everywhere | find_constants(
            source, train_ends, names, constant, where="the training rows", known=everywhere, types=reader.types
        )
        if isinstance(dequantize, Mapping):
            check_columns(source, names, list(dequantize), key="data.dequantize")
        check_bounds(source, names, bounds)
        bounds = moved_bounds(bounds, types)
        steps = steps_of(names, reader.types)
        flow_names = [name for name in names if name not in constants]
        grids: dict[str, Grid] = {}
        ties: dict[str, dict[str, Any]] = {}
        atoms: dict[str, dict[float, int]] = {}
        parts: list[Transform] = []
        at_once = max(1, memory_bytes // (_COPIES * 8 * num_kept))
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            columns = _kept_rows(reader, kept, 0, num_kept, some)
            for index, name in enumerate(some):
                values = np.ascontiguousarray(columns[:, index])
                asked = dequantize
                if isinstance(asked, Mapping):
                    asked = {name: asked[name]} if name in asked else {}
                found, reasons, repeated = find_grids(source, values[:, None], (name,), everywhere, asked, steps)
                ties |= reasons
                grids |= found
                atoms |= repeated
                noise = None
                if name in found:
                    values = found[name].snap(values)
                    if name in flow_names:
                        noise = _noise_column(seed, num_train, len(flow_names), flow_names.index(name))
                check_inside(source, name, values, bounds, types[name])
                passed: dict[str, Any] = {"kind": kind, "bounds": bounds, "noise": noise}
                if name in repeated:
                    passed["atoms"] = {name: np.array(list(repeated[name]))}
                fitted = _fit_column(values, num_train, name, constants.get(name), found.get(name), passed)
                parts.append(replace(fitted, types=(types[name],)))
        starts = {"train": 0, "validation": num_train, "test": num_train + sizes["validation"]}
        held = {
            part: _snapped(
                _kept_rows(reader, kept, start, start + min(sizes[part], EVALUATED_ROWS), names), names, grids
            )
            for part, start in starts.items()
        }
    return LargePrepared(
        source=source,
        **held,
        columns=names,
        transform=Transform.joined(parts),
        log_density=None,
        seed=seed,
        report={
            "source": source,
            "read_as": reader.read_as,
            "num_rows_read": reader.num_rows,
            "num_rows_dropped": reader.num_rows - num_kept,
            "constant": {name: types[name].shown(value) for name, value in constants.items()},
            "ties": ties,
            "atoms": atoms_report(atoms, grids, types, num_kept, kind),
            "split": sizes,
            "num_duplicate_train_rows": None,  # would take all rows at once
        },
        sizes=sizes,
        open=open_,
        kept=kept,
        grids=grids,
    )


def prepare_within(source: str | Path, *, memory_gib: float | None = None, **keys: Any) -> Prepared:
    """``prepare``, in passes where the table is larger than ``memory_gib`` and its keys and format allow it.

    Args:
        source: a built-in name, a path, or an ``s3://`` URL.
        memory_gib: larger tables are not held whole, if they are .parquet, .zarr or local .npy, with
            ``shuffle = "none"`` and neither ``append`` nor ``arrays``; None holds any.
        keys: as for ``prepare``.

    Raises:
        DataError: the table cannot be used as it stands.
    """
    source = str(source)
    in_order = keys.get("shuffle") == "none" and not keys.get("append") and keys.get("arrays") is None
    if memory_gib is None or not in_order or source in BUILTIN_NAMES or not has_row_ranges(source):
        return prepare(source, **keys)
    passed = {name: value for name, value in keys.items() if name not in ("shuffle", "append", "arrays", "text")}
    table = {name: passed.pop(name) for name in ("array", "columns", "identifiers") if name in passed}
    memory_bytes = int(memory_gib * 2**30)
    with open_rows(source, **table) as reader:
        if reader.num_bytes <= memory_bytes:
            return prepare(source, **keys)
        types = dict(zip(reader.columns, reader.types, strict=True))
    table = {"types": types} | {name: value for name, value in table.items() if name == "array"}
    if passed.pop("condition", None):
        raise DataError(
            f"{source} is larger than labels.memory_gib = {memory_gib:g}, and labels for data.condition need it whole: "
            f"raise it, or leave it out and lower data.max_rows"
        )
    return prepare_large(partial(open_rows, source, **table), memory_bytes=memory_bytes, **passed)


def _scan(reader: RowReader, missing: str) -> NDArray[np.int64]:
    """Complete rows up to each block's end, shape (num_blocks + 1,); a table with others is refused unless dropped."""
    kept, counts = [0], np.zeros(len(reader.columns), dtype=np.intp)
    first_bad = np.full(len(reader.columns), -1, dtype=np.intp)
    largest: tuple[float, int, int] | None = None
    for number, rows in enumerate(reader.blocks(SCAN_ROWS)):
        bad = ~np.isfinite(rows)
        counts += bad.sum(axis=0)
        for column in np.flatnonzero(bad.any(axis=0) & (first_bad < 0)):
            first_bad[column] = number * SCAN_ROWS + int(np.argmax(bad[:, column]))
        complete = ~bad.any(axis=1)
        kept.append(kept[-1] + int(complete.sum()))
        too_large: NDArray[np.bool_] = np.abs(rows) > MAX_VALUE
        beyond = np.argwhere(too_large & ~bad)
        if len(beyond) and largest is None:
            row, column = beyond[0]
            largest = float(rows[row, column]), number * SCAN_ROWS + int(row), int(column)
    if counts.any() and (missing == "refuse" or counts.max() == reader.num_rows):
        first_row = int(first_bad[np.flatnonzero(counts)[0]])
        raise missing_values(
            reader.source, reader.columns, counts, first_row, reader.num_rows - kept[-1], reader.num_rows
        )
    if largest is not None:
        raise value_too_large(reader.source, reader.columns[largest[2]], *largest[:2])
    return np.array(kept, dtype=np.int64)


def _kept_rows(reader: RowReader, kept: NDArray[np.int64], start: int, stop: int, columns: Sequence[str]) -> _Array:
    """Complete rows ``start`` to ``stop``, counted without the others, shape (stop - start, number of columns)."""
    if kept[-1] == reader.num_rows:
        return reader.read(start, stop, columns)
    values = np.empty((stop - start, len(columns)))
    first = int(np.searchsorted(kept, start, side="right")) - 1
    filled = 0
    for block in range(first, len(kept) - 1):
        if filled == len(values):
            break
        low, high = block * SCAN_ROWS, min((block + 1) * SCAN_ROWS, reader.num_rows)
        # A row is left out for a missing value in any column, wanted here or not.
        rows = reader.read(low, high)
        rows = rows[np.isfinite(rows).all(axis=1)][max(0, start - int(kept[block])) :]
        index = [reader.columns.index(name) for name in columns]
        part = rows[: len(values) - filled, index]
        values[filled : filled + len(part)] = part
        filled += len(part)
    return values


def _ends(reader: RowReader, kept: NDArray[np.int64], num_rows: int) -> _Array:
    """Smallest and largest values of the first complete rows, shape (2, num_columns)."""
    low, high = np.full(len(reader.columns), np.inf), np.full(len(reader.columns), -np.inf)
    for start in range(0, num_rows, SCAN_ROWS):
        rows = _kept_rows(reader, kept, start, min(start + SCAN_ROWS, num_rows), reader.columns)
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    return np.stack([low, high])


def _snapped(rows: _Array, names: Sequence[str], grids: Mapping[str, Grid]) -> _Array:
    for name, grid in grids.items():
        index = names.index(name)
        rows[:, index] = grid.snap(rows[:, index])
    return rows


def _fit_column(
    values: _Array,
    num_train: int,
    name: str,
    constant: float | None,
    grid: Grid | None,
    passed: Mapping[str, Any],
) -> Transform:
    """The map of one column; ``values`` of all parts, on their grid, ``passed`` on to ``Transform.fit``."""
    if constant is not None:
        return Transform.fit(values[:num_train, None], [name], kind=passed["kind"], constants={name: constant})
    return Transform.fit(
        values[:num_train, None],
        [name],
        steps={name: grid.step} if grid else {},
        offsets={name: grid.offset} if grid else {},
        limits={name: (float(values.min()), float(values.max()))} if grid else {},
        **passed,
    )


def _noise_column(seed: int, num_rows: int, dim: int, place: int) -> _Array:
    """One column of the dequantization noise, shape (num_rows, 1)."""
    noise = np.empty((num_rows, 1))
    for start in range(0, num_rows, SCAN_ROWS):
        stop = min(start + SCAN_ROWS, num_rows)
        noise[start:stop, 0] = noise_rows(seed, start, stop, dim)[:, place]
    return noise
