"""The blur that the data themselves ask for: t_min by leave-one-out likelihood.

The label's law is the reference set blurred with sigma = s beta / alpha at the data end of the flow (see ``density``).
If sigma is too small the labels are the training rows; if it is too large their structure is lost. The likelihood of
each row under all the others is largest in between.

A debiased reference (see ``debias``) has a likelihood of its own, whose blur is larger. There a row that is left out is
also left out of the scores that the others are moved by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.debias import own_moments
from sfg_dist.flow.posterior.reference import Reference, Rows, finite_table
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.spread import SigmaData, resolve_sigma_data, spreads_of

# One tile of distances: on CPUs about a core's cache, but large enough that threads rarely wait for each other; on CUDA
# large enough to fill the GPU.
_TILE = {"cpu": (512, 2048), "cuda": (1024, 65536)}
# Terms below exp(-40) of the nearest one are set to it. Their sum is nothing, and their square is still a normal
# float32; arithmetic on subnormal numbers is many times slower.
_EXPONENT_FLOOR = -40.0
_CEILING = 0.5  # the largest t_min allowed
_MOST_SHARE = 1 - 1e-6  # of one row in the mean of another, which has its own kernel too
# What "auto" debiases for: nats a row, and a share of the likelihood, whose rounding in float32 is smaller.
_LEAST_GAIN, _LEAST_SHARE = 1e-3, 1e-6
_CHAIN = 6  # doublings of 1 / sigma^2 before the exponential is taken anew: 2^6 roundings of float32, 4e-6


@dataclass(frozen=True)
class Bandwidth:
    """A chosen blur, and the candidates."""

    t_min: float  # the candidate with the largest likelihood, in units of s^2; the flow's ``t_min``
    # it is the smallest value allowed: the likelihood still grows towards less blur, as it does where rows lie on a
    # lattice or a lower-dimensional surface
    is_floor: bool
    is_ceiling: bool  # it is the largest value allowed; the rows are few
    # leave-one-out mean over the rows asked, in nats a row, per unit volume of the rows' own units
    log_likelihood: float
    candidates: tuple[tuple[float, float], ...]  # (t, leave-one-out mean) of all that was tried, by rising t
    num_duplicates: int  # rows that repeat an earlier one
    debiased: bool  # whether all this is of the debiased reference


def choose_t_min(
    rows: Rows,
    *,
    schedule: ScheduleName = "linear",
    floor: float = 1e-5,
    max_queries: int = 1024,
    sigma_data: SigmaData = "auto",
    debias: bool | Literal["auto"] = False,
) -> Bandwidth:
    """The t_min under which each row is likeliest given all the others.

        maximise over t   mean_i log( 1 / (J - g_i) sum_{j not in group(i)} N(x_i; x_j, sigma^2 I) ),
        sigma^2 = s^2 beta^2 / alpha^2 at the data end of the flow:  s^2 t / (1 - t)^2 ("linear"),
                  s^2 t ("linear_floor")

    The group of a row is the row and its g_i - 1 exact duplicates. A duplicate left in would make the likelihood grow
    without bound as sigma falls. Octaves of sigma^2 from the floor to the largest t_min come first, then quarter
    octaves about the vertex of the parabola through the best three. The answer is the best of all that was tried. For a
    debiased reference octaves go from the answer without it to where the likelihood falls.

    Args:
        rows: the reference set, shape (num_rows, dim), in the coordinates that the flow will see: columns of like
            spread, so that one blur suits them all.
        schedule: "linear" or "linear_floor"; it sets how sigma depends on t.
        floor: smallest t_min allowed, below 1/2, which is the largest; 1e-5 is as far as float32 labels of standardised
            data keep their digits.
        max_queries: rows whose likelihood is taken, a seeded sample; all rows are always their references.
        sigma_data: s, as for ``label_latents``.
        debias: whether the reference will be debiased; "auto" if that raises the likelihood by more than 1e-3 nats a
            row and a millionth of its size.

    Returns:
        The choice; see Bandwidth. The same for the same arguments, up to rounding between devices.

    Raises:
        ValueError: the rows are not a finite table with at least two different rows, or the bounds do not fit.

    References:
        Duin 1976, On the choice of smoothing parameters for Parzen estimators of probability density functions, IEEE
        Trans. Computers C-25. Habbema, Hermans and van den Broek 1974, Compstat (the same, independently).

    Examples:
        >>> rows = np.random.default_rng(0).standard_normal((500, 1))
        >>> choice = choose_t_min(rows)
        >>> 0.03 < choice.t_min < 0.2, choice.is_floor
        (True, False)
    """
    if not 0 < floor < _CEILING:
        raise ValueError(f"floor must lie in (0, {_CEILING}), got {floor}")
    if max_queries < 1:
        raise ValueError(f"max_queries must be positive, got {max_queries}")
    low, high = _blur_sq(schedule, floor), _blur_sq(schedule, _CEILING)
    sample = _sample_of(rows, sigma_data, max_queries)
    found, is_debiased = _candidates(sample, low, high), False
    if debias:
        start = max(found, key=lambda blur_sq: found[blur_sq])
        moved = _climbed(sample.debiased_log_likelihood, start, low, high)
        is_debiased = debias is True or _is_gain(max(moved.values()), max(found.values()))
        found = moved if is_debiased else found

    volume = sample.dim * math.log(sample.scale)  # found is the density of rows / scale
    best = max(found, key=lambda blur_sq: found[blur_sq])
    # The bounds are given back as they came, not through the blur and back.
    times = {blur_sq: _time_of_blur_sq(schedule, blur_sq) for blur_sq in found} | {low: floor, high: _CEILING}
    return Bandwidth(
        t_min=times[best],
        is_floor=best == low,
        is_ceiling=best == high,
        log_likelihood=found[best] - volume,
        candidates=tuple((times[blur_sq], found[blur_sq] - volume) for blur_sq in sorted(found)),
        num_duplicates=sample.num_duplicates,
        debiased=is_debiased,
    )


def favours_debiasing(
    rows: Rows, *, t_min: float, schedule: ScheduleName = "linear", max_queries: int = 1024,
    sigma_data: SigmaData = "auto",
) -> bool:  # fmt: skip
    """Whether at this blur rows that are left out are likelier under the debiased reference.

    By more than 1e-3 nats a row and a millionth of the likelihood's size, as in ``choose_t_min``.

    Raises:
        ValueError: the rows are not a finite table with at least two different rows.
    """
    blur_sq, sample = _blur_sq(schedule, t_min), _sample_of(rows, sigma_data, max_queries)
    return _is_gain(sample.debiased_log_likelihood(blur_sq), sample.log_likelihood([[blur_sq]])[blur_sq])


def _is_gain(debiased: float, plain: float) -> bool:
    return debiased - plain > max(_LEAST_GAIN, _LEAST_SHARE * abs(plain))


def _sample_of(rows: Rows, sigma_data: SigmaData, max_queries: int) -> _Sample:
    table = finite_table(rows, "rows")
    if 0 in table.shape:
        raise ValueError(f"rows must be a non-empty table, got shape {tuple(table.shape)}")
    return _Sample(table, resolve_sigma_data(sigma_data, spreads_of(table)), max_queries)


def _candidates(sample: _Sample, low: float, high: float) -> dict[float, float]:
    """The likelihood of octaves of sigma^2 from low to high, and of three quarter octaves about their vertex."""
    num_octaves = int(math.log2(high / low) * (1 + 1e-12))
    octaves = [low * 2.0**k for k in range(num_octaves + 1)]
    if math.isclose(octaves[-1], high):
        octaves[-1] = high
    chains = [octaves[k : k + _CHAIN][::-1] for k in range(0, len(octaves), _CHAIN)]
    found = sample.log_likelihood(chains if octaves[-1] == high else [*chains, [high]])
    around = _around_vertex(found, low, high)
    return found | sample.log_likelihood([[blur_sq] for blur_sq in around])


def _climbed(log_likelihood: Callable[[float], float], start: float, low: float, high: float) -> dict[float, float]:
    """The likelihood of octaves from ``start`` in the direction in which it grows, and of quarters about the best."""
    found = {start: log_likelihood(start)}
    for factor in (2.0, 0.5):
        here = start
        while (after := min(max(here * factor, low), high)) not in found:
            found[after] = log_likelihood(after)
            if found[after] <= found[here]:
                break
            here = after
        if here != start:
            break
    return found | {blur_sq: log_likelihood(blur_sq) for blur_sq in _around_vertex(found, low, high)}


def _around_vertex(found: dict[float, float], low: float, high: float) -> list[float]:
    """Places a quarter octave apart about the vertex of what was found, without those that were found."""
    places = sorted(found)
    middle = _vertex([math.log2(blur_sq) for blur_sq in places], [found[blur_sq] for blur_sq in places])
    around = {min(max(2 ** (middle + step), low), high) for step in (-0.25, 0.0, 0.25)}
    return sorted(around - set(found))


def _blur_sq(schedule: ScheduleName, t: float) -> float:
    """sigma^2 / s^2 = beta^2 / alpha^2 at the data end of the flow that stops at ``t``."""
    noise = Schedule(schedule, t)
    return noise.beta_sq(noise.t_end) / noise.alpha(noise.t_end) ** 2


def _time_of_blur_sq(schedule: ScheduleName, blur_sq: float) -> float:
    """The inverse of _blur_sq: the root of sigma^2 (1 - t)^2 = t below 1, written without a difference."""
    if schedule == "linear_floor":
        return blur_sq
    return 2 * blur_sq / (1 + 2 * blur_sq + math.sqrt(1 + 4 * blur_sq))


def _vertex(places: list[float], heights: list[float]) -> float:
    """Where the parabola through the highest point and its two neighbours is highest; an end is its own answer."""
    k = max(range(len(heights)), key=heights.__getitem__)
    if k in (0, len(places) - 1):
        return places[k]
    (a, b, c), (fa, fb, fc) = places[k - 1 : k + 2], heights[k - 1 : k + 2]
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    return b - ((b - a) * left - (b - c) * right) / (2 * (left - right)) if left != right else b


class _Sample:
    """The distinct rows, centred and over ``scale``, with how often each occurs, and a sample of them to ask."""

    def __init__(self, table: Tensor, scale: float, max_queries: int) -> None:
        device = table.device
        exact = table.double().cpu().numpy() + 0.0  # -0.0 becomes 0.0: equal rows must have equal bytes
        distinct, group, counts = _distinct(exact)
        if len(distinct) < 2:
            raise ValueError(
                f"a bandwidth needs two different rows at least: {len(table)} given, all equal; "
                "set t_min by hand, or look whether the table is the right one"
            )
        index = np.arange(len(table))
        if len(table) > max_queries:
            index = np.sort(np.random.default_rng(0).choice(len(table), max_queries, replace=False))
        centred = torch.from_numpy((distinct - exact.mean(axis=0)) / scale).to(device)
        norm_sq = centred.square().sum(dim=1, keepdim=True)
        one = torch.ones_like(norm_sq)
        own = torch.from_numpy(group[index]).to(device)
        self.num_rows, self.dim = table.shape
        self.table, self.scale, self.distinct, self.centred = table, scale, distinct, centred
        self.num_duplicates = len(table) - len(distinct)
        self.own = own
        self.counts = torch.from_numpy(counts).to(device)
        # |x_i - x_j|^2 as one matrix product. It cancels, so it is done in float64, where 1e-16 |x|^2 is nothing beside
        # the smallest sigma^2; in float32 6e-8 |x|^2 would be as large as sigma^2 itself.
        self.queries = torch.cat([-2 * centred, norm_sq, one], dim=1)[own]
        self.keys = torch.cat([centred, one, norm_sq], dim=1)

    def log_likelihood(self, chains: list[list[float]]) -> dict[float, float]:
        """Leave-one-out mean log likelihood of each sigma^2, all in one pass over the distances.

        Within a chain each sigma^2 is half the one before, so its kernel is the square of the one before.
        """
        blurs = [blur_sq for chain in chains for blur_sq in chain]
        if not blurs:
            return {}
        rate = torch.tensor([-0.5 / blur_sq for blur_sq in blurs], dtype=torch.float64, device=self.keys.device)
        tile_queries, tile_keys = _TILE.get(self.keys.device.type, _TILE["cuda"])
        total = torch.zeros(len(blurs), dtype=torch.float64, device=self.keys.device)
        for start in range(0, len(self.queries), tile_queries):
            queries, own = self.queries[start : start + tile_queries], self.own[start : start + tile_queries]
            log_sum = queries.new_full((len(queries), len(blurs)), -math.inf)
            for first in range(0, len(self.keys), tile_keys):
                keys = self.keys[first : first + tile_keys]
                distance_sq = queries @ keys.T
                # A row's own group is masked here, inside the sum: taken off afterwards it would leave a difference of
                # nearly equal numbers, since at small sigma it is almost all of the sum.
                inside = ((own >= first) & (own < first + len(keys))).nonzero().squeeze(1)
                distance_sq[inside, own[inside] - first] = math.inf
                # The nearest row has the largest term for every sigma, so one shift serves all of them.
                nearest = distance_sq.amin(dim=1, keepdim=True)
                beyond = distance_sq.sub_(nearest).float()
                weights = self.counts[first : first + tile_keys]
                sums = torch.stack(_kernel_sums(beyond, weights, chains), dim=1).double().log() + rate * nearest
                # A tile may hold nothing but the row itself; then it adds nothing.
                log_sum = torch.logaddexp(log_sum, sums.where(torch.isfinite(nearest), -math.inf))
            others = self.num_rows - self.counts[own].double()
            total += (log_sum - others.log()[:, None]).sum(dim=0)
        constant = [self.dim / 2 * math.log(2 * math.pi * blur_sq) for blur_sq in blurs]
        means = (total / len(self.queries)).tolist()
        return {blur_sq: mean - c for blur_sq, mean, c in zip(blurs, means, constant, strict=True)}

    @cached_property
    def reference(self) -> Reference:
        """All rows, which the scores are of."""
        return Reference(self.table, device="cpu", sigma_data=self.scale)

    def debiased_log_likelihood(self, blur_sq: float) -> float:
        """Leave-one-out mean log likelihood of a sigma^2 under the debiased reference.

        Without its row q the mean m_j of a row j is (m_j - w q) / (1 - w), w being the share of q and its duplicates in
        it. With a = q - x_j, b = q - m_j and v = 1 / (1 - w) the distance of q to the moved row is |a + v b| / 2.
        """
        moments = own_moments(torch.from_numpy(self.distinct), self.reference, math.sqrt(blur_sq))
        assert moments.log_kernel_sum is not None  # the reference is in this process
        rows, mean = self.centred, moments.mean.to(self.centred)
        log_sums = moments.log_kernel_sum.to(mean)
        shift_sq = (mean - rows).square().sum(dim=1)
        weights, log_weights = self.counts.double(), self.counts.double().log()
        tile_queries, tile_keys = _TILE.get(rows.device.type, _TILE["cuda"])
        total = 0.0
        for own in self.own.split(tile_queries):
            log_sum = rows.new_full((len(own),), -math.inf)
            for first in range(0, len(rows), tile_keys):
                part = slice(first, first + tile_keys)
                near = _distances_sq(rows[own], rows[part])
                inside = ((own >= first) & (own < first + len(near.T))).nonzero().squeeze(1)
                near[inside, own[inside] - first] = math.inf
                far = _distances_sq(rows[own], mean[part])
                share = weights[own][:, None] * torch.exp(-near / (2 * blur_sq) - log_sums[part])
                rest = 1 / (1 - share.clamp_max_(_MOST_SHARE))
                distance_sq = (near + rest * (near + far - shift_sq[part]) + rest.square() * far) / 4
                terms = log_weights[part] - distance_sq / (2 * blur_sq)
                log_sum = torch.logaddexp(log_sum, torch.logsumexp(terms, dim=1))
            total += float((log_sum - (self.num_rows - weights[own]).log()).sum())
        return total / len(self.own) - self.dim / 2 * math.log(2 * math.pi * blur_sq)


def _distances_sq(rows: Tensor, others: Tensor) -> Tensor:
    """|x_i - y_j|^2, shape (len(rows), len(others)); in float64, where the products' rounding is nothing."""
    squares = rows.square().sum(dim=1, keepdim=True) + others.square().sum(dim=1)
    return torch.addmm(squares, rows, others.T, alpha=-2).clamp_min_(0)


def _kernel_sums(beyond: Tensor, weights: Tensor, chains: list[list[float]]) -> list[Tensor]:
    """sum_j weight_j exp(-beyond_j / (2 sigma^2)) for each sigma^2 of each chain, shapes (num_queries,)."""
    sums = []
    for chain in chains:
        kernel = (beyond * (-0.5 / chain[0])).clamp_min_(_EXPONENT_FLOOR).exp_()
        sums.append(kernel @ weights)
        for _ in chain[1:]:
            kernel = kernel.square_().clamp_min_(math.exp(_EXPONENT_FLOOR))
            sums.append(kernel @ weights)
    return sums


def _distinct(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float32]]:
    """Distinct rows, the index of each row among them, and how often each occurs."""
    # A row as one opaque value of bytes: np.unique(axis=0) compares field by field and is far slower.
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).reshape(-1)
    _, first, group, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return rows[first], group.reshape(-1).astype(np.int64), counts.astype(np.float32)
