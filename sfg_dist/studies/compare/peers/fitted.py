"""A peer that is fitted to a table: its samples in the user's units, its density, and how it goes to be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.model.precision import has_bfloat16
from sfg_dist.studies.compare.judging import Draw, FitFacts, Fitted, Rows
from sfg_dist.studies.compare.peers.fitting import PeerFit, PeerFitSettings, fit_peer
from sfg_dist.studies.compare.peers.kinds import Configuration, PeerKind
from sfg_dist.studies.compare.peers.peer import Peer
from sfg_dist.studies.compare.tables import Part, Tables

ODE_LIKELIHOOD_ROWS = 1000  # an ODE's exact divergence takes thousands of passes a row
BATCH_ROWS = 8192  # drawn together
DENSITY_BATCH_ROWS = 4096


@dataclass(frozen=True)
class FittedPeer:
    """A peer after its fit."""

    kind: PeerKind  # its recipe
    configuration: Configuration  # its transform and learning rate
    model: Peer  # with the best weights
    fit: PeerFit  # what the fit left
    tables: Tables  # what it was fitted to
    seed: int  # of the fit, and of the samples

    def sample(self, row: str, num_rows: int) -> Rows:
        """Samples for a row of the table in the user's units, shape (num_rows, num_columns); always the same ones."""
        draw = self._drawing(row)
        sizes = [min(BATCH_ROWS, num_rows - first) for first in range(0, num_rows, BATCH_ROWS)]
        return self.tables.transform(self.configuration.kind).inverse(np.concatenate([draw(size) for size in sizes]))

    def log_density(self, part: Part, seed: int | None = None) -> NDArray[np.float64]:
        """Log density in nats of a part's rows in the user's units.

        With a seed, a random part of the rows where their density takes an ODE.
        """
        rows = self.tables.flow_rows(self.configuration.kind, part)
        log_det = self.tables.log_det_jacobian(self.configuration.kind, part)
        if seed is not None and self.kind.is_over_time and len(rows) > ODE_LIKELIHOOD_ROWS:
            chosen = np.random.default_rng(seed).permutation(len(rows))[:ODE_LIKELIHOOD_ROWS]
            rows, log_det = rows[torch.from_numpy(chosen).to(rows.device)], log_det[chosen]
        with torch.no_grad():
            found = [self.model.log_density(batch).cpu().numpy() for batch in rows.split(DENSITY_BATCH_ROWS)]
        return np.concatenate(found).astype(np.float64) + log_det

    def as_judged(self, row: str, test_log_density: NDArray[np.float64]) -> Fitted:
        """The fit as one row of the table."""
        evaluations = self.kind.samplers[row].evaluations
        facts = FitFacts(
            label_s=0.0,
            fit_s=self.fit.seconds,
            num_steps=self.fit.num_steps,
            num_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            num_evaluations=evaluations if evaluations > 0 else self.tables.dim,
            best_at_s=self.fit.best_at_s,
        )
        return Fitted(
            name=row,
            draw=partial(self.sample, row),
            earlier=partial(self._earlier, row),
            draw_flow_rows=self._drawing(row),
            transform=self.tables.transform(self.configuration.kind),
            test_log_density=test_log_density,
            facts=facts,
        )

    def _drawing(self, row: str) -> Callable[[int], NDArray[np.float32]]:
        """Draws more and more rows in the flow's coordinates, from the seed on."""
        generator = torch.Generator(self.tables.device).manual_seed(self.seed)
        sampler = self.kind.sampler(self.model, row)

        def draw(num_rows: int) -> NDArray[np.float32]:
            with torch.inference_mode():
                found: NDArray[np.float32] = sampler(num_rows, generator).cpu().numpy()
            return found

        return draw

    def _earlier(self, row: str) -> Iterator[tuple[float, Draw]]:
        for seconds, weights in self.fit.snapshots:
            self.model.load_state_dict(weights)
            yield seconds, partial(self.sample, row)
        self.model.load_state_dict(self.fit.weights)


def fit_to_table(
    kind: PeerKind,
    configuration: Configuration,
    tables: Tables,
    *,
    max_time_s: float,
    marks_s: tuple[float, ...] = (),
    seed: int,
) -> FittedPeer:
    """Build a peer and fit it to the training rows.

    Raises:
        TrainingError: no finite loss.
    """
    torch.manual_seed(seed)
    model = kind.build(tables.dim, **kind.shape).to(tables.device)
    settings = PeerFitSettings(
        max_time_s=max_time_s,
        learning_rate=configuration.learning_rate,
        batch_size=kind.batch_size,
        bfloat16=kind.is_over_time and has_bfloat16(tables.device),
        marks_s=marks_s,
        seed=seed,
    )
    rows = tables.flow_rows(configuration.kind, "train")
    fit = fit_peer(model, rows, tables.flow_rows(configuration.kind, "validation"), settings)
    return FittedPeer(kind, configuration, model, fit, tables, seed)
