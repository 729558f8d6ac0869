"""What the fit minimises: mean squared error, or the energy score of a network that also takes noise.

A latent does not determine what the network can know of its label: labels lie at the ends of a flow whose cells are
finer than any network resolves. Under mean squared error, F(y) is the mean of what it does not resolve, and samples
have too little variance. With noise e beside the latent, F(y, e), the energy score

    E |x - F(y, e)| - 1/2 E |F(y, e) - F(y, e')|        e, e' independent

is smallest exactly where F(y, .) has the law of x given y, so that samples F(y, e) with y, e ~ N(0, I) have the law of
the labels. It is a proper score on the pairs: supervised, with no adversary, and one pass draws a sample.

References:
    Gneiting, Raftery 2007, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102, section 4.3.
    Shen, Meinshausen 2024, Engression: extrapolation through the lens of distributional regression, JRSS B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["mse", "energy"]
NUM_DRAWS = 2  # the fewest that give the spread; more cost as many passes
SMALL_SQ = 1e-8  # keeps the gradient of a norm finite where two rows agree


def loss_sum(
    objective: Objective,
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    num_noise: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss, added up over rows.

    Args:
        objective: "mse", the mean over columns of the squared error, or "energy", the energy score over the square
            root of the number of columns.
        network: inputs with noise to labels.
        inputs: latents, and conditions where there are any, shape (num_rows, num_columns).
        labels: shape (num_rows, dim).
        num_noise: columns of noise that the network takes behind them; with "mse" as good as none.
        generator: of the noise, on the CPU.

    Returns:
        A scalar.

    Raises:
        ValueError: "energy" without columns of noise.
    """
    num_rows, dim = labels.shape
    if objective == "mse":
        predicted = network(with_noise(inputs, num_noise, generator))
        return (predicted.float() - labels).square().sum() / dim
    if not num_noise:
        raise ValueError('objective = "energy" needs a network with columns of noise')
    repeated = with_noise(inputs.repeat(NUM_DRAWS, 1), num_noise, generator)
    draws = network(repeated).float().view(NUM_DRAWS, num_rows, dim)
    distance = _norms(draws - labels).sum() / NUM_DRAWS
    spread = _norms(draws[0] - draws[1]).sum()
    return (distance - 0.5 * spread) / dim**0.5


def with_noise(inputs: Tensor, num_noise: int, generator: torch.Generator | None) -> Tensor:
    """Inputs with columns of standard normal noise behind them."""
    if not num_noise:
        return inputs
    noise = torch.randn(len(inputs), num_noise, generator=generator)
    return torch.cat([inputs, noise.to(inputs.device, inputs.dtype)], dim=1)


def _norms(rows: Tensor) -> Tensor:
    return (rows.square().sum(-1) + SMALL_SQ).sqrt()
