"""Laws of scaling, fitted to measured times, with what is not known about their numbers.

    Amdahl          T(n) = T_1 (s + (1 - s) / n)                              s: share that does not divide
    universal       T(n) = T_1 (1 + c (n - 1) + k n (n - 1)) / n              c: contention, k: coherence

Both by least squares of log T over all runs. The interval of a number is Student's t for 90 %, by the linearised
covariance with the variance of the residuals: both the spread of repeats and the law's own misfit are in it. There is
none where there are no more runs than numbers. A law with as many numbers as there are numbers of workers goes through
all of them, and its residual is no test of it.

References:
    Bates and Watts 1988, Nonlinear regression analysis (2.4). Amdahl 1967, Validity of the single processor approach.
    Gunther 1993, A simple capacity model of massively parallel transaction systems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

QUANTILE = 0.95  # one-sided: intervals of 90 %
_Array = NDArray[np.float64]
Law = Callable[[_Array, _Array], _Array]


def amdahl(n: _Array, parameters: _Array) -> _Array:
    """T(n); parameters T_1 and the serial share."""
    first, serial = parameters
    time: _Array = first * (serial + (1 - serial) / n)
    return time


def universal(n: _Array, parameters: _Array) -> _Array:
    """T(n); parameters T_1, contention and coherence."""
    first, contention, coherence = parameters
    time: _Array = first * (1 + contention * (n - 1) + coherence * n * (n - 1)) / n
    return time


LAWS: Mapping[str, tuple[Law, tuple[str, ...], tuple[float, ...], tuple[float, ...]]] = {
    "amdahl": (amdahl, ("serial_share",), (0.0,), (1.0,)),
    "universal": (universal, ("contention", "coherence"), (0.0, 0.0), (1.0, 1.0)),
}


def fit_laws(workers: Sequence[int], wall_s: Sequence[float]) -> dict[str, Any]:
    """Each law's numbers, by name, where there are enough numbers of workers for it.

    Args:
        workers: of each run.
        wall_s: of each run.

    Returns:
        By law: time_of_one_s and its own numbers, each {"value", "low", "high"} (the latter two None without runs to
        spare, and within the bounds that the numbers have), residual, the root mean square of log T, and is_tested,
        whether there are more numbers of workers than the law has numbers; the universal law has peak, the number of
        workers beyond which more do less, None where coherence may be 0. Or {"missing": why}.

    Example:
        >>> found = fit_laws([1, 2, 4], [100.0, 55.0, 32.5])["amdahl"]
        >>> round(found["serial_share"]["value"], 3)
        0.1
    """
    n, t = np.asarray(workers, dtype=np.float64), np.asarray(wall_s, dtype=np.float64)
    found: dict[str, Any] = {}
    for name, (law, names, low, high) in LAWS.items():
        needed = len(names) + 1
        if len(set(workers)) < needed:
            found[name] = {"missing": f"needs runs with {needed} numbers of workers"}
            continue
        best, half = _fit(law, n, t, low, high)
        entry: dict[str, Any] = {}
        for place, key in enumerate(("time_of_one_s", *names)):
            value, least, most = float(best[place]), (0.0, *low)[place], (np.inf, *high)[place]
            entry[key] = {"value": value, "low": None, "high": None}
            if half is not None:
                entry[key] |= {"low": max(least, value - half[place]), "high": min(most, value + half[place])}
        entry["residual"] = float(np.sqrt(np.mean(np.log(law(n, best) / t) ** 2)))
        entry["is_tested"] = len(set(workers)) > needed
        if name == "universal":
            contention, coherence = (entry[key]["value"] for key in names)
            is_there = coherence > 0 and (entry["coherence"]["low"] is None or entry["coherence"]["low"] > 0)
            entry["peak"] = math.sqrt((1 - contention) / coherence) if is_there else None
        found[name] = entry
    return found


def _fit(
    law: Law, n: _Array, t: _Array, low: Sequence[float], high: Sequence[float]
) -> tuple[_Array, list[float] | None]:
    """The law's numbers, and half the widths of their intervals."""
    start = [float(np.median(t * n)), *[0.01] * len(low)]
    bounds = ([1e-9, *low], [np.inf, *high])
    result = least_squares(lambda p: np.log(law(n, p) / t), start, bounds=bounds, x_scale=[start[0], *[0.1] * len(low)])
    freedom = len(t) - len(start)
    if freedom < 1:
        return result.x, None
    covariance = np.linalg.pinv(result.jac.T @ result.jac) * float(np.sum(result.fun**2)) / freedom
    half = student.ppf(QUANTILE, freedom) * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return result.x, [float(value) for value in half]


def efficiencies(
    workers: Sequence[int], wall_s: Sequence[float], rows: Sequence[int], *, mode: str
) -> list[dict[str, Any]]:
    """Median time, speed-up and efficiency with its spread, one entry a number of workers, ascending.

    Strong: E = n_0 T(n_0) / (n T(n)). Weak: the work grows with n, E = (rows / T / n) over that of n_0; n_0 is the
    least number. The spread runs from the slowest run over the fastest base to the opposite.

    Args:
        workers, wall_s, rows: of each run.
        mode: "strong" or "weak".
    """
    n, t, r = np.asarray(workers), np.asarray(wall_s, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    rate = r / t / n  # rows a second and worker: both modes are its ratio
    base = rate[n == n.min()]
    entries = []
    for number in np.unique(n):
        own, times = rate[n == number], t[n == number]
        entries.append(
            {
                "num_workers": int(number),
                "num_runs": len(own),
                "wall_s": float(np.median(times)),
                "wall_s_low": float(times.min()),
                "wall_s_high": float(times.max()),
                "rows": float(np.median(r[n == number])),
                "rows_per_s": float(np.median(r[n == number] / times)),
                "efficiency": float(np.median(own) / np.median(base)),
                "efficiency_low": float(own.min() / base.max()),
                "efficiency_high": float(own.max() / base.min()),
                "mode": mode,
            }
        )
    return entries
