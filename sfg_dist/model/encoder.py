"""The encoder's network: a plain multilayer perceptron from labels to latents, with its exact Jacobian.

    y = W x + b + f(s(x))        s(x) = R tanh(x / R), f: fully connected layers

The Jacobian is carried along with the values, one tangent a column of x. The squashed input bounds f, so far from the
data the map is affine: its tails are Gaussian, and by its degree (sign of det W) the mass of log_prob is known but for
the places where det J has the other sign; see ``likelihood``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

INPUT_RADIUS = 8.0  # the columns of the data have spread 1 and lie within about 5


class Encoder(nn.Module):
    """A fully connected network from labels to latents of ``dim`` columns, not one-to-one by construction.

    ``depth`` is the number of layers of width x width behind the first; from the second on they add to what they are
    given.

    Examples:
        >>> encoder = Encoder(2, width=8, depth=1)
        >>> latents, jacobians = encoder.with_jacobian(torch.zeros(3, 2))
        >>> latents.shape, jacobians.shape
        (torch.Size([3, 2]), torch.Size([3, 2, 2]))
    """

    def __init__(self, dim: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.shape = {"width": width, "depth": depth}
        self.first = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)
        self.skip = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.skip.bias)
        if not self.out.weight.is_meta:  # there these would import torch's compiler, which takes a second
            nn.init.normal_(self.out.weight, std=0.02 / math.sqrt(width))
            nn.init.eye_(self.skip.weight)

    def forward(self, labels: Tensor) -> Tensor:
        """Latents, shape (num_rows, dim) in and out."""
        hidden = self.first(INPUT_RADIUS * torch.tanh(labels / INPUT_RADIUS))
        for number, layer in enumerate(self.layers):
            added = layer(nn.functional.silu(hidden))
            hidden = hidden + added if number else added
        latents: Tensor = self.out(nn.functional.silu(hidden)) + self.skip(labels)
        return latents

    def with_jacobian(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of labels, both (num_rows, dim), and Jacobians d latent / d label, shape (num_rows, dim, dim).

        Memory is num_rows * dim * width numbers a layer.
        """
        squashed = torch.tanh(labels / INPUT_RADIUS)
        hidden = self.first(INPUT_RADIUS * squashed)
        # tangents[r, k] = d hidden / d label k of row r
        tangents = self.first.weight.t() * (1 - squashed.square())[:, :, None]
        for number, layer in enumerate(self.layers):
            value, slope = _silu_and_slope(hidden)
            added, moved = (
                layer(value),
                nn.functional.linear(tangents * slope[:, None, :], layer.get_parameter("weight")),
            )
            hidden, tangents = (hidden + added, tangents + moved) if number else (added, moved)
        value, slope = _silu_and_slope(hidden)
        latents = self.out(value) + self.skip(labels)
        jacobians = nn.functional.linear(tangents * slope[:, None, :], self.out.weight).mT + self.skip.weight
        return latents, jacobians

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def degree(self) -> int:
        """Preimages of a latent where det J > 0 less those where det J < 0, the same for every latent: 1 or -1."""
        return 1 if float(torch.linalg.det(self.skip.weight.detach().double())) > 0 else -1


def _silu_and_slope(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """silu(h) = h sigmoid(h) and its derivative."""
    gate = torch.sigmoid(hidden)
    value = hidden * gate
    return value, gate + value * (1 - gate)
