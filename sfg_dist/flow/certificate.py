"""A measured certificate: thresholds by time under which the posterior mean's error was measured, not bounded.

A certified bound may not count on errors that cancel: on real tables it is 10 to 100 times the error. Here a node of
the clusters stands for its rows as a normal law where the error that it is expected to add, relative to the whole mass,
is below a threshold (``posterior.normals``). For each time of the flow the largest threshold is taken that keeps the
error of pilots within the tolerance. Pilots are draws of the law that states have at that time, alpha x_j + beta eps.

Then fresh pilots of all times are measured, which played no part in that choice. The thresholds are kept if the share
of them over the tolerance, at its upper confidence limit (Clopper, Pearson 1934, Biometrika 26), is at most 1 -
``QUANTILE``, and no time has more than a few of them. Else lower ones are tried on other pilots, and at last the
certified bound serves. What the pilots' exact means are compared by is itself within a share of the tolerance,
certified, and that share counts as error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.backends import check_measurable
from sfg_dist.flow.posterior.posterior import posterior_moments
from sfg_dist.flow.posterior.reference import PreparedReference
from sfg_dist.flow.solver import Flow, integrate
from sfg_dist.job.plan import Stream, random_generator

QUANTILE, CONFIDENCE = 0.99, 0.95
NUM_FIT, NUM_FRESH = 96, 1024  # pilots at each time, and at all times together at least
_LEAST_FRESH = 48  # at each time
CHECKED_ROWS = 4  # of each batch; each evaluation is measured again for one of them, in turn
EXACT_SHARE = 0.1  # of the tolerance: the bound of what errors are measured against
_AIM = 0.8  # of the tolerance, at the quantile of the pilots that thresholds are fitted on
_FIRST, _LOOSEST, _TIGHTEST = 1e-3, 1.0, 1e-9
_STRIDE = 4.0  # between thresholds that are tried first
_MOST_AT_A_TIME = 0.05  # of a time's fresh pilots over the tolerance
_NUM_ROUNDS = 5
_MAX_TIMES = 32


@dataclass(frozen=True)
class Measured:
    """Thresholds by time, and what was measured of them on fresh pilots."""

    tolerance: float  # of the posterior mean's error, in units of sigma_data
    beta_sq: tuple[float, ...]  # the times, as noise variances, falling
    thresholds: tuple[float, ...]  # at these times; 0 where the certified bound serves
    num_over: tuple[int, ...]  # fresh pilots over the tolerance at these times
    largest: float  # the largest error of a fresh pilot at any time
    num_fresh: int  # fresh pilots at each time
    seed: int = 0  # of all pilots

    def threshold(self, beta_sq: float) -> float:
        """The lower threshold of the two times about ``beta_sq``; 0 beyond the first and the last time."""
        falling = np.array(self.beta_sq)
        exact = np.flatnonzero(np.isclose(falling, beta_sq, rtol=1e-9, atol=0))
        if len(exact):
            return self.thresholds[int(exact[0])]
        after = int(np.searchsorted(-falling, -beta_sq))
        if after in (0, len(falling)):
            return 0.0
        return min(self.thresholds[after - 1], self.thresholds[after])

    def to_record(self) -> dict[str, Any]:
        """As the plan of a store keeps it."""
        return {
            "seed": self.seed,
            "quantile": QUANTILE,
            "confidence": CONFIDENCE,
            "tolerance": self.tolerance,
            "beta_sq": list(self.beta_sq),
            "thresholds": list(self.thresholds),
            "num_fresh": self.num_fresh,
            "num_over": list(self.num_over),
            "largest": self.largest,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measured:
        """The inverse of ``to_record``."""
        return cls(
            tolerance=float(record["tolerance"]),
            beta_sq=tuple(record["beta_sq"]),
            thresholds=tuple(record["thresholds"]),
            num_over=tuple(record["num_over"]),
            largest=float(record["largest"]),
            num_fresh=int(record["num_fresh"]),
            seed=int(record["seed"]),
        )


def evaluation_times(flow: Flow) -> list[tuple[float, float]]:
    """alpha and beta^2 of the flow's evaluations, from noise to data, at most ``_MAX_TIMES`` of them.

    Where there are more, they are thinned out evenly; those at alpha = 0 cost nothing and are left out.
    """
    seen: dict[float, float] = {}

    def denoiser(z_t: Tensor, alpha: float, beta_sq: float) -> Tensor:
        if alpha > 0:
            seen[beta_sq] = alpha
        return torch.zeros_like(z_t)

    integrate(denoiser, torch.zeros(1, 1), flow)
    times = [(seen[beta_sq], beta_sq) for beta_sq in sorted(seen, reverse=True)]
    if len(times) > _MAX_TIMES:
        times = [times[i] for i in np.linspace(0, len(times) - 1, _MAX_TIMES).round().astype(int)]
    return times


def fit_certificate(reference: PreparedReference, flow: Flow, *, tolerance: float, seed: int = 0) -> Measured:
    """The thresholds of a reference at the times of a flow; see the module's docstring.

    Args:
        reference: on the CPU, in one block; the certificate is kept with it for the next call.
        flow: on a grid that all rows share.
        tolerance: of the posterior mean's error, in units of sigma_data, > 0.
        seed: of the pilots.

    Raises:
        ValueError: a measured certificate does not serve this reference (``posterior_moments``).
    """
    if not tolerance > 0:
        raise ValueError(f'certificate = "measured" needs a tolerance above 0, got {tolerance}')
    if flow.solver_tolerance is not None:
        raise ValueError(
            'certificate = "measured" is of times that all rows share; solver_tolerance gives each its own'
        )
    check_measurable(reference)
    key = (flow.solver, flow.schedule, tuple(flow.grid()), tolerance, seed)
    if (kept := reference.certificates.get(key)) is not None:
        return kept
    times = [
        _Time(reference, alpha, beta_sq, tolerance, seed, number)
        for number, (alpha, beta_sq) in enumerate(evaluation_times(flow))
    ]
    num_fresh = max(_LEAST_FRESH, -(-NUM_FRESH // max(1, len(times))))
    thresholds: list[float] = []
    for time in times:  # thresholds change little from time to time
        start = next((value for value in reversed(thresholds) if value > 0), _FIRST)
        thresholds.append(_fit_time(time, start))
    over, largest = _test(times, thresholds, num_fresh)
    reference.certificates[key] = Measured(
        tolerance=tolerance,
        beta_sq=tuple(time.beta_sq for time in times),
        thresholds=tuple(thresholds),
        num_over=tuple(over),
        largest=largest,
        num_fresh=num_fresh,
        seed=seed,
    )
    return reference.certificates[key]


def most_over(num_measured: int) -> int:
    """So many of the measured evaluations may be over the tolerance before the certificate no longer holds of them.

    If a share of 1 - ``QUANTILE`` is over, more are with a probability of 1e-4.
    """
    from scipy import stats

    return int(stats.binom.ppf(1 - 1e-4, num_measured, 1 - QUANTILE))


@dataclass(frozen=True)
class _Time:
    """One time of the flow, and the pilots there."""

    reference: PreparedReference
    alpha: float
    beta_sq: float
    tolerance: float
    seed: int
    number: int

    def pilots(self, group: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """States of the flow's law, and their posterior means within ``EXACT_SHARE`` of the tolerance."""
        index = self.number * (_NUM_ROUNDS + 1) + group
        rng = random_generator(self.seed, Stream.CERTIFICATE, index)
        reference = self.reference
        rows = reference.take(rng.integers(reference.num_reference, size=num_rows))
        rows = (rows - reference.center) / reference.scale
        noise = torch.from_numpy(rng.standard_normal(tuple(rows.shape)))
        states = (self.alpha * rows + self.beta_sq**0.5 * noise).to(reference.dtype)
        return states, self._mean(states, tolerance=EXACT_SHARE * self.tolerance)

    def errors(self, states: Tensor, exact: Tensor, threshold: float) -> NDArray[np.float64]:
        mean = self._mean(states, tolerance=self.tolerance, threshold=threshold)
        return torch.linalg.vector_norm((mean - exact).double(), dim=1).numpy()

    def _mean(self, states: Tensor, *, tolerance: float, threshold: float = 0.0) -> Tensor:
        return posterior_moments(
            states, self.reference, alpha=self.alpha, beta_sq=self.beta_sq, variance=False, backend="sparse",
            tolerance=tolerance, threshold=threshold,
        ).mean  # fmt: skip


def _fit_time(time: _Time, start: float) -> float:
    """About the largest threshold under which pilots keep the aim, looked for from ``start`` on; 0 if there is none."""
    states, exact = time.pilots(0, NUM_FIT)

    def keeps(threshold: float) -> bool:
        errors = time.errors(states, exact, threshold)
        return bool(np.quantile(errors, QUANTILE, method="higher") <= _AIM * time.tolerance)

    threshold = start
    if keeps(start):
        while _STRIDE * threshold <= _LOOSEST and keeps(_STRIDE * threshold):
            threshold *= _STRIDE
    else:
        threshold /= _STRIDE
        while not keeps(threshold):
            threshold /= _STRIDE
            if threshold < _TIGHTEST:
                return 0.0
    for step in (_STRIDE**0.5, _STRIDE**0.25):
        if step * threshold <= _LOOSEST and keeps(step * threshold):
            threshold *= step
    return threshold


def _test(times: list[_Time], thresholds: list[float], num_fresh: int) -> tuple[list[int], float]:
    """Lower the thresholds until fresh pilots keep the tolerance; those over it at each time, and the largest error."""
    for group in range(1, _NUM_ROUNDS + 1):
        over, largest = [0] * len(times), 0.0
        for place, time in enumerate(times):
            if thresholds[place] > 0:
                errors = time.errors(*time.pilots(group, num_fresh), thresholds[place]) + EXACT_SHARE * time.tolerance
                over[place] = int((~(errors <= time.tolerance)).sum())
                largest = max(largest, float(np.nan_to_num(errors, nan=np.inf).max()))
        num_measured = num_fresh * sum(value > 0 for value in thresholds)
        is_kept = num_measured == 0 or share_limit(sum(over), num_measured) <= 1 - QUANTILE
        if is_kept and max(over, default=0) <= _MOST_AT_A_TIME * num_fresh:
            return over, largest
        for place, number in enumerate(over):
            if number > 0:
                thresholds[place] = thresholds[place] / 4**group if group < _NUM_ROUNDS - 1 else 0.0
    thresholds[:] = [0.0] * len(times)
    return [0] * len(times), 0.0


def share_limit(num_over: int, num_rows: int) -> float:
    """Upper confidence limit of the share over the tolerance, after Clopper and Pearson."""
    from scipy import stats

    return float(stats.beta.ppf(CONFIDENCE, num_over + 1, num_rows - num_over))
