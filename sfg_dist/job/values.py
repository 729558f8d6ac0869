"""Values in messages, and the arguments of calls as plain numbers."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from sfg_dist.job.errors import ConfigError

MAX_COUNT = 2**53
"""Above this, a count such as 1e20 is not exact as a float."""
# Slashes may be those of a string of JSON.
_LOGIN = re.compile(r"(:(?:\\?/){2})[^/?#\s\"'<>\\]*@")
_QUERY = re.compile(r"(:(?:\\?/){2}[^\s?\"'<>]*)\?[^\s,;)\"'<>]*")
_LONG = 60  # characters of a value that a message shows


def shown(value: Any) -> str:
    """A value as a message shows it: short, printable, and never the inside of an object.

    Example:
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


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """The whole number in an argument ``name`` of a call, given as 100, 1e2 or a number of numpy.

    Raises:
        ConfigError: it is not a whole number of ``least`` or more.
    """
    found = plain(value)
    if isinstance(found, float) and found.is_integer() and abs(found) <= MAX_COUNT:
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int) or not least <= found < 2**63:
        raise ConfigError(f"{name}: expected a whole number of {least} or more, got {shown(value)}")
    return found


def number(name: str, value: Any) -> float:
    """The number in an argument ``name`` of a call.

    Raises:
        ConfigError: it is not a number.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ConfigError(f"{name}: expected a number, got {shown(value)}")
    return float(found)


def plain(value: Any) -> Any:
    """A value as TOML would hold it: numbers and arrays of numpy, paths and tuples become plain values.

    Anything else stays as it is: the checks refuse it by name.
    """
    if isinstance(value, str | bytes | bool | int | float) and type(value).__module__ == "builtins":
        return value
    if isinstance(value, Mapping):
        return {plain(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy":
        if getattr(value, "ndim", None) == 0:
            return plain(value.item()) if value.dtype.kind in "biufU" else value
        if getattr(value, "ndim", None) == 1 and value.dtype.kind in "biufUO" and value.size <= 10_000:
            return [plain(each) for each in value.tolist()]
    return value


def printable(text: str) -> str:
    """A text that is safe on a terminal: control characters and invisible marks are written out.

    Example:
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
