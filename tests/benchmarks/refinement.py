"""Ways to refine the network of a finished run, which lost to leaving it: AUC before, and after each.

    sfg run jobs/uci_gas_turbine.toml --set data.source=PATH --set output.dir=runs/gas
    python tests/benchmarks/refinement.py runs/gas --seconds 40

``drift`` says where calibrated samples should move. The network's raw outputs follow by as much, for the seconds of
processor time given, with AdamW; then the calibration is fitted anew. ``calibration`` teaches the network its own
calibration. The AUC is the mean over draws, each against test rows and against validation rows. The first line leaves
out the last part of the calibration.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import show
from torch import Tensor, nn
from torch.nn.functional import softplus

from sfg_dist.data import Prepared
from sfg_dist.evaluate.distances import c2st_auc
from sfg_dist.job.config import load_job
from sfg_dist.model import Calibration, Generator
from sfg_dist.model.local_maps import LocalMaps
from sfg_dist.model.optimizers import update_average
from sfg_dist.pipeline.pipeline import Pipeline

Drift = Callable[[Tensor, Tensor], Tensor]
"""Displacements of samples, shape (num_rows, dim), of the samples and of rows of the data."""
BANDWIDTHS = (0.1, 0.2, 0.4)
NUM_DIRECTIONS = 64
WARM_STEPS = 150  # in which a critic learns and the network stands still


def squares(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances, and infinity from a row to itself."""
    found = torch.cdist(first, second).square()
    return found.fill_diagonal_(math.inf) if first is second else found


def energy(samples: Tensor, rows: Tensor) -> Tensor:
    """The gradient flow of the energy distance."""

    def away(others: Tensor) -> Tensor:
        weights = (squares(samples, others) + 1e-4).rsqrt()
        return (samples * weights.sum(1, keepdim=True) - weights @ others) / len(others)

    return away(samples) - away(rows)


def scores(samples: Tensor, rows: Tensor) -> Tensor:
    """Score of the blurred data less that of the blurred samples, times the variance of the blur, over bandwidths."""
    pairs = [(squares(samples, others), others) for others in (rows, samples)]
    toward, away = ([torch.softmax(square / (-2 * h**2), 1) @ others for h in BANDWIDTHS] for square, others in pairs)
    return (sum(toward) - sum(away)) / len(BANDWIDTHS)


def sliced(samples: Tensor, rows: Tensor) -> Tensor:
    """One-dimensional transport along random directions, half of them in planes of two columns."""
    dim = samples.shape[1]
    directions = torch.randn(dim, NUM_DIRECTIONS)
    for column in directions.T[::2]:
        column[torch.randperm(dim)[2:]] = 0
    directions /= directions.norm(dim=0)
    places, wanted = samples @ directions, (rows @ directions).sort(0).values
    order = places.argsort(0)
    moved = torch.empty_like(places).scatter_(0, order, wanted) - places
    return moved @ directions.T * (dim / NUM_DIRECTIONS)


class Critic:
    """A network that learns to tell samples from rows; samples move along its gradient."""

    def __init__(self, dim: int, num_features: int = 64, scale: float = 2.0) -> None:
        self.frequencies = torch.zeros(dim, num_features)
        for column in self.frequencies.T:
            column[torch.randperm(dim)[:2]] = scale * torch.randn(2) * torch.randn(()).mul(0.7).exp()
        width = 128
        self.network = nn.Sequential(
            nn.Linear(dim + 2 * num_features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-3, weight_decay=1e-2, betas=(0.9, 0.99))

    def __call__(self, samples: Tensor, rows: Tensor) -> Tensor:
        """The drift by the critic as it stands, and then a step of its own."""
        samples = samples.clone().requires_grad_()
        of_samples, of_rows = (self.logits(points) for points in (samples, rows))
        self.optimizer.zero_grad()
        (softplus(of_samples).mean() + softplus(-of_rows).mean()).backward()
        self.optimizer.step()
        assert samples.grad is not None
        return samples.grad * (len(samples) / torch.sigmoid(of_samples.detach()))[:, None]

    def logits(self, points: Tensor) -> Tensor:
        angles = points @ self.frequencies
        found: Tensor = self.network(torch.cat([points, angles.sin(), angles.cos()], dim=1))
        return found[:, 0]


def refined(generator: Generator, reference: Tensor, name: str, *, seconds: float, rate: float, rows: int) -> Generator:
    """The generator with its network refined and calibrated anew."""
    torch.manual_seed(0)
    calibration, network = generator.calibration, copy.deepcopy(generator.network)
    assert calibration is not None
    first, dim = generator.network, network.dim
    drifts: dict[str, Drift] = {"energy": energy, "scores": scores, "sliced": sliced, "critic": Critic(dim)}
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
    average = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    began, step, done = time.process_time(), 0, 0.0
    while done < 1:
        done, latents = (time.process_time() - began) / seconds, torch.randn(rows, dim)
        drawn = reference[torch.randint(len(reference), (rows,))]
        raw = network(latents)
        if name == "calibration":
            with torch.no_grad():
                start = first(latents)
            target = torch.from_numpy(calibration(start.numpy()))
        else:
            samples = torch.from_numpy(calibration(raw.detach().numpy()))
            target = raw.detach() + drifts[name](samples, drawn)
        step += 1
        if name == "critic" and step <= WARM_STEPS:
            continue
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        optimizer.zero_grad()
        (raw - target).square().mean().backward()
        optimizer.step()
        state = network.state_dict()
        update_average(list(average.values()), [state[key] for key in average], step=10**6, decay=0.99)
    network.load_state_dict(average)
    return replace(generator, network=network, calibration=Calibration.fit(network, reference.numpy(), seed=0))


def auc(generator: Generator, table: Prepared, draws: int) -> float:
    """Mean over draws and over test and validation rows."""
    found = []
    for draw in range(draws):
        for number, held_out in enumerate((table.test, table.validation)):
            samples = generator.sample(min(len(held_out), 20_000), seed=2 * draw + number, container="numpy")
            measured = c2st_auc(samples, held_out, generator=np.random.default_rng(draw))
            assert measured is not None
            found.append(measured[0])
    return float(np.mean(found))


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", type=Path, help="output directory of a run")
    options.add_argument("--candidates", nargs="*", default=["energy", "scores", "sliced", "critic", "calibration"])
    options.add_argument("--seconds", type=float, default=40.0, help="processor time of a refinement")
    options.add_argument("--rate", type=float, default=1e-4)
    options.add_argument("--rows", type=int, default=2048, help="samples and rows of a step")
    options.add_argument("--draws", type=int, default=2)
    asked = options.parse_args()
    torch.set_num_threads(1)
    table = Pipeline(load_job(asked.run / "job.toml")).prepared
    generator, reference = Generator.load(str(asked.run / "model")), torch.from_numpy(table.reference())
    calibration = Calibration.fit(generator.network, table.reference(), seed=0)
    generator = replace(generator, calibration=calibration)
    plain = replace(generator, calibration=replace(calibration, local=LocalMaps.none()))
    lines = [
        ["as fitted, without local maps", f"{auc(plain, table, asked.draws):.4f}"],
        ["as fitted", f"{auc(generator, table, asked.draws):.4f}"],
    ]
    for name in asked.candidates:
        found = refined(generator, reference, name, seconds=asked.seconds, rate=asked.rate, rows=asked.rows)
        lines.append([name, f"{auc(found, table, asked.draws):.4f}"])
    show(f"AUC after {asked.seconds:g} s", ["candidate", "AUC"], lines)


if __name__ == "__main__":
    main()
