"""Reads a .csv file: its dialect is decided, pyarrow cuts all of it into cells, and each column gets its type.

Cells are read as text, except in columns that have a decimal mark throughout. All cells of a column decide its type
(``csv_columns``), so no digit is lost. What was left out is reported.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from sfg_dist.data.csv_columns import (
    MAX_PLACES,
    advice_on,
    first_text,
    has_outer_spaces,
    has_padding,
    looks_like_numbers,
    missing_words,
    typed,
    without_missing,
)
from sfg_dist.data.csv_dialect import Dialect, TextFormat, decide
from sfg_dist.data.csv_lines import Record, cut, with_single_spaces
from sfg_dist.data.csv_quotes import loose_quote
from sfg_dist.data.csv_text import Text, decode_text
from sfg_dist.data.naming import check_columns, listed
from sfg_dist.data.surveys import style_of
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import counted

_BLOCK_BYTES = 1 << 20
_MANY_ROWS, _NUM_THREADS = 100_000, 4


@dataclass(eq=False)
class _File:
    """A .csv file while it is read."""

    source: str
    text: Text
    dialect: Dialect
    missing: tuple[str, ...]  # the cells that stand for a missing value
    notes: list[str] = field(default_factory=list)

    def records(self) -> Iterator[Record]:
        """The data lines as Python cuts them: for messages, since it is slow."""
        dialect = self.dialect
        lines = self.text.data.decode(errors="replace").split("\n")[dialect.first_line - 1 :]
        for record in cut(self.source, lines, dialect.separator, dialect.first_line):
            if not dialect.is_comment(record) and (dialect.num_columns == 1 or not record.is_blank):
                yield record

    def uneven(self) -> DataError:
        """The refusal of a line with too few or too many cells."""
        dialect = self.dialect
        expected = counted(dialect.num_columns, "cell")
        for record in self.records():
            if len(record.cells) != dialect.num_columns:
                return DataError(
                    f"{self.source}: line {record.line} has {counted(len(record.cells), 'cell')}, expected {expected} "
                    f"as in the other lines (separated by {dialect.separator_words or 'nothing'}); mend the line, or "
                    f"set data.separator"
                )
        return DataError(f"{self.source} cannot be read as .csv: a line does not have {expected}; are quotes closed?")

    def loosely_quoted(self, data: bytes, place: int) -> DataError:
        """The refusal of a cell in quotes that holds a quote which is not doubled; ``data`` is the body's text."""
        cell = data[place : place + 40].partition(b"\n")[0]
        line = data.count(b"\n", 0, place) + 1
        if data is not self.text.data:  # comments or spaces were left out
            whole = data[data.rfind(b"\n", 0, place) + 1 :].partition(b"\n")[0].split()
            lines = enumerate(self.text.data.split(b"\n"), 1)
            line = next(number for number, text in lines if b"".join(text.split()) == b"".join(whole))
        return DataError(
            f"{self.source} cannot be read as .csv: {cell.decode(errors='replace')!r} in line {line} begins with a "
            "quote that is not closed, or goes on behind the next one: write a quote within a cell twice, as in "
            '"5"" pipe"'
        )

    def line_of(self, row: int) -> int:
        """The line that a data row begins in; both counted, lines from 1 and rows from 0."""
        return next((record.line for number, record in enumerate(self.records()) if number == row), 0)

    def texts_found(self, columns: Mapping[str, Any]) -> UnfitColumnsError:
        """The refusal of columns that hold text, by their cells."""
        found = {name: first_text(cells, self.dialect.decimal, self.missing) for name, cells in columns.items()}
        reasons = {
            name: f'it holds text, {_cut(cell)!r} in data row {row + 1} (data.types.{name} = "category" takes it)'
            for name, (row, cell) in found.items()
        }
        name, (row, cell) = next(iter(found.items()))
        fact, advice = self._text_found(name, row, cell)
        return UnfitColumnsError(fact, reasons, advice)

    def _text_found(self, name: str, row: int, cell: str) -> tuple[str, str]:
        """What is wrong with a cell, and what to do."""
        where = f"{_cut(cell)!r} in data row {row + 1} (counted from 1), line {self.line_of(row)} of the file"
        what = advice_on(cell, self.dialect.decimal)
        if not what and row == 0 and self.dialect.names is None:
            what = "set data.header = true if the first line holds names"
        elif not what and not self.dialect.separator_words:
            what = "cells are separated by commas, semicolons, tabs, bars or spaces, or as data.separator says"
        advice = f"{what}, or leave" if what else "leave"
        return (
            f"{self.source}: column {name!r} holds text: {where}; expected numbers",
            f'{advice} the column out with data.columns, or set data.types.{name} = "category" if its cells are names',
        )


def read_csv(
    source: str, raw: bytes, columns: Sequence[str] | None, text: TextFormat, asked: Mapping[str, Any] | None = None
) -> tuple[Any, str]:
    """The wanted columns of a .csv file as an Arrow table, and how the file was read, in words.

    Text whose cells look like numbers, days or times is refused, unless the job asks for a type of its column
    (``asked``, as ``data.types``). Cells of a column that is asked for as a category stay as they are written.
    """
    import pyarrow as pa

    asked = asked or {}
    decoded = decode_text(source, raw, text.encoding)
    file = _File(source, decoded, decide(source, decoded.data, text), text.missing)
    if "category" in asked.values():  # whose text counts
        file.dialect = replace(file.dialect, floats=frozenset())
    table = _cells(file)
    names = _named(file, table, columns, text)
    kept = [name for name in names if name is not None]
    wanted = check_columns(source, kept, columns)
    places = {name: place for place, name in enumerate(names)}

    def typed_column(name: str) -> _Column:
        place = places[name]
        return _typed(file, name, table.column(place), asked.get(name), is_quoted=place in file.dialect.quoted)

    if table.num_rows < _MANY_ROWS:
        found = list(map(typed_column, wanted))
    else:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            found = list(pool.map(typed_column, wanted))
    arrays = [column.values for column in found]
    if odd := {name: column.cells for name, column in zip(wanted, found, strict=True) if column.values is None}:
        error = file.texts_found(odd)
        error.names = tuple(kept)
        raise error
    file.notes.extend(column.note for column in found if column.note)
    if words := {word: None for column in found for word in column.words}:
        where = listed([name for name, column in zip(wanted, found, strict=True) if column.words])
        file.notes.append(f"{listed(list(words))} read as missing in {where} (data.null_values)")
    file.notes.extend(_not_kept(file, table, {name: places[name] for name in wanted}, arrays))
    if len(kept) > 1 and kept[0] in wanted and _counts_rows(arrays[wanted.index(kept[0])]):
        file.notes.append(f"{kept[0]!r} counts the rows, and is kept (data.index = true leaves it out)")
    fields = [
        pa.field(name, column.values.type, metadata=_words(file.dialect.places.get(places[name]), column))
        for name, column in zip(wanted, found, strict=True)
    ]
    return pa.table(arrays, schema=pa.schema(fields)), _in_words(file, len(kept))


def _cells(file: _File) -> Any:
    """All cells in columns named "0", "1" and so on: as text, or as numbers where these say as much."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow_csv

    dialect, (data, start, end) = file.dialect, _body(file)
    names = [str(place) for place in range(dialect.num_columns)]
    if start == end:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    num_lines = data.count(b"\n", start, end) + (data[end - 1] != ord("\n"))
    has_quotes = data.find(b'"', start) >= 0
    blank: list[None] = []  # filled by Arrow's threads

    def on_uneven(row: Any) -> str:
        if row.text.strip():
            return "error"
        blank.append(None)
        return "skip"

    def parsed(block_bytes: int, newlines_in_values: bool, floats: frozenset[int]) -> Any:
        blank.clear()
        kinds = {name: pa.float64() if place in floats else pa.string() for place, name in enumerate(names)}
        return arrow_csv.read_csv(
            pa.BufferReader(pa.py_buffer(data).slice(start, end - start)),
            read_options=arrow_csv.ReadOptions(column_names=names, block_size=block_bytes),
            parse_options=arrow_csv.ParseOptions(
                delimiter=dialect.separator,
                quote_char='"' if has_quotes else False,
                newlines_in_values=newlines_in_values,
                ignore_empty_lines=dialect.num_columns > 1,
                invalid_row_handler=on_uneven,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=kinds,
                decimal_point=dialect.decimal,
                null_values=[""],  # of numbers; the words that stand for a missing value are found later, and named
            ),
        )

    table = None
    for floats in dict.fromkeys((dialect.floats, frozenset[int]())):  # without any, where text stands among numbers
        with contextlib.suppress(pa.ArrowInvalid):
            table = parsed(_BLOCK_BYTES, False, floats)
            if not any(pc.any(pc.is_nan(table.column(place))).as_py() for place in floats):
                break
    if table is None or (has_quotes and table.num_rows < num_lines):
        # A line longer than a block, or line breaks in quotes, which Arrow reads more slowly.
        try:
            table = parsed(max(_BLOCK_BYTES, end - start), has_quotes, frozenset())
        except pa.ArrowInvalid as error:
            raise file.uneven() from error
    if has_quotes and (place := loose_quote(data, start, end, dialect.separator)) is not None:
        raise file.loosely_quoted(data, place)
    num_blank = num_lines - table.num_rows
    if has_quotes and num_blank:
        num_blank = len(blank) + len(re.findall(rb"\n(?=\n)", data[start:end].rstrip(b"\n")))
    if dialect.num_columns > 1 and num_blank:
        file.notes.append(f"{counted(num_blank, 'blank line')} left out")
    return table


def _body(file: _File) -> tuple[bytes, int, int]:
    """A text with the data lines, without comments and repeated spaces; and where they begin and end."""
    data, dialect = file.text.data, file.dialect
    start = _start(data, dialect)
    if dialect.has_comments:
        num_comments = 0

        def without(match: re.Match[bytes]) -> bytes:
            nonlocal num_comments
            if match[0].lstrip(b" \t")[:1] != b"#":  # a cell in quotes, which may hold several lines
                return match[0]
            record = next(cut(file.source, [match[0].decode().rstrip("\n")], dialect.separator))
            num_comments += dialect.is_comment(record)
            return b"" if dialect.is_comment(record) else match[0]

        mark = re.escape(dialect.separator.encode())
        quoted = rb"(?:(?<=[" + mark + rb'\n])|\A)"[^"]*(?:""[^"]*)*"|' if b'"' in data else b""
        comment = re.compile(quoted + rb"^[ \t]*#[^\n]*\n?", re.MULTILINE)
        data, start = comment.sub(without, data[start:]), 0
        file.notes.append(f"{counted(num_comments, 'comment line')} left out")
    if dialect.separator == " ":
        data, start = with_single_spaces(data[start:]), 0
    else:
        # To Arrow, a quote behind a space is a part of the cell.
        space = rb" +" if dialect.separator == "\t" else rb"[ \t]+"
        mark = re.escape(dialect.separator.encode())
        if b'"' in data and re.search(mark + space + b'"', data):
            gap = re.compile(rb'"(?:[^"]|"")*"|(?<=' + mark + b")" + space + rb'(?=")')
            data, start = gap.sub(lambda match: match[0] if match[0].startswith(b'"') else b"", data[start:]), 0
    end = len(data)
    if data[-2:].isspace() or data[-1:] == b" ":  # blank lines at the end are no part of the table
        end = len(data.rstrip(b" \n")) if dialect.separator != "\t" else len(data.rstrip(b"\n"))
    return data, start, max(start, end)


def _start(data: bytes, dialect: Dialect) -> int:
    """The byte in which the data begin."""
    place = 0
    for _ in range(dialect.first_line - 1):
        place = data.find(b"\n", place) + 1
        if not place:
            return len(data)
    return place


def _cut(cell: str) -> str:
    return cell if len(cell) <= 40 else cell[:37] + "..."


def _named(file: _File, table: Any, columns: Sequence[str] | None, text: TextFormat) -> list[str | None]:
    """The name of each column; None for one that is left out."""
    given = file.dialect.names or ("",) * file.dialect.num_columns
    names: list[str | None] = [name or f"c{place}" for place, name in enumerate(given)]
    last = without_missing(table.column(len(names) - 1), file.missing) if file.dialect.is_open else None
    if last is not None and last.null_count == table.num_rows:
        names[-1] = None
        file.notes.append("a separator at the end of each line")
    has_names = file.dialect.names is not None
    if text.index is not False and (columns is None or names[0] not in columns) and len(given) > 1:
        for place, name in enumerate(given[:-1]):
            is_unnamed = has_names and (not name or re.fullmatch(r"Unnamed: \d+(\.\d+)*", name) is not None)
            if text.index is True and place == 0:
                names[0] = None
                file.notes.append("the first column left out (data.index)")
            elif is_unnamed and _counts_rows(typed(table.column(place), ".", file.missing)):
                names[place] = None
                file.notes.append(f"row numbers in {'an unnamed column' if not name else repr(name)} left out")
            elif is_unnamed and columns is None:
                raise DataError(
                    f"{file.source}: the first column has no name of its own in line {file.dialect.names_line}, and "
                    "does not count the rows: set data.index = true if it only names them and is left out, false if "
                    f"it is a column (named {name or 'c0'})"
                )
            else:
                break
    return names


def _counts_rows(column: Any) -> bool:
    """Whether a typed column numbers the rows, from any number on."""
    import numpy as np
    import pyarrow as pa

    if column.type != pa.int64() or column.null_count or not len(column):
        return False
    values = column.to_numpy()
    return bool(values[0] >= 0 and np.all(np.diff(values) == 1))


@dataclass(frozen=True, eq=False)
class _Column:
    """A column as it was read."""

    cells: Any  # as text, missing ones null
    values: Any  # with its type; None for text that looks like numbers
    words: list[str]  # that stand for missing values
    note: str = ""  # what there is to report of it beside


def _typed(file: _File, name: str, cells: Any, asked: Any, *, is_quoted: bool) -> _Column:
    """A column with its type, for which a job may ask (``data.types``)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from sfg_dist.data.categories import as_texts

    words: list[str] = []
    found = typed(cells, file.dialect.decimal, file.missing)
    if pa.types.is_string(cells.type) and (found.null_count or pa.types.is_string(found.type)):
        words = missing_words(cells, file.missing)
        cells = without_missing(cells, file.missing)
    if pa.types.is_string(found.type):
        is_whole_line = not file.dialect.separator_words  # text that nothing separates is no column yet
        is_odd = is_whole_line or (not is_quoted and looks_like_numbers(found, file.dialect.decimal))
        is_odd &= asked is None
        return _Column(cells, None if is_odd else found, words)
    if asked == "category" and pc.all(pc.equal(as_texts(found), cells)).as_py() is False:
        return _Column(cells, cells, words)
    if pa.types.is_integer(found.type):
        if is_quoted and asked is None:
            return _Column(cells, cells, words, f"whole numbers in quotes: {name!r} is text")
        is_padded, is_code = has_padding(cells)
        if is_code:
            return _Column(cells, without_missing(cells, file.missing), words, f"leading zeros: {name!r} is text")
        if is_padded:
            return _Column(cells, found, words, f"leading zeros in {name!r} not kept")
    return _Column(cells, found, words)


def _not_kept(file: _File, table: Any, places: Mapping[str, int], values: Sequence[Any]) -> Iterator[str]:
    """What of the cells their values do not have: spaces around text, and digits of numbers."""
    import pyarrow as pa

    found = dict(zip(places, values, strict=True))
    spaces = [
        name
        for name, place in places.items()
        if pa.types.is_string(found[name].type)
        and has_outer_spaces(table.column(place))
        and not has_outer_spaces(found[name])
    ]
    if spaces:
        yield f"spaces around the cells of {listed(spaces)} not kept"
    rounded = [name for name in places if places[name] in file.dialect.rounded]
    if rounded := [name for name in rounded if pa.types.is_floating(found[name].type)]:
        yield f"digits of {listed(rounded)} beyond double precision not kept"


def _words(places: int | None, column: _Column) -> dict[str, str]:
    """What a column's field says beside its type: that it was text, and how text wrote its values."""
    import pyarrow as pa

    kind = column.values.type
    if pa.types.is_string(kind):
        return {}
    if pa.types.is_decimal(kind):
        is_fixed = places is not None and max(1, kind.scale) <= places <= MAX_PLACES
        return {"text": "1"} | ({"style": "fixed", "places": str(places)} if is_fixed else {})
    style = style_of(column.cells, column.values)
    return {"text": "1"} | ({"style": style} if style else {})


def _in_words(file: _File, num_columns: int) -> str:
    dialect = file.dialect
    words = [counted(num_columns, "column")]
    if dialect.names is None:
        words.append("no names in the file")
    else:
        words.append(f"names from line {dialect.names_line}")
    if dialect.separator_words:
        words.append(dialect.separator_words)
    if dialect.decimal == ",":
        words.append("decimal comma")
    return ", ".join([*words, *dialect.notes, *file.text.notes, *file.notes])
