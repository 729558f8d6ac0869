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
class PeerKind:
    """A peer's recipe.

    Attributes:
        name: of its fit; its rows of the table are the names of ``samplers``.
        build: an untrained module of dim columns, by the numbers of ``shape``.
        shape: what build takes beside dim.
        batch_size: rows of a batch.
        samplers: by row of the table, the method of the module that draws its samples.
        evaluations: by row of the table, network passes for a sample; -1 stands for one a column.
        exact_density: whether the log density is one pass, not an ODE.
        mixed_precision: whether the network's products may be bfloat16; splines and couplings need all their digits.
    """

    name: str
    build: Callable[..., Peer]
    shape: Mapping[str, Any]
    batch_size: int
    samplers: Mapping[str, str]
    evaluations: Mapping[str, int]
    exact_density: bool
    mixed_precision: bool = False

    def sampler(self, model: Peer, row: str) -> Sampler:
        """The function that draws the samples of a row of the table."""
        method: Sampler = getattr(model, self.samplers[row])
        return method

    @property
    def settings(self) -> dict[str, object]:
        """What the page shows and the records keep of it."""
        return {**self.shape, "batch_size": self.batch_size, "mixed_precision": self.mixed_precision}


PEERS = (
    PeerKind(
        name="nsf",
        build=spline_flow,
        shape={"transforms": 5, "hidden": [128, 128], "bins": 8},
        batch_size=256,
        samplers={"nsf": "sample"},
        evaluations={"nsf": -1},
        exact_density=True,
    ),
    PeerKind(
        name="realnvp",
        build=real_nvp,
        shape={"transforms": 10, "hidden": [128, 128]},
        batch_size=256,
        samplers={"realnvp": "sample"},
        evaluations={"realnvp": 1},
        exact_density=True,
    ),
    PeerKind(
        name="flow_matching",
        build=FlowMatching,
        shape={"width": 256, "depth": 3},
        batch_size=512,
        samplers={"flow_matching": "sample"},
        evaluations={"flow_matching": NUM_EVALUATIONS},
        exact_density=False,
        mixed_precision=True,
    ),
    PeerKind(
        name="score",
        build=ScoreModel,
        shape={"width": 256, "depth": 3},
        batch_size=512,
        samplers={"score_sde": "sample_sde", "score_ode": "sample_ode"},
        evaluations={"score_sde": NUM_SDE_STEPS + 1, "score_ode": 2 * NUM_ODE_STEPS - 1},
        exact_density=False,
        mixed_precision=True,
    ),
)
