"""The invertible map between the user's rows and the flow's rows, column by column.

    user's rows, float64 (num_rows, num_columns)  <->  flow's rows, float32 (num_rows, dim)

A constant column is left out on the way in and put back on the way out. A column with a step is spread over
its cells before the map (``value + noise * step``, noise in [0, 1)) and floored back to its grid after the
inverse map, inside the range of cells that the table had. A column that repeats single values has them spread over
intervals of its scores by the same noise, and back exactly (``atoms``; "quantile" alone can). Each other column is
mapped as it stands, and back into its range (``bounds``). All is numpy; saved as plain arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import FREE, Bounds, ends_of, range_of, reflect, tails
from sfg_dist.data.cells import cells_of, cells_within, spread_rows
from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.grid import Grid, float32_spacing
from sfg_dist.data.quantile import Curve, curves_from_arrays, curves_to_arrays, fit_curve
from sfg_dist.job.errors import DataError
from sfg_dist.job.reader import check_fields

KINDS = ("quantile", "standardize", "none")
MAX_VALUE = 1e100
_FAR = 2.0**20  # a grid this many times its range away from 0 is mapped from its own offset
_LEAST_SPACINGS = 32.0  # of float32 within the range of a column that is mapped as it stands

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """A fitted map; make one with ``fit``.

    Attributes:
        kind: "quantile", "standardize" or "none".
        columns: names of the user's columns.
        constants: value of each constant column and NaN for the others, shape (num_columns,).
        steps: step of each flow column, 0 for none, shape (dim,).
        offsets: value of cell 0 of each flow column, shape (dim,).
        cell_ranges: first and last cell that inverse gives, shape (dim, 2).
        origins: taken off a flow column on a grid before it is mapped, where that is far from 0 or float32 would
            not hold it ("none"); else 0, shape (dim,).
        bounds: smallest and largest value that inverse gives a column without a grid, shape (dim, 2).
        location: subtracted from each flow column ("standardize"), shape (dim,).
        scale: then divided by, > 0, shape (dim,).
        curves: one a flow column ("quantile"), else empty.
        types: of the user's columns, whose value - offset the rows hold; float64 for all if not given.
    """

    kind: str
    columns: tuple[str, ...]
    constants: _Array
    steps: _Array
    offsets: _Array
    cell_ranges: _Array
    origins: _Array
    bounds: _Array
    location: _Array
    scale: _Array
    curves: tuple[Curve, ...]
    types: tuple[ColumnType, ...] = ()

    def __post_init__(self) -> None:
        if not self.types:
            object.__setattr__(self, "types", (FLOAT,) * len(self.columns))

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
        steps: Mapping[str, float] | None = None,
        offsets: Mapping[str, float] | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        atoms: Mapping[str, _Array] | None = None,
        bounds: Bounds = "observed",
        noise: _Array | None = None,
        types: Sequence[ColumnType] = (),
    ) -> Transform:
        """Fit the map to training rows.

        Args:
            rows: finite, in the user's units, shape (num_rows, num_columns).
            columns: one name a column.
            kind: "quantile", "standardize" or "none".
            constants: columns that the flow does not see, with the value that ``inverse`` gives them.
            steps: columns to dequantize, with their step in the column's units.
            offsets: any value on the grid of such a column; default its smallest value.
            limits: smallest and largest value that ``inverse`` gives such a column; default those of
                ``rows``.
            atoms: values of columns that are to come back exactly ("quantile"); those of a column with a step
                have no value drawn between them and the nearest others.
            bounds: "observed" for the range of ``rows``, "none", or the range of some columns, which holds all
                their values. A column with a step has its range by ``limits`` unless one is given here.
            noise: in [0, 1), shape (num_rows, dim); None puts every value at the middle of its cell.
            types: of the columns.

        Raises:
            DataError: a column is constant without being named so, or holds a value that is not finite or
                beyond 1e100, or float32 cannot tell its values apart (kind "none").

        Example:
            >>> rows = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
            >>> transform = Transform.fit(rows, ["a", "b"], kind="standardize", constants={"b": 5.0})
            >>> transform.inverse(transform.forward(rows)).round(5)
            array([[1., 5.],
                   [2., 5.],
                   [4., 5.]])
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
        rows = _check_rows(rows, len(columns), columns)
        constants, steps, offsets, limits = constants or {}, steps or {}, offsets or {}, limits or {}
        atoms = atoms or {}
        kept = [index for index, name in enumerate(columns) if name not in constants]
        grids: list[Grid | None] = []
        ranges, origins = np.zeros((len(kept), 2)), np.zeros(len(kept))
        ends = np.tile(FREE, (len(kept), 1))
        for index, source in enumerate(kept):
            name, values = columns[source], rows[:, source]
            if values.min() == values.max():
                raise DataError(f"column {name!r} is constant ({values[0]}): name it in constants")
            grid = Grid(steps[name], offsets.get(name, float(values.min()))) if name in steps else None
            if grid:
                given = None if isinstance(bounds, str) else bounds.get(name)
                limit = np.array(limits.get(name, (values.min(), values.max())))
                ranges[index] = np.floor(grid.coordinates(limit)) if given is None else cells_within(grid, given)
                is_far = abs(grid.offset) > _FAR * (values.max() - values.min())
                is_coarse = kind == "none" and _float32_step(values) > grid.step / 4
                origins[index] = grid.offset if is_far or is_coarse else 0.0
            else:
                ends[index] = range_of(name, values, bounds)
                if kind == "none":
                    _check_float32(name, values)
            grids.append(grid)
        spread = spread_rows(rows[:, kept], grids, origins, noise)
        location, scale = np.zeros(len(kept)), np.ones(len(kept))
        if kind == "standardize":
            # Column by column: numpy adds up a column of a table in another order than the column alone.
            whole = [np.ascontiguousarray(spread[:, index]) for index in range(len(kept))]
            location = np.array([column.mean() for column in whole])
            scale = np.maximum([column.std() for column in whole], 1e-100)
        curves: list[Curve] = []
        if kind == "quantile":
            for index, (source, grid) in enumerate(zip(kept, grids, strict=True)):
                inner = grid and Grid(grid.step, grid.offset - origins[index])
                curves.append(fit_curve(spread[:, index], inner, _atoms_of(grid, atoms.get(columns[source]))))
                ends[index] = ends_of(curves[index], (ends[index, 0], ends[index, 1]))
        return cls(
            kind=kind,
            columns=tuple(columns),
            constants=np.array([constants.get(name, np.nan) for name in columns], dtype=np.float64),
            steps=np.array([grid.step if grid else 0.0 for grid in grids]),
            offsets=np.array([grid.offset if grid else 0.0 for grid in grids]),
            cell_ranges=ranges,
            origins=origins,
            bounds=ends,
            location=location,
            scale=scale,
            curves=tuple(curves),
            types=tuple(types),
        )

    @classmethod
    def joined(cls, parts: Sequence[Transform]) -> Transform:
        """The map of a table's columns out of maps of one or some of them each, in order, all of one kind."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("constants", *_SHAPES)}
        return cls(
            kind=parts[0].kind,
            columns=tuple(name for part in parts for name in part.columns),
            curves=tuple(curve for part in parts for curve in part.curves),
            types=tuple(type_ for part in parts for type_ in part.types),
            **arrays,
        )

    def forward(self, rows: _Array, *, noise: _Array | None = None) -> NDArray[np.float32]:
        """Map the user's rows to the flow's.

        A value whose cell float32 would miss, because the noise put it at the very edge, goes to the middle
        of its cell. A value beyond the training rows goes on straight, into a wider range of ``bounds`` as
        inverse comes out of it.

        Args:
            rows: finite, in the user's units, shape (num_rows, num_columns).
            noise: in [0, 1), shape (num_rows, dim); None puts every value at the middle of its cell, and an
                atom at that of its interval.

        Returns:
            Flow rows, shape (num_rows, dim).

        Raises:
            DataError: the shape is wrong, or a value is not finite or too large for float32.
        """
        spread = self._spread_rows(rows, noise)
        places = np.broadcast_to(0.5, spread.shape) if noise is None else noise
        flow_rows = np.empty(spread.shape, dtype=np.float32)
        for index in range(self.dim):
            column, grid = spread[:, index], self._inner_grid(index)
            mapped = self._to_flow(index, column, places[:, index])
            if grid:
                wanted = cells_of(grid, column)
                missed = cells_of(grid, self._from_flow(index, mapped.astype(np.float64))) != wanted
                middles = grid.offset + (wanted[missed] + 0.5) * grid.step
                mapped[missed] = self._to_flow(index, middles, places[missed, index])
            flow_rows[:, index] = mapped
        return flow_rows

    def inverse(self, flow_rows: NDArray[Any]) -> _Array:
        """Map the flow's rows to the user's, on the grid where a column has one, else within its bounds.

        Args:
            flow_rows: shape (num_rows, dim).

        Returns:
            Rows in the user's units, float64 of shape (num_rows, num_columns).
        """
        flow_rows = np.asarray(flow_rows, dtype=np.float64)
        if flow_rows.ndim != 2 or flow_rows.shape[1] != self.dim:
            raise DataError(f"flow rows have shape {flow_rows.shape}: expected (num_rows, {self.dim})")
        rows = np.tile(self.constants, (len(flow_rows), 1))
        for index, source in enumerate(np.flatnonzero(np.isnan(self.constants))):
            values = self._from_flow(index, flow_rows[:, index])
            grid, inner = self.grid(index), self._inner_grid(index)
            if grid and inner:
                values = grid.values(cells_of(inner, values).clip(*self.cell_ranges[index]))
            rows[:, source] = values
        return rows

    def log_det_jacobian(self, rows: _Array, *, noise: _Array | None = None) -> _Array:
        """log |d flow row / d user row| over the flow's columns, shape (num_rows,).

        The log density of user rows is that of their flow rows plus this; a column with a step counts as
        spread out over its cells. An atom counts as a point: of a flow that is normal, it has its share
        itself as density, without a unit, wherever in its interval the noise puts it.
        """
        spread = self._spread_rows(rows, noise)
        places = np.broadcast_to(0.5, spread.shape) if noise is None else noise
        if self.curves:
            slopes = [self._log_slope(index, spread[:, index], places[:, index]) for index in range(self.dim)]
            return np.sum(slopes, axis=0)
        return np.full(len(spread), -np.log(self.scale).sum())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers of the map, for a file of named arrays; ``to_metadata`` gives the rest."""
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in ("constants", *_SHAPES)}
        if self.curves:
            arrays |= curves_to_arrays(self.curves)
        return arrays

    def to_metadata(self) -> dict[str, Any]:
        """The words of the map, for JSON."""
        types = [type_.to_dict() for type_ in self.types]
        return {"kind": self.kind, "columns": list(self.columns), "types": types}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> Transform:
        """The map that ``to_arrays`` and ``to_metadata`` wrote, bit for bit.

        Raises:
            DataError: an array is missing or does not fit the others, or the words are none of a transform.
        """
        try:
            check_fields(metadata, _METADATA, "its words")
            kind, columns = metadata["kind"], tuple(metadata["columns"])
            types = tuple(ColumnType.from_dict(words) for words in metadata.get("types", ()))  # version 0.1.0 had none
            fields = {"constants": np.array(arrays["constants"], dtype=np.float64)}
            dim = int(np.isnan(fields["constants"]).sum())
            later = {"origins": np.zeros(dim), "bounds": np.tile(FREE, (dim, 1))}  # not in models of 0.1.0
            for name in _SHAPES:
                array = arrays.get(name, later[name]) if name in later else arrays[name]
                if array.dtype != np.float64:
                    raise DataError(f"the saved transform is damaged: {name} is {array.dtype}, expected float64")
                fields[name] = np.array(array)
            curves = curves_from_arrays(arrays) if kind == "quantile" else ()
        except KeyError as error:
            raise DataError(f"the saved transform has no {error.args[0]!r}: it is damaged") from None
        except DataError:
            raise
        except (TypeError, ValueError) as error:  # a DocumentError among them
            raise DataError(f"the saved transform is damaged: {error}") from None
        if types and len(types) != len(columns):
            raise DataError(f"the saved transform is damaged: {len(types)} types for {len(columns)} columns")
        shapes = {"constants": (len(columns),)} | {name: (dim, *shape) for name, shape in _SHAPES.items()}
        for name, array in fields.items():
            if array.shape != shapes[name]:
                raise DataError(
                    f"the saved transform is damaged: {name} has shape {array.shape}, expected {shapes[name]}"
                )
        if kind == "quantile" and len(curves) != dim:
            raise DataError(
                f"the saved transform is damaged: kind {kind!r} with {len(curves)} curves for {dim} columns"
            )
        for name in ("bounds", "cell_ranges"):
            if np.isnan(fields[name]).any() or (fields[name][:, 0] > fields[name][:, 1]).any():
                raise DataError(f"the saved transform is damaged: {name} that are no ranges")
        finite = all(np.isfinite(fields[name]).all() for name in _SHAPES if name != "bounds")
        if not finite or np.isinf(fields["constants"]).any():
            raise DataError("the saved transform is damaged: a number is not finite")
        if (fields["steps"] < 0).any() or (fields["scale"] <= 0).any():
            raise DataError("the saved transform is damaged: a step below 0, or a scale of 0")
        return cls(kind=kind, columns=columns, curves=curves, types=types, **fields)

    def grid(self, column: int) -> Grid | None:
        """The grid of a flow column, None where it has none."""
        step, offset = float(self.steps[column]), float(self.offsets[column])
        return Grid(step, offset) if step else None

    def _inner_grid(self, column: int) -> Grid | None:
        """The grid as the map sees it, its origin taken off."""
        grid = self.grid(column)
        return grid and Grid(grid.step, grid.offset - float(self.origins[column]))

    def _spread_rows(self, rows: _Array, noise: _Array | None) -> _Array:
        rows = _check_rows(rows, len(self.columns), self.columns)
        grids = [self.grid(column) for column in range(self.dim)]
        return spread_rows(rows[:, np.isnan(self.constants)], grids, self.origins, noise)

    def _ends(self, index: int) -> tuple[float, float]:
        return float(self.bounds[index, 0]), float(self.bounds[index, 1])

    def _to_flow(self, index: int, values: _Array, noise: _Array) -> NDArray[np.float32]:
        if self.curves:
            curve = self.curves[index]
            mapped = curve.to_scores(values)
            for tail in tails(curve, self._ends(index)):
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
        ends = self._ends(index)
        if not self.curves:
            values: _Array = mapped * self.scale[index] + self.location[index]
            return values if ends == FREE else reflect(values, ends)
        values = self.curves[index].to_values(mapped)
        for tail in tails(self.curves[index], ends):
            values = tail.to_values(mapped, values)
        return values if ends == FREE else values.clip(*ends)

    def _log_slope(self, index: int, values: _Array, noise: _Array) -> _Array:
        curve = self.curves[index]
        slopes = curve.log_slope(values)
        for tail in tails(curve, self._ends(index)):
            slopes = tail.log_slope(values, slopes)
        if len(curve.atoms):
            is_atom, which = curve.atoms.find(values)
            scores = curve.atoms.scores(which, noise[is_atom])
            slopes[is_atom] = np.log(curve.atoms.shares()[which]) + 0.5 * (scores**2 + np.log(2 * np.pi))
        return slopes


_METADATA = {"kind": set(KINDS), "columns": [str], "types?": [dict]}
# Each array of a saved map has a row a flow column.
_SHAPES: dict[str, tuple[int, ...]] = {
    "steps": (),
    "offsets": (),
    "cell_ranges": (2,),
    "origins": (),
    "bounds": (2,),
    "location": (),
    "scale": (),
}


def _atoms_of(grid: Grid | None, atoms: _Array | None) -> _Array | None:
    """Values that repeat, by their cells in a column on a grid."""
    return grid.coordinates(atoms) if grid and atoms is not None else atoms


def _float32_step(values: _Array) -> float:
    return float(float32_spacing(np.abs(values).max(keepdims=True))[0])


def _check_float32(name: str, values: _Array) -> None:
    """Refuse to map a column as it stands where float32 makes most of its values one."""
    spacing = _float32_step(values)
    if values.max() - values.min() < _LEAST_SPACINGS * spacing < np.inf:
        raise DataError(
            f"column {name!r} lies between {float(values.min())!r} and {float(values.max())!r}, where float32 has "
            f'steps of {spacing:g}: transform.kind = "none" would lose it; use "quantile" or "standardize"'
        )


def _check_rows(rows: _Array, num_columns: int, columns: Sequence[str]) -> _Array:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != num_columns:
        raise DataError(
            f"rows have shape {rows.shape}: expected (num_rows, {num_columns}), the columns {list(columns)}"
        )
    bad = ~(np.abs(rows) <= MAX_VALUE)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"column {columns[column]!r} holds {rows[row, column]} in row {row} (counted from 0): "
            f"expected finite numbers up to {MAX_VALUE:g}"
        )
    return rows
