"""What a column is in the user's file, and its exact way to float64 and back.

The flow sees float64 of ``value - offset``. The offset is taken off whole numbers (integers, ticks of a stamp, digits
of a decimal) in integer arithmetic, so float64 holds them to the last digit; what it cannot hold is refused. Generated
values go the same way back, to the nearest value that the file's own type has.

| kind | whole numbers | step |
| --- | --- | --- |
| float | none: the value as it stands | None |
| integer, boolean | the value | 1 |
| decimal | the digits | 10^-places |
| timestamp, date, time, duration | ticks of ``unit`` | 1 |
| category, ordinal | the place in ``categories`` | None |

Stamps, dates, times and durations have the smallest tick of the table as offset. Integers and decimals beyond what
float64 counts have their smallest value; all others have 0. A missing value is NaN here, and null in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.job.errors import DocumentError
from sfg_dist.job.reader import check_fields
from sfg_dist.job.words import shown

if TYPE_CHECKING:
    import pyarrow as pa

MAX_WHOLE = 2**53  # float64 holds every whole number up to here
SENTINEL_STEP = 2**10  # float64 holds every multiple up to 2^63
MAX_DIGITS = 2**50  # a decimal with more digits cannot be told from its nearest double
KINDS = ("float", "integer", "decimal", "boolean", "timestamp", "date", "time", "duration", "category", "ordinal")
TEMPORAL = ("timestamp", "date", "time", "duration")
CODED = ("category", "ordinal")
MAX_CATEGORIES, MAX_LETTERS = 1000, 1000
"""Of a category column at most; and of one of its texts."""
_MAX_NAME = 300  # letters of Arrow's name of a type

_FIELDS = {
    "kind?": set(KINDS), "dtype?": str, "places?": (range(-76, 400), None),
    "unit?": ({"s", "ms", "us", "ns", "D"}, None), "zone?": (str, None), "style?": (str, None),
    "offset?": range(-(10**40), 10**40), "categories?": [str],
}  # fmt: skip
_DTYPES = {
    "float": r"float(16|32|64)", "integer": r"u?int(8|16|32|64)", "boolean": "bool",
    "decimal": r"float64|decimal\d{1,3}\(\d{1,2}, -?\d{1,2}\)", "timestamp": r"timestamp\[(s|ms|us|ns)(, tz=.+)?\]",
    "date": r"date32\[day\]|date64\[ms\]", "time": r"time32\[m?s\]|time64\[[un]s\]",
    "duration": r"duration\[(s|ms|us|ns)\]",
}  # fmt: skip
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

Array = NDArray[np.float64]


class UnfitValueError(ValueError):
    """A value that a column's type cannot carry; the message is put behind the column's name."""


@dataclass(frozen=True)
class ColumnType:
    """The type of a column; the default is float64."""

    kind: str = "float"  # one of ``KINDS``
    # Arrow's name of the type, as in "int32", "float64", "decimal128(10, 2)", "timestamp[us, tz=UTC]". A decimal column
    # of text has "float64": each value is the double nearest to its digits.
    dtype: str = "float64"
    places: int | None = None  # decimals of a decimal's digits
    # of the ticks that the flow sees, "s" to "ns" or "D"; coarser than dtype's where it must be and loses nothing
    unit: str | None = None
    zone: str | None = None  # of a timestamp that has one
    offset: int = 0  # taken off the value before it is float64, in the column's units
    # how text writes the type where there are several ways: "True/False" of booleans, "T" or " " between a stamp's date
    # and time, "fixed" of decimals that all show their places
    style: str | None = None
    # of a category or ordinal column, its values as text, in the order of their codes 0, 1, 2 and so on
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, arrow: pa.DataType, metadata: Mapping[bytes, bytes] | None = None) -> ColumnType:
        """The type of an Arrow column, its offset not yet known.

        ``metadata`` is that of its field: ``places`` makes a float64 column a decimal one, ``style`` says how text
        wrote it.

        Raises:
            UnfitValueError: it holds neither numbers, booleans, dates, times nor text.

        Examples:
            >>> ColumnType.of(pa.decimal128(10, 2)).step        # doctest: +SKIP
            0.01
        """
        from sfg_dist.data.arrow_columns import type_of

        return type_of(arrow, metadata)

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of the column in its file."""
        from sfg_dist.data.arrow_columns import arrow_type

        return arrow_type(self)

    @property
    def step(self) -> float | None:
        """The distance of neighbours that the type itself sets, in the column's units; None for floats."""
        if self.kind in ("float", *CODED):
            return None
        return float(f"1e{-(self.places or 0)}")

    @property
    def is_plain(self) -> bool:
        """Whether the values as they stand in the file are what the flow sees."""
        return self.offset == 0 and self.kind not in (*TEMPORAL, *CODED)

    @property
    def is_coded(self) -> bool:
        """Whether the flow sees codes of categories."""
        return self.kind in CODED

    def to_dict(self) -> dict[str, str | int | list[str] | None]:
        """What differs from the default, for JSON."""
        words = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name in ("kind", "dtype") or getattr(self, field.name) != field.default
        }
        return words | ({"categories": list(self.categories)} if self.categories else {})

    @classmethod
    def from_dict(cls, words: Mapping[str, Any]) -> ColumnType:
        """What ``to_dict`` wrote.

        Raises:
            DocumentError: it is no column type.
        """
        check_fields(words, _FIELDS, "a column's type")
        if unknown := words.keys() - {field.name for field in fields(cls)}:
            raise DocumentError(f"a column's type has a key that this version does not know, {shown(min(unknown))}")
        found = cls(**{**words, "categories": tuple(words.get("categories", ()))})
        if len(found.dtype) > _MAX_NAME:
            raise DocumentError(f"a column's type: {shown(found.dtype)} is longer than {_MAX_NAME} letters")
        if found.is_coded or found.categories:
            found._check_categories()
            return found
        is_known = re.fullmatch(_DTYPES[found.kind], found.dtype, re.DOTALL) is not None
        if not is_known or (found.kind in TEMPORAL and found.unit is None):
            raise DocumentError(f"a column's type: {shown(found.dtype)} is no type of {found.kind} columns")
        if not found._holds_offset():
            raise DocumentError(f"a column's type: {shown(found.dtype)} cannot hold its offset, {shown(found.offset)}")
        return found

    def _check_categories(self) -> None:
        """Refuse categories that no column of the file's type has."""
        texts = self.categories
        is_odd = not 0 < len(texts) <= MAX_CATEGORIES or len(set(texts)) < len(texts) or self.offset
        if is_odd or not self.is_coded or max(map(len, texts)) > MAX_LETTERS:
            raise DocumentError(f"a column's type: {shown(self.kind)} with {len(texts):,} categories is none")
        try:
            self.from_float(np.arange(float(len(texts))))
        except (ValueError, NotImplementedError):
            raise DocumentError(
                f"a column's type: {shown(self.dtype)} cannot hold its categories, such as {shown(texts[0])}"
            ) from None

    def _holds_offset(self) -> bool:
        """Whether the file's own type exists with these places, and can hold the offset."""
        if self.kind == "decimal" and self.dtype != "float64":
            try:
                wide, places = self.arrow, self.places or 0
            except (ValueError, AttributeError):
                return False
            digits = Decimal(self.offset).scaleb(places)
            return places <= wide.scale and abs(digits) < 10 ** (wide.precision - wide.scale + places)
        ends = np.iinfo(self.dtype if self.kind == "integer" else "int64")
        return int(ends.min) <= self.offset <= int(ends.max)

    @property
    def words(self) -> str:
        """The type in words."""
        if self.kind == "timestamp":
            return f"timestamps with {'a' if self.zone else 'no'} time zone, in {self.unit}"
        if self.is_coded:
            number, order = len(self.categories), "ordered " if self.kind == "ordinal" else ""
            return f"{number:,} {order}{'category' if number == 1 else 'categories'}"
        texts = {"float": "numbers", "integer": "whole numbers", "boolean": "true or false", "duration": "durations"}
        return texts.get(self.kind, f"{self.kind}s")

    def to_float(self, column: pa.Array | pa.ChunkedArray) -> Array:
        """A column of an Arrow table as float64 of value - offset, nulls as NaN.

        A column of another type is taken if every value is one of this type.

        Raises:
            UnfitValueError: a value is none of this type, or lies so far from the offset that float64 cannot hold it.
        """
        from sfg_dist.data.arrow_columns import to_float

        return to_float(self, column)

    def from_float(self, values: Array) -> pa.Array:
        """Values, float64 of value - offset (num_rows,), as an Arrow array of the file's own type; NaN is null.

        Each becomes the nearest value of the type, at the type's ends too.
        """
        from sfg_dist.data.arrow_columns import from_float

        return from_float(self, values)

    def from_user(self, values: Any) -> Array:
        """What a user writes for values of this type, as float64 of value - offset.

        That is one or several numbers (ticks of ``unit`` for stamps and the like), booleans, dates and times of Python
        or numpy, or texts: ISO for dates and times, "true" and "false", a category's own text. None is missing.

        Raises:
            UnfitValueError: they are none of this type.
        """
        from sfg_dist.data.arrow_columns import from_user

        return from_user(self, values)

    def check_held(self, values: Array) -> None:
        """Refuse finite values that the column would give back as others: fractions of its step, or beyond its type.

        Raises:
            UnfitValueError: with the first such value and what it would become.
        """
        values = values[np.isfinite(values)]
        if self.step is None or not len(values):
            return
        again = self.to_float(self.from_float(values))
        is_wrong = np.abs(again - values) > 1e-6 * self.step + 4 * np.spacing(np.abs(values))
        if is_wrong.any():
            given, nearest = values[is_wrong][0] + self.offset, again[is_wrong][0] + self.offset
            raise UnfitValueError(
                f"the column has {self.words}, and cannot hold {given:.15g}; the nearest value is {nearest:.15g}"
            )

    def take_over(self, values: Array, found: ColumnType) -> Array:
        """Values of a column of another type as values of this one: with its offset and its unit.

        Raises:
            UnfitValueError: a value is none of this type.
        """
        if self == found or (self.is_plain and found.is_plain):
            return values
        return self.to_float(found.from_float(values))

    def shown(self, value: float) -> float | str:
        """A value - offset for a reader: as the file has it, if that is no plain number."""
        if self.is_coded:
            return self.categories[int(value)] if value == value else "missing"
        if self.is_plain:
            return value
        try:
            return str(self.from_float(np.array([value]))[0])
        except OverflowError:  # Python has no day after the year 9999
            since = "" if self.kind == "duration" else " since 1970-01-01"
            return f"{round(value) + self.offset} {'days' if self.unit == 'D' else self.unit}{since}"


def asked_categories(names: Iterable[str], types: Iterable[ColumnType]) -> dict[str, str]:
    """What to ask of another table with the same columns (``data.types``), so that it has categories where these do."""
    return {name: "category" for name, type_ in zip(names, types, strict=True) if type_.is_coded}


FLOAT = ColumnType()
