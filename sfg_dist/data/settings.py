"""What a job says of its table, gathered from its ``data`` and ``transform`` tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfg_dist.data.bounds import Bounds
from sfg_dist.data.csv_dialect import TextFormat


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """How a table is opened, cleaned, split and mapped. Names and defaults are those of the job's keys."""

    array: str = "X"  # the array to take from a file with several
    append: Sequence[str] = ()  # more arrays, whose columns follow those of ``array``
    # names of the arrays of a table that is split already, for train, validation (optional) and test
    arrays: Mapping[str, str | Sequence[str] | None] | None = None
    columns: Sequence[str] | None = None  # the columns to take, in order; None takes all
    # those of them that samples will be given. They become the last columns, in this order.
    condition: Sequence[str] | None = None
    # "auto" takes the types of the file; or a word, or the order of an ordinal column, by column (``category_survey``)
    types: str | Mapping[str, Any] = "auto"
    # "refuse" or "drop" columns of whole numbers that float64 cannot tell apart, and of free text
    identifiers: str = "refuse"
    # "keep" missing values, whose pattern is learnt; "refuse" them; or "drop" the rows that hold one in a column.
    # Infinite values are refused or dropped.
    missing: str = "keep"
    # "auto" leaves a column out of the flow that another one determines, and looks it up; "ignore" does not
    dependencies: str = "auto"
    # "refuse" columns that never change, or "keep" them: the flow does not see them, and the transform puts them back
    constant: str = "refuse"
    # "auto" for columns of whole numbers and for those with more than 1 % tied rows whose values lie on a grid; "none";
    # or the step of each column to dequantize. Without dequantization, values that repeat are not given back exactly.
    dequantize: str | Mapping[str, float] = "auto"
    # "observed" keeps samples within the training rows' range of each column; "none" does not; or the range [low, high]
    # of some columns, which must hold all their rows
    bounds: Bounds = "observed"
    max_rows: int | None = None  # at most this many rows after the shuffle; for a toy set, the number drawn
    split: Sequence[float] = (0.8, 0.1, 0.1)  # fractions for training, validation and test. The test rows come last.
    shuffle: str = "permutation"  # "permutation" (numpy's default_rng), "legacy" (numpy's RandomState) or "none"
    seed: int = 0  # of the shuffle, of toy sets and of the noise
    kind: str = "quantile"  # of the transform: "quantile", "standardize" or "none"
    text: TextFormat = field(default_factory=TextFormat)  # how .csv files are written

    @property
    def asked(self) -> Mapping[str, Any]:
        """What ``types`` says of columns, by name."""
        return {} if isinstance(self.types, str) else self.types
