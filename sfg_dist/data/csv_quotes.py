"""Quotes of a .csv text that readers take differently: those within a cell in quotes that are not doubled."""

from __future__ import annotations

import re

import numpy as np

_QUOTE = ord('"')


def loose_quote(data: bytes, start: int, end: int, separator: str) -> int | None:
    """The place where a cell in quotes begins that has no end, or goes on behind it, as in ``"5\\" pipe"``; or None.

    Quotes within a cell without quotes, as in ``5" pipe``, mean themselves. Between ``start`` and ``end`` lie whole
    lines.

    Examples:
        >>> loose_quote(b'1,"5"" pipe"', 0, 12, ","), loose_quote(b'1,"5" pipe"', 0, 11, ",")
        (None, 2)
    """
    text = np.frombuffer(data, np.uint8, end - start, start)
    quotes = np.flatnonzero(text == _QUOTE)
    is_end = np.zeros(256, dtype=bool)
    is_end[[*separator.encode(), ord("\n")]] = True
    opening, closing = quotes[::2], quotes[1::2]
    begins = is_end[text[opening - 1]] | (opening == 0)
    ends = is_end[text[(closing + 1) % len(text)]] | (closing == len(text) - 1)
    if len(opening) == len(closing) and begins.all() and ends.all():
        return None  # as in most files: no quote is within a cell
    mark = re.escape(separator).encode()
    spaces = b"" if separator in " \t" else rb"[ \t]*+"
    in_quotes = rb'"[^"]*+(?:""[^"]*+)*+"' + spaces + rb"(?=[" + mark + rb"\n]|\Z)"
    cells = re.compile(rb"(?:[^" + mark + rb'\n"][^' + mark + rb"\n]*+|" + in_quotes + rb"|[" + mark + rb"\n])*+")
    found = cells.match(data, start, end)
    return found.end() if found and found.end() < end else None
