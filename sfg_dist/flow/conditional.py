"""Labels of some columns given the others: the flow of a conditional law, whose score has a closed form too.

The reference has rows (u_j, c_j), targets and conditions. For a condition c the law of u is estimated by a kernel in
the condition, and its score needs one more factor in every weight:

    w_j(z, t | c) = softmax_j( -|z - alpha u_j|^2 / (2 beta^2)  -  |c - c_j|^2 / (2 h^2) ),    m = sum_j w_j u_j

over the k nearest c_j, with z, u and beta in units of the targets' spread (see ``spread``). The probability-flow ODE of
the targets is then that of ``solver``, with c fixed. The bandwidth is a given number, or h = r / 2 with r the distance
to the k-th neighbour, which is small where conditions are dense.

A kernel of width h smears the law: where the mean of u moves with c by B = dE[u|c]/dc, it adds B^T B h^2 to the
variance. With ``adjust`` each neighbour is first carried to c along the local linear regression of u on c,

    u_j <- u_j + B^T (c - c_j),    B by weighted least squares with the same kernel,

which removes the added variance and, at the edge of the conditions, the bias of the mean to first order.

References:
    Kernel conditional densities: Rosenblatt 1969, Conditional probability density and regression estimators.
    Nearest neighbours in the condition for this method's labels: arXiv 2410.03108.
    The adjustment: Beaumont, Zhang, Balding 2002, Approximate Bayesian computation in population genetics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when they are first used
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfg_dist.flow.labeling import Effort
from sfg_dist.flow.solver import Flow, integrate
from sfg_dist.flow.spread import SigmaData, resolve_sigma_data, root_mean_square, spreads_of

DEFAULT_NEIGHBORS = 512
BANDWIDTH_SHARE = 0.5
"""The bandwidth over the distance to the farthest neighbour. That one's weight is exp(-2); some 80 % count."""
_LEAST_BANDWIDTH = 1e-6  # of the conditions' spread
_RIDGE = 1e-3  # of the conditions' mean variance in the neighbourhood: bounds B where they hardly vary


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The neighbours from which the law of the targets is estimated, for each row of a batch."""

    # the neighbours' targets less ``center``, in units of their spread and carried to the row's condition, shape
    # (num_rows, k, num_targets)
    targets: Tensor
    squares: Tensor  # their squared lengths, shape (num_rows, k)
    log_weights: Tensor  # log of the kernel in the condition, up to a constant of each row, shape (num_rows, k)
    center: Tensor  # weighted mean of the targets, shape (num_rows, num_targets)

    def posterior_mean(self, z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        """m(z, t | c) of states z, shape (num_rows, num_targets)."""
        centred = z - alpha * self.center
        products = torch.bmm(self.targets, centred[:, :, None])[:, :, 0]
        logits = self.log_weights + (alpha * products - 0.5 * alpha**2 * self.squares) / beta_sq
        weights = torch.softmax(logits, dim=1)
        return self.center + torch.bmm(weights[:, None, :], self.targets)[:, 0, :]


class ConditionalReference:
    """Rows of targets and conditions, with the neighbours of any condition.

    Args:
        rows: float32, shape (num_reference, num_targets + num_conditions), the conditions last.
        num_conditions: how many columns are conditions, >= 1.
        neighbors: rows that count for a condition, at most; all of a smaller reference.
        bandwidth: h in the conditions' units; None for half the distance to the farthest neighbour.
        adjust: carry the neighbours along the local linear regression.
        dtype: precision of the arithmetic.
        device: where labels are made; neighbours are found on the CPU.
        sigma_data: the unit of the flow in the targets' units, "auto" for the root mean square of their columns'
            spreads. With 1 the targets are not centred: a transform has centred and scaled them.

    Raises:
        ValueError: no column is left for a target or a condition.
    """

    def __init__(
        self,
        rows: NDArray[np.float32],
        num_conditions: int,
        *,
        neighbors: int = DEFAULT_NEIGHBORS,
        bandwidth: float | None = None,
        adjust: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        sigma_data: SigmaData = "auto",
    ) -> None:
        if not 0 < num_conditions < rows.shape[1]:
            raise ValueError(f"{num_conditions} of {rows.shape[1]} columns are conditions: one of each is needed")
        self.num_reference, self.dim = rows.shape
        self.num_blocks = 1
        self.num_conditions, self.num_targets = num_conditions, self.dim - num_conditions
        self.neighbors = min(neighbors, self.num_reference)
        self.bandwidth, self.adjust = bandwidth, adjust
        self.dtype, self.device = dtype, torch.device(device)
        self._targets = torch.from_numpy(np.ascontiguousarray(rows[:, : self.num_targets]))
        self._conditions = np.ascontiguousarray(rows[:, self.num_targets :], dtype=np.float64)
        self.scale = resolve_sigma_data(sigma_data, spreads_of(self._targets))
        self.center, self._least_bandwidth = torch.zeros(self.num_targets, dtype=torch.float64), _LEAST_BANDWIDTH
        if self.scale != 1:
            self.center = self._targets.double().mean(dim=0)
            self._least_bandwidth *= root_mean_square(spreads_of(torch.from_numpy(self._conditions)))
        self._tree = scipy.spatial.cKDTree(self._conditions)

    def conditions(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """The conditions of some rows of the reference, shape (len(index), num_conditions)."""
        return self._conditions[index].astype(np.float32)

    def neighbourhood(self, conditions: NDArray[np.float32]) -> Neighbourhood:
        """The neighbours of conditions, shape (num_rows, num_conditions), with their weights."""
        places = np.asarray(conditions, dtype=np.float64)
        # A list of numbers of neighbours keeps the answer's second axis where it is one.
        distances, index = self._tree.query(places, k=np.arange(1, self.neighbors + 1))
        if self.bandwidth is None:
            width = np.maximum(BANDWIDTH_SHARE * distances[:, -1:], self._least_bandwidth)
        else:
            width = np.full((len(places), 1), self.bandwidth)
        log_weights = torch.from_numpy(-0.5 * (distances / width) ** 2)
        targets = (self._targets[torch.from_numpy(index)].double() - self.center) / self.scale
        weights = torch.softmax(log_weights, dim=1)[:, None, :]
        if self.adjust:
            offsets = torch.from_numpy(self._conditions[index] - places[:, None, :])
            slopes = _local_slopes(offsets, targets, weights)
            targets = targets - torch.bmm(offsets, slopes)
        center = torch.bmm(weights, targets)
        targets = (targets - center).to(self.device, self.dtype)
        return Neighbourhood(
            targets=targets,
            squares=targets.square().sum(dim=2),
            log_weights=log_weights.to(self.device, self.dtype),
            center=center[:, 0].to(self.device, self.dtype),
        )


def _local_slopes(offsets: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """B of the weighted regression of targets on offsets with an intercept, (num_rows, num_conditions, num_targets)."""
    x = offsets - torch.bmm(weights, offsets)
    y = targets - torch.bmm(weights, targets)
    weighted = x * weights.transpose(1, 2)
    normal = torch.bmm(weighted.transpose(1, 2), x)
    size = normal.diagonal(dim1=1, dim2=2).mean(dim=1)
    ridge = (_RIDGE * size).clamp_min(1e-300)[:, None, None] * torch.eye(x.shape[2], dtype=x.dtype)
    return torch.linalg.solve(normal + ridge, torch.bmm(weighted.transpose(1, 2), y))


def label_given(rows: Tensor, reference: ConditionalReference, flow: Flow, *, effort: Effort | None = None) -> Tensor:
    """Labels of rows of latents and, behind them, conditions, shape (num_rows, dim of the reference), on a fixed grid.

    ``effort`` counts what was done. In the result labels take the place of the latents, and the conditions are as they
    were; shape, dtype and device are those of ``rows``.

    Examples:
        >>> rows = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
        >>> reference = ConditionalReference(rows, 1, neighbors=50)
        >>> from sfg_dist.flow import Schedule
        >>> labels = label_given(torch.zeros(3, 2), reference, Flow(Schedule("linear", 1e-3)))
        >>> labels.shape, bool((labels[:, 1] == 0).all())
        (torch.Size([3, 2]), True)
    """
    split = reference.num_targets
    nearby = reference.neighbourhood(rows[:, split:].cpu().numpy())
    effort = effort or Effort()
    effort.rows += len(rows)

    def denoiser(z: Tensor, alpha: float, beta_sq: float) -> Tensor:
        effort.evaluations += len(z)
        effort.pairs += len(z) * reference.neighbors
        return nearby.posterior_mean(z, alpha, beta_sq)

    # At the noise end the state is the latent.
    ends = integrate(denoiser, rows[:, :split].to(reference.device, reference.dtype), flow)
    labels = rows.clone()
    ends = ends / flow.schedule.alpha(flow.schedule.t_end)
    if reference.scale != 1:
        ends = reference.scale * ends.double() + reference.center.to(ends.device)
    labels[:, :split] = ends.to(rows)
    return labels
