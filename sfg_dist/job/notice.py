"""The time that work may take to end after a scheduler's notice (SIGUSR2), told to whoever watches that it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_granted_s = 0.0


@contextlib.contextmanager
def granting(seconds: float) -> Iterator[None]:
    """Within, work has so long after SIGUSR2."""
    global _granted_s
    before, _granted_s = _granted_s, seconds
    try:
        yield
    finally:
        _granted_s = before


def granted_s() -> float:
    """Seconds that work has after SIGUSR2, 0 where there is none that uses them."""
    return _granted_s
