"""Cuts lines of a .csv text into cells, with Python's csv module; and says what a single cell looks like."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sfg_dist.data.csv_columns import MISSING
from sfg_dist.job.errors import DataError

NO_SEPARATOR = "\x1f"
"""Stands for the separator of a file of one column: it is in no text."""

_NUMBER = re.compile(r"[+\-\u2212]?(\d+[.,]?\d*|[.,]\d+)([eEdD][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T][\d:.]+(Z|[+-][\d:]+)?)?|\d\d:\d\d:\d\d(\.\d+)?")
_SPACES = re.compile(rb'"[^"]*"|[ \t]+')
_END_SPACES = re.compile(rb'"[^"]*"|^ | $', re.MULTILINE)
_MOST_LETTERS = 1 << 24  # of a cell
_TRUTH = frozenset(("true", "false"))
# what begins as a comment and is a value: errors of spreadsheets, and colours, where these are a cell of several or all
_ERROR = re.compile(r"#(N/A( N/A)?|NA|DIV/0!|VALUE!|REF!|NAME\?|NUM!|NULL!)\s*([,;|\t]|$)")
_COLOUR = re.compile(r"#[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?\s*([,;|\t]|$)")


@dataclass(frozen=True)
class Record:
    """The cells between two ends of line that are not quoted, without spaces around them."""

    cells: list[str]  # at least one
    line: int  # number of the line that it begins in, counted from 1
    end: int  # number of the first line after it
    is_marked: bool = False  # whether it begins as a comment does

    @property
    def is_blank(self) -> bool:
        """Whether the line holds nothing but spaces."""
        return self.cells == [""]


def begins_as_comment(line: str, *, is_single: bool = False) -> bool:
    """Whether a line begins as a comment does. A # in quotes is text, and so are errors of spreadsheets and colours.

    A colour alone in a line is a comment, as #decade may be, unless the file has a single column (``is_single``).

    Examples:
        >>> begins_as_comment("# made in 2024"), begins_as_comment('"#1",2'), begins_as_comment("#N/A,5")
        (True, False, False)
    """
    line = line.lstrip()
    if (colour := _COLOUR.match(line)) and (is_single or colour[2]):
        return False
    return line.startswith("#") and _ERROR.match(line) is None


class _Feed:
    """Lines for csv.reader; a quote that a comment does not close means nothing."""

    def __init__(self, lines: list[str], strip: bool) -> None:
        self._lines, self._strip, self.place, self.is_fresh = lines, strip, 0, True

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self.place == len(self._lines):
            raise StopIteration
        line = self._lines[self.place]
        self.place += 1
        if self.is_fresh and line.lstrip().startswith("#") and line.count('"') % 2:
            line = line.replace('"', "")
        self.is_fresh = False
        return (line.replace("\t", " ").strip(" ") if self._strip else line) + "\n"


def cut(source: str, lines: list[str], separator: str, first_line: int = 1) -> Iterator[Record]:
    """The records of lines, blank ones among them; a cell that never ends, as after an open quote, is refused.

    The lines come without their ends, and ``first_line`` is the number of the first. Where the separator is a space,
    several spaces count as one, and tabs too.
    """
    feed = _Feed(lines, separator == " ")
    reader = csv.reader(feed, delimiter=separator, skipinitialspace=True)
    while True:
        feed.is_fresh, line = True, first_line + feed.place
        is_marked = feed.place < len(lines) and begins_as_comment(
            lines[feed.place], is_single=separator == NO_SEPARATOR
        )
        limit = csv.field_size_limit(_MOST_LETTERS)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{source} cannot be read as .csv: a cell that begins in line {line} has no end; is a quote not closed?"
            ) from error
        finally:
            csv.field_size_limit(limit)
        yield Record([cell.strip() for cell in cells] or [""], line, first_line + feed.place, is_marked)


def kind_of(cell: str, missing: Sequence[str] = MISSING) -> str:
    """ "number", "missing", "truth", "date" or "text"."""
    if cell in missing:
        return "missing"
    if _NUMBER.fullmatch(cell):
        return "number"
    if cell.lower() in _TRUTH:
        return "truth"
    return "date" if _DATE.fullmatch(cell) else "text"


def with_single_spaces(data: bytes) -> bytes:
    """A text in which one space stands for several, and for tabs, outside of quotes."""
    if b'"' not in data:
        return b"\n".join([b" ".join(line.split()) for line in data.split(b"\n")])
    data = _SPACES.sub(lambda match: match[0] if match[0].startswith(b'"') else b" ", data)
    return _END_SPACES.sub(lambda match: match[0] if match[0].startswith(b'"') else b"", data)
