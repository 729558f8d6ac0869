"""The blur that the data themselves ask for: t_min by leave-one-out likelihood.

The label's law is the reference set blurred with sigma = s beta / alpha at the data end of the flow (see ``density``).
If sigma is too small the labels are the training rows; if it is too large their structure is lost. The likelihood of
each row under all the others is largest in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.reference import Rows, finite_table
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.spread import SigmaData, resolve_sigma_data, spreads_of

# One tile of distances: on CPUs about a core's cache, but large enough that threads rarely wait for each other; on CUDA
# large enough to fill the GPU.
_TILE = {"cpu": (512, 2048), "cuda": (1024, 65536)}
# Terms below exp(-40) of the nearest one are set to it. Their sum is nothing, and their square is still a normal
# float32; arithmetic on subnormal numbers is many times slower.
_EXPONENT_FLOOR = -40.0
_CEILING = 0.5  # the largest t_min allowed
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


def choose_t_min(
    rows: Rows,
    *,
    schedule: ScheduleName = "linear",
    floor: float = 1e-5,
    max_queries: int = 1024,
    sigma_data: SigmaData = "auto",
) -> Bandwidth:
    """The t_min under which each row is likeliest given all the others.

        maximise over t   mean_i log( 1 / (J - g_i) sum_{j not in group(i)} N(x_i; x_j, sigma^2 I) ),
        sigma^2 = s^2 beta^2 / alpha^2 at the data end of the flow:  s^2 t / (1 - t)^2 ("linear"),
                  s^2 t ("linear_floor")

    The group of a row is the row and its g_i - 1 exact duplicates. A duplicate left in would make the likelihood grow
    without bound as sigma falls. Octaves of sigma^2 from the floor to the largest t_min come first, then quarter
    octaves about the vertex of the parabola through the best three. The answer is the best of all that was tried.

    Args:
        rows: the reference set, shape (num_rows, dim), in the coordinates that the flow will see: columns of like
            spread, so that one blur suits them all.
        schedule: "linear" or "linear_floor"; it sets how sigma depends on t.
        floor: smallest t_min allowed, below 1/2, which is the largest; 1e-5 is as far as float32 labels of standardised
            data keep their digits.
        max_queries: rows whose likelihood is taken, a seeded sample; all rows are always their references.
        sigma_data: s, as for ``label_latents``.

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
    table = finite_table(rows, "rows")
    if 0 in table.shape:
        raise ValueError(f"rows must be a non-empty table, got shape {tuple(table.shape)}")
    scale = resolve_sigma_data(sigma_data, spreads_of(table))
    sample = _Sample(table, scale, max_queries)

    num_octaves = int(math.log2(high / low) * (1 + 1e-12))
    octaves = [low * 2.0**k for k in range(num_octaves + 1)]
    chains = [octaves[k : k + _CHAIN][::-1] for k in range(0, len(octaves), _CHAIN)]
    grid = octaves if math.isclose(octaves[-1], high) else [*octaves, high]
    found = sample.log_likelihood(chains if grid is octaves else [*chains, [high]])
    middle = _vertex([math.log2(blur_sq) for blur_sq in grid], [found[blur_sq] for blur_sq in grid])
    around = [min(max(2 ** (middle + step), low), high) for step in (-0.25, 0.0, 0.25)]
    found |= sample.log_likelihood([[blur_sq] for blur_sq in sorted(set(around) - set(found))])

    volume = table.shape[1] * math.log(scale)  # found is the density of rows / scale
    best = max(found, key=lambda blur_sq: found[blur_sq])
    # The bounds are given back as they came, not through the blur and back.
    times = {blur_sq: _time_of_blur_sq(schedule, blur_sq) for blur_sq in found} | {grid[0]: floor, grid[-1]: _CEILING}
    return Bandwidth(
        t_min=times[best],
        is_floor=best == grid[0],
        is_ceiling=best == grid[-1],
        log_likelihood=found[best] - volume,
        candidates=tuple((times[blur_sq], found[blur_sq] - volume) for blur_sq in sorted(found)),
        num_duplicates=sample.num_duplicates,
    )


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
