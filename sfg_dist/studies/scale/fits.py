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
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

from sfg_dist.studies.scale.results import AmdahlFit, Efficiency, Laws, MissingLaw, Number, Run, UniversalFit

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


def fit_laws(workers: Sequence[int], wall_s: Sequence[float]) -> Laws:
    """Both laws by the numbers of workers and the times of all runs.

    Examples:
        >>> found = fit_laws([1, 2, 4], [100.0, 55.0, 32.5]).amdahl
        >>> round(found.serial_share.value, 3)
        0.1
    """
    n, t = np.asarray(workers, dtype=np.float64), np.asarray(wall_s, dtype=np.float64)
    num_different = len(set(workers))
    laws = Laws(*(MissingLaw(f"needs runs with {needed} numbers of workers") for needed in (2, 3)))
    if num_different > 1:
        (first, serial), residual = _fit(amdahl, n, t)
        tested = num_different > 2
        found = AmdahlFit(time_of_one_s=first, serial_share=serial, residual=residual, is_tested=tested)
        laws = replace(laws, amdahl=found)
    if num_different > 2:
        (first, contention, coherence), residual = _fit(universal, n, t, num_shares=2)
        has_peak = coherence.value > 0 and (coherence.low is None or coherence.low > 0)
        peak = math.sqrt((1 - contention.value) / coherence.value) if has_peak else None
        laws = replace(
            laws,
            universal=UniversalFit(
                time_of_one_s=first, contention=contention, coherence=coherence, residual=residual,
                is_tested=num_different > 3, peak=peak,
            ),
        )  # fmt: skip
    return laws


def _fit(law: Law, n: _Array, t: _Array, num_shares: int = 1) -> tuple[list[Number], float]:
    """The law's numbers, T_1 and shares of 0 to 1, and its residual."""
    low, high = [0.0] * (1 + num_shares), [np.inf] + [1.0] * num_shares
    start = [float(np.median(t * n)), *[0.01] * num_shares]
    result = least_squares(
        lambda p: np.log(law(n, p) / t), start, bounds=([1e-9, *low[1:]], high),
        x_scale=[start[0], *[0.1] * num_shares],
    )  # fmt: skip
    residual = float(np.sqrt(np.mean(result.fun**2)))
    freedom = len(t) - len(start)
    if freedom < 1:
        return [Number(float(value), None, None) for value in result.x], residual
    covariance = np.linalg.pinv(result.jac.T @ result.jac) * float(np.sum(result.fun**2)) / freedom
    half = student.ppf(QUANTILE, freedom) * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return [
        Number(float(value), float(max(least, value - width)), float(min(most, value + width)))
        for value, width, least, most in zip(result.x, half, low, high, strict=True)
    ], residual


def efficiencies(runs: Sequence[Run]) -> list[Efficiency]:
    """One entry for each number of workers of the runs of one stage and mode, ascending."""
    n, t, r = (np.asarray([getattr(run, name) for run in runs], float) for name in ("num_workers", "wall_s", "rows"))
    rate = r / t / n  # rows a second and worker: both modes are its ratio
    base = rate[n == n.min()]
    entries = []
    for number in np.unique(n):
        own, times, rows = (values[n == number] for values in (rate, t, r))
        by_time = sorted((run for run in runs if run.num_workers == number), key=lambda run: run.wall_s)
        entries.append(
            Efficiency(
                num_workers=int(number),
                num_runs=len(own),
                wall_s=float(np.median(times)),
                wall_s_low=float(times.min()),
                wall_s_high=float(times.max()),
                rows=float(np.median(rows)),
                rows_per_s=float(np.median(rows / times)),
                efficiency=float(np.median(own) / np.median(base)),
                efficiency_low=float(own.min() / base.max()),
                efficiency_high=float(own.max() / base.min()),
                mode=runs[0].mode,
                parts_s=by_time[(len(by_time) - 1) // 2].parts_s,
            )
        )
    return entries
