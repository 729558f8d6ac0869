"""A debiased reference: rows moved so that the blur brings them back to their own law.

To blur rows of density p with a normal kernel of variance h^2 adds (h^2 / 2) div grad p to it. To move them by
(h^2 / 2) grad log p first takes just that away, and leaves an error of order h^4. For grad log p stands the score of
the blurred rows themselves, S(x) = (m(x) - x) / h^2 with m the posterior mean at alpha = 1 and beta = h. So a row goes
half way to its posterior mean:

    x + (h^2 / 2) S(x) = (x + m(x)) / 2

The row itself is among those that m is a mean of, as in the published code. So a row on its own stays where it is,
up to rounding of float32. Without that it would go half way to the nearest other row, however far that is from it.

References:
    Epstein et al. 2025, SD-KDE: Score-Debiased Kernel Density Estimation, arXiv 2504.19084. Flash-SD-KDE, arXiv
    2602.10378.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.posterior.backends import choose_backend
from sfg_dist.flow.posterior.moments import PosteriorMoments
from sfg_dist.flow.posterior.posterior import posterior_moments
from sfg_dist.flow.posterior.reference import PreparedReference, Reference, finite_table
from sfg_dist.flow.schedule import Schedule, ScheduleName
from sfg_dist.flow.spread import SigmaData

R = TypeVar("R", Tensor, NDArray[np.floating])
_TOLERANCE = 0.02  # of the posterior mean, in units of the blur; a row's own error is half of it


def debias(rows: R, *, t_min: float = 1e-3, schedule: ScheduleName = "linear", sigma_data: SigmaData = "auto") -> R:
    """Rows moved for labels that end at ``t_min``: the reference to give to ``label_latents`` in their place.

    Args:
        rows: samples of the data, shape (num_rows, dim); a tensor on the CPU, or a numpy array.
        t_min: variance at which the flow ends, the blur of the labels, in units of s^2.
        schedule: "linear" or "linear_floor".
        sigma_data: s, as for ``label_latents``. It is that of the rows before they move, so give it there too.

    Returns:
        The moved rows, shape, container and dtype of ``rows`` (float64 for integers). The same bits for any number of
        threads.

    Raises:
        ValueError: the rows are not a finite table, or a setting does not fit.

    Examples:
        >>> debias(np.array([[-1.0], [1.0], [5.0]]), t_min=0.25, sigma_data=1.0).round(2)
        array([[-0.99],
               [ 0.99],
               [ 5.  ]])
    """
    table = finite_table(rows, "rows")
    if 0 in table.shape:
        raise ValueError(f"rows must be a non-empty table, got shape {tuple(table.shape)}")
    try:
        reference = Reference(table, sigma_data=sigma_data)
    except ValueError as error:
        raise ValueError(str(error).replace("the reference", "the table of rows")) from None
    moved = moved_rows(table, reference, Schedule(schedule, t_min).blur)
    moved = moved.to(table.dtype) if table.is_floating_point() else moved
    return moved if isinstance(rows, Tensor) else moved.numpy()


def moved_rows(rows: Tensor, reference: PreparedReference, blur: float) -> Tensor:
    """Some rows of a reference half way to their posterior means, float64, shape (num_rows, dim).

    Args:
        rows: in the reference's own coordinates.
        reference: on the CPU, in float32.
        blur: h, in units of ``reference.scale``.
    """
    mean = own_moments(rows, reference, blur).mean
    return (rows.double() + reference.scale * mean.double() + reference.center) / 2


def own_moments(rows: Tensor, reference: PreparedReference, blur: float) -> PosteriorMoments:
    """Posterior moments at rows in the reference's own coordinates; the mean keeps ``_TOLERANCE`` of the blur.

    The engines are those whose bits do not depend on the number of threads.
    """
    z = ((rows.double() - reference.center) / reference.scale).to(reference.dtype)
    tolerance = _TOLERANCE * blur
    is_sparse = choose_backend(reference, "auto", tolerance) == "sparse"
    return posterior_moments(
        z, reference, alpha=1.0, beta_sq=blur**2, variance=False, tolerance=tolerance,
        backend="sparse" if is_sparse else "native",
    )  # fmt: skip
