"""How a .csv file is written: separator, decimal mark, comments, header. Many lines decide, or the file is refused.

A separator must cut all lines into as many cells, a decimal comma must suit all numbers, and a header must differ from
the lines below it. Where two readings are possible the file is refused, with the key that says which is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from sfg_dist.data.csv_columns import MISSING, is_rounded
from sfg_dist.data.csv_header import counts_rows, has_header
from sfg_dist.data.csv_lines import NO_SEPARATOR, Record, begins_as_comment, cut, kind_of
from sfg_dist.job.errors import DataError
from sfg_dist.job.words import counted

if TYPE_CHECKING:
    from sfg_dist.data.column_type import ColumnType

_SAMPLE_BYTES, _SAMPLE_LINES, _FEWEST_LINES = 1 << 20, 2000, 20
_JUDGED_LINES = 300
# those that text holds seldom first
_WORDS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", " ": "spaces"}
_SEP_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+([eEdD][+-]?\d+)?")
_POINT_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eEdD][+-]?\d+)?")
_QUOTED = re.compile('"[^"]*"')
_GROUPED_BY_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_WHOLE = re.compile(r"[+-]?\d+")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


@dataclass(frozen=True)
class TextFormat:
    """What the user says of a .csv file; its lines decide what is "auto"."""

    header: Literal["auto"] | bool = "auto"  # whether the first line holds the names
    separator: str = "auto"  # of cells: one character, "tab" or "space"
    decimal: str = "auto"  # the decimal mark, "." or ","
    encoding: str = "auto"  # the name of Python's codec
    index: Literal["auto"] | bool = "auto"  # whether the first column numbers the rows, and is left out
    # the words that stand for a missing value, beside the empty cell; "auto" are those of ``MISSING``
    null_values: Literal["auto"] | Sequence[str] = "auto"

    @classmethod
    def of_types(cls, types: Iterable[ColumnType], header: Literal["auto"] | bool = "auto") -> TextFormat:
        """Of a file whose columns have these types: a category such as NA stands for no missing value."""
        taken = {category for type_ in types for category in type_.categories}
        return cls(header=header, null_values=[word for word in MISSING if word and word not in taken])

    @property
    def missing(self) -> tuple[str, ...]:
        """The cells that stand for a missing value."""
        return MISSING if self.null_values == "auto" else ("", *self.null_values)

    @property
    def given(self) -> list[str]:
        """The keys that are not "auto"."""
        return [f"data.{name}" for name, value in vars(self).items() if value != "auto"]


@dataclass(frozen=True)
class Dialect:
    """How a text is written."""

    separator: str  # one character; several spaces count as one
    decimal: str  # "." or ","
    num_columns: int  # cells of a line
    first_line: int  # the first line below the header, counted from 1
    names: tuple[str, ...] | None = None  # as they stand, empty where there is none; None without a header
    names_line: int = 0  # the line that they begin in, counted from 1
    is_open: bool = False  # whether each line ends with a separator, behind which there is no column
    has_comments: bool = False  # whether some lines below it are comments
    # the columns whose first cells are all in quotes, where those of others are not: digits there are text
    quoted: frozenset[int] = frozenset()
    floats: frozenset[int] = frozenset()  # the columns whose first cells all have a decimal mark
    # digits behind the mark, of the columns whose first cells all have as many
    places: Mapping[int, int] = field(default_factory=dict)
    # the columns whose first cells have digits that double precision does not hold
    rounded: frozenset[int] = frozenset()
    notes: Sequence[str] = ()  # what was likely, and not certain

    @property
    def separator_words(self) -> str:
        """What separates cells, in words; empty for a single column."""
        return "" if self.separator == NO_SEPARATOR else _WORDS.get(self.separator, repr(self.separator))

    def is_comment(self, record: Record) -> bool:
        """Whether a line below the header is a comment."""
        return record.is_marked and (self.num_columns == 1 or len(record.cells) != self.num_columns)


def decide(source: str, data: bytes, text: TextFormat) -> Dialect:
    """How a text is written, from its bytes: UTF-8, lines ended by ``\\n``.

    A text is refused if it holds no line, if lines differ in their number of cells, or if two readings are possible.
    """
    lines = _sample(data)
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise DataError(f"{source} is empty (blank lines only): expected a table")
    notes: list[str] = []
    separator, decimal = {"tab": "\t", "space": " "}.get(text.separator, text.separator), text.decimal
    if found := _SEP_LINE.fullmatch(lines[first].strip()):
        separator = found[1] if separator == "auto" else separator
        first += 1
    lines, offset = lines[first:], first + 1
    if separator == "auto":
        separator, decimal = _find_separator(source, lines, offset, decimal)
    records = [record for record in cut(source, lines, separator, offset) if not record.is_blank]
    marked = [record for record in records if record.is_marked]
    plain = [record for record in records if not record.is_marked]
    if not plain and marked and len(marked[0].cells) > 1:
        marked, plain = [], records
    if not plain:
        raise DataError(f"{source} holds blank lines and comments only: expected a table")
    above = [record for record in marked if record.line < plain[0].line]
    if decimal == "auto":
        decimal, notes = _find_decimal(source, plain, separator, text.missing)
    width = _width(plain[1:] or plain)
    dialect = Dialect(separator, decimal, num_columns=width, first_line=plain[0].line, notes=notes)
    quoted = _quotes_names(lines[plain[0].line - offset], plain[0], lines[plain[0].end - offset :])
    dialect = _with_names(
        source, dialect, plain, above, replace(text, header=True) if quoted and text.header == "auto" else text
    )
    dialect = _with_width(source, dialect, plain, text)
    below = [record for record in marked if record.line >= dialect.first_line]
    floats = _floats(plain[1 : 1 + _JUDGED_LINES], dialect, text.missing)
    judged = [record.cells for record in plain[:_JUDGED_LINES] if record.line >= dialect.first_line]
    return replace(
        dialect,
        has_comments=any(map(dialect.is_comment, below)),
        # to whose reader a number is a number, whatever it stands for
        floats=frozenset() if any(kind_of(word, ()) == "number" for word in text.missing) else frozenset(floats),
        places={place: number for place, number in floats.items() if number is not None},
        rounded=frozenset(
            place for cells in judged for place, cell in enumerate(cells) if is_rounded(cell, dialect.decimal)
        ),
        quoted=frozenset(_quoted(lines[dialect.first_line - offset :][:_JUDGED_LINES], dialect, text.missing)),
    )


def _sample(data: bytes) -> list[str]:
    """The first lines, whole, and at least some of them where they are long."""
    end = 0
    for _ in range(_SAMPLE_LINES):
        if end > _SAMPLE_BYTES and data.count(b"\n", 0, end) >= _FEWEST_LINES:
            break
        place = data.find(b"\n", end)
        if place < 0:
            return data[:].decode().split("\n") if end == 0 else data.decode().split("\n")[:_SAMPLE_LINES]
        end = place + 1
    return data[:end].decode().split("\n")[:-1]


def _width(records: Sequence[Record]) -> int:
    """The number of cells that most lines have."""
    return Counter(len(record.cells) for record in records).most_common(1)[0][0]


def _find_separator(source: str, lines: list[str], offset: int, decimal: str) -> tuple[str, str]:
    """The separator that cuts all lines alike, into cells that look like values; and the decimal mark."""
    lines = lines[:_JUDGED_LINES]
    options = []
    for order, separator in enumerate(_WORDS):
        if not any(separator in line for line in lines):
            continue
        try:
            records = [r for r in cut(source, lines, separator, offset) if not r.is_blank and not r.is_marked]
        except DataError:  # only another separator closes a quote, or a line is longer than a cell may be
            continue
        body = records[1:] or records
        if not body or (width := _width(body)) == 1:
            continue
        alike = sum(len(record.cells) == width for record in body) / len(body)
        fit = _fit(record.cells for record in body)
        num_names = len(records[0].cells)
        distance = abs(num_names - width) if num_names > 1 else width
        options.append((alike == 1, distance, fit, alike, -order, separator, records))
    single = [
        Record([line.strip()], place, place + 1)
        for place, line in enumerate(lines, offset)
        if line.strip() and not begins_as_comment(line)
    ]
    fit_alone = _fit(record.cells for record in single[1:] or single)
    if not options:
        return NO_SEPARATOR, decimal
    # A line of names with as many cells says more than cells that look like values: stamps hold spaces. Where nothing
    # but spaces cuts it so, one cell off will do, as with row numbers or a separator at the end of each line.
    allowed = 0 if any(option[1] == 0 and option[5] != " " for option in options) else 1
    is_alike, _, fit, alike, _, separator, records = max(
        options, key=lambda option: (option[0], option[1] <= allowed, *option[2:5])
    )
    if separator == "," and fit_alone == 1 and _width(records[1:] or records) == 2 and decimal != ".":
        return _pairs_or_decimals(source, single, decimal)
    if not is_alike and (fit_alone >= fit or alike < 0.5):
        return NO_SEPARATOR, decimal
    return separator, decimal


def _fit(rows: Iterable[Sequence[str]]) -> float:
    """The share of cells that look like values."""
    cells = [cell for row in rows for cell in row]
    return sum(kind_of(cell) != "text" for cell in cells) / max(1, len(cells))


def _pairs_or_decimals(source: str, records: Sequence[Record], decimal: str) -> tuple[str, str]:
    """Whether lines such as 0,637 hold two whole numbers or one with a decimal comma."""
    first, body = records[0].cells[0], [record.cells[0] for record in records[1:]]
    as_decimals, as_pairs = (NO_SEPARATOR, ","), (",", decimal)
    if decimal == ",":
        return as_decimals
    if not _COMMA_NUMBER.fullmatch(first):
        if "," in first:
            return as_pairs
    else:
        body.insert(0, first)
        if not _could_be_decimals(body):
            return as_pairs
        if not (_has_decimals(body) and any(cell.lstrip("+-").startswith(("0,", ",")) for cell in body)):
            raise DataError(
                f"{source}: its lines, such as {first}, hold two whole numbers, or one with a decimal comma: set "
                'data.separator = "," for the former, data.decimal = "," for the latter'
            )
    if all(_GROUPED.fullmatch(cell) for cell in body) or (
        counts_rows([cell.partition(",")[0] for cell in body[:-1]]) and len(body) > 3
    ):
        raise DataError(
            f"{source}: line {records[1].line} holds {body[0]}, whose comma may be a decimal comma, a separator of "
            'thousands or one of two cells: set data.decimal = "," for the first, data.separator = "," for the last, '
            "else take the separators of thousands out"
        )
    return as_decimals


def _could_be_decimals(cells: Sequence[str]) -> bool:
    tails = [cell.partition(",")[2] for cell in cells]
    long = [tail for tail in tails if len(tail) > 1]
    if not long:
        return False
    same = len(set(map(len, tails))) == 1
    return same or _has_decimals(cells) or (len(cells) >= 20 and not any(tail.endswith("0") for tail in long))


def _has_decimals(cells: Sequence[str]) -> bool:
    """Whether what stands behind a comma begins with a zero, which no whole number does."""
    return any(len(tail) > 1 and tail[0] == "0" for tail in (cell.partition(",")[2] for cell in cells))


def _find_decimal(
    source: str, records: Sequence[Record], separator: str, missing: Sequence[str]
) -> tuple[str, list[str]]:
    """The decimal mark, and what to say of it where it is not certain."""
    cells = [(cell, record) for record in records for cell in record.cells if "," in cell or "." in cell]
    commas = [(cell, record) for cell, record in cells if _COMMA_NUMBER.fullmatch(cell)]
    points = [(cell, record) for cell, record in cells if _POINT_NUMBER.fullmatch(cell)]
    if separator == ";" and points and not commas and all(_GROUPED_BY_POINTS.fullmatch(cell) for cell, _ in points):
        if found := _beside_whole_numbers(records, missing):
            raise DataError(
                f"{source}: line {found[1].line} holds {found[0]}, and other cells of its column no point, so this may "
                'be a separator of thousands, as where commas are decimal: set data.decimal = "." if it is a decimal '
                "point, else take the separators of thousands out"
            )
        first = points[0][0]
        return ".", [f"points as in {first} read as decimal points, not as separators of thousands (data.decimal)"]
    if not commas or points:
        return ".", []
    cell, record = commas[0]
    if separator == NO_SEPARATOR and 2 * len(commas) < len(records):
        raise DataError(
            f'{source}: line {record.line} holds {cell}, most others have no comma: set data.decimal = "," if it is a '
            'decimal comma, data.separator = "," if it separates two cells'
        )
    if all(_GROUPED.fullmatch(cell) for cell, _ in commas):
        raise DataError(
            f"{source}: line {record.line} holds {cell}, which may be a decimal comma or a separator of thousands: set "
            'data.decimal = "," for the former, else take the separators of thousands out'
        )
    return ",", []


def _beside_whole_numbers(records: Sequence[Record], missing: Sequence[str]) -> tuple[str, Record] | None:
    """The first number with a point in a column that has whole numbers below line 1, and its line."""
    cells = [(place, cell, record) for record in records for place, cell in enumerate(record.cells)]
    below = cells[len(records[0].cells) :]
    whole = {place for place, cell, _ in below if cell not in missing and _WHOLE.fullmatch(cell)}
    return next(((c, record) for place, c, record in cells if place in whole and _POINT_NUMBER.fullmatch(c)), None)


def _with_names(
    source: str, dialect: Dialect, plain: Sequence[Record], above: Sequence[Record], text: TextFormat
) -> Dialect:
    """The dialect with the names, from line 1 or from the comment above it, and where the data begin."""
    first, body = plain[0], plain[1:]
    answer: bool | str = text.header
    if answer == "auto":
        comment = _names_of_comment(above, dialect.num_columns)
        answer = has_header(first.cells, [record.cells for record in body[:_JUDGED_LINES]], text.missing)
        if comment is not None and answer is not True:
            return replace(dialect, names=comment, names_line=above[-1].line)
    if isinstance(answer, str):
        raise DataError(
            f"{source}: line {first.line} may hold names or values ({answer}): set data.header = true if it holds "
            "names, false if it holds values"
        )
    if not answer:
        return dialect
    return replace(dialect, names=tuple(first.cells), names_line=first.line, first_line=first.end)


def _floats(records: Sequence[Record], dialect: Dialect, missing: Sequence[str]) -> dict[int, int | None]:
    """The columns of numbers with a decimal mark, and the digits behind it where all cells have as many."""
    number = _COMMA_NUMBER if dialect.decimal == "," else _POINT_NUMBER
    rows = [record.cells for record in records if len(record.cells) == dialect.num_columns]
    columns = enumerate(zip(*rows, strict=True))
    given = {place: [cell for cell in cells if cell not in missing] for place, cells in columns}
    found: dict[int, int | None] = {}
    for place, cells in given.items():
        if cells and all(map(number.fullmatch, cells)):
            tails = {cell.partition(dialect.decimal)[2] for cell in cells}
            lengths = {len(tail) if tail.isdigit() else None for tail in tails}
            found[place] = lengths.pop() if len(lengths) == 1 else None
    return found


def _quoted(lines: Sequence[str], dialect: Dialect, missing: Sequence[str]) -> set[int]:
    """The columns that have quotes around all cells but missing ones; none where all columns have them."""
    rows = [[cell.strip() for cell in line.split(dialect.separator)] for line in lines]
    rows = [row for row in rows if len(row) == dialect.num_columns]  # in the others, quotes hold a separator
    columns = [{cell for cell in column if cell not in missing} for column in zip(*rows, strict=True)]
    found = {place for place, cells in enumerate(columns) if cells and all(map(_QUOTED.fullmatch, cells))}
    return found if any(cells for place, cells in enumerate(columns) if place not in found) else set()


def _quotes_names(line: str, first: Record, below: Sequence[str]) -> bool:
    """Whether the first line alone has its cells in quotes: R and Arrow write names like this."""
    num_named = sum(cell != "" for cell in first.cells)
    return 0 < 2 * num_named <= line.count('"') and not any('"' in other for other in below) and any(below)


def _names_of_comment(above: Sequence[Record], width: int) -> tuple[str, ...] | None:
    """The names in the last comment, as numpy.savetxt writes them, if it has as many as there are columns."""
    if not above:
        return None
    cells = list(above[-1].cells)
    cells[0] = cells[0].lstrip("# \t")
    if not cells[0] and len(cells) == width + 1:  # "# a b" with spaces as separators
        cells = cells[1:]
    are_names = len(cells) == width and all(kind_of(cell) == "text" for cell in cells) and len(set(cells)) == width
    return tuple(cells) if are_names else None


def _with_width(source: str, dialect: Dialect, plain: Sequence[Record], text: TextFormat) -> Dialect:
    """The dialect with as many names as cells, without what separators at the ends of lines add."""
    body = [record for record in plain if record.line >= dialect.first_line]
    names, width = dialect.names, dialect.num_columns
    ends_empty = width > 1 and all(record.cells[-1] == "" for record in body if len(record.cells) == width)
    if names is None:
        return replace(dialect, is_open=ends_empty and len(body) > 1)
    if not body:
        return replace(dialect, num_columns=len(names))
    if len(names) == width:
        return replace(dialect, is_open=ends_empty and names[-1] == "")
    if len(names) == width + 1 and names[-1] == "":
        return replace(dialect, names=names[:-1])
    if len(names) == width - 1 and ends_empty:
        return replace(dialect, names=(*names, ""), is_open=True)
    numbers = [record.cells[0] for record in body if len(record.cells) == width]
    if len(names) == width - 1 and text.index is not False and (text.index is True or counts_rows(numbers)):
        return replace(dialect, names=("", *names))
    line = next(record.line for record in body if len(record.cells) == width)
    hint = ""
    if dialect.separator == "," and width == 2 * len(names):
        hint = "; numbers with a decimal comma must be quoted, or separated by something else"
    elif len(names) == width - 1:
        hint = "; set data.index = true if the first cell of each line only names the line"
    found = f"line {dialect.names_line} holds {counted(len(names), 'name')}, line {line} {width} cells"
    words = dialect.separator_words or "nothing"
    raise DataError(
        f"{source}: {found} (separated by {words}): expected as many{hint}; data.separator says what separates them"
    )
