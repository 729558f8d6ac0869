"""The type of a column of cells: whole numbers, numbers, truth values, dates, times, or text.

All cells of a column decide, exactly: whole numbers stay whole (int64, uint64, decimals of up to 76 digits), and
numbers with at most 9 places and 15 digits are decimals.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = (
    *("", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "-NaN", "-nan", "NULL", "null"),
    *("Null", "None", "-", "--", "?", ".", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN", "NaT", "\\N", "(null)"),
)
"""Cells that stand for a missing value where a job names no others, as they stand or within spaces."""

MAX_PLACES, MAX_DIGITS = 9, 15
_MOST_EXACT = 16  # letters of the shortest number with more digits than doubles hold for certain
_EXACT = 2.0**53
_BLOCK = 1 << 14  # numbers at a time, few enough for the cache
_WHOLE = r"^[+-]?[0-9]+$"
_PLAIN = r"[+\-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+\-]?[0-9]{1,4})?"
_MESSY = r"^[+\-\x{2212}]?([0-9]+\.?[0-9]*|\.[0-9]+)([eEdD][+\-]?[0-9]+)?$"
_CURRENCY = r"(?:[^\w\s.]|(?:US|AU|CA|NZ|HK|R)\$|kr\.?|Rs\.?|EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL)?"
_MONTH = (
    r"(?:[jJ]an(?:uary)?|[fF]eb(?:ruary)?|[mM]ar(?:ch)?|[aA]pr(?:il)?|[mM]ay|[jJ]une?|[jJ]uly?|[aA]ug(?:ust)?"
    r"|[sS]ept?(?:ember)?|[oO]ct(?:ober)?|[nN]ov(?:ember)?|[dD]ec(?:ember)?)\.?"
)
# What looks like a number, a day or a time in a form that is not read, for Arrow's regular expressions and Python's.
_SPACES = " \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
_AMOUNT = rf"[+\-]?{_CURRENCY}\s*[+\-]?[0-9.,'{_SPACES}]*[0-9]\s*{_CURRENCY}"
_DAY = (
    r"[0-9]{1,4}[./\-][0-9]{1,2}[./\-][0-9]{1,4}(?:[ T].*)?"
    rf"|[0-9]{{1,2}}[ /.\-]*{_MONTH}[ /.,\-]*[0-9]{{2,4}}(?:[ ,T].*)?|{_MONTH} *[0-9]{{1,2}},? +[0-9]{{4}}(?:[ ,T].*)?"
)
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?: *[apAP]\.?[mM]\.?)?"
_ODD = f"^(?:{_AMOUNT}|{_DAY}|{_CLOCK})$"
_GROUPED = re.compile(r"[+-]?\d{1,3}([,. '\u00a0\u202f]\d{3})+([.,]\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")  # may be three decimals too, and that would be a guess
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_TIME = r"^[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?$"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9:.]+(Z|[+-][0-9:]+)?)?$")


def typed(cells: Any, decimal: str = ".", missing: Sequence[str] = MISSING) -> Any:
    """A column in the type that all of its cells have, missing ones null; strings where they have none in common.

    ``cells`` is a chunked array of strings, or of float64; ``decimal`` is the decimal mark, "." or ",", and ``missing``
    are the cells that stand for a missing value.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(cells.type):
        return _with_places(cells)
    if decimal == "," or missing != MISSING:  # other words may be numbers
        cells = without_missing(cells, missing)
    plain = cells
    if decimal == ",":
        if pc.any(pc.match_substring(cells, ".")).as_py():
            return cells
        plain = pc.replace_substring(cells, ",", ".")
    for tidy in (lambda cells: cells, lambda cells: without_missing(cells, missing), _tidied):
        plain = tidy(plain)
        if plain.null_count == len(plain):
            return pa.chunked_array([pa.nulls(len(plain))])
        found = _numbers(plain)
        if found is None:
            found = _others(plain)
        if found is not None:
            return found
    return without_missing(cells, missing)  # text keeps its commas


def without_missing(cells: Any, missing: Sequence[str] = MISSING) -> Any:
    """Cells with null for those that stand for a missing value, also within spaces."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = pc.utf8_trim_whitespace(cells)
    return pc.if_else(pc.is_in(cells, value_set=pa.array(missing)), pa.scalar(None, cells.type), cells)


def missing_words(cells: Any, missing: Sequence[str]) -> list[str]:
    """The words among cells that stand for a missing value, in their order there; an empty cell is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pc.unique(pc.utf8_trim_whitespace(pc.unique(cells)))
    words: list[str] = distinct.filter(pc.is_in(distinct, value_set=pa.array(missing))).to_pylist()
    return [word for word in words if word]


def has_outer_spaces(cells: Any) -> bool:
    """Whether a cell of text has spaces around it, which are no part of a value."""
    import pyarrow.compute as pc

    distinct = pc.unique(cells)
    return bool(pc.any(pc.not_equal(distinct, pc.utf8_trim_whitespace(distinct))).as_py())


def first_text(cells: Any, decimal: str, missing: Sequence[str]) -> tuple[int, str]:
    """The row, counted from 0, and the text of the first cell that is no number, or begins with a zero."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(cells.combine_chunks())
    if decimal == ",":
        trimmed = pc.replace_substring(pc.replace_substring(trimmed, ".", " "), ",", ".")
    odd = pc.invert(pc.or_(pc.match_substring_regex(trimmed, _MESSY), pc.is_in(trimmed, value_set=pa.array(missing))))
    for found in (odd, pc.match_substring_regex(trimmed, "^[+-]?0[0-9]"), pc.is_valid(trimmed)):
        row = pc.index(pc.fill_null(found, False), True).as_py()
        if row >= 0:
            break
    kind = typed(pa.chunked_array([trimmed.slice(row, 1)]), ".", missing).type if row >= 0 else pa.null()
    if pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        row = _first_other(trimmed, missing)
    return row, cells[row].as_py().strip()


def _first_other(cells: Any, missing: Sequence[str]) -> int:
    """The first row whose cell has no type in common with those above, such as a day that does not exist."""
    import pyarrow as pa

    low, high = 0, len(cells)  # so many rows have a type in common, and so many have none
    while high - low > 1:
        middle = (low + high) // 2
        is_text = pa.types.is_string(typed(pa.chunked_array([cells.slice(0, middle)]), ".", missing).type)
        low, high = (low, middle) if is_text else (middle, high)
    return high - 1


def looks_like_numbers(cells: Any, decimal: str) -> bool:
    """Whether text is a column of numbers, days or times with cells that are none, or in a form that is not read.

    So it is where a cell is a number as it stands, or half of the different cells look like one.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pc.unique(cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells).drop_null()
    if not len(distinct):
        return False
    plain = distinct
    if decimal == ",":
        plain = pc.replace_substring(pc.replace_substring(plain, ".", " "), ",", ".")
    if pc.any(pc.match_substring_regex(plain, _MESSY)).as_py():
        return True
    return bool(2 * pc.sum(pc.match_substring_regex(distinct, _ODD)).as_py() >= len(distinct))


def advice_on(cell: str, decimal: str) -> str:
    """What to do about a cell that looks like a number, a day or a time, and is not read as one; empty for others."""
    if re.fullmatch(_PLAIN, cell.replace(decimal, ".")):
        return ""
    is_comma = decimal == "." and _DECIMAL_COMMA.fullmatch(cell) is not None
    of_commas = 'a decimal comma is read with data.decimal = "," where all numbers of the file have it'
    if is_comma and not _THOUSANDS.fullmatch(cell):
        return of_commas
    if _GROUPED.fullmatch(cell):
        return "separators of thousands are not read: take them out" + (f"; {of_commas}" if is_comma else "")
    if re.fullmatch(_DAY, cell):
        return "days are read in the form 2024-06-01, and stamps as 2024-06-01T09:15:00"
    if re.fullmatch(_CLOCK, cell):
        return "times are read in the form 09:15:00, from 00:00:00 to 23:59:59"
    return "take out what is no part of the number" if re.fullmatch(_AMOUNT, cell) else ""


def is_rounded(cell: str, decimal: str = ".") -> bool:
    """Whether a cell is a number that the nearest double, written with as many digits, is not.

    Examples:
        >>> is_rounded("0.30000000000000004"), is_rounded("1234567890123456.78")
        (False, True)
    """
    if len(cell) < _MOST_EXACT:
        return False
    plain = re.sub("[dD]", "e", cell.replace(decimal, ".").replace("\u2212", "-"))
    if not re.fullmatch(_PLAIN, plain):
        return False
    number = Decimal(plain)
    return Context(prec=len(number.as_tuple().digits)).plus(Decimal(float(plain))) != number


def has_padding(cells: Any) -> tuple[bool, bool]:
    """Whether whole numbers begin with a zero, and whether they are codes then, as all are but those of two digits.

    0x1F, a whole number to Arrow, is a code too.
    """
    padded, two = False, True
    for first, second, lengths in _first_bytes(cells):
        is_signed = (first == ord("-")) | (first == ord("+"))
        lead = np.where(is_signed, second, first)
        digits = lengths - is_signed
        padded |= bool(((lead == ord("0")) & (digits > 1)).any())
        two &= bool((digits[digits > 0] == 2).all())
    return padded, padded and not two


def _first_bytes(cells: Any) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]]:
    """First and second byte of each cell that is not missing (0 where there is none) and its length, chunk by chunk."""
    found = []
    for chunk in cells.chunks:
        part = chunk.drop_null()
        _, offsets, data = part.buffers()
        if data is None or not len(part):
            continue
        ends = np.frombuffer(offsets, np.int32)[part.offset : part.offset + len(part) + 1].astype(np.int64)
        padded = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(2, np.uint8)])
        starts, lengths = ends[:-1], np.diff(ends)
        first = np.where(lengths > 0, padded[starts], 0).astype(np.uint8)
        second = np.where(lengths > 1, padded[starts + 1], 0).astype(np.uint8)
        found.append((first, second, lengths))
    return found


def _numbers(cells: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = _cast(cells, pa.int64())
    if whole is not None:
        return whole
    numbers = _cast(cells, pa.float64())
    if numbers is None:
        return None
    values = numbers.to_numpy()
    finite = _finite(values)
    is_whole = len(finite) > 0 and (_largest(finite) >= _EXACT or np.array_equal(finite, np.rint(finite)))
    if is_whole and pc.all(pc.match_substring_regex(cells, _WHOLE)).as_py():
        plain = pc.replace_substring_regex(cells, r"^\+", "")
        most = pc.max(pc.utf8_length(pc.replace_substring_regex(plain, "^-?0*", ""))).as_py()
        # Arrow takes any number of digits for a decimal, and wraps around.
        kinds = [pa.decimal128(38, 0)] * (most <= 38) + [pa.decimal256(76, 0)] * (most <= 76)
        for kind in (pa.int64(), pa.uint64(), *kinds):
            exact = _cast(plain, kind)
            if exact is not None:
                return exact
        return None
    return _with_places(numbers)


def _with_places(numbers: Any) -> Any:
    """Floats as decimals, where they have few places."""
    values = numbers.to_numpy()
    places = decimal_places(values)
    return numbers if places is None else _decimals(values, places)


def decimal_places(values: NDArray[np.float64]) -> int | None:
    """The fewest places, at most 9, with which every number has at most 15 digits; None where it takes more.

    Such a decimal and its float64 stand for each other, so the floats tell what the text said.

    Examples:
        >>> decimal_places(np.array([0.637, 12.5])), decimal_places(np.array([1 / 3]))
        (3, None)
    """
    finite = _finite(values)
    if not len(finite) or (len(finite) < len(values) and len(finite) != np.count_nonzero(~np.isnan(values))):
        return None
    places = 0
    for start in range(0, len(finite), _BLOCK):
        part = finite[start : start + _BLOCK]
        with np.errstate(over="ignore"):  # of numbers such as 1e300
            while np.any(_mantissas(part, places) / 10.0**places != part):
                places += 1
                if places > MAX_PLACES:
                    return None
    return places if _largest(finite) * 10.0**places < 10.0**MAX_DIGITS else None


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    is_finite = np.isfinite(values)
    return values if is_finite.all() else values[is_finite]


def _largest(values: NDArray[np.float64]) -> float:
    return max(float(values.max()), -float(values.min()))


def _mantissas(values: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    return np.rint(values * 10.0**places)


def _decimals(values: NDArray[np.float64], places: int) -> Any:
    import pyarrow as pa

    is_missing = np.isnan(values)
    mantissas = _mantissas(np.where(is_missing, 0.0, values), places).astype(np.int64)
    digits = max(len(str(int(np.abs(mantissas).max()))), places, 1)
    words = np.empty((len(values), 2), np.int64)  # 128 bits, the lower half first
    words[:, 0], words[:, 1] = mantissas, mantissas >> 63
    valid = pa.py_buffer(np.packbits(~is_missing, bitorder="little")) if is_missing.any() else None
    kind = pa.decimal128(digits, places)
    return pa.chunked_array([pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(words)])])


def _others(cells: Any) -> Any:
    """Truth values, dates and times of day; None where the cells are none of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from sfg_dist.data.arrow_columns import times_of_day

    some = str(next(chunk.drop_null()[0].as_py() for chunk in cells.chunks if chunk.null_count < len(chunk)))
    if some[:1] in "tfTF" and pc.all(pc.match_substring_regex(cells, "^[a-zA-Z]+$")).as_py():  # Arrow takes 0 and 1 too
        found = _cast(cells, pa.bool_())
        if found is not None:
            return found
    if _DATE.match(some):
        stamps = [pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("s", "ns")]
        kinds = (pa.date32(), *stamps)
        return next((found for kind in kinds if (found := _cast(cells, kind)) is not None), None)
    if re.match(_TIME, some) and pc.all(pc.match_substring_regex(cells, _TIME)).as_py():
        for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
            with contextlib.suppress(pa.ArrowInvalid):
                return times_of_day(cells, kind)
    return None


def _tidied(cells: Any) -> Any:
    """Numbers with a plus, a typographic minus or Fortran's D as plain ones."""
    import pyarrow.compute as pc

    if not pc.all(pc.match_substring_regex(cells, _MESSY)).as_py():
        return cells
    plain = pc.replace_substring_regex(pc.replace_substring(cells, "\u2212", "-"), r"^\+", "")
    return pc.replace_substring_regex(plain, "[dD]", "e")


def _cast(cells: Any, kind: Any) -> Any:
    import pyarrow as pa

    try:
        return cells.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
