"""How long a test may wait here: limits are set for one machine, and a slower or a busier one has more time."""

from __future__ import annotations

import os
import time

REFERENCE_S = 0.21  # of the work below on an idle core of the machine that the limits were set for
VARIABLE = "SFG_TEST_SLOWNESS"


def measure_slowness() -> float:
    """How many times as long as there a fixed piece of work takes now, at least 1; measured once a session."""
    if VARIABLE not in os.environ:  # workers of pytest-xdist and child processes take over what was measured
        started, total = time.perf_counter(), 0
        for number in range(3_000_000):
            total += number & 7
        os.environ[VARIABLE] = f"{max(1.0, (time.perf_counter() - started) / REFERENCE_S):.2f}"
    return float(os.environ[VARIABLE])


def patience(seconds: float) -> float:
    """So many seconds of the machine that the limits were set for."""
    return seconds * measure_slowness()
