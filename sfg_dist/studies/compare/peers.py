"""The peers by name: how each is built, how it is fitted, and which rows of the table its fit serves.

Every peer gets the better of the transforms ``KINDS`` and the best of ``LEARNING_RATES`` by ``selection``; what is
fixed here was chosen once, on the gas turbine table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfg_dist.studies.compare.flows import real_nvp, spline_flow
from sfg_dist.studies.compare.matching import NUM_EVALUATIONS, FlowMatching
from sfg_dist.studies.compare.score import NUM_ODE_STEPS, NUM_SDE_STEPS, ScoreModel

KINDS = ("quantile", "standardize")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
Sampler = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class PeerKind:
    """A peer's recipe.

    Attributes:
        name: of its fit; its rows of the table are the names of ``samplers``.
        build: an untrained module of dim columns, by the numbers of ``shape``.
        shape: what build takes beside dim.
        batch_size: rows of a batch.
        samplers: name of a row of the table, and the method of the module that draws its samples.
        evaluations: network passes a sample takes, by the name of the row; -1 stands for one a column.
        exact_density: whether the log density is one pass, not an ODE.
        mixed_precision: whether its fit may take bfloat16 for the network's products; splines and couplings need all
            their digits.
    """

    name: str
    build: Callable[..., nn.Module]
    shape: Mapping[str, Any]
    batch_size: int
    samplers: Mapping[str, str]
    evaluations: Mapping[str, int]
    exact_density: bool
    mixed_precision: bool = False

    def sampler(self, model: nn.Module, row: str) -> Sampler:
        """The function that draws the samples of a row of the table."""
        method: Sampler = getattr(model, self.samplers[row])
        return method

    @property
    def settings(self) -> dict[str, Any]:
        """What is printed and stored of it."""
        return {**self.shape, "batch_size": self.batch_size, "mixed_precision": self.mixed_precision}


FIELD_SHAPE = {"width": 256, "depth": 3}
"""Of the networks of the fields over time."""


def peer_kinds(field_shape: Mapping[str, int] = FIELD_SHAPE) -> tuple[PeerKind, ...]:
    """All peers.

    Args:
        field_shape: width and depth of the networks of the fields over time.
    """
    return (
        PeerKind(
            "nsf",
            spline_flow,
            {"transforms": 5, "hidden": [128, 128], "bins": 8},
            256,
            {"nsf": "sample"},
            {"nsf": -1},
            True,
        ),
        PeerKind(
            "realnvp",
            real_nvp,
            {"transforms": 10, "hidden": [128, 128]},
            256,
            {"realnvp": "sample"},
            {"realnvp": 1},
            True,
        ),
        PeerKind(
            "flow_matching",
            FlowMatching,
            field_shape,
            512,
            {"flow_matching": "sample"},
            {"flow_matching": NUM_EVALUATIONS},
            False,
            True,
        ),
        PeerKind(
            "score",
            ScoreModel,
            field_shape,
            512,
            {"score_sde": "sample_sde", "score_ode": "sample_ode"},
            {"score_sde": NUM_SDE_STEPS + 1, "score_ode": 2 * NUM_ODE_STEPS - 1},
            False,
            True,
        ),
    )
