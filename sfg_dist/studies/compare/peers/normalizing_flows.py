"""Normalizing flows of the zuko library: an autoregressive neural spline flow and a RealNVP.

References:
    Durkan et al. 2019, Neural Spline Flows, arXiv 1906.04032; Dinh et al. 2017, Density estimation using Real NVP,
    arXiv 1605.08803. The library: https://zuko.readthedocs.io
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfg_dist.job.errors import ConfigError
from sfg_dist.studies.compare.peers.peer import Peer


class NormalizingFlow(Peer):
    """A zuko flow of dim columns with a standard normal base; its forward direction maps data to latents."""

    def __init__(self, flow: Any, dim: int) -> None:
        super().__init__()
        self.flow, self.dim = flow, dim

    def loss(self, rows: Tensor) -> Tensor:
        """Mean negative log-likelihood of a batch, nats."""
        return -self.log_density(rows).mean()

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Rows, shape (num_rows, dim)."""
        latents = torch.randn(num_rows, self.dim, generator=generator, device=generator.device)
        rows: Tensor = self.flow().transform.inv(latents)
        return rows

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density in nats, shape (num_rows,)."""
        density: Tensor = self.flow().log_prob(rows)
        return density


def spline_flow(dim: int, *, transforms: int, hidden: Sequence[int], bins: int) -> NormalizingFlow:
    """An autoregressive neural spline flow; the order of the columns is drawn anew for each transform."""
    zuko = _zuko()
    flow = zuko.flows.NSF(
        dim, transforms=transforms, bins=bins, hidden_features=list(hidden), randperm=True, activation=nn.SiLU
    )
    return NormalizingFlow(flow, dim)


def real_nvp(dim: int, *, transforms: int, hidden: Sequence[int]) -> NormalizingFlow:
    """Affine coupling layers over random halves of the columns, each behind a learned scale and shift of every column.

    One column has no halves: its coupling layers are affine maps, as zuko makes them.
    """
    zuko = _zuko()
    layers: list[Any] = []
    for index in range(transforms):
        layers.append(
            zuko.flows.UnconditionalTransform(
                zuko.transforms.MonotonicAffineTransform, torch.zeros(dim), torch.zeros(dim)
            )
        )
        # Every other mask is the complement of the one before, so that two layers change every column.
        if index % 2 == 0:
            mask = torch.randperm(dim) % 2 == 0
        layers.append(
            zuko.flows.GeneralCouplingTransform(
                dim, mask=mask if index % 2 == 0 else ~mask, hidden_features=list(hidden), activation=nn.SiLU
            )
        )
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal, loc=torch.zeros(dim), scale=torch.ones(dim), buffer=True
    )
    return NormalizingFlow(zuko.flows.Flow(layers, base), dim)


def _zuko() -> Any:
    try:
        import zuko
    except ImportError as error:
        raise ConfigError(
            "the peers nsf and realnvp come from the zuko library, which is not installed: "
            "pip install 'sfg_dist[compare]', or leave them out of compare.methods"
        ) from error
    return zuko
