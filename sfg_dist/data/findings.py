"""What is found of each column of a table before its transform is fitted, and that fit, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import Bounds, check_bounds, check_covers, moved_bounds
from sfg_dist.data.cleaning import SCAN_ROWS, find_constants
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.described import TableReport
from sfg_dist.data.discreteness import Discreteness, check_dequantize, find_discreteness
from sfg_dist.data.fitting import ColumnFacts, fit_column
from sfg_dist.data.prepared import noise_rows
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.settings import TableSettings
from sfg_dist.data.transform import Transform

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found of the columns of a table over all of its complete rows."""

    reader: RowReader  # the complete rows
    settings: TableSettings  # what the job says of the table
    ends: _Array  # smallest and largest value of each column, shape (2, num_columns)
    constants: Mapping[str, float]  # columns that never change, with their value
    bounds: Bounds  # ``settings.bounds`` as the flow has them, less the offsets of the columns' types
    found: Mapping[str, Discreteness]  # what is discrete about each other column

    @classmethod
    def of(cls, reader: RowReader, ends: _Array, settings: TableSettings, columns_at_once: int) -> Findings:
        """Look at all columns of a table, so many at a time; ``ends`` as in the attributes."""
        source, names, types = reader.source, reader.columns, reader.types_by_name
        constants = find_constants(source, ends, types, settings.constant, where="all rows")
        check_dequantize(source, names, settings.dequantize)
        check_bounds(source, names, settings.bounds)
        bounds = moved_bounds(settings.bounds, types)
        found: dict[str, Discreteness] = {}
        for some, table in _batches(reader, columns_at_once):
            for index, name in enumerate(some):
                values = np.ascontiguousarray(table[:, index])
                if name not in constants:
                    found[name] = find_discreteness(source, name, values, settings.dequantize, types[name].step)
                if isinstance(bounds, Mapping) and name in bounds:
                    grid = found[name].grid if name in found else None
                    check_covers(source, name, grid.snap(values) if grid else values, bounds, types[name])
        return cls(reader, settings, ends, constants, bounds, found)

    def snap(self, rows: _Array, names: Sequence[str]) -> _Array:
        """Rows on the grids of their columns; the array given is changed."""
        for index, name in enumerate(names):
            if name in self.found and (grid := self.found[name].grid):
                rows[:, index] = grid.snap(rows[:, index])
        return rows

    def snapped(self, reader: RowReader) -> RowReader:
        """The table with its rows on their grids as they are read."""
        return replace(reader, fetch=lambda start, stop, names: self.snap(reader.read(start, stop, names), names))

    def fit(self, train: RowReader, train_ends: _Array, columns_at_once: int) -> Transform:
        """Fit the transform to the training rows, which are on their grids, so many columns at a time.

        ``train_ends`` are the smallest and largest value of each of their columns, shape (2, num_columns).
        """
        settings, types = self.settings, train.types_by_name
        constants = {**self.constants} | find_constants(
            train.source, train_ends, types, settings.constant, where="the training rows", known=list(self.constants)
        )
        flow = {name: place for place, name in enumerate(name for name in train.columns if name not in constants)}
        maps = []
        for some, table in _batches(train, columns_at_once):
            spread = [name for name in some if name in flow and self.found[name].grid]
            noise = _noise_columns(settings.seed, train.num_rows, len(flow), [flow[name] for name in spread])
            noise_of = dict(zip(spread, noise.T, strict=True))
            for index, name in enumerate(some):
                facts = self._facts(name, types[name], constants.get(name))
                values = np.ascontiguousarray(table[:, index])
                maps.append(fit_column(facts, values, settings.kind, self.bounds, noise_of.get(name)))
        return Transform.of_columns(settings.kind, maps)

    def _facts(self, name: str, type_: ColumnType, constant: float | None) -> ColumnFacts:
        if constant is not None:
            return ColumnFacts(name, type_, constant)
        found = self.found[name]
        # All rows, not the training rows alone, say what range a column measured in steps can take.
        ends = self.ends[:, self.reader.columns.index(name)]
        low, high = (found.grid.snap(ends) if found.grid else ends).tolist()
        return ColumnFacts(
            name, type_, None, found.grid, (low, high), np.array(list(found.atoms)) if found.atoms else None
        )

    def report(
        self, num_read: int, transform: Transform, sizes: Mapping[str, int], duplicates: int | None
    ) -> TableReport:
        """What is reported of the prepared table.

        ``num_read`` counts incomplete rows too, ``sizes`` the rows of each part, and ``duplicates`` the training rows
        that repeat an earlier one; None where they were not counted.
        """
        num_rows, kind, types = self.reader.num_rows, self.settings.kind, self.reader.types_by_name
        constants = zip(types.items(), transform.constants.tolist(), strict=True)
        return {
            "source": self.reader.source,
            "read_as": self.reader.read_as,
            "num_rows_read": num_read,
            "num_rows_dropped": num_read - num_rows,
            "constant": {name: type_.shown(value) for (name, type_), value in constants if value == value},
            "ties": {name: each.ties for name, each in self.found.items() if each.ties},
            "atoms": {
                name: each.report_atoms(types[name], num_rows, kind) for name, each in self.found.items() if each.atoms
            },
            "split": dict(sizes),
            "num_duplicate_train_rows": duplicates,
        }


def _batches(reader: RowReader, columns_at_once: int) -> Iterator[tuple[Sequence[str], _Array]]:
    """All rows of some columns at a time, shape (num_rows, some)."""
    for first in range(0, len(reader.columns), columns_at_once):
        some = reader.columns[first : first + columns_at_once]
        yield some, reader.read(0, reader.num_rows, some)


def _noise_columns(seed: int, num_rows: int, dim: int, places: Sequence[int]) -> _Array:
    """Some columns of the dequantization noise, shape (num_rows, number of places)."""
    noise = np.empty((num_rows, len(places)))
    for start in range(0, num_rows if places else 0, SCAN_ROWS):
        stop = min(start + SCAN_ROWS, num_rows)
        noise[start:stop] = noise_rows(seed, start, stop, dim)[:, places]
    return noise
