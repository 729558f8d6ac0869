"""From a source to rows that the flow can use: cleaned, split, and mapped.

The order is fixed: open, choose columns, missing values, constant columns, ties, shuffle and split, fit the
transform on the training rows. Every choice that drops or changes something is a key of the job, and is
reported.

A split table's parts keep their rows; only the training rows are shuffled, and ``max_rows`` bounds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.bounds import Bounds, check_bounds, check_inside, moved_bounds
from sfg_dist.data.cleaning import atoms_report, check_size, drop_missing, find_constants, find_grids, num_duplicates
from sfg_dist.data.column_type import ColumnType, steps_of
from sfg_dist.data.conditions import ColumnSplit, conditions_last
from sfg_dist.data.csv_dialect import TextFormat
from sfg_dist.data.table import LogDensity, open_split, open_table
from sfg_dist.data.toy import NAMES as TOY_NAMES
from sfg_dist.data.transform import Transform
from sfg_dist.job.errors import DataError
from sfg_dist.job.plan import BLOCK_ROWS, Stream, fingerprint_of_blocks, random_generator

MIN_ROWS = 20
MIN_TRAIN_ROWS = 10
PARTS = ("train", "validation", "test")
_BLOCK_ROWS = 1 << 16

_Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table ready for the flow.

    Attributes:
        source: the path, URL or name.
        train: training rows in the user's units, float64 (num_train, num_columns), without dequantization
            noise.
        validation: rows for choosing, same columns; there may be none.
        test: rows for judging, same columns.
        columns: names, constant columns included.
        transform: fitted on the training rows with their noise.
        log_density: exact log density in nats of rows in the user's units, where it is known.
        seed: of the dequantization noise.
        report: what was read, dropped, found and split; JSON-able.
        sizes: rows of each part; ``train``, ``validation`` and ``test`` of a large table hold the first of them only.
    """

    source: str
    train: _Array
    validation: _Array
    test: _Array
    columns: tuple[str, ...]
    transform: Transform
    log_density: LogDensity | None
    seed: int
    report: dict[str, Any]
    sizes: Mapping[str, int]

    @property
    def num_train(self) -> int:
        """Number of training rows, the reference's rows."""
        return self.sizes["train"]

    @property
    def is_whole(self) -> bool:
        """Whether all rows are held in memory."""
        return True

    def train_blocks(self, block_rows: int) -> Iterator[_Array]:
        """All training rows in the user's units, ``block_rows`` at a time."""
        for start in range(0, self.num_train, block_rows):
            yield self.train[start : start + block_rows]

    def reference_blocks(self, block_rows: int) -> Iterator[NDArray[np.float32]]:
        """The training rows as the flow sees them, with their noise, ``block_rows`` at a time."""
        start = 0
        for rows in self.train_blocks(block_rows):
            noise = noise_rows(self.seed, start, start + len(rows), self.transform.dim)
            yield self.transform.forward(rows, noise=noise)
            start += len(rows)

    def table_fingerprint(self) -> str:
        """``plan.fingerprint`` of the training rows, block by block."""
        return fingerprint_of_blocks(self.train_blocks(_BLOCK_ROWS), (self.num_train, len(self.columns)), np.float64)

    def reference_fingerprint(self) -> str:
        """``plan.fingerprint`` of the reference, block by block."""
        return fingerprint_of_blocks(
            self.reference_blocks(_BLOCK_ROWS), (self.num_train, self.transform.dim), np.float32
        )

    def reference(self) -> NDArray[np.float32]:
        """The training rows as the flow sees them, with their noise, shape (num_train, dim)."""
        return self.flow_rows("train")

    def flow_rows(self, part: str) -> NDArray[np.float32]:
        """A part ("train", "validation", "test") as the flow sees it, with noise, shape (num_rows, dim)."""
        return self.transform.forward(getattr(self, part), noise=self.noise(part))

    def noise(self, part: str) -> _Array:
        """Dequantization noise of a part, in [0, 1), shape (num_rows, dim).

        It belongs to positions: the rows of train, validation and test are counted through.
        """
        start = sum(self.sizes[before] for before in PARTS[: PARTS.index(part)])
        return noise_rows(self.seed, start, start + len(getattr(self, part)), self.transform.dim)


def prepare(
    source: str | Path,
    *,
    array: str = "X",
    append: Sequence[str] = (),
    arrays: Mapping[str, str | Sequence[str] | None] | None = None,
    columns: Sequence[str] | None = None,
    condition: Sequence[str] | None = None,
    missing: str = "refuse",
    constant: str = "refuse",
    dequantize: str | Mapping[str, float] = "auto",
    bounds: Bounds = "observed",
    max_rows: int | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    shuffle: str = "permutation",
    seed: int = 0,
    kind: str = "quantile",
    identifiers: str = "refuse",
    text: TextFormat | None = None,
) -> Prepared:
    """Open a table, clean it, split it and fit the transform.

    Args:
        source: a built-in name, a path, or an ``s3://`` URL.
        array: the array wanted of a file with several.
        append: more arrays, put behind as columns.
        arrays: names of the arrays of a table split already, for train, validation (optional) and test.
        columns: the columns wanted, in order; None is all.
        condition: those of them that samples will be given: they become the last ones, in this order.
        missing: "refuse" NaN and infinite values, or "drop" the rows that hold one in a wanted column.
        constant: "refuse" columns that never change, or "keep" them: left out of the flow, put back by the
            transform.
        dequantize: "auto" for columns of whole numbers and those with more than 1 % tied rows whose values lie on a
            grid; "none", with which values that repeat are not given back exactly either; or the step of each column
            to dequantize, for those alone.
        bounds: "observed" keeps samples within the training rows' range of each column; "none" does not; or the range
            of some columns, [low, high], which holds all their rows.
        max_rows: at most this many rows after the shuffle; of a toy set, the number drawn.
        split: fractions for training, validation and test; the test rows come last, validation before them.
        shuffle: "permutation" (numpy's default_rng), "legacy" (numpy's RandomState) or "none".
        seed: of the shuffle, of toy sets and of the noise.
        kind: of the transform: "quantile", "standardize" or "none".
        identifiers: "refuse" or "drop" columns of whole numbers that float64 cannot tell apart.
        text: what the user says of .csv files.

    Raises:
        DataError: the table cannot be used as it stands; the message says where and which key would help.

    Example:
        >>> prepared = prepare("moons", max_rows=1000)
        >>> prepared.train.shape, prepared.reference().dtype
        ((800, 2), dtype('float32'))
    """
    source = str(source)
    if arrays is None:
        is_toy = source in TOY_NAMES
        table = open_table(
            source,
            array=array,
            append=append,
            columns=columns,
            identifiers=identifiers,
            seed=seed,
            max_rows=max_rows if is_toy else None,
            text=text,
        )
        names, types, log_density, read_as = table.columns, table.types, table.log_density, table.read_as
        parts = {"table": table.values}
    else:
        given = open_split(source, arrays=arrays, columns=columns, identifiers=identifiers)
        names, types, log_density, read_as = given.columns, given.types, None, given.read_as
        parts = {"train": given.train, "validation": given.validation, "test": given.test}
    if condition:
        places = conditions_last(source, names, condition)
        names, types = tuple(names[place] for place in places), tuple(types[place] for place in places)
        parts = {part: rows[:, places] for part, rows in parts.items()}
        log_density = None if log_density is None else _of_columns(log_density, places)
    num_read = sum(map(len, parts.values()))
    for part, rows in parts.items():
        check_size(source if part == "table" else f"{source}: the {part} part", rows, names)
    parts = {
        part: drop_missing(source if part == "table" else f"{source}: the {part} part", rows, names, missing)
        for part, rows in parts.items()
    }
    sizes = [len(rows) for rows in parts.values()]
    rows = np.concatenate(list(parts.values()))
    if num_read < MIN_ROWS <= len(names):
        raise DataError(
            f"{source} has {num_read} rows of {len(names)} columns: expected at least {MIN_ROWS} rows; MATLAB, Julia "
            "and R store a table in HDF5 with rows and columns exchanged: save its transpose"
        )
    _check_count(source, len(rows), f"{num_read} read, {num_read - len(rows)} dropped as incomplete")
    constants = find_constants(source, rows, names, constant, types=types)
    check_bounds(source, names, bounds)
    bounds = moved_bounds(bounds, dict(zip(names, types, strict=True)))
    grids, ties, atoms = find_grids(source, rows, names, constants, dequantize, steps_of(names, types))
    for name, grid in grids.items():
        column = names.index(name)
        rows[:, column] = grid.snap(rows[:, column])
    for column, name in enumerate(names):
        check_inside(source, name, rows[:, column], bounds, types[column])

    if arrays is None:
        order = _order(len(rows), shuffle, seed)[:max_rows]
        _check_count(source, len(order), f"data.max_rows = {max_rows}")
        train, validation, test = _cut(rows[order], split)
    else:
        whole = np.split(rows, np.cumsum(sizes)[:-1])
        train = whole[0][_order(len(whole[0]), shuffle, seed)[:max_rows]]
        validation, test = whole[1], whole[2]
    sizes_of_parts = {"train": len(train), "validation": len(validation), "test": len(test)}
    check_parts(source, len(rows), num_read, sizes_of_parts)
    constants |= find_constants(source, train, names, constant, where="the training rows", known=constants, types=types)
    transform = _fit(train, rows, names, constants, grids, atoms, bounds, kind, seed, types)
    ColumnSplit.of(transform, condition or ())  # refuses conditions that no sample can be given
    return Prepared(
        source=source,
        train=train,
        validation=validation,
        test=test,
        columns=names,
        transform=transform,
        log_density=log_density,
        seed=seed,
        report={
            "source": source,
            "read_as": read_as,
            "num_rows_read": num_read,
            "num_rows_dropped": num_read - len(rows),
            "constant": {name: types[names.index(name)].shown(value) for name, value in constants.items()},
            "ties": ties,
            "atoms": atoms_report(atoms, grids, dict(zip(names, types, strict=True)), len(rows), kind),
            "split": sizes_of_parts,
            "num_duplicate_train_rows": num_duplicates(train),
        },
        sizes=sizes_of_parts,
    )


def _of_columns(log_density: LogDensity, places: Sequence[int]) -> LogDensity:
    """A density of rows whose columns were put in another order."""
    back = np.argsort(places)
    return lambda rows: log_density(rows[:, back])


def _fit(
    train: _Array,
    rows: _Array,
    names: tuple[str, ...],
    constants: Mapping[str, float],
    grids: Mapping[str, Any],
    atoms: Mapping[str, Mapping[float, int]],
    bounds: Bounds,
    kind: str,
    seed: int,
    types: tuple[ColumnType, ...],
) -> Transform:
    used = {name: grid for name, grid in grids.items() if name not in constants}
    # the whole table, not the training rows alone, says what range a column measured in steps can take
    limits = {name: rows[:, names.index(name)] for name in used}
    return Transform.fit(
        train,
        names,
        kind=kind,
        constants=constants,
        steps={name: grid.step for name, grid in used.items()},
        offsets={name: grid.offset for name, grid in used.items()},
        limits={name: (float(values.min()), float(values.max())) for name, values in limits.items()},
        atoms={name: np.array(list(counts)) for name, counts in atoms.items()},
        bounds=bounds,
        noise=noise_rows(seed, 0, len(train), len(names) - len(constants)),
        types=types,
    )


def _order(num_rows: int, shuffle: str, seed: int) -> NDArray[np.intp]:
    if shuffle == "permutation":
        return np.random.default_rng(seed).permutation(num_rows)
    if shuffle == "legacy":
        if not 0 <= seed < 2**32:
            raise DataError(f'data.shuffle = "legacy" takes a data.seed from 0 to 4294967295, found {seed}')
        # the same order as RandomState(seed).shuffle(rows), which published splits of the UCI tables use
        return np.random.RandomState(seed).permutation(num_rows)
    if shuffle == "none":
        return np.arange(num_rows)
    raise DataError(f'data.shuffle = {shuffle!r}: expected "permutation", "legacy" or "none"')


def _cut(rows: _Array, split: Sequence[float]) -> tuple[_Array, _Array, _Array]:
    """Training, validation and test rows: the last ones are the test, those before them validation."""
    sizes = part_sizes(len(rows), split)
    first, last = sizes["train"], sizes["train"] + sizes["validation"]
    return rows[:first], rows[first:last], rows[last:]


def part_sizes(num_rows: int, split: Sequence[float]) -> dict[str, int]:
    """Rows of each part."""
    num_test, num_validation = int(split[2] * num_rows), int(split[1] * num_rows)
    return {"train": num_rows - num_validation - num_test, "validation": num_validation, "test": num_test}


def check_parts(
    source: str, num_rows: int, num_read: int, sizes: Mapping[str, int], max_rows: int | None = None
) -> None:
    """Refuse a table, or a split of it, that leaves too few rows.

    Raises:
        DataError: with the numbers.
    """
    _check_count(source, num_rows, f"{num_read} read, {num_read - num_rows} dropped as incomplete")
    _check_count(source, sum(sizes.values()), f"data.max_rows = {max_rows}")
    if sizes["train"] < MIN_TRAIN_ROWS or not sizes["test"]:
        raise DataError(
            f"{source}: the split leaves {sizes['train']} training, {sizes['validation']} validation "
            f"and {sizes['test']} test rows: expected at least {MIN_TRAIN_ROWS} for training, one for the test "
            "(data.split, data.max_rows)"
        )


def _check_count(source: str, num_rows: int, why: str) -> None:
    if num_rows < MIN_ROWS:
        raise DataError(f"{source}: {num_rows} rows are left ({why}): expected at least {MIN_ROWS}")


def noise_rows(seed: int, start: int, stop: int, dim: int) -> _Array:
    """Dequantization noise of rows ``start`` to ``stop`` of a table, shape (stop - start, dim)."""
    rows = np.empty((stop - start, dim))
    for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
        drawn = random_generator(seed, Stream.DEQUANTIZE, block).random((BLOCK_ROWS, dim))
        first = block * BLOCK_ROWS
        low, high = max(start, first), min(stop, first + BLOCK_ROWS)
        rows[low - start : high - start] = drawn[low - first : high - first]
    return rows
