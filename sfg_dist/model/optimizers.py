"""The optimisers of a fit: AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

Muon takes a step along the nearest orthogonal matrix to the momentum, so that all directions of a layer learn at one
pace. Its steps are scaled to the size of AdamW's, and one learning rate serves both. Measured on the pairs of the gas
turbine table (256 wide, 3 blocks, 60 s of one core of a CPU with AMX for each): held-out error 0.0433 with it, 0.0446
without.

torch.optim.Muon is the same step, but always in bfloat16, which a CPU without units for it emulates: a whole training
step was then 5 to 13 times as long as AdamW's.

References:
    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    Liu et al. 2025, Muon is scalable for LLM training, arXiv 2502.16982 (the scale of a step).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.precision import has_bfloat16

OptimizerName = Literal["muon", "adamw"]
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of an odd polynomial that takes singular values of (0, 1] to about 1 when it is applied five times."""
NUM_ITERATIONS = 5
STEP_SIZE = 0.2  # root mean square of a step, as AdamW's


def make_optimizers(
    model: nn.Module, name: OptimizerName, *, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimisers, "muon" or "adamw", that together hold every weight of the model once.

    Muon takes the matrices of the model's part ``hidden`` but for the first, which reads the input; of experts, those
    of each. ``weight_decay`` is decoupled from the gradient.
    """
    num_axes = 3 if isinstance(model, ExpertNetwork) else 2
    named = dict(model.named_parameters()) if name == "muon" else {}
    inner = [key for key, p in named.items() if key.startswith("hidden.") and p.ndim == num_axes]
    matrices = [named[key] for key in inner if not key.startswith("hidden.0.")]
    return split_optimizers(
        model, matrices, learning_rate=learning_rate, inner_rate=learning_rate, weight_decay=weight_decay
    )


def split_optimizers(
    model: nn.Module, matrices: Sequence[Tensor], *, learning_rate: float, inner_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for a model's weights, but Muon for some matrices of it, if any, with ``inner_rate``."""
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), foreach=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=inner_rate, weight_decay=weight_decay))
    return optimizers


def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], *, step: int, decay: float) -> None:
    """Move the exponential moving average of weights by one step, in place.

    In the first ``step`` steps the average is shorter. A ``decay`` of 0 keeps none, so that it is the weights of now.
    """
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    get_ema_multi_avg_fn(decay)(tuple(average), tuple(weights), step)


class Muon(torch.optim.Optimizer):
    """Momentum of matrices made orthogonal, with Nesterov's look ahead; ``lr`` is on AdamW's scale.

    A parameter is a matrix, or a stack of them.
    """

    def __init__(self, params: Any, *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are made orthogonal together.

        Raises:
            ValueError: there is a closure: none is taken.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                momenta = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                steps = orthogonal(momenta.flatten(0, -3)).view_as(momenta)
                scale = group["lr"] * STEP_SIZE * max(shape[-2:]) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(steps.unbind()), alpha=-scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The running mean of gradients, one gradient ahead."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"]
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V' of each matrix U S V', shape (num_matrices, num_rows, num_columns), by Newton and Schulz's iteration.

    The result is float32; its singular values lie between about 0.7 and 1.2, but for those that were tiny.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    if has_bfloat16(matrices.device):
        x = x.bfloat16()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).float()
