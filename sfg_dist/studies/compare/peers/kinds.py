"""The peers by name: how each is built and fitted, and which rows of the table its fit serves.

The transform and the learning rate of a peer are chosen for each table (``choice``). The rest stands here, and was
chosen once on the gas turbine table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfg_dist.studies.compare.peers.flow_matching import NUM_EVALUATIONS, FlowMatching
from sfg_dist.studies.compare.peers.normalizing_flows import real_nvp, spline_flow
from sfg_dist.studies.compare.peers.peer import Peer, Sampler
from sfg_dist.studies.compare.peers.score_matching import NUM_ODE_STEPS, NUM_SDE_STEPS, ScoreModel

TRANSFORMS = ("quantile", "standardize")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Configuration:
    """What is chosen for each table: the kind of transform, and the learning rate at the top of its schedule."""

    kind: str = "quantile"
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class RowSampler:
    """How the samples of a row of the table are drawn."""

    method: str  # of the peer's module
    evaluations: int  # passes of the network for a sample; -1 stands for one a column


@dataclass(frozen=True)
class PeerKind:
    """A peer's recipe."""

    name: str  # of its fit
    build: Callable[..., Peer]  # an untrained module of dim columns, by the numbers of ``shape``
    shape: Mapping[str, Any]  # what build takes beside dim
    batch_size: int  # rows of a batch
    samplers: Mapping[str, RowSampler]  # by row of the table that the fit serves
    # whether it learns a field over time. Then the density takes an ODE, not one pass, and the network's products may
    # be bfloat16; splines and couplings need all their digits.
    is_over_time: bool = False

    def sampler(self, model: Peer, row: str) -> Sampler:
        """The function that draws the samples of a row of the table."""
        method: Sampler = getattr(model, self.samplers[row].method)
        return method

    @property
    def settings(self) -> dict[str, object]:
        """What the page shows and the records keep of it."""
        return {**self.shape, "batch_size": self.batch_size, "mixed_precision": self.is_over_time}


_FIELD_SHAPE = {"width": 256, "depth": 3}
_SCORE_SAMPLERS = {
    "score_sde": RowSampler("sample_sde", NUM_SDE_STEPS + 1),
    "score_ode": RowSampler("sample_ode", 2 * NUM_ODE_STEPS - 1),
}
PEERS = (
    PeerKind(
        "nsf", spline_flow, {"transforms": 5, "hidden": [128, 128], "bins": 8}, 256, {"nsf": RowSampler("sample", -1)}
    ),
    PeerKind("realnvp", real_nvp, {"transforms": 10, "hidden": [128, 128]}, 256, {"realnvp": RowSampler("sample", 1)}),
    PeerKind(
        "flow_matching", FlowMatching, _FIELD_SHAPE, 512, {"flow_matching": RowSampler("sample", NUM_EVALUATIONS)}, True
    ),
    PeerKind("score", ScoreModel, _FIELD_SHAPE, 512, _SCORE_SAMPLERS, True),
)
