"""What is asked of the posterior, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Request(NamedTuple):
    """Rows whose posterior is wanted, in the reference's inner coordinates."""

    z_t: Tensor  # noisy states alpha x' + beta eps, shape (num_rows, dim)
    alpha: Tensor  # signal scale of each row, shape (num_rows, 1)
    beta_sq: Tensor  # noise variance of each row, shape (num_rows, 1)
    variance: bool = True  # whether the trace of the posterior covariance is wanted too

    def take(self, rows: Tensor) -> Request:
        """The request of the numbered rows."""
        return Request(self.z_t[rows], self.alpha[rows], self.beta_sq[rows], self.variance)


@dataclass(frozen=True)
class PosteriorMoments:
    """What one pass over the reference gives, in the reference's centred coordinates of spread 1."""

    mean: Tensor  # m = sum_j w_j x_j, shape (num_rows, dim)
    # v = sum_j w_j |x_j|^2 - |m|^2, the posterior covariance's trace, shape (num_rows,), >= 0; or None
    variance: Tensor | None = None
    # log sum_j exp(-|z_t - alpha x_j|^2 / (2 beta^2)), float64, shape (num_rows,); or None
    log_kernel_sum: Tensor | None = None
    # certified bound of the 2-norm of the mean's error, float64, shape (num_rows,); None where every row was summed,
    # or where errors are measured.
    # Nothing is certified of log_kernel_sum and variance: with a tolerance a sparse engine may leave out about a
    # quarter of the mass where that does not move the mean, without one it leaves out none.
    bound: Tensor | None = None
    # rows of the reference that each row summed one by one, shape (num_rows,); None where all were
    pairs: Tensor | None = None
