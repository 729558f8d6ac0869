"""Arguments of calls as plain numbers and values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sfg_dist.job.errors import ConfigError
from sfg_dist.job.words import shown

MAX_COUNT = 2**53
"""Above this, a count such as 1e20 is not exact as a float."""


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
