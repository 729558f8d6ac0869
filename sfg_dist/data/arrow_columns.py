"""Columns of Arrow tables to float64 of value - offset and back, by integer arithmetic; ``column_type`` has the rules.

This is a module of its own so that Arrow is loaded when the first column is read, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sfg_dist.data.categories import codes_from_user, codes_of, encoded, is_text, named_type, values_of
from sfg_dist.data.column_type import MAX_DIGITS, MAX_WHOLE, PER_SECOND, TEMPORAL, Array, ColumnType, UnfitValueError
from sfg_dist.data.csv_columns import is_rounded

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
_DAY_MS = 86_400_000
_WHOLE = r"^\s*[+-]?[0-9]+(\.0*)?\s*$"


def type_of(arrow: pa.DataType, metadata: Mapping[bytes, bytes] | None = None) -> ColumnType:
    """``ColumnType.of``."""
    words = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
    style = words.get("style")
    if pa.types.is_dictionary(arrow):
        if is_text(arrow.value_type):
            return ColumnType("ordinal" if arrow.ordered else "category", str(arrow))
        return type_of(arrow.value_type, metadata)
    if is_text(arrow):
        return ColumnType("category", str(arrow))
    if pa.types.is_floating(arrow) or pa.types.is_null(arrow):
        if "places" in words:
            return ColumnType("decimal", "float64", places=int(words["places"]))
        return ColumnType("float", _FLOATS.get(str(arrow), "float64"))
    if pa.types.is_integer(arrow):
        return ColumnType("integer", str(arrow))
    if pa.types.is_boolean(arrow):
        return ColumnType("boolean", "bool", style=style)
    if pa.types.is_decimal(arrow):
        if "text" in words and arrow.precision <= 15:  # a double says which of these decimals it was
            return ColumnType("decimal", "float64", places=int(words.get("places", arrow.scale)), style=style)
        return ColumnType("decimal", str(arrow), places=arrow.scale)
    if pa.types.is_timestamp(arrow):
        return ColumnType("timestamp", str(arrow), unit=arrow.unit, zone=arrow.tz, style=style)
    if pa.types.is_date(arrow):
        return ColumnType("date", str(arrow), unit="D")
    if pa.types.is_time(arrow) or pa.types.is_duration(arrow):
        return ColumnType("time" if pa.types.is_time(arrow) else "duration", str(arrow), unit=arrow.unit)
    raise UnfitValueError(f"has type {arrow}: expected numbers, booleans, dates, times or text")


def arrow_type(type_: ColumnType) -> pa.DataType:
    """The Arrow type of the column in its file."""
    return named_type(type_.dtype)


def to_float(type_: ColumnType, column: Any) -> Array:
    """``ColumnType.to_float``."""
    if type_.is_coded:
        return codes_of(type_, column)
    column = stored_column(type_, column)
    found = column.type
    if pa.types.is_null(found):
        return np.full(len(column), np.nan)
    if type_.kind in TEMPORAL or not (pa.types.is_floating(found) or _has_digits(found)):
        return _whole(type_, as_whole(type_, column))
    if pa.types.is_floating(found):
        values = np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        values = values - type_.offset if type_.offset else values
    elif pa.types.is_decimal(found):
        if found.precision > 15:
            shorter = at_places(column, type_.places or 0)
            column = column if shorter is None else shorter
        values = _whole(replace(type_, places=column.type.scale), column)
    else:
        values = _whole(type_, column)
    _check_whole(type_, values)
    return values


def stored_column(type_: ColumnType, column: Any) -> pa.Array:
    """A column as one array; text, which a job may ask to be read as numbers, truth values or stamps, as those.

    Raises:
        UnfitValueError: a text is none.
    """
    found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(found):
        return plain_column(column)
    texts, places = encoded(column)  # a text may stand for any number of rows
    try:
        values = pc.utf8_trim_whitespace(texts).cast(arrow_type(type_))
    except pa.ArrowInvalid as error:
        raise UnfitValueError(f"holds text that is none of {type_.words}: {str(error)[:200]}") from None
    if pa.types.is_floating(values.type):
        whole = texts.filter(pc.match_substring_regex(texts, _WHOLE)).to_pylist()
        if lost := next((text for text in whole if is_rounded(text.strip())), None):
            raise UnfitValueError(f"holds text such as {lost[:40]!r}, of which float64 does not hold all digits")
    return values.take(pa.array(places, mask=places < 0))


def _check_whole(type_: ColumnType, values: Array) -> None:
    """Refuse fractions in a column of whole numbers."""
    if type_.kind not in ("integer", "boolean"):
        return
    is_wrong = ~np.isnan(values) & (values != np.rint(values))
    if type_.kind == "boolean":
        is_wrong |= ~np.isnan(values) & (values != 0) & (values != 1)
    if is_wrong.any():
        raise UnfitValueError(f"holds {values[is_wrong][0] + type_.offset}: expected {type_.words}")


def _whole(type_: ColumnType, column: pa.Array) -> Array:
    """``to_float`` of a column of whole numbers, digits or ticks."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    is_decimal = pa.types.is_decimal(column.type)
    offset = in_digits(type_.offset, type_.places or 0) if is_decimal else type_.offset
    ends = ends_of(column)
    limit = MAX_DIGITS if is_decimal else _most_whole(type_)
    if ends is not None and max(abs(end - offset) for end in ends) > limit:
        worst = max(ends, key=lambda end: abs(end - offset))
        shown = shown_whole(worst, type_.places if is_decimal else None)
        less = f" once {type_.offset} is taken off" if type_.offset else ""
        raise UnfitValueError(f"holds {shown}: float64 cannot tell it from its neighbours{less}")
    # Modulo 2^64: exact, since the differences are small.
    whole = _low_words(column) - np.uint64(offset % 2**64)
    values = whole.view(np.int64).astype(np.float64)
    if limit > MAX_WHOLE:
        is_lost = (values.astype(np.int64) != whole.view(np.int64)) & column.is_valid().to_numpy(zero_copy_only=False)
        if is_lost.any():
            shown = column.filter(pa.array(is_lost))[0].cast(_ticks(type_))
            raise UnfitValueError(f"holds {shown}: float64 cannot tell it from its neighbours in this column")
    if is_decimal:
        values = _scaled(values, -(type_.places or 0))
    if column.null_count:
        values[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return values


def as_whole(type_: ColumnType, column: pa.Array) -> pa.Array:
    """The column as whole numbers of a type of dates or times: ticks of ``unit``."""
    found = column.type
    if type_.kind not in TEMPORAL or not _takes(type_, found):
        raise UnfitValueError(f"holds {_words_of(found)}: expected {type_.words}")
    ticks = _ticks(type_)
    try:
        if pa.types.is_integer(found):
            column = column.cast(pa.int64()).cast(arrow_type(type_))
        if type_.kind == "date" and not pa.types.is_date32(found):
            column = _days(column)
        return column.cast(ticks).cast(pa.int32() if ticks.bit_width == 32 else pa.int64())
    except pa.ArrowInvalid as error:
        raise UnfitValueError(f"does not fit {type_.words}") from error


def _ticks(type_: ColumnType) -> pa.DataType:
    """The Arrow type of dates or times whose numbers are the flow's ticks."""
    if type_.kind == "date":
        return pa.date32()
    if type_.kind == "timestamp":
        return pa.timestamp(type_.unit, type_.zone)
    if type_.kind == "duration":
        return pa.duration(type_.unit)
    return pa.time32(type_.unit) if type_.unit in ("s", "ms") else pa.time64(type_.unit)


def _takes(type_: ColumnType, found: pa.DataType) -> bool:
    """Whether a column of an Arrow type may hold dates or times of this type."""
    is_local = bool(pa.types.is_date(found) or (pa.types.is_timestamp(found) and found.tz is None))
    if type_.kind == "date":
        return is_local
    if type_.kind == "timestamp":
        return is_local if type_.zone is None else pa.types.is_timestamp(found) and found.tz is not None
    if type_.kind == "time":
        return bool(pa.types.is_time(found))
    return bool(pa.types.is_duration(found) or pa.types.is_integer(found))  # ticks, as a .csv has durations


def from_float(type_: ColumnType, values: Array) -> pa.Array:
    """``ColumnType.from_float``."""
    values = np.asarray(values, dtype=np.float64)
    if type_.is_coded:
        return values_of(type_, values)
    missing = np.isnan(values)
    mask = missing if missing.any() else None
    if type_.kind == "float" and type_.dtype == "float64":
        return pa.array(values, mask=mask)
    wanted = arrow_type(type_)
    if pa.types.is_floating(wanted):
        if type_.kind == "decimal":
            digits = np.rint(_scaled(values, type_.places or 0))
            values = np.where(np.abs(digits) < MAX_DIGITS, _scaled(digits, -(type_.places or 0)) + 0.0, values)
        dtype = np.dtype(type_.dtype)
        # Rounding keeps the order, so it does not leave the range of a column's own values.
        ends = np.finfo(dtype)
        finite = np.isfinite(values)
        values = np.where(finite, values.clip(float(ends.min), float(ends.max)), values)
        return pa.array(values.astype(dtype), mask=mask)
    values = np.where(missing, 0.0, values)
    if type_.kind == "boolean":
        return pa.array(values >= 0.5, mask=mask)
    if type_.kind == "decimal":
        return _decimals(type_, values, mask)
    low, high = _limits(type_)
    factor = _factor(type_)
    # Clip to the ends of the type and of what float64 counts. Both are whole numbers of float64.
    lowest, highest = (-(-low // factor)) - type_.offset, high // factor - type_.offset
    most = _most_whole(type_)
    whole = np.rint(values).clip(max(lowest, -most), min(highest, most)).astype(np.int64)
    moved = (whole.view(np.uint64) + np.uint64(type_.offset % 2**64)) * np.uint64(factor)
    if type_.kind == "integer":
        array = pa.array(moved if type_.dtype == "uint64" else moved.view(np.int64), mask=mask)
        return array.cast(wanted)
    ticks = moved.view(np.int64)
    if wanted.bit_width == 32:
        return pa.array(ticks.astype(np.int32), mask=mask).cast(wanted)
    return pa.array(ticks, mask=mask).cast(wanted)


def _most_whole(type_: ColumnType) -> int:
    """The largest whole number of float64 that a column may have: stamps may have one far away (``Survey.result``)."""
    return 2**62 if type_.kind == "timestamp" and type_.unit == "us" else MAX_WHOLE


def _factor(type_: ColumnType) -> int:
    """How many ticks of the file's type are one tick of the flow."""
    if type_.kind == "date":
        return _DAY_MS if type_.dtype == "date64[ms]" else 1
    if type_.kind not in TEMPORAL:
        return 1
    return PER_SECOND[arrow_type(type_).unit] // PER_SECOND[str(type_.unit)]


def _limits(type_: ColumnType) -> tuple[int, int]:
    """First and last whole number that the file's type holds."""
    if type_.kind == "time":
        return 0, 86_400 * PER_SECOND[arrow_type(type_).unit] - 1
    dtype = np.dtype(type_.dtype) if type_.kind == "integer" else np.dtype(f"int{arrow_type(type_).bit_width}")
    low = int(np.iinfo(dtype).min)
    is_nat = type_.kind != "integer" and dtype.itemsize == 8  # numpy's least stamp is NaT
    return low + is_nat, int(np.iinfo(dtype).max)


def _decimals(type_: ColumnType, values: Array, mask: NDArray[np.bool_] | None) -> pa.Array:
    wanted, places = arrow_type(type_), type_.places or 0
    most, offset = (10**wanted.precision - 1) // 10 ** (wanted.scale - places), in_digits(type_.offset, places)
    digits = np.rint(_scaled(values, places))
    digits = digits.clip(max(-most - offset, -MAX_WHOLE), min(most - offset, MAX_WHOLE)).astype(np.int64)
    wide = pa.decimal256(76, places) if wanted.bit_width == 256 else pa.decimal128(38, places)
    words = np.empty((len(digits), wide.bit_width // 64), dtype="<u8")
    sign, carry = (digits >> 63).view(np.uint64), np.zeros(len(digits), np.uint64)
    for index in range(words.shape[1]):
        part = digits.view(np.uint64) if index == 0 else sign
        added = part + np.uint64((offset >> (64 * index)) % 2**64)
        words[:, index] = added + carry
        carry = ((added < part) | (words[:, index] < added)).astype(np.uint64)
    valid = None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little").tobytes())
    return pa.Array.from_buffers(wide, len(digits), [valid, pa.py_buffer(words.tobytes())]).cast(wanted)


def at_places(column: pa.Array, places: int) -> pa.Array | None:
    """Decimals with so many places; None where they have more."""
    found = column.type
    try:
        wide = pa.decimal256(76, places) if found.bit_width == 256 else pa.decimal128(38, places)
        return column.cast(wide)
    except pa.ArrowInvalid:
        return None


def from_user(type_: ColumnType, values: Any) -> Array:
    """``ColumnType.from_user``."""
    if type_.is_coded:
        values = np.asarray(values, dtype=None if isinstance(values, np.ndarray) else object)
        return codes_from_user(type_, values.reshape(-1).tolist())
    values = np.asarray(values).reshape(-1)
    if values.dtype.kind in "US" or (len(values) and all(isinstance(value, str) for value in values)):
        return _parsed(type_, [str(value) for value in values])
    if values.dtype.kind in "fiub" and (type_.kind in TEMPORAL or type_.offset):
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)) and type_.kind != "decimal":
            raise UnfitValueError(f"expected {type_.words}, got {values[values != np.rint(values)][0]}")
        return np.array([float(Decimal(value) - type_.offset) for value in values.tolist()])
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    return to_float(type_, pa.array(values.tolist() if values.dtype.kind == "O" else values))


def _parsed(type_: ColumnType, texts: Sequence[str]) -> Array:
    if type_.kind == "boolean":
        known = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
        if unknown := [text for text in texts if text.lower() not in known]:
            raise UnfitValueError(f"{unknown[0]!r} is neither true nor false")
        return np.array([known[text.lower()] for text in texts])
    if type_.kind in ("timestamp", "date", "time"):
        try:
            cells, ticks = pa.array(texts, pa.string()), _ticks(type_)
            return to_float(type_, times_of_day(cells, ticks) if type_.kind == "time" else cells.cast(ticks))
        except pa.ArrowInvalid as error:
            example = {"date": "2024-06-01", "time": "09:15:00"}.get(type_.kind, "2024-06-01T09:15:00")
            raise UnfitValueError(
                f"expected {type_.words}, got {texts[0]!r}: write ISO 8601, such as {example}"
            ) from error
    if odd := [text for text in texts if "_" in text]:  # which Python takes for a number
        raise UnfitValueError(f"{odd[0]!r} is no number")
    try:
        return np.array([float(Decimal(text) - type_.offset) if type_.offset else float(text) for text in texts])
    except (ValueError, ArithmeticError):
        raise UnfitValueError(f"{texts[0]!r} is no number") from None


def times_of_day(cells: Any, kind: pa.DataType) -> Any:
    """Texts such as 09:15:00 as times. They are read as stamps, since Arrow reads no times from text.

    Raises:
        pa.ArrowInvalid: a text is no time of day, or has more digits than the type.
    """
    stamps = pc.binary_join_element_wise("1970-01-01T", cells, "").cast(pa.timestamp(kind.unit))
    return stamps.cast(kind)


def plain_column(column: Any) -> pa.Array:
    """A column as one array; a dictionary is replaced by its values."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _has_digits(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) or pa.types.is_decimal(found) or pa.types.is_boolean(found))


def ends_of(column: pa.Array) -> tuple[int, int] | None:
    """Smallest and largest whole number, digits of a decimal; None without values."""
    if pa.types.is_boolean(column.type) or not len(column):
        return None if not len(column) else (0, 1)
    ends = pc.min_max(column).as_py()
    if ends["min"] is None:
        return None
    if pa.types.is_decimal(column.type):
        wide = Context(prec=100)
        ends = {end: int(wide.scaleb(value, column.type.scale)) for end, value in ends.items()}
    return ends["min"], ends["max"]


def _low_words(column: pa.Array) -> NDArray[np.uint64]:
    """The last 64 bits of each whole number; anything where a number is missing."""
    if pa.types.is_decimal(column.type):
        if column.type.bit_width < 128:
            column = column.cast(pa.decimal128(column.type.precision, column.type.scale))
        width = column.type.bit_width // 64
        words = np.frombuffer(column.buffers()[1], dtype="<u8").reshape(-1, width)
        return np.ascontiguousarray(words[column.offset : column.offset + len(column), 0])
    if column.null_count:
        column = column.fill_null(0)
    numbers = column.to_numpy(zero_copy_only=False)
    return np.array(numbers, dtype=np.uint64 if numbers.dtype.kind == "u" else np.int64).view(np.uint64)


def _days(column: pa.Array) -> pa.Array:
    days = column.cast(pa.date32(), safe=False)
    if not days.cast(column.type).equals(column):
        raise UnfitValueError("holds dates with a time of day: expected whole days")
    return days


def _scaled(values: Array, places: int) -> Array:
    """Values times 10^places, rounded once."""
    return values * 10.0**places if places >= 0 else values / 10.0**-places


def in_digits(offset: int, places: int) -> int:
    """An offset in digits of a decimal."""
    return offset * 10**places if places >= 0 else offset // 10**-places


def shown_whole(whole: int, places: int | None) -> str:
    """A whole number, or the decimal of these digits, in words."""
    return f"{Decimal(whole).scaleb(-places, Context(prec=100))}" if places else str(whole)


def _words_of(found: pa.DataType) -> str:
    if is_text(found):
        return "text"
    try:
        return ColumnType.of(found).words
    except UnfitValueError:
        return str(found)
