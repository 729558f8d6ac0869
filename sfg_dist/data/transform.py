"""The invertible map between the user's rows and the flow's rows, column by column.

    user's rows, float64 (num_rows, num_columns)  <->  flow's rows, float32 (num_rows, dim)

- A constant column is left out on the way in and put back on the way out.
- A column on a grid is spread over its cells before the map (``value + noise * step``, noise in [0, 1)), and floored
  back to its grid after the inverse map, within the range of cells that the table had.
- Single values that repeat (``atoms``) are spread over intervals of scores by the same noise, and come back exactly.
  Only the "quantile" kind can do that.
- Each other column is mapped as it stands, and back into its range (``bounds``).
- Each category has an interval of scores of its share, and so has a missing value, in a column of numbers or categories
  (``coding``). They take the noise and come back as atoms do.
- A column that another one determines is left out on the way in, and looked up on the way out (``dependencies``).

All is numpy, and is saved as plain arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import FREE, Bounds, check_bounds, reflect
from sfg_dist.data.coding import Coding, are_plain, codings_to_arrays
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.dependencies import Lookup, lookups_to_arrays
from sfg_dist.data.fitting import KINDS, ColumnFacts, ColumnMap, fit_column
from sfg_dist.data.grid import Grid
from sfg_dist.data.quantile import Curve, curves_to_arrays
from sfg_dist.data.saved_transform import SHAPES, saved_fields
from sfg_dist.data.tails import Tail, tails
from sfg_dist.job.errors import DataError

MAX_VALUE = 1e100

_Array = NDArray[np.float64]


class TransformWords(TypedDict):
    """What a saved map is beside its numbers."""

    kind: str
    columns: list[str]
    types: list[dict[str, str | int | list[str] | None]]


@dataclass(frozen=True, eq=False)
class Transform:
    """A fitted map; make one with ``fit``."""

    kind: str  # "quantile", "standardize" or "none"
    columns: tuple[str, ...]  # names of the user's columns
    constants: _Array  # value of each constant column and NaN for the others, shape (num_columns,)
    steps: _Array  # step of each flow column, 0 for none, shape (dim,)
    offsets: _Array  # value of cell 0 of each flow column, shape (dim,)
    cell_ranges: _Array  # first and last cell that inverse gives, shape (dim, 2)
    # taken off a flow column on a grid before it is mapped, where the grid is far from 0 or float32 would not hold it
    # ("none"); else 0, shape (dim,)
    origins: _Array
    bounds: _Array  # smallest and largest value that inverse gives a column without a grid, shape (dim, 2)
    location: _Array  # subtracted from each flow column ("standardize"), shape (dim,)
    scale: _Array  # then divided by, > 0, shape (dim,)
    tails: _Array  # scale and shape of the law beyond both ends of each curve, scale 0 for none, shape (dim, 2, 2)
    curves: tuple[Curve, ...]  # one a flow column ("quantile"), else empty
    # of the user's columns, whose value - offset the rows hold; float64 for all if not given
    types: tuple[ColumnType, ...] = ()
    codings: tuple[Coding, ...] = ()  # of the flow's columns; plain for all if not given
    lookups: tuple[Lookup, ...] = ()  # of the columns that others determine, in the order of the table

    def __post_init__(self) -> None:
        if not self.types:
            object.__setattr__(self, "types", (FLOAT,) * len(self.columns))
        if not self.codings:
            object.__setattr__(self, "codings", (Coding(),) * len(self.steps))

    @property
    def dim(self) -> int:
        """Number of flow columns."""
        return len(self.steps)

    @property
    def flow_columns(self) -> tuple[str, ...]:
        """Names of the columns that the flow sees, in its order."""
        return tuple(np.array(self.columns, dtype=object)[np.isnan(self.constants)])

    @classmethod
    def fit(
        cls,
        rows: _Array,
        columns: Sequence[str],
        *,
        kind: str = "quantile",
        constants: Mapping[str, float] | None = None,
        steps: Mapping[str, float | Grid] | None = None,
        atoms: Mapping[str, _Array] | None = None,
        bounds: Bounds = "observed",
        noise: _Array | None = None,
    ) -> Transform:
        """Fit the map to training rows.

        Args:
            rows: finite, in the user's units, shape (num_rows, num_columns).
            columns: one name a column.
            kind: "quantile", "standardize" or "none".
            constants: columns that the flow does not see, with the value that ``inverse`` gives them.
            steps: columns to dequantize, with their grid, or its step from their smallest value.
            atoms: values of columns that are to come back exactly; see ``ColumnFacts``.
            bounds: "observed" for the range of ``rows``, "none", or the range of some columns, which holds all
                their values.
            noise: in [0, 1), shape (num_rows, dim); None puts every value at the middle of its cell.

        Raises:
            DataError: a column is constant and not among ``constants``, holds a value that is not finite or beyond
                1e100, or has values that float32 makes one (kind "none"). ``bounds`` have another form, or no column.

        Examples:
            >>> rows = np.array([[1.0, 5.0], [2.0, 5.0]])
            >>> transform = Transform.fit(rows, ["a", "b"], kind="standardize", constants={"b": 5.0})
            >>> transform.inverse(transform.forward(rows)).round(5)
            array([[1., 5.],
                   [2., 5.]])
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
        check_bounds("Transform.fit", columns, bounds)
        rows = _check_rows(rows, len(columns), columns)
        if np.isnan(rows).any():
            raise DataError(
                f"column {columns[int(np.argwhere(np.isnan(rows))[0][1])]!r} holds nan: expected finite numbers"
            )
        constants, steps, atoms = constants or {}, steps or {}, atoms or {}
        kept = [name for name in columns if name not in constants]
        if noise is not None and noise.shape != (len(rows), len(kept)):
            raise DataError(f"noise has shape {noise.shape}: expected (num_rows, dim) = {len(rows), len(kept)}")
        maps = []
        for index, name in enumerate(columns):
            values, step = np.ascontiguousarray(rows[:, index]), steps.get(name)
            grid = step if step is None or isinstance(step, Grid) else Grid(step, float(values.min()))
            facts = ColumnFacts(name, constant=constants.get(name), grid=grid, atoms=atoms.get(name))
            drawn = noise[:, kept.index(name)] if noise is not None and name in kept else None
            maps.append(fit_column(facts, values, kind, bounds, drawn))
        return cls.of_columns(kind, maps)

    @classmethod
    def of_columns(cls, kind: str, maps: Sequence[ColumnMap], lookups: Sequence[Lookup] = ()) -> Transform:
        """The map of a table out of those of its columns, in their order.

        Columns of ``lookups`` have a constant, which stands for them until they are looked up.
        """
        facts, flow = [each.facts for each in maps], [each for each in maps if each.facts.constant is None]
        grids = [each.facts.grid for each in flow]
        return cls(
            kind=kind,
            columns=tuple(each.name for each in facts),
            constants=np.array([np.nan if each.constant is None else each.constant for each in facts]),
            steps=np.array([grid.step if grid else 0.0 for grid in grids]),
            offsets=np.array([grid.offset if grid else 0.0 for grid in grids]),
            cell_ranges=np.array([each.cell_range for each in flow]).reshape(-1, 2),
            origins=np.array([each.origin for each in flow]),
            bounds=np.array([each.bounds for each in flow]).reshape(-1, 2),
            location=np.array([each.location for each in flow]),
            scale=np.array([each.scale for each in flow]),
            tails=np.array([each.tails for each in flow]).reshape(-1, 2, 2),
            curves=tuple(each.curve for each in flow if each.curve is not None),
            types=tuple(each.type for each in facts),
            codings=tuple(each.coding for each in flow),
            lookups=tuple(lookups),
        )

    @property
    def determined(self) -> dict[str, str]:
        """The columns that are looked up, each with the one that determines it."""
        return {self.columns[lookup.column]: self.columns[lookup.by] for lookup in self.lookups}

    def forward(self, rows: _Array, *, noise: _Array | None = None) -> NDArray[np.float32]:
        """Map the user's rows, shape (num_rows, num_columns), to the flow's, shape (num_rows, dim).

        The rows are finite, but for missing values as NaN in columns whose training rows had some. Columns that others
        determine are not looked at; ``check_lookups`` does that.

        Where the noise puts a value at the very edge of its cell, and float32 would miss that cell, the value goes to
        the middle of the cell. A value beyond the training rows follows the law of its end (``tails``).
        ``noise`` lies in [0, 1), shape (num_rows, dim); None stands for the middle of each value's cell, and for that
        of an atom's interval.

        Raises:
            DataError: the shape is wrong, a value is missing where the training rows had none, or is not finite or too
                large for float32.
        """
        spread = self._spread_rows(rows, noise)
        places = np.broadcast_to(0.5, spread.shape) if noise is None else noise
        flow_rows = np.empty(spread.shape, dtype=np.float32)
        for index in range(self.dim):
            column, grid = spread[:, index], self._inner_grid(index)
            mapped = self._to_flow(index, column, places[:, index])
            if grid:
                wanted = grid.cells(column)
                missed = grid.cells(self._from_flow(index, mapped.astype(np.float64))) != wanted
                middles = grid.offset + (wanted[missed] + 0.5) * grid.step
                mapped[missed] = self._to_flow(index, middles, places[missed, index])
            flow_rows[:, index] = mapped
        return flow_rows

    def inverse(self, flow_rows: NDArray[Any]) -> _Array:
        """Map the flow's rows, (num_rows, dim), to the user's: on the grid of a column, else within its bounds.

        A missing value is NaN.
        """
        flow_rows = np.asarray(flow_rows, dtype=np.float64)
        if flow_rows.ndim != 2 or flow_rows.shape[1] != self.dim:
            raise DataError(f"flow rows have shape {flow_rows.shape}: expected (num_rows, {self.dim})")
        rows = np.tile(self.constants, (len(flow_rows), 1))
        for index, source in enumerate(np.flatnonzero(np.isnan(self.constants))):
            rows[:, source] = self.inverse_of(index, flow_rows[:, index])
        return self.looked_up(rows)

    def inverse_of(self, index: int, flow_values: _Array) -> _Array:
        """The user's values of one flow column alone, float64, shape (num_rows,) in and out; see ``inverse``."""
        coding, values = self.codings[index], self._from_flow(index, flow_values)
        grid, inner = self.grid(index), self._inner_grid(index)
        if inner and coding.places is not None:
            values = inner.cells(values)
        values = coding.decode(values)
        if grid and inner and coding.places is None:
            values = grid.values(inner.cells(values).clip(*self.cell_ranges[index]))
        return values

    def looked_up(self, rows: _Array) -> _Array:
        """The user's rows with the columns that others determine looked up; the array given is changed."""
        for lookup in self.lookups:
            rows[:, lookup.column] = lookup.look_up(rows[:, lookup.by])
        return rows

    def check_lookups(self, rows: _Array) -> None:
        """Refuse user's rows in which a column has not the value that the one which determines it says.

        Values that miss those of the table by rounding alone count as the same.

        Raises:
            DataError: with the first such pair of values.
        """
        flow = np.flatnonzero(np.isnan(self.constants)).tolist()
        for lookup in self.lookups:
            snapped = rows
            if grid := self.grid(flow.index(lookup.by)):
                snapped = rows.copy()
                with np.errstate(invalid="ignore"):  # what is not finite is refused by ``forward``
                    snapped[:, lookup.by] = grid.snap(rows[:, lookup.by])
            is_rounded = self.types[lookup.column].kind in ("float", "decimal")
            if (differs := lookup.differs(snapped, is_rounded=is_rounded)).any():
                row = int(np.argmax(differs))
                (name, value), (by, key) = (
                    (self.columns[place], self.types[place].shown(rows[row, place]))
                    for place in (lookup.column, lookup.by)
                )
                raise DataError(
                    f"column {name!r} is {value} and column {by!r} is {key} in row {row} (counted from 0): no row of "
                    f"the table has both, and {by!r} determines {name!r} (data.dependencies)"
                )

    def coded(self, rows: _Array) -> _Array:
        """The user's rows as finite numbers for figures: places of categories, and what stands for a missing value."""
        if not self.lookups and are_plain(self.codings):
            return rows
        found = np.array(rows, dtype=np.float64)
        for index, place in enumerate(np.flatnonzero(np.isnan(self.constants))):
            coding, inner = self.codings[index], found[:, place] - self.origins[index]
            known = ~np.isnan(inner) | (not np.isnan(coding.missing))
            found[known, place] = coding.encode(inner[known], self.columns[place]) + self.origins[index]
        for lookup in self.lookups:
            column, ends = found[:, lookup.column], lookup.values[~np.isnan(lookup.values)]
            below = ends.min() - max(np.ptp(ends) / 8, 1.0) if len(ends) else 0.0
            found[:, lookup.column] = np.where(np.isnan(column), below, column)
        return found

    def log_det_jacobian(self, rows: _Array, *, noise: _Array | None = None) -> _Array:
        """log |d flow row / d user row| over the flow's columns, shape (num_rows,).

        The log density of user rows is that of their flow rows plus this. A column with a step counts as spread out
        over its cells. An atom counts as a point: for a flow that is normal, its density is its share, without a unit,
        wherever in its interval the noise puts it.
        """
        spread = self._spread_rows(rows, noise)
        places = np.broadcast_to(0.5, spread.shape) if noise is None else noise
        if self.curves:
            slopes = [self._log_slope(index, spread[:, index], places[:, index]) for index in range(self.dim)]
            return np.sum(slopes, axis=0)
        return np.full(len(spread), -np.log(self.scale).sum())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers of the map, for a file of named arrays; ``to_metadata`` gives the rest."""
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in ("constants", *SHAPES)}
        if self.curves:
            arrays |= curves_to_arrays(self.curves)
        return arrays | codings_to_arrays(self.codings) | lookups_to_arrays(self.lookups)

    def to_metadata(self) -> TransformWords:
        """The words of the map, for JSON."""
        types = [type_.to_dict() for type_ in self.types]
        return {"kind": self.kind, "columns": list(self.columns), "types": types}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> Transform:
        """The map that ``to_arrays`` and ``to_metadata`` wrote, bit for bit.

        Raises:
            DataError: an array is missing or does not fit the others, or the words are not those of a transform.
        """
        return cls(**saved_fields(arrays, metadata))

    def grid(self, column: int) -> Grid | None:
        """The grid of a flow column, None where it has none."""
        step, offset = float(self.steps[column]), float(self.offsets[column])
        return Grid(step, offset) if step else None

    def _inner_grid(self, column: int) -> Grid | None:
        """The grid as the map sees it, its origin taken off."""
        grid = self.grid(column)
        return grid and grid.moved(float(self.origins[column]))

    def _spread_rows(self, rows: _Array, noise: _Array | None) -> _Array:
        """Flow columns as finite numbers: in the user's units, with the noise added to those on a grid."""
        rows = _check_rows(rows, len(self.columns), self.columns)
        spread = rows[:, np.isnan(self.constants)]
        if noise is not None and noise.shape != spread.shape:
            raise DataError(f"noise has shape {noise.shape}: expected (num_rows, dim) = {spread.shape}")
        for index, (name, coding) in enumerate(zip(self.flow_columns, self.codings, strict=True)):
            column = spread[:, index] if coding.places is None else coding.encode(spread[:, index], name)
            if grid := self.grid(index):
                drawn, is_gap = None if noise is None else noise[:, index], np.isnan(column)
                column = grid.spread(np.where(is_gap, grid.offset, column), drawn, float(self.origins[index]))
                column = np.where(is_gap, np.nan, column)
            spread[:, index] = column if coding.places is not None else coding.encode(column, name)
        return spread

    def _tails(self, index: int) -> list[Tail]:
        return tails(self.curves[index], self.bounds[index], self.tails[index])

    def _to_flow(self, index: int, values: _Array, noise: _Array) -> NDArray[np.float32]:
        if self.curves:
            curve = self.curves[index]
            mapped = curve.to_scores(values)
            for tail in self._tails(index):
                mapped = tail.to_scores(values, mapped)
            if len(curve.atoms):
                is_atom, which = curve.atoms.find(values)
                mapped[is_atom] = curve.atoms.scores(which, noise[is_atom])
                return curve.atoms.hold(values, mapped.astype(np.float32))
        else:
            mapped = (values - self.location[index]) / self.scale[index]
        too_large = np.flatnonzero(np.abs(mapped) > np.finfo(np.float32).max)
        if len(too_large):
            name, row = self.flow_columns[index], too_large[0]
            raise DataError(
                f"column {name!r}: {values[row]} in row {row} (counted from 0) is too large for float32 "
                f'under transform.kind = "{self.kind}": rescale the column'
            )
        return mapped.astype(np.float32)

    def _from_flow(self, index: int, mapped: _Array) -> _Array:
        ends = float(self.bounds[index, 0]), float(self.bounds[index, 1])
        if not self.curves:
            values: _Array = mapped * self.scale[index] + self.location[index]
            return values if ends == FREE else reflect(values, ends)
        values = self.curves[index].to_values(mapped)
        for tail in self._tails(index):
            if tail.is_drawn:
                values = tail.to_values(mapped, values)
        return values if ends == FREE else values.clip(*ends)

    def _log_slope(self, index: int, values: _Array, noise: _Array) -> _Array:
        curve = self.curves[index]
        slopes = curve.log_slope(values)
        for tail in self._tails(index):
            slopes = tail.log_slope(values, slopes)
        if len(curve.atoms):
            is_atom, which = curve.atoms.find(values)
            scores = curve.atoms.scores(which, noise[is_atom])
            slopes[is_atom] = np.log(curve.atoms.shares()[which]) + 0.5 * (scores**2 + np.log(2 * np.pi))
        return slopes


def _check_rows(rows: _Array, num_columns: int, columns: Sequence[str]) -> _Array:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != num_columns:
        raise DataError(
            f"rows have shape {rows.shape}: expected (num_rows, {num_columns}), the columns {list(columns)}"
        )
    bad = np.abs(rows) > MAX_VALUE
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"column {columns[column]!r} holds {rows[row, column]} in row {row} (counted from 0): "
            f"expected finite numbers up to {MAX_VALUE:g}"
        )
    return rows
