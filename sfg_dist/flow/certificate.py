"""A measured certificate: thresholds by time under which the error of labels was measured, not bounded.

A certified bound may not count on errors that cancel: on real tables it is 10 to 100 times the error. Here a node of
the clusters stands for its rows as a normal law where the error that it is expected to add, relative to the whole mass,
is below a threshold (``posterior.normals``). An error of the posterior mean is worth what it does to the label. So
pilots go through the whole flow under exact sums, and at each time the largest threshold is taken that keeps their
means within a multiple of the tolerance. The multiple is the same for all times: the largest under which enough of the
pilots' labels keep the tolerance.

Then fresh pilots, which played no part in that choice, are labelled under the thresholds and under exact sums. The
thresholds are kept if the shares of labels that differ by more than ``MULTIPLES`` of the tolerance, at their upper
confidence limits (Clopper, Pearson 1934, Biometrika 26), leave ``SHARES``. Else lower ones are tried on other pilots,
and at last the certified bound serves. The errors of the fresh pilots' means say what is expected at each time, and
batches of labels are measured against that. What is called exact is itself within a share of that error, certified,
and the share counts as error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.backends import check_measurable
from sfg_dist.flow.posterior.posterior import posterior_moments
from sfg_dist.flow.posterior.reference import PreparedReference
from sfg_dist.flow.solver import Denoiser, Flow, integrate
from sfg_dist.job.plan import Stream, random_generator

MULTIPLES, SHARES = (1.0, 10.0), (0.5, 0.9)  # of the tolerance, and of the labels that keep them
CONFIDENCE = 0.95
QUANTILE = 0.99  # of evaluations: so many have the error that is expected at their time, or a smaller one
NUM_FIT, NUM_FRESH = 96, 192  # pilots, each through the whole flow
CHECKED_ROWS = 4  # of each batch; each evaluation is measured again for one of them, in turn
EXACT_SHARE = 0.1  # of the error that is allowed: the bound of what errors are measured against
_AIMS = (0.6, 0.95)  # the same shares of the pilots that thresholds are fitted on
_ROOM = 0.8  # the error at the quantile, of the one that is said to be expected
_STRIDE = 2**0.5  # thresholds, and errors allowed at an evaluation, are tried in powers of it
_FIRST, _STEPS = 1e-3, (-40, 20)  # the threshold that is tried first, and the least and largest powers
# The same of the error allowed, in units of the tolerance. At 32 times the tolerance what is called exact moves labels
# by up to a tenth of it, which counts as error.
_FIRST_SCALE, _SCALES = 4, (-10, 10)
_LEAST_EXPECTED = 0.1  # of the tolerance: float32 may be off by a hundredth
_NUM_ROUNDS = 5
_MAX_TIMES = 32


@dataclass(frozen=True)
class Measured:
    """Thresholds by time, and what was measured of them on fresh pilots."""

    tolerance: float  # of labels, in units of sigma_data
    beta_sq: tuple[float, ...]  # the times, as noise variances, falling
    thresholds: tuple[float, ...]  # at these times; 0 where the certified bound serves
    expected: tuple[float, ...]  # errors of the posterior mean that at most 1 - QUANTILE of evaluations exceed
    num_over: tuple[int, ...] = ()  # fresh pilots whose labels were over the MULTIPLES of the tolerance
    largest: float = 0.0  # the largest error of a fresh pilot's label
    num_fresh: int = 0  # fresh pilots
    seed: int = 0  # of all pilots

    def threshold(self, beta_sq: float) -> float:
        """The lower threshold of the two times about ``beta_sq``; 0 beyond the first and the last time."""
        about = self._about(beta_sq)
        return min(self.thresholds[i] for i in about) if about else 0.0

    def expected_at(self, beta_sq: float) -> float:
        """The larger error of the two times about ``beta_sq``; the tolerance beyond the first and the last time."""
        about = self._about(beta_sq)
        return max(self.expected[i] for i in about) if about else self.tolerance

    def _about(self, beta_sq: float) -> tuple[int, ...]:
        if beta_sq in self.beta_sq:
            return (self.beta_sq.index(beta_sq),)
        falling = np.array(self.beta_sq)
        exact = np.flatnonzero(np.isclose(falling, beta_sq, rtol=1e-9, atol=0))
        if len(exact):
            return (int(exact[0]),)
        after = int(np.searchsorted(-falling, -beta_sq))
        return () if after in (0, len(falling)) else (after - 1, after)

    def to_record(self) -> dict[str, Any]:
        """As the plan of a store keeps it."""
        return {
            "seed": self.seed,
            "multiples": list(MULTIPLES),
            "shares": list(SHARES),
            "confidence": CONFIDENCE,
            "tolerance": self.tolerance,
            "beta_sq": list(self.beta_sq),
            "thresholds": list(self.thresholds),
            "expected": list(self.expected),
            "num_fresh": self.num_fresh,
            "labels_over": list(self.num_over),
            "largest": self.largest,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measured:
        """The inverse of ``to_record``.

        Earlier plans were about posterior means alone, each within the tolerance, and have no ``expected``.
        """
        tolerance, thresholds = float(record["tolerance"]), tuple(record["thresholds"])
        return cls(
            tolerance=tolerance,
            beta_sq=tuple(record["beta_sq"]),
            thresholds=thresholds,
            expected=tuple(record.get("expected", [tolerance] * len(thresholds))),
            num_over=tuple(record.get("labels_over", ())),
            largest=float(record["largest"]),
            num_fresh=int(record["num_fresh"]),
            seed=int(record["seed"]),
        )


@dataclass
class Watch:
    """Measures each evaluation of a batch again for one of its first rows, in turn: exact sums cost most."""

    measured: Measured
    reference: PreparedReference
    num_rows: int  # the first rows of the batch, those that are measured
    num_measured: int = 0
    over: int = 0  # evaluations with larger errors than expected
    largest: float = 0.0  # the largest error, in units of sigma_data

    def beside(self, denoiser: Denoiser) -> Denoiser:
        """``denoiser``, measured at each evaluation."""

        def watched(z_t: Tensor, alpha: float, beta_sq: float) -> Tensor:
            mean = denoiser(z_t, alpha, beta_sq)
            if alpha > 0:  # else the mean is known
                row = self.num_measured % self.num_rows
                one, expected = slice(row, row + 1), self.measured.expected_at(beta_sq)
                exact = _mean(self.reference, z_t[one], alpha, beta_sq, tolerance=EXACT_SHARE * expected)
                error = float(_norms(mean[one] - exact)[0]) + EXACT_SHARE * expected
                self.num_measured += 1
                self.over += not error <= expected
                self.largest = max(self.largest, math.inf if math.isnan(error) else error)
            return mean

        return watched

    def holds(self) -> bool:
        """Whether no more evaluations are over what is expected than the certificate says.

        If a share of 1 - ``QUANTILE`` is over, more are with a probability of 1e-4.
        """
        return self.over <= most_over(self.num_measured)


@cache
def most_over(num_measured: int) -> int:
    """So many of the measured evaluations may be over before the certificate no longer holds of them."""
    from scipy import stats

    return int(stats.binom.ppf(1 - 1e-4, num_measured, 1 - QUANTILE))


def share_limit(num_over: int, num_rows: int) -> float:
    """Upper confidence limit of the share over an error, after Clopper and Pearson."""
    from scipy import stats

    return float(stats.beta.ppf(CONFIDENCE, num_over + 1, num_rows - num_over)) if num_over < num_rows else 1.0


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
        tolerance: of a label's distance from the label under exact sums, in units of sigma_data, > 0.
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
    if (kept := reference.certificates.get(key)) is None:
        kept = reference.certificates[key] = _Fit(reference, flow, tolerance, seed).run()
    return kept


class _Fit:
    """Pilots of a flow, and the search for thresholds that keep their labels."""

    def __init__(self, reference: PreparedReference, flow: Flow, tolerance: float, seed: int) -> None:
        self.reference, self.flow, self.tolerance, self.seed = reference, flow, tolerance, seed
        times = evaluation_times(flow)
        none, asked = (0.0,) * len(times), (tolerance,) * len(times)
        self.bound = Measured(tolerance, tuple(beta_sq for _, beta_sq in times), none, asked, seed=seed)
        self.starts = self._starts(0, NUM_FIT)
        allowed = (tolerance * _STRIDE**_FIRST_SCALE,) * len(times)
        way, self.ends = self._exact(self.starts, replace(self.bound, expected=allowed))
        self.times = [_Time(reference, *time, *way[time[1]], tolerance) for time in times]

    def run(self) -> Measured:
        """The certificate; one without thresholds if none were kept."""
        scale = _FIRST_SCALE
        if self._keeps(scale):
            while scale < _SCALES[1] and self._keeps(scale + 1):
                scale += 1
        else:
            scale -= 1
            while scale >= _SCALES[0] and not self._keeps(scale):
                scale -= 1
            if scale < _SCALES[0]:
                return self.bound
        for group in range(1, _NUM_ROUNDS + 1):
            candidate = self._candidate(scale)
            if not any(candidate.thresholds):
                break
            if (tested := self._test(group, candidate)) is not None:
                return tested
            scale -= 1
        return self.bound

    def _candidate(self, scale: int) -> Measured:
        """The largest thresholds that keep the pilots' means within the tolerance times a power of the stride."""
        allowed = self.tolerance * _STRIDE**scale
        steps: list[int | None] = []
        for time in self.times:  # thresholds change little from time to time
            start = next((step for step in reversed(steps) if step is not None), 0)
            steps.append(time.largest_step(allowed, start))
        thresholds = tuple(0.0 if step is None else _threshold(step) for step in steps)
        return replace(self.bound, thresholds=thresholds, expected=(allowed,) * len(thresholds))

    def _keeps(self, scale: int) -> bool:
        errors = self._label_errors(self.starts, self.ends, self._candidate(scale))
        found = np.quantile(errors, _AIMS, method="higher") + EXACT_SHARE * self.tolerance
        return bool((found <= self.tolerance * np.array(MULTIPLES)).all())

    def _test(self, group: int, candidate: Measured) -> Measured | None:
        """The candidate with what fresh pilots say of it; None if too many of their labels are over the tolerance."""
        starts = self._starts(group, NUM_FRESH)
        way, ends = self._exact(starts, candidate)
        errors = self._label_errors(starts, ends, candidate) + EXACT_SHARE * self.tolerance
        over = tuple(int((~(errors <= multiple * self.tolerance)).sum()) for multiple in MULTIPLES)
        if any(share_limit(num, NUM_FRESH) > 1 - share for num, share in zip(over, SHARES, strict=True)):
            return None
        least = _LEAST_EXPECTED * self.tolerance
        expected = []
        for time, threshold in zip(self.times, candidate.thresholds, strict=True):
            states, exact = way[time.beta_sq]
            found = np.quantile(time.errors(states, exact, threshold), QUANTILE, method="higher") / _ROOM
            expected.append(max(least, float(found)) if threshold > 0 else self.tolerance)
        return replace(
            candidate,
            expected=tuple(expected),
            num_over=over,
            largest=float(np.nan_to_num(errors, nan=np.inf).max()),
            num_fresh=len(errors),
        )

    def _starts(self, group: int, num_rows: int) -> Tensor:
        """States at the start of the flow: latents, or rows of the reference blurred."""
        reference, schedule = self.reference, self.flow.schedule
        rng = random_generator(self.seed, Stream.CERTIFICATE, group)
        noise = torch.from_numpy(rng.standard_normal((num_rows, reference.dim)))
        center = reference.center.double() / reference.scale
        if self.flow.direction == "decode":
            return (noise - schedule.alpha(1.0) * center).to(reference.dtype)
        rows = reference.take(rng.integers(reference.num_reference, size=num_rows)).double() / reference.scale - center
        alpha = schedule.alpha(schedule.t_end)
        return (alpha * (rows + schedule.blur * noise)).to(reference.dtype)

    def _exact(self, starts: Tensor, allowed: Measured) -> tuple[dict[float, tuple[Tensor, Tensor]], Tensor]:
        """States and posterior means by beta^2 on the way to the end, and the end, close to those under exact sums."""
        way: dict[float, tuple[Tensor, Tensor]] = {}

        def denoiser(z_t: Tensor, alpha: float, beta_sq: float) -> Tensor:
            tolerance = EXACT_SHARE * allowed.expected_at(beta_sq)
            way[beta_sq] = z_t, _mean(self.reference, z_t, alpha, beta_sq, tolerance=tolerance)
            return way[beta_sq][1]

        return way, integrate(denoiser, starts, self.flow)

    def _label_errors(self, starts: Tensor, ends: Tensor, candidate: Measured) -> NDArray[np.float64]:
        """Distances of the labels under thresholds from ``ends``, in units of the labels."""

        def denoiser(z_t: Tensor, alpha: float, beta_sq: float) -> Tensor:
            threshold = candidate.threshold(beta_sq)
            return _mean(self.reference, z_t, alpha, beta_sq, tolerance=self.tolerance, threshold=threshold)

        schedule = self.flow.schedule
        unit = schedule.alpha(schedule.t_end) if self.flow.direction == "decode" else 1.0
        return _norms(integrate(denoiser, starts, self.flow) - ends) / unit


@dataclass
class _Time:
    """One time of the flow: pilots there, their means under exact sums, and what thresholds do to these."""

    reference: PreparedReference
    alpha: float
    beta_sq: float
    states: Tensor
    exact: Tensor
    tolerance: float  # of rows that thresholds do not serve
    found: dict[int, float] = field(default_factory=dict)  # the error that QUANTILE of the pilots keep, by step

    def errors(self, states: Tensor, exact: Tensor, threshold: float) -> NDArray[np.float64]:
        mean = _mean(self.reference, states, self.alpha, self.beta_sq, tolerance=self.tolerance, threshold=threshold)
        return _norms(mean - exact)

    def largest_step(self, allowed: float, start: int) -> int | None:
        """About the largest threshold under which pilots keep the error, looked for from ``start`` on."""
        step = start
        if self._keeps(allowed, step):
            while step < _STEPS[1] and self._keeps(allowed, step + 1):
                step += 1
            return step
        while step > _STEPS[0]:
            step -= 1
            if self._keeps(allowed, step):
                return step
        return None

    def _keeps(self, allowed: float, step: int) -> bool:
        if step not in self.found:
            errors = self.errors(self.states, self.exact, _threshold(step))
            self.found[step] = float(np.quantile(errors, QUANTILE, method="higher"))
        return self.found[step] <= allowed


def _threshold(step: int) -> float:
    return float(_FIRST * _STRIDE**step)


def _mean(
    reference: PreparedReference, z_t: Tensor, alpha: float, beta_sq: float, *, tolerance: float, threshold: float = 0.0
) -> Tensor:
    if alpha == 0:
        return torch.zeros_like(z_t)
    return posterior_moments(
        z_t, reference, alpha=alpha, beta_sq=beta_sq, variance=False, backend="sparse", tolerance=tolerance,
        threshold=threshold,
    ).mean  # fmt: skip


def _norms(difference: Tensor) -> NDArray[np.float64]:
    return torch.linalg.vector_norm(difference.double(), dim=1).numpy()
