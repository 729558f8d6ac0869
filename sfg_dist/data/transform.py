"""The invertible map between the user's rows and the flow's rows, column by column.

    user's rows, float64 (num_rows, num_columns)  <->  flow's rows, float32 (num_rows, dim)

A constant column is left out on the way in and put back on the way out. A column with a step is spread over
its cells before the map (``value + noise * step``, noise in [0, 1)) and floored back to its grid after the
inverse map, inside the range of cells that the table had. Each other column is mapped as it stands. All is
numpy; saved as plain arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, ColumnType
from sfg_dist.data.grid import Grid
from sfg_dist.data.quantile import Curve, fit_curve
from sfg_dist.errors import DataError

KINDS = ("quantile", "standardize", "none")
MAX_VALUE = 1e100

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
            noise: in [0, 1), shape (num_rows, dim); None puts every value at the middle of its cell.
            types: of the columns.

        Raises:
            DataError: a column is constant without being named so, or holds a value that is not finite or
                beyond 1e100.

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
        kept = [index for index, name in enumerate(columns) if name not in constants]
        grids: list[Grid | None] = []
        ranges = np.zeros((len(kept), 2))
        for index, source in enumerate(kept):
            name, values = columns[source], rows[:, source]
            if values.min() == values.max():
                raise DataError(f"column {name!r} is constant ({values[0]}): name it in constants")
            grid = Grid(steps[name], offsets.get(name, float(values.min()))) if name in steps else None
            if grid:
                ends = np.array(limits.get(name, (values.min(), values.max())))
                ranges[index] = np.floor(grid.coordinates(ends))
            grids.append(grid)
        spread = _spread(rows[:, kept], grids, noise)
        location, scale = np.zeros(len(kept)), np.ones(len(kept))
        if kind == "standardize":
            # Column by column: numpy adds up a column of a table in another order than the column alone.
            whole = [np.ascontiguousarray(spread[:, index]) for index in range(len(kept))]
            location = np.array([column.mean() for column in whole])
            scale = np.maximum([column.std() for column in whole], 1e-100)
        curves = [fit_curve(spread[:, i], grid) for i, grid in enumerate(grids)] if kind == "quantile" else []
        return cls(
            kind=kind,
            columns=tuple(columns),
            constants=np.array([constants.get(name, np.nan) for name in columns], dtype=np.float64),
            steps=np.array([grid.step if grid else 0.0 for grid in grids]),
            offsets=np.array([grid.offset if grid else 0.0 for grid in grids]),
            cell_ranges=ranges,
            location=location,
            scale=scale,
            curves=tuple(curves),
            types=tuple(types),
        )

    @classmethod
    def joined(cls, parts: Sequence[Transform]) -> Transform:
        """The map of a table's columns out of maps of one or some of them each, in order, all of one kind."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("constants", "steps", "offsets", "cell_ranges", "location", "scale")
        }
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
        of its cell.

        Args:
            rows: finite, in the user's units, shape (num_rows, num_columns).
            noise: in [0, 1), shape (num_rows, dim); None puts every value at the middle of its cell.

        Returns:
            Flow rows, shape (num_rows, dim).

        Raises:
            DataError: the shape is wrong, or a value is not finite or too large for float32.
        """
        spread = self._spread_rows(rows, noise)
        flow_rows = np.empty(spread.shape, dtype=np.float32)
        for index, grid in enumerate(self._grids()):
            column = spread[:, index]
            mapped = self._to_flow(index, column)
            if grid:
                wanted = _cells(grid, column)
                missed = _cells(grid, self._from_flow(index, mapped.astype(np.float64))) != wanted
                mapped[missed] = self._to_flow(index, grid.offset + (wanted[missed] + 0.5) * grid.step)
            flow_rows[:, index] = mapped
        return flow_rows

    def inverse(self, flow_rows: NDArray[Any]) -> _Array:
        """Map the flow's rows to the user's, on the grid where a column has one.

        Args:
            flow_rows: shape (num_rows, dim).

        Returns:
            Rows in the user's units, float64 of shape (num_rows, num_columns).
        """
        flow_rows = np.asarray(flow_rows, dtype=np.float64)
        if flow_rows.ndim != 2 or flow_rows.shape[1] != self.dim:
            raise DataError(f"flow rows have shape {flow_rows.shape}: expected (num_rows, {self.dim})")
        rows = np.tile(self.constants, (len(flow_rows), 1))
        grids = self._grids()
        for index, source in enumerate(np.flatnonzero(np.isnan(self.constants))):
            values = self._from_flow(index, flow_rows[:, index])
            grid = grids[index]
            if grid:
                values = grid.values(_cells(grid, values).clip(*self.cell_ranges[index]))
            rows[:, source] = values
        return rows

    def log_det_jacobian(self, rows: _Array, *, noise: _Array | None = None) -> _Array:
        """log |d flow row / d user row| over the flow's columns, shape (num_rows,).

        The log density of user rows is that of their flow rows plus this; a column with a step counts as
        spread out over its cells.
        """
        spread = self._spread_rows(rows, noise)
        if self.curves:
            slopes = [curve.log_slope(spread[:, index]) for index, curve in enumerate(self.curves)]
            return np.sum(slopes, axis=0)
        return np.full(len(spread), -np.log(self.scale).sum())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers of the map, for a file of named arrays; ``to_metadata`` gives the rest."""
        arrays: dict[str, NDArray[Any]] = {
            "constants": self.constants,
            "steps": self.steps,
            "offsets": self.offsets,
            "cell_ranges": self.cell_ranges,
            "location": self.location,
            "scale": self.scale,
        }
        if self.curves:
            arrays["knot_counts"] = np.array([len(curve.values) for curve in self.curves], dtype=np.int64)
            arrays["knot_values"] = np.concatenate([curve.values for curve in self.curves])
            arrays["knot_scores"] = np.concatenate([curve.scores for curve in self.curves])
        return arrays

    def to_metadata(self) -> dict[str, Any]:
        """The words of the map, for JSON."""
        types = [type_.to_dict() for type_ in self.types]
        return {"kind": self.kind, "columns": list(self.columns), "types": types}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> Transform:
        """The map that ``to_arrays`` and ``to_metadata`` wrote, bit for bit.

        Raises:
            DataError: an array is missing or does not fit the others.
        """
        try:
            fields = {
                name: np.array(arrays[name], dtype=np.float64)
                for name in ("constants", "steps", "offsets", "cell_ranges", "location", "scale")
            }
            kind, columns = str(metadata["kind"]), tuple(str(name) for name in metadata["columns"])
            types = tuple(ColumnType.from_dict(words) for words in metadata.get("types", ()))  # version 0.1.0 had none
            curves: tuple[Curve, ...] = ()
            if kind == "quantile":
                ends = np.cumsum(np.array(arrays["knot_counts"], dtype=np.int64))
                values = np.array(arrays["knot_values"], dtype=np.float64)
                scores = np.array(arrays["knot_scores"], dtype=np.float64)
                starts = np.concatenate([[0], ends[:-1]])
                curves = tuple(
                    Curve(values[start:end], scores[start:end]) for start, end in zip(starts, ends, strict=True)
                )
        except KeyError as error:
            raise DataError(f"the saved transform has no {error.args[0]!r}: it is damaged") from None
        if types and len(types) != len(columns):
            raise DataError(f"the saved transform is damaged: {len(types)} types for {len(columns)} columns")
        dim = int(np.isnan(fields["constants"]).sum())
        shapes = {"constants": (len(columns),), "cell_ranges": (dim, 2)}
        for name, array in fields.items():
            if array.shape != shapes.get(name, (dim,)):
                raise DataError(
                    f"the saved transform is damaged: {name} has shape {array.shape}, "
                    f"expected {shapes.get(name, (dim,))}"
                )
        if kind not in KINDS or (kind == "quantile" and len(curves) != dim):
            raise DataError(
                f"the saved transform is damaged: kind {kind!r} with {len(curves)} curves for {dim} columns"
            )
        return cls(kind=kind, columns=columns, curves=curves, types=types, **fields)

    def grid(self, column: int) -> Grid | None:
        """The grid of a flow column, None where it has none."""
        step, offset = float(self.steps[column]), float(self.offsets[column])
        return Grid(step, offset) if step else None

    def _grids(self) -> list[Grid | None]:
        return [self.grid(column) for column in range(self.dim)]

    def _spread_rows(self, rows: _Array, noise: _Array | None) -> _Array:
        rows = _check_rows(rows, len(self.columns), self.columns)
        return _spread(rows[:, np.isnan(self.constants)], self._grids(), noise)

    def _to_flow(self, index: int, values: _Array) -> NDArray[np.float32]:
        if self.curves:
            mapped = self.curves[index].to_scores(values)
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
        if self.curves:
            return self.curves[index].to_values(mapped)
        values: _Array = mapped * self.scale[index] + self.location[index]
        return values


def _cells(grid: Grid, values: _Array) -> _Array:
    cells: _Array = np.floor((values - grid.offset) / grid.step)
    return cells


def _spread(rows: _Array, grids: Sequence[Grid | None], noise: _Array | None) -> _Array:
    """Flow columns in the user's units, with the noise added to those on a grid."""
    if noise is not None and noise.shape != rows.shape:
        raise DataError(f"noise has shape {noise.shape}: expected (num_rows, dim) = {rows.shape}")
    spread = rows.astype(np.float64)
    for index, grid in enumerate(grids):
        if grid:
            added: Any = 0.5 if noise is None else noise[:, index].clip(2.0**-20, 1 - 2.0**-20)
            spread[:, index] = grid.offset + (grid.coordinates(rows[:, index]) + added) * grid.step
    return spread


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
