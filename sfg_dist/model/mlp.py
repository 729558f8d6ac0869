"""The one-step generator's network: a plain multilayer perceptron from latents to labels.

    x = W u + b + f(u)        f: residual blocks or plain layers, its last layer starting at zero

The input u is the latent, followed by the columns that a sample is conditioned on. The linear skip carries what a
Gaussian would need, so the network starts from the identity on the latent and spends its capacity on what is not
Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}


class ResidualBlock(nn.Module):
    """h + W2 act(W1 norm(h)), width unchanged."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]()
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (num_rows, width) in and out."""
        change: Tensor = self.project(self.activation(self.expand(self.norm(h))))
        return change.add_(h)


class Shape(TypedDict, total=False):
    """The inner layers of a network, and what goes into it beside latents."""

    width: int  # units of a hidden layer
    depth: int  # number of residual blocks (two layers each), or of plain hidden layers
    block: Literal["residual", "plain"]  # pre-normalised blocks, or plain layers
    activation: str  # silu, gelu, relu or tanh
    linear_skip: bool  # add a learned map of the input
    num_conditions: int  # columns that a sample is conditioned on, behind the latent's


DEFAULT_SHAPE: Shape = {
    "width": 192,
    "depth": 3,
    "block": "residual",
    "activation": "gelu",
    "linear_skip": True,
    "num_conditions": 0,
}


def hidden_layers(num_inputs: int, shape: Shape) -> nn.Sequential:
    """The inner layers of a network, from its inputs to ``width`` numbers a row."""
    width, depth, activation = shape["width"], shape["depth"], shape["activation"]
    layers: list[nn.Module]
    if shape["block"] == "residual":
        layers = [
            nn.Linear(num_inputs, width),
            *(ResidualBlock(width, activation) for _ in range(depth)),
            nn.LayerNorm(width),
        ]
    else:
        layers = [nn.Linear(num_inputs, width), ACTIVATIONS[activation]()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class MLP(nn.Module):
    """A fully connected network from latents, and what goes with them, to labels.

    The skip is a learned affine map of the input, and starts at the identity on the latent.

    Args:
        dim: columns of a latent and of a label.
        num_noise: further N(0, 1) columns, the last of the input, in networks of versions that fitted an energy score.
        shape: what differs from ``DEFAULT_SHAPE``.
    """

    def __init__(self, dim: int, *, num_noise: int = 0, **shape: Unpack[Shape]) -> None:
        super().__init__()
        whole = DEFAULT_SHAPE | shape
        self.dim = dim
        self.num_conditions, self.num_noise = whole["num_conditions"], num_noise
        self.num_inputs = dim + self.num_conditions + num_noise
        self.shape: Mapping[str, object] = {**whole, "num_noise": num_noise}
        self.hidden = hidden_layers(self.num_inputs, whole)
        self.out = nn.Linear(whole["width"], dim)
        self.skip = nn.Linear(self.num_inputs, dim) if whole["linear_skip"] else None
        if self.skip is not None:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
            if not self.skip.weight.is_meta:  # there torch would import its compiler, which takes seconds
                nn.init.eye_(self.skip.weight)
            nn.init.zeros_(self.skip.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Labels, shape (num_rows, dim), of inputs, shape (num_rows, num_inputs)."""
        x: Tensor = self.out(self.hidden(inputs))
        return x if self.skip is None else x + self.skip(inputs)

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def predict(model: nn.Module, latents: Tensor, batch_size: int = 8192) -> Tensor:
    """The network on any number of rows, a batch at a time, without gradients."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in latents.split(batch_size)]) if len(latents) else model(latents)
