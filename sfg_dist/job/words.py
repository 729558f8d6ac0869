"""Values, lengths of time, sizes, counts and failures in words that a terminal can show."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

GIB = 2**30


def duration(seconds: float) -> str:
    """A length of time in two units at most, with decimals below ten seconds.

    Examples:
        >>> duration(0.012), duration(5.5), duration(12_300)
        ('12 ms', '5.5 s', '3 h 25 min')
    """
    if 0 < seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if 1 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    for size, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def size_of(num_bytes: float) -> str:
    """A number of bytes in the unit that keeps it short.

    Examples:
        >>> size_of(3_500_000)
        '3.3 MiB'
    """
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if num_bytes < 1024 or unit == "TiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"


WIDE = 1e6
"""From this value on, a table shows a number by ``wide_number``."""


def wide_number(value: float) -> str:
    """A number with three digits and a power of ten.

    Examples:
        >>> wide_number(-163296656082398880.0)
        '-1.63e17'
    """
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def counted(count: int, name: str) -> str:
    """A count with its noun.

    Examples:
        >>> counted(2, "shard")
        '2 shards'
    """
    plural = "es" if name.endswith("s") else "s"
    return f"{count:,} {name}{'' if count == 1 else plural}"


def failure_line(failure: Mapping[str, Any]) -> str:
    """A failed attempt in words: what, where, why, and what was done about it."""
    shard, attempt = failure.get("shard"), failure.get("attempt")
    where = f" on {failure['worker']}" if failure.get("worker") else ""
    then = "given up" if failure.get("action") == "give_up" else "tried again"
    reason = " ".join(str(failure.get("reason", "no reason known")).split())
    return f"shard {shard}, attempt {attempt}{where} failed: {reason}; {then}"


# Slashes may be those of a string of JSON.
_LOGIN = re.compile(r"(:(?:\\?/){2})[^/?#\s\"'<>\\]*@")
_QUERY = re.compile(r"(:(?:\\?/){2}[^\s?\"'<>]*)\?[^\s,;)\"'<>]*")
_LONG = 60  # characters of a value that a message shows


def shown(value: Any) -> str:
    """A value as a message shows it: short, printable, and never the inside of an object.

    Examples:
        >>> shown(1e30), shown("ten"), shown([1, 2]), shown(object())
        ('1e+30', "'ten'", '[1, 2]', 'an object of type object')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, int):
        is_long = abs(value) >= 10**_LONG
        return f"a number of about {int(math.log10(2) * value.bit_length()) + 1:,} digits" if is_long else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        value = without_secrets(value)
        more = len(value) - _LONG
        return repr(value) if more <= 0 else f"{value[:_LONG]!r} and {more:,} more characters"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple | set):
        parts = [shown(each) for each in list(value)[:_LONG]]
        text = f"[{', '.join(parts)}]"
        return text if len(value) <= _LONG and len(text) <= _LONG else f"a list of {len(value):,}"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, type) or callable(value):
        return f"a {'class' if isinstance(value, type) else 'function'}, {getattr(value, '__name__', 'without a name')}"
    return f"an object of type {type(value).__name__[:_LONG]}"


def without_secrets(text: str) -> str:
    """The text without user, password and query in its URLs: signatures and tokens stand there."""
    text = _LOGIN.sub(r"\1", text)
    return _QUERY.sub(r"\1", text)


def printable(text: str) -> str:
    """A text that is safe on a terminal: control characters and invisible marks are written out.

    Examples:
        >>> printable("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c == "\xa0") else c.encode("unicode_escape").decode() for c in text
    )


def as_line(text: object) -> str:
    """A printable text of one line: line ends and tabs are written out too."""
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")
