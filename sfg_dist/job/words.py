"""Lengths of time, sizes, counts and failures in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GIB = 2**30


def duration(seconds: float) -> str:
    """A length of time in two units at most, with decimals below ten seconds.

    Example:
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

    Example:
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

    Example:
        >>> wide_number(-163296656082398880.0)
        '-1.63e17'
    """
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def counted(count: int, name: str) -> str:
    """A count with its noun.

    Example:
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
