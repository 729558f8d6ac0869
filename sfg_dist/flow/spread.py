"""The unit in which the flow is solved: sigma_data, the spread of the reference.

One number for all columns, the root of the mean of their variances,

    s = sqrt( mean_k Var(x_k) ),

so that z = alpha x + beta s eps is s times the process of x / s. Below the public functions all is the flow of
(x - center) / s, because noise, t_min, steps and tolerances are sized for data of spread 1; for other data each would
be wrong by a factor s or s^2. A reference whose rows are all equal has s = 1.

References:
    sigma_data: Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.schedule import Schedule

SigmaData: TypeAlias = float | Literal["auto"]

UNEVEN = 30.0
"""Largest ratio of two columns' spreads, or of the spread and sigma_data, before a warning is due."""
BLURRED = 0.3
"""Largest blur of an uneven column over its spread: its labels then have 1.04 times its spread."""
SHIFTED = 0.2
"""How far the law at t = 1 of "linear_floor" may lie from N(0, I), in spreads of a latent."""
_SMALLEST, _LARGEST = 1e-140, 1e140  # whose squares float64 holds
_CHUNK_ROWS = 1 << 16
_COARSEST = 0.1  # of a column's spread, the grid that a label's dtype may put on it
_MOST_SPREADS = 30  # that a label may lie from the mean
_REMEDY = 'standardise the columns first, or in a job take transform.kind = "standardize" or "quantile"'


class ColumnSpread:
    """Standard deviations of columns whose rows come in blocks; merged in float64, by one thread, in the blocks' order.

    A column whose values are all equal has spread 0, whatever the rounding of its mean.

    References:
        Chan, Golub, LeVeque 1983, Algorithms for computing the sample variance, Amer. Statist. 37.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._squares: NDArray[np.float64] = np.zeros(0)
        self._low: NDArray[np.float64] = np.zeros(0)
        self._high: NDArray[np.float64] = np.zeros(0)

    def add(self, rows: Tensor) -> Tensor:
        """Take in rows, shape (some rows, dim), and return them."""
        for first in range(0, len(rows), _CHUNK_ROWS):
            part = rows[first : first + _CHUNK_ROWS].double().t().contiguous().cpu().numpy()
            with np.errstate(all="ignore"):  # whoever reads the rows refuses those that are not finite
                self._merge(part)
        return rows

    def _merge(self, columns: NDArray[np.float64]) -> None:
        more = columns.shape[1]
        mean = columns.mean(axis=1)
        squares = np.square(columns - mean[:, None]).sum(axis=1)
        low, high = columns.min(axis=1), columns.max(axis=1)
        if not self._count:
            self._count, self._mean, self._squares, self._low, self._high = more, mean, squares, low, high
            return
        count, step = self._count + more, mean - self._mean
        self._squares += squares + np.square(step) * (self._count * more / count)
        self._mean += step * (more / count)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._count = count

    @property
    def center(self) -> Tensor:
        """Mean of each column, float64 on the CPU, shape (dim,)."""
        return torch.from_numpy(self._mean)

    def result(self) -> Tensor:
        """Standard deviation of each column, float64 on the CPU, shape (dim,)."""
        spread = np.sqrt(self._squares / max(1, self._count))
        # Squares of a tiny spread are 0 in float64, and a column that changes is no constant.
        spread = np.maximum(spread, np.finfo(np.float64).tiny)
        return torch.from_numpy(np.where(self._low == self._high, 0.0, spread))


def spreads_of(rows: Tensor) -> Tensor:
    """Standard deviation of each column of a table in memory, float64, shape (dim,)."""
    tally = ColumnSpread()
    tally.add(rows)
    return tally.result()


def root_mean_square(spreads: Tensor) -> float:
    """sigma_data of columns of these spreads; 1 where none of them changes.

    Raises:
        ValueError: their squares leave float64.
    """
    spread = math.sqrt(float(spreads.square().mean()))
    largest = float(spreads.max())
    if largest == 0:
        return 1.0
    if not _SMALLEST < largest < _LARGEST:
        raise ValueError(
            f"the reference has spread {largest:.3g}, and float64 serves from {_SMALLEST:g} to {_LARGEST:g}: "
            f"take other units"
        )
    return spread


def resolve_sigma_data(sigma_data: SigmaData, spreads: Tensor) -> float:
    """The number that ``sigma_data`` means for columns of these spreads.

    Raises:
        ValueError: it is neither a positive number nor "auto".
    """
    if isinstance(sigma_data, str):
        if sigma_data != "auto":
            raise ValueError(f'sigma_data must be a positive number or "auto", got {sigma_data!r}')
        return root_mean_square(spreads)
    value = float(sigma_data)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'sigma_data must be a positive number or "auto", got {sigma_data!r}')
    return value


def uneven_columns(
    spreads: Tensor, names: Sequence[str] | None = None, why: str = "have one blur in common"
) -> str | None:
    """Which columns' spreads differ by more than UNEVEN, in words, or None; columns that never change do not count."""
    places = torch.nonzero(spreads > 0).reshape(-1)
    if not len(places):
        return None
    small, large = (int(places[int(pick(spreads[places]))]) for pick in (torch.argmin, torch.argmax))
    ratio = float(spreads[large] / spreads[small])
    if ratio <= UNEVEN:
        return None
    return (
        f"columns {_name(large, names)} (spread {float(spreads[large]):.3g}) and {_name(small, names)} (spread "
        f"{float(spreads[small]):.3g}) differ {ratio:.3g}-fold in spread and {why}"
    )


def warn_of_uneven(spreads: Tensor | None, stacklevel: int) -> None:
    """Warn the caller's caller of uneven columns, if their spreads are known."""
    if spreads is not None and (words := uneven_columns(spreads)) is not None:
        warnings.warn(f"{words}: {_REMEDY}", stacklevel=stacklevel + 1)


def check_blur(
    spreads: Tensor, sigma_data: float, schedule: Schedule, *, remedy: str = _REMEDY, names: Sequence[str] | None = None
) -> None:
    """Refuse labels of uneven columns, of spreads (dim,), whose blur would hide the smallest of them.

    ``remedy`` is what the message says to do, and ``names`` are those of the columns; their numbers if None.

    Raises:
        ValueError: the blur is larger than BLURRED times a column's spread; the message names a t_min that would do.
    """
    words = uneven_columns(spreads, names)
    if words is None:
        return
    smallest, blur = float(spreads[spreads > 0].min()), sigma_data * schedule.blur
    if blur > BLURRED * smallest:
        # Of "linear" the blur is a little more than sqrt(t_min) sigma_data.
        most = 0.9 * (BLURRED * smallest / sigma_data) ** 2
        raise ValueError(
            f"{words}, {blur:.3g} at t_min = {schedule.t_min:g}, which would hide the smaller: {remedy}; or take a "
            f"t_min of {most:.1e} or less"
        )


def check_unit(spreads: Tensor, sigma_data: float, schedule: Schedule, *, stacklevel: int) -> None:
    """Warn of a given sigma_data far from the spread; refuse it for "linear_floor", whose start it would spoil.

    Raises:
        ValueError: the spread is more than UNEVEN times sigma_data and the schedule is "linear_floor".
    """
    spread = root_mean_square(spreads)
    if not bool((spreads > 0).any()) or 1 / UNEVEN <= spread / sigma_data <= UNEVEN:
        return
    words = f"the reference has spread {spread:.3g}, far from sigma_data = {sigma_data:.3g}"
    if spread > sigma_data and schedule.floor > 0:
        raise ValueError(
            f'{words}, and the flow of "linear_floor" then does not start from a normal law: take sigma_data = "auto"'
        )
    warnings.warn(f'{words}, so labels are inaccurate: take sigma_data = "auto"', stacklevel=stacklevel + 1)


def check_start(center: Tensor, sigma_data: float, schedule: Schedule, names: Sequence[str] | None = None) -> None:
    """Refuse "linear_floor" for a reference far from 0: its law at t = 1 has the mean f center, and not 0.

    Raises:
        ValueError: with the column that lies farthest.
    """
    shift = schedule.floor * center.abs() / sigma_data
    if float(shift.max()) > SHIFTED:
        column = int(shift.argmax())
        raise ValueError(
            f'column {_name(column, names)} has mean {float(center[column]):.3g}, so the flow of "linear_floor" would '
            f"start {float(shift[column]):.2g} spreads beside the mean of its law: take the means off the columns, or "
            f'schedule = "linear"'
        )


def check_dtype(center: Tensor, spreads: Tensor | None, sigma_data: float, dtype: torch.dtype) -> None:
    """Refuse a dtype that cannot hold the labels or tell them apart, before they are made.

    Raises:
        ValueError: with the dtype.
    """
    limits, offsets = torch.finfo(dtype), center.abs()
    if not limits.tiny <= sigma_data <= (limits.max - float(offsets.max())) / _MOST_SPREADS:
        raise ValueError(
            f"latents are {dtype}, whose range does not hold labels of spread {sigma_data:.3g} about "
            f"{float(offsets.max()):.3g}: give them in float64, or take other units"
        )
    spreads = torch.full_like(offsets, sigma_data) if spreads is None else spreads
    coarse = (limits.eps * offsets > _COARSEST * spreads) & (spreads > 0)
    if bool(coarse.any()):
        column = int(coarse.nonzero()[0, 0])
        raise ValueError(
            f"latents are {dtype}, whose grid about {float(offsets[column]):.3g} is too coarse for labels of column "
            f"{column}, of spread {float(spreads[column]):.3g}: give them in float64, or take the mean off the column"
        )


def _name(column: int, names: Sequence[str] | None) -> str:
    return str(column) if names is None else repr(names[column])
