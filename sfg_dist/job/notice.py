"""The time that work may take to end after a scheduler's notice, SIGUSR2, for the thread that ends the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_granted_s = 0.0


@contextlib.contextmanager
def granting(seconds: float) -> Iterator[None]:
    """Within, work may go on for so long after SIGUSR2."""
    global _granted_s
    before, _granted_s = _granted_s, seconds
    try:
        yield
    finally:
        _granted_s = before


def granted_s() -> float:
    """Seconds that the present work has after SIGUSR2; 0 for other work."""
    return _granted_s
