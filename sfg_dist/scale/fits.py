"""Laws of scaling, fitted to measured times, with what is not known about their numbers.

    Amdahl          T(n) = T_1 (s + (1 - s) / n)                              s: share that does not divide
    universal       T(n) = T_1 (1 + c (n - 1) + k n (n - 1)) / n              c: contention, k: coherence

Both by least squares of log T over all runs. The interval of a number is that of 200 fits to runs drawn anew within
each number of workers (a stratified bootstrap), 5th to 95th percentile; there is none where a number has one run alone.

References:
    Amdahl 1967, Validity of the single processor approach. Gunther 1993, A simple capacity model of massively parallel
    transaction systems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

NUM_DRAWS = 200
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


def fit_laws(workers: Sequence[int], wall_s: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Each law's numbers, by name, where there are enough numbers of workers for it.

    Args:
        workers: of each run.
        wall_s: of each run.
        seed: of the draws.

    Returns:
        By law: time_of_one_s and its own numbers, each {"value", "low", "high"} (the latter two None without repeats),
        and residual, the root mean square of log T; or {"missing": why}.

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
        best = _fit(law, n, t, low, high)
        entry: dict[str, Any] = {
            key: {"value": float(best[place]), "low": None, "high": None}
            for place, key in enumerate(("time_of_one_s", *names))
        }
        if np.unique(n, return_counts=True)[1].min() > 1:
            draws = np.array([_fit(law, n, drawn, low, high) for drawn in _drawn_anew(n, t, seed)])
            edges = np.percentile(draws, [5, 95], axis=0)
            for place, key in enumerate(("time_of_one_s", *names)):
                entry[key] |= {"low": float(edges[0, place]), "high": float(edges[1, place])}
        entry["residual"] = float(np.sqrt(np.mean(np.log(law(n, best) / t) ** 2)))
        found[name] = entry
    return found


def _fit(law: Law, n: _Array, t: _Array, low: Sequence[float], high: Sequence[float]) -> _Array:
    start = [float(np.median(t * n)), *[0.01] * len(low)]
    bounds = ([1e-9, *low], [np.inf, *high])
    result = least_squares(lambda p: np.log(law(n, p) / t), start, bounds=bounds, x_scale=[start[0], *[0.1] * len(low)])
    parameters: _Array = result.x
    return parameters


def _drawn_anew(n: _Array, t: _Array, seed: int) -> list[_Array]:
    """Times with, for each run, that of a run drawn among those with as many workers."""
    generator = np.random.default_rng(seed)
    groups = {number: np.flatnonzero(n == number) for number in np.unique(n)}
    draws = []
    for _ in range(NUM_DRAWS):
        drawn = np.empty_like(t)
        for group in groups.values():
            drawn[group] = t[generator.choice(group, len(group))]
        draws.append(drawn)
    return draws


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
                "rows_per_s": float(np.median(r[n == number] / times)),
                "efficiency": float(np.median(own) / np.median(base)),
                "efficiency_low": float(own.min() / base.max()),
                "efficiency_high": float(own.max() / base.min()),
                "mode": mode,
            }
        )
    return entries
