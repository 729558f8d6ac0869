"""What is found of each column of a table before its transform is fitted, and that fit, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.association import Orders, find_orders
from sfg_dist.data.bounds import Bounds, check_bounds, check_covers, moved_bounds
from sfg_dist.data.cleaning import SCAN_ROWS, find_constants
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.csv_columns import MISSING
from sfg_dist.data.dependencies import Lookup, find_lookups, first_value
from sfg_dist.data.described import TableReport
from sfg_dist.data.discreteness import Discreteness, check_dequantize, find_discreteness
from sfg_dist.data.fitting import ColumnFacts, fit_column
from sfg_dist.data.prepared import noise_rows
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.settings import TableSettings
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import DataError

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found of the columns of a table over all of its complete rows."""

    reader: RowReader  # the complete rows
    settings: TableSettings  # what the job says of the table
    ends: _Array  # ``column_ends`` of these rows
    constants: Mapping[str, float]  # columns that never change, with their value
    bounds: Bounds  # ``settings.bounds`` as the flow has them, less the offsets of the columns' types
    found: Mapping[str, Discreteness]  # what is discrete about each other column
    lookups: tuple[Lookup, ...] = ()  # of the columns that others determine

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
                values = values[~np.isnan(values)] if ends[2, names.index(name)] else values
                if types[name].is_coded:
                    _refuse_coded(source, name, settings)
                    found[name] = Discreteness(levels=np.arange(float(len(types[name].categories))))
                elif name not in constants:
                    is_one = values.min() == values.max()  # beside missing values
                    found[name] = (
                        Discreteness(levels=values[:1])
                        if is_one
                        else find_discreteness(source, name, values, settings.dequantize, types[name].step)
                    )
                if isinstance(bounds, Mapping) and name in bounds:
                    grid = found[name].grid if name in found else None
                    check_covers(source, name, grid.snap(values) if grid else values, bounds, types[name])
        return cls(reader, settings, ends, constants, bounds, found)

    def with_lookups(self, snapped: RowReader) -> Findings:
        """With the columns that others determine in all rows, which are on their grids."""
        if self.settings.dependencies not in ("auto", "ignore"):
            raise DataError(f'data.dependencies = {self.settings.dependencies!r}: expected "auto" or "ignore"')
        if self.settings.dependencies == "ignore":
            return self
        gaps = dict(zip(self.reader.columns, self.ends[2], strict=True))
        levels = {
            name: np.append(each.levels, np.nan) if gaps[name] else each.levels
            for name, each in self.found.items()
            if len(each.levels) and name not in self.constants
        }
        never = [*self.constants, *(self.settings.condition or ())]
        return replace(self, lookups=find_lookups(snapped, levels, never))

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

        ``train_ends`` are their ``column_ends``.
        """
        settings, types = self.settings, train.types_by_name
        constants = {**self.constants} | find_constants(
            train.source, train_ends, types, settings.constant, where="the training rows", known=list(self.constants)
        )
        lookups = [each for each in self.lookups if train.columns[each.by] not in constants]
        looked_up = {train.columns[each.column]: first_value(each.values) for each in lookups}
        constants = looked_up | constants
        lookups = [each for each in lookups if train.columns[each.column] in looked_up]
        flow = {name: place for place, name in enumerate(name for name in train.columns if name not in constants)}
        orders = find_orders(train, list(flow), self.ends[2] > 0)
        maps = []
        for some, table in _batches(train, columns_at_once):
            spread = [name for name in some if name in flow and self._has_noise(name, types[name])]
            noise = _noise_columns(settings.seed, train.num_rows, len(flow), [flow[name] for name in spread])
            noise_of = dict(zip(spread, noise.T, strict=True))
            for index, name in enumerate(some):
                facts = self._facts(name, types[name], constants.get(name), orders)
                values = np.ascontiguousarray(table[:, index])
                maps.append(fit_column(facts, values, settings.kind, self.bounds, noise_of.get(name)))
        return Transform.of_columns(settings.kind, maps, lookups)

    def _has_noise(self, name: str, type_: ColumnType) -> bool:
        """Whether a column is fitted with its noise."""
        return self.found[name].grid is not None or (type_.is_coded and self.settings.kind == "standardize")

    def _facts(self, name: str, type_: ColumnType, constant: float | None, orders: Orders) -> ColumnFacts:
        if constant is not None:
            return ColumnFacts(name, type_, constant)
        if name in orders.codes:
            return ColumnFacts(name, type_, order=orders.codes[name])
        found = self.found[name]
        # All rows, not the training rows alone, say what range a column measured in steps can take.
        ends = self.ends[:2, self.reader.columns.index(name)]
        low, high = (found.grid.snap(ends) if found.grid else ends).tolist()
        atoms = np.array(list(found.atoms)) if found.atoms else None
        missing = orders.sides.get(name, 0)
        return ColumnFacts(name, type_, None, found.grid, (low, high), atoms, missing=missing)

    def report(
        self, num_read: int, transform: Transform, sizes: Mapping[str, int], duplicates: int | None
    ) -> TableReport:
        """What is reported of the prepared table.

        ``num_read`` counts incomplete rows too, ``sizes`` the rows of each part, and ``duplicates`` the training rows
        that repeat an earlier one; None where they were not counted.
        """
        num_rows, kind, types = self.reader.num_rows, self.settings.kind, self.reader.types_by_name
        columns = self.reader.columns
        determined = transform.determined
        constants = zip(types.items(), transform.constants.tolist(), strict=True)
        gaps = zip(columns, self.ends[2].tolist(), strict=True)
        return {
            "source": self.reader.source,
            "read_as": self.reader.read_as,
            "num_rows_read": num_read,
            "num_rows_dropped": num_read - num_rows,
            "constant": {
                name: type_.shown(value)
                for (name, type_), value in constants
                if value == value and name not in determined
            },
            "categories": {name: len(type_.categories) for name, type_ in types.items() if type_.is_coded},
            "kept_words": {
                name: words
                for name, type_ in types.items()
                if (words := [text for text in type_.categories if text.strip() in MISSING])
            },
            "missing": {name: number / num_rows for name, number in gaps if number},
            "determined": determined,
            "ties": {name: each.ties for name, each in self.found.items() if each.ties},
            "atoms": {
                name: each.report_atoms(types[name], num_rows, kind) for name, each in self.found.items() if each.atoms
            },
            "split": dict(sizes),
            "num_duplicate_train_rows": duplicates,
        }


def _refuse_coded(source: str, name: str, settings: TableSettings) -> None:
    """Refuse steps and ranges of a column of categories."""
    for key, given in (("dequantize", settings.dequantize), ("bounds", settings.bounds)):
        if not isinstance(given, str) and name in given:
            raise DataError(f"{source}: data.{key} names column {name!r}, which holds categories: leave it out there")


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
