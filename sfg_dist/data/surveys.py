"""From a file's columns to their types: where the type alone does not say the offset, all values are read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import (
    FLOAT,
    MAX_DIGITS,
    MAX_WHOLE,
    PER_SECOND,
    SENTINEL_STEP,
    TEMPORAL,
    Array,
    ColumnType,
    UnfitValueError,
)
from sfg_dist.data.naming import listed
from sfg_dist.data.unfit import UnfitColumnsError, each_fit
from sfg_dist.job.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


class IdentifierError(UnfitValueError):
    """Whole numbers that float64 cannot tell apart."""


class Survey:
    """Looks at all of a column, in one part or several, and finds its type with the offset.

    Stamps of a column that was read from text (``is_text``) get the coarsest unit that holds them all.
    """

    def __init__(self, type_: ColumnType, *, is_text: bool = False) -> None:
        self.type, self._is_text = type_, is_text
        self._ends: tuple[int, int] | None = None
        self._last: list[int] = []  # the two latest microseconds of stamps
        self._coarsest = 10**9  # the largest of 1, 10^3, 10^6, 10^9 that divides all ticks
        self._places = min(0, type_.places or 0)  # the fewest that hold all decimals
        self._unfit: UnfitValueError | None = None  # what a part held that the type does not have

    @property
    def needs_values(self) -> bool:
        """Whether the type alone does not say the offset."""
        if self.type.kind == "decimal":
            return self.type.dtype != "float64" and self.type.arrow.precision > 15
        return self.type.kind in TEMPORAL or self.type.dtype in ("int64", "uint64")

    def add(self, column: Any, repeats: Sequence[int] = ()) -> None:
        """Look at a part of the column, as an Arrow array; ``repeats`` are the rows of each value, where not one."""
        import pyarrow as pa

        from sfg_dist.data.arrow_columns import as_whole, at_places, ends_of, stored_column

        if not self.needs_values or self._unfit is not None:
            return
        try:
            column = stored_column(self.type, column)
            if self.type.kind in TEMPORAL:
                column = as_whole(self.type, column)
        except UnfitValueError as error:
            self._unfit = error
            return
        if pa.types.is_floating(column.type):  # float64 already
            return
        self.add_ends(ends_of(column))
        if self.type.kind == "decimal":
            while self._places < column.type.scale and at_places(column, self._places) is None:
                self._places += 1
        elif self.type.kind in ("timestamp", "duration", "time"):
            ticks = column.drop_null().to_numpy()
            if self.type.kind == "timestamp" and self.type.unit == "us" and len(ticks):
                last = ticks.max()
                self._keep_last([int(last), int(ticks.max(where=ticks < last, initial=ticks.min()))])
            while self._coarsest > 1 and (ticks % self._coarsest).any():
                self._coarsest //= 10**3

    def add_ends(self, ends: tuple[int, int] | None) -> None:
        """Take over the smallest and the largest whole number of a part; None for a part without values."""
        if ends is not None:
            low, high = self._ends or ends
            self._ends = min(low, ends[0]), max(high, ends[1])

    def _keep_last(self, ticks: Sequence[int]) -> None:
        self._last = sorted({*self._last, *ticks})[-2:]

    def join(self, other: Survey) -> None:
        """Take over what the survey of another part of the column has seen."""
        self.add_ends(other._ends)
        self._keep_last(other._last)
        self._coarsest = min(self._coarsest, other._coarsest)
        self._places = max(self._places, other._places)

    def shortened(self) -> Survey:
        """The survey of a wide decimal column as one of 15 digits, if none of its values has more."""
        import pyarrow as pa

        wide, places = self.type.dtype == f"decimal128(38, {self.type.places})", self.type.places or 0
        is_short = wide and places <= 9 and self._ends is not None and max(map(abs, self._ends)) < 10**15
        return Survey(ColumnType.of(pa.decimal128(15, places))) if is_short else self

    def result(self) -> ColumnType:
        """The type with its offset and unit.

        Raises:
            UnfitValueError: float64 cannot hold all values, whatever is taken off.
        """
        from sfg_dist.data.arrow_columns import in_digits, shown_whole

        if self._unfit is not None:
            raise self._unfit
        if self._ends is None:
            return self.type
        low, high = self._ends
        if self.type.kind in TEMPORAL:
            factor, coarsest = 1, min(self._coarsest, PER_SECOND.get(str(self.type.unit), 1))
            if self._is_text and self.type.kind == "timestamp":
                factor = coarsest
            while (high - low) // factor > MAX_WHOLE and factor < coarsest:
                factor *= 10**3
            if factor == 1 and self._last and high - low > MAX_WHOLE > self._last[0] - low + SENTINEL_STEP:
                # Only one stamp lies so far away, as 9999-12-31 does for "no end": float64 holds it from this offset.
                return replace(self.type, offset=low - (low - high) % SENTINEL_STEP)
            if (high - low) // factor > MAX_WHOLE:
                raise UnfitValueError(
                    f"spans {high - low} {self.type.unit}, more than the 2^53 that float64 tells apart: round it to a "
                    f"coarser unit, or leave it out with data.columns"
                )
            if factor == 1:
                return replace(self.type, offset=low)
            per_second = PER_SECOND[str(self.type.unit)] // factor
            unit = next(name for name, number in PER_SECOND.items() if number == per_second)
            found = self.type
            if self._is_text:
                found = replace(found, dtype=found.dtype.replace(f"[{found.unit}", f"[{unit}"))
            return replace(found, unit=unit, offset=low // factor)
        if self.type.kind != "decimal":
            if max(-low, high) <= MAX_WHOLE:
                return self.type
            if high - low > MAX_WHOLE:
                raise IdentifierError(
                    f"holds integers from {low} to {high}, as identifiers do: float64 cannot tell them apart"
                )
            return replace(self.type, offset=low)
        scale = self.type.arrow.scale
        low, high = (end // 10 ** (scale - self._places) for end in (low, high))
        found = replace(self.type, places=self._places)
        if max(-low, high) <= MAX_DIGITS:
            return found
        per_unit = 10 ** max(self._places, 0)
        found = replace(found, offset=low // per_unit * 10 ** max(-self._places, 0))
        if high - in_digits(found.offset, self._places) > MAX_DIGITS:
            ends = " to ".join(shown_whole(end, self._places) for end in (low, high))
            error = UnfitValueError if self._places > 0 else IdentifierError
            raise error(f"holds decimals from {ends}, more digits than float64 tells apart")
        return found


def survey_of(
    source: str,
    name: str,
    column: Any,
    metadata: Mapping[bytes, bytes] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Survey:
    """The survey of an Arrow column, of which ``column`` is a part or the field, before it has seen values.

    ``metadata`` is that of its field: ``text`` says that it was read from text, ``style`` and ``places`` how text wrote
    it, ``stored`` is the name of its type in the file where it was read as another. ``asked`` has what the job says of
    columns (data.types).
    """
    from sfg_dist.data.categories import named_type
    from sfg_dist.data.category_survey import CategorySurvey, survey_as_asked

    metadata = metadata or {}
    kind = named_type(metadata[b"stored"].decode()) if b"stored" in metadata else column.type
    try:
        found = ColumnType.of(kind, metadata)
        if asked and name in asked:
            return survey_as_asked(kind, found, asked[name])
        return CategorySurvey(found) if found.is_coded else Survey(found, is_text=b"text" in metadata)
    except UnfitValueError as error:
        raise UnfitColumnsError(
            f"{source}: column {name!r} {error}", {name: f"it {error}"}, "leave it out with data.columns"
        ) from None


def settled(source: str, surveys: Mapping[str, Survey], identifiers: str) -> dict[str, ColumnType]:
    """The types of surveyed columns by name, without those that are left out as identifiers.

    Columns of whole numbers that float64 cannot tell apart are identifiers, and so is text of (nearly) as many values
    as rows. ``identifiers`` is "refuse", or "drop" with a warning.
    """
    dropped = []

    def type_of(name: str) -> ColumnType | None:
        try:
            return surveys[name].result()
        except IdentifierError as error:
            if identifiers == "drop":
                dropped.append(name)
                return None
            advice = 'set data.identifiers = "drop" to leave such columns out, or leave it out with data.columns'
            raise UnfitColumnsError(f"{source}: column {name!r} {error}", {name: f"it {error}"}, advice) from None
        except UnfitValueError as error:
            raise UnfitColumnsError(f"{source}: column {name!r} {error}", {name: f"it {error}"}) from None

    types = {name: type_ for name, type_ in each_fit(surveys, type_of).items() if type_ is not None}
    if dropped and not types:
        raise DataError(
            f"{source}: every column is left out as an identifier (data.identifiers): there is nothing left"
        )
    if dropped:
        word = "column" if len(dropped) == 1 else "columns"
        warnings.warn(
            f"{source}: left out as identifiers: {word} {listed(dropped)}. To use such a column, write text whose "
            f"values repeat, or whole numbers below 2^53",
            stacklevel=2,
        )
    return types


def to_float(source: str, name: str, type_: ColumnType, column: Any) -> Array:
    """``ColumnType.to_float`` of a named column."""
    try:
        return type_.to_float(column)
    except UnfitValueError as error:
        raise UnfitColumnsError(f"{source}: column {name!r} {error}", {name: f"it {error}"}) from None


def type_of_numpy(dtype: np.dtype[Any]) -> ColumnType:
    """The type of a column of an array, its offset not yet known.

    Raises:
        UnfitValueError: it is none of numbers, booleans, dates and times.
    """
    import pyarrow as pa

    what = {"c": "complex numbers", "O": "Python objects", "U": "text", "S": "text", "T": "text", "V": "records"}
    if dtype.kind in what:
        raise UnfitValueError(f"holds {what[dtype.kind]}: expected real numbers")
    if dtype.kind == "f" and dtype.itemsize > 8:
        return FLOAT
    try:
        return ColumnType.of(pa.from_numpy_dtype(dtype.newbyteorder("=")))
    except (pa.ArrowException, NotImplementedError):
        hint = f"convert it to {dtype.name.partition('[')[0]}[s]" if dtype.kind in "mM" else "convert it to numbers"
        raise UnfitValueError(f"has type {dtype}: {hint}") from None


def numpy_survey(
    source: str, name: str, blocks: Sequence[NDArray[Any]], index: int, asked: Mapping[str, Any] | None = None
) -> Survey:
    """The survey of a column of arrays one below the other, before it has seen values; ``asked`` as ``survey_of``."""
    from sfg_dist.data.category_survey import CategorySurvey, survey_as_asked

    columns = [column_of(source, block, index, name) for block in blocks]
    if any(column.ndim > 1 or column.dtype.names for column in columns):
        raise UnfitColumnsError(
            f"{source}: column {name!r} holds several values a row: leave it out with data.columns",
            {name: "it holds several values a row"},
        )
    dtypes = [column.dtype.newbyteorder("=") for column in columns]
    try:
        is_text = all(dtype.kind in "US" for dtype in dtypes)
        found = ColumnType("category", "string") if is_text else type_of_numpy(np.result_type(*dtypes))
        if asked and name in asked:
            return survey_as_asked(found.arrow, found, asked[name])
        return CategorySurvey(found) if is_text else Survey(found)
    except (UnfitValueError, TypeError) as error:
        raise UnfitColumnsError(
            f"{source}: column {name!r} {error}", {name: f"it {error}"}, "leave it out with data.columns"
        ) from None


def typed_blocks(
    source: str,
    blocks: Sequence[NDArray[Any]],
    names: Sequence[str],
    identifiers: str,
    asked: Mapping[str, Any] | None = None,
) -> tuple[list[Array], dict[str, ColumnType]]:
    """Arrays that lie one below the other as float64, and the types of their columns by name.

    Each array has shape (some rows, number of names), or (some rows,) with the names as fields.
    """
    places = {name: index for index, name in enumerate(names)}
    surveys = each_fit(names, lambda name: numpy_survey(source, name, blocks, places[name], asked))
    for index, name in enumerate(names):
        if surveys[name].needs_values:
            for block in blocks:
                surveys[name].add(arrow_of(column_of(source, block, index, name)))
    types = settled(source, surveys, identifiers)
    return [float_block(source, block, names, types) for block in blocks], types


def float_block(
    source: str, block: NDArray[Any], names: Sequence[str], types: Mapping[str, ColumnType], wanted: Sequence[str] = ()
) -> Array:
    """Columns ``wanted`` of an array, in their order (that of ``types`` by default), as float64 of value - offset.

    The block has the shape (num_rows, number of names), or (num_rows,) with fields.
    """
    wanted = wanted or tuple(types)
    is_small = block.dtype.kind in "fiub" and (block.dtype.itemsize <= 4 or block.dtype == np.float64)
    is_small &= block.dtype.names is None and not np.ma.is_masked(block)
    if is_small and all(types[name].is_plain for name in wanted):
        places = [list(names).index(name) for name in wanted]
        return np.ascontiguousarray(block if tuple(wanted) == tuple(names) else block[:, places], dtype=np.float64)
    values = np.empty((len(block), len(wanted)))
    for place, name in enumerate(wanted):
        column = column_of(source, block, list(names).index(name), name)
        if column.dtype.kind == "f" and not types[name].is_coded:
            values[:, place] = column
            if column.dtype.itemsize > 8 and not np.array_equal(values[:, place], column, equal_nan=True):
                raise DataError(
                    f"{source}: column {name!r} holds {column.dtype} that float64 cannot hold: round it first"
                )
        else:
            values[:, place] = to_float(source, name, types[name], arrow_of(column))
    return values


def sample_block(
    source: str, block: NDArray[Any], names: Sequence[str], types: Mapping[str, ColumnType], first_row: int = 0
) -> Array:
    """Columns of a table of samples, which holds value - offset, in the order of ``types``, from row ``first_row`` on.

    Raises:
        UnfitColumnsError: a column of categories holds a number that is none of their codes.
    """
    values = np.stack([column_of(source, block, list(names).index(name), name) for name in types], axis=1, dtype=float)

    def check(name: str) -> None:
        type_, codes = types[name], values[:, list(types).index(name)]
        is_wrong = ~np.isnan(codes) & ((codes != np.floor(codes)) | (codes < 0) | (codes >= len(type_.categories)))
        if type_.is_coded and is_wrong.any():
            row = int(np.argmax(is_wrong))
            what = f"holds {codes[row]:g} in row {first_row + row} (counted from 0)"
            raise UnfitColumnsError(
                f"{source}: column {name!r} {what}, which is no code of its {len(type_.categories)} categories: the "
                "samples are damaged; write them again",
                {name: f"it {what}, which is no code"},
            )

    each_fit(types, check)
    return values


def column_of(source: str, block: NDArray[Any], index: int, name: str) -> NDArray[Any]:
    """A column of an array, or a field of one of records; bytes as the text that they are in UTF-8."""
    column: NDArray[Any] = block[:, index] if block.dtype.names is None else block[name]
    try:
        if column.dtype.kind == "U":
            np.ascontiguousarray(column).tobytes().decode(f"utf-32-{'be' if column.dtype.byteorder == '>' else 'le'}")
        return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
    except UnicodeDecodeError as error:
        raise UnfitColumnsError(
            f"{source}: column {name!r} holds the bytes {error.object[error.start :][:40]!r}, which are no text: write "
            "it as text of numpy, or leave it out with data.columns",
            {name: "it holds bytes that are no text"},
        ) from None


def arrow_of(column: NDArray[Any]) -> pa.Array:
    """A column of an array for Arrow, whatever its order of bytes; masked values are null."""
    import pyarrow as pa

    plain = np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("="))
    return pa.array(plain, mask=np.ma.getmaskarray(column) if np.ma.is_masked(column) else None)


def style_of(cells: Any, column: Any) -> str | None:
    """How the cells of a column wrote its booleans or stamps, where there are several ways and all cells keep to one.

    The metadata of its field carry it under ``style`` to ``survey_of``.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_boolean(column.type):
        found = {str(cell).strip() for cell in pc.unique(cells).to_pylist() if cell}
        words = found - {str(cell).strip() for cell in pc.unique(cells.filter(pc.is_null(column))).to_pylist()}
        return next(("/".join(pair) for pair in _BOOLEANS if words <= set(pair)), None)
    if pa.types.is_timestamp(column.type):
        separators = pc.unique(pc.utf8_slice_codeunits(cells.filter(pc.is_valid(column)), 10, 11)).to_pylist()
        return " " if separators == [" "] else None
    return None


_BOOLEANS = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"), ("t", "f"), ("T", "F"), ("1", "0"))
