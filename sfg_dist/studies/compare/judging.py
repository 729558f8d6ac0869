"""How every method is judged: the same code for all, on rows in the user's units against the test rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared
from sfg_dist.evaluate import classifier_test, measure
from sfg_dist.job.errors import TrainingError

TIMED_ROWS = 16_384
TIMED_S = 2.0  # repetitions stop here
MAX_REPEATS = 7

Rows = NDArray[np.float64]


def figures(rows: Rows, table: Prepared, *, metrics: Sequence[str], seed: int) -> dict[str, Any]:
    """All figures of a method's rows.

    Args:
        rows: samples in the user's units, all finite, shape (num_rows, num_columns).
        table: whose test rows they are held against.
        metrics: names of the figures; the classifier test is made in any case.
        seed: of the figures' draws.

    Returns:
        The figures of ``measure`` and c2st_auc_error, the standard error of the classifier's AUC.
    """
    others = [name for name in metrics if name != "c2st_auc" and (name != "kl" or table.log_density is not None)]
    found = auc(rows, table, seed=seed)
    if others:
        found |= measure(rows, table.test, table.train, metrics=others, seed=seed, log_density=table.log_density)
    return found


def auc(rows: Rows, table: Prepared, *, seed: int) -> dict[str, Any]:
    """c2st_auc against the test rows, and its standard error."""
    result = classifier_test(rows, table.test, seed=seed)
    return {"c2st_auc": result and result[0], "c2st_auc_error": result and result[1]}


def finite_rows(rows: Rows, name: str) -> tuple[Rows, int]:
    """The rows without NaN or infinity, and how many were left out.

    Raises:
        TrainingError: nearly all of them were.
    """
    good = np.isfinite(rows).all(axis=1)
    if good.sum() < 0.5 * len(rows):
        raise TrainingError(f"{name}: {len(rows) - good.sum()} of {len(rows)} samples hold NaN or infinity")
    return rows[good], int(len(rows) - good.sum())


def mean_and_error(values: NDArray[np.floating]) -> tuple[float, float]:
    """The mean, and its standard error."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def us_per_row(draw: Callable[[int], object], num_rows: int | None = None) -> float:
    """Microseconds a row: the median of some calls that draw ``num_rows`` (TIMED_ROWS) rows each, after a short one."""
    num_rows = TIMED_ROWS if num_rows is None else num_rows
    draw(min(num_rows, 256))
    seconds: list[float] = []
    while not seconds or (sum(seconds) < TIMED_S and len(seconds) < MAX_REPEATS):
        started = time.perf_counter()
        draw(num_rows)
        seconds.append(time.perf_counter() - started)
    return 1e6 * float(np.median(seconds)) / num_rows
