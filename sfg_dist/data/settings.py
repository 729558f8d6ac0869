"""What a job says of its table, gathered from its ``data`` and ``transform`` tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sfg_dist.data.bounds import Bounds
from sfg_dist.data.csv_dialect import TextFormat


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """How a table is opened, cleaned, split and mapped. Names and defaults are those of the job's keys.

    Attributes:
        array: the array to take from a file with several.
        append: more arrays, whose columns follow those of ``array``.
        arrays: names of the arrays of a table that is split already, for train, validation (optional) and test.
        columns: the columns to take, in order; None takes all.
        condition: those of them that samples will be given. They become the last columns, in this order.
        identifiers: "refuse" or "drop" columns of whole numbers that float64 cannot tell apart.
        missing: "refuse" NaN and infinite values, or "drop" the rows that hold one in a chosen column.
        constant: "refuse" columns that never change, or "keep" them: the flow does not see them, and the transform
            puts them back.
        dequantize: "auto" for columns of whole numbers and for those with more than 1 % tied rows whose values lie on
            a grid; "none"; or the step of each column to dequantize. Without dequantization, values that repeat are
            not given back exactly.
        bounds: "observed" keeps samples within the training rows' range of each column; "none" does not; or the range
            [low, high] of some columns, which must hold all their rows.
        max_rows: at most this many rows after the shuffle; for a toy set, the number drawn.
        split: fractions for training, validation and test. The test rows come last.
        shuffle: "permutation" (numpy's default_rng), "legacy" (numpy's RandomState) or "none".
        seed: of the shuffle, of toy sets and of the noise.
        kind: of the transform: "quantile", "standardize" or "none".
        text: how .csv files are written.
    """

    array: str = "X"
    append: Sequence[str] = ()
    arrays: Mapping[str, str | Sequence[str] | None] | None = None
    columns: Sequence[str] | None = None
    condition: Sequence[str] | None = None
    identifiers: str = "refuse"
    missing: str = "refuse"
    constant: str = "refuse"
    dequantize: str | Mapping[str, float] = "auto"
    bounds: Bounds = "observed"
    max_rows: int | None = None
    split: Sequence[float] = (0.8, 0.1, 0.1)
    shuffle: str = "permutation"
    seed: int = 0
    kind: str = "quantile"
    text: TextFormat = field(default_factory=TextFormat)
