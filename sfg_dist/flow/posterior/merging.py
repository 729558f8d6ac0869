"""Posterior moments over parts of a reference, merged to those over all of it."""

from __future__ import annotations

import torch
from torch import Tensor


class Merger:
    """Merges means, log kernel sums and variances of one part after the other, in float64.

    With L_b the log kernel sum of part b, its share is p_b = exp(L_b - log sum exp L). Then m = sum p_b m_b and
    v = sum p_b (v_b + |m_b - m|^2).
    """

    def __init__(self) -> None:
        self._mean: Tensor | None = None
        self._log_kernel_sum: Tensor
        self._variance: Tensor | None

    def add(self, mean: Tensor, log_kernel_sum: Tensor, variance: Tensor | None) -> None:
        """Add a part: its mean, shape (num_rows, dim), and of shape (num_rows,) its log kernel sum and variance.

        The variance is the trace of the covariance; or None, for all parts.
        """
        mean, log_kernel_sum = mean.double(), log_kernel_sum.double()
        variance = None if variance is None else variance.double()
        if self._mean is None:
            self._mean, self._log_kernel_sum, self._variance = mean, log_kernel_sum, variance
            return
        total = torch.logaddexp(self._log_kernel_sum, log_kernel_sum)
        old, new = torch.exp(self._log_kernel_sum - total), torch.exp(log_kernel_sum - total)
        step = mean - self._mean
        if variance is not None and self._variance is not None:
            self._variance = old * self._variance + new * variance + old * new * step.square().sum(dim=1)
        self._mean = self._mean + new[:, None] * step
        self._log_kernel_sum = total

    def result(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean, log kernel sum and variance over all parts, float64.

        Raises:
            ValueError: no part was added.
        """
        if self._mean is None:
            raise ValueError("nothing to merge: no part was added")
        return self._mean, self._log_kernel_sum, self._variance
