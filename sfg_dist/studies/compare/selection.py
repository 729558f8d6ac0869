"""The configuration of a peer, chosen on validation rows outside the budget, by successive halving.

Round 1 fits every transform with every learning rate for a short time; the best ``NUM_FINALISTS`` are fitted anew for
``FINAL_FACTOR`` times as long, and the best of those is taken. Best is what the comparison itself judges by: the AUC of
a classifier between samples and held-out rows, here validation rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch

from sfg_dist.evaluate import classifier_test
from sfg_dist.job.errors import TrainingError
from sfg_dist.model.precision import has_bfloat16
from sfg_dist.studies.compare.fitting import fit_peer
from sfg_dist.studies.compare.judging import Rows, finite_rows
from sfg_dist.studies.compare.peers import KINDS, LEARNING_RATES, PeerKind
from sfg_dist.studies.compare.tables import Tables

NUM_FINALISTS = 2
FINAL_FACTOR = 3
MAX_JUDGED_ROWS = 4000


@dataclass(frozen=True)
class Configuration:
    """What is chosen.

    Attributes:
        kind: of the transform.
        learning_rate: at the top of its schedule.
    """

    kind: str = "quantile"
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Trial:
    """One short fit.

    Attributes:
        configuration: what was tried.
        seconds: of the fit.
        c2st_auc: of its samples against the validation rows; 1 where the fit or its samples failed.
        log_likelihood: mean over validation rows in the user's units, where it is one pass.
    """

    configuration: Configuration
    seconds: float
    c2st_auc: float
    log_likelihood: float | None


@dataclass(frozen=True)
class Selection:
    """What was chosen, and every trial on the way, in order."""

    chosen: Configuration
    trials: tuple[Trial, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Selection:
        """From ``to_json``."""
        trials = (Trial(**(trial | {"configuration": Configuration(**trial["configuration"])}))
                  for trial in document["trials"])  # fmt: skip
        return cls(Configuration(**document["chosen"]), tuple(trials))


def select(
    kind: PeerKind,
    tables: Tables,
    *,
    time_s: float,
    device: torch.device,
    seed: int,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Selection:
    """Choose transform and learning rate of a peer.

    Args:
        kind: the peer.
        tables: the table.
        time_s: of a fit of round 1; 0 takes the default configuration as it is.
        device: where to fit.
        seed: of the fits and of the samples.
        on_trial: told each result.

    Raises:
        TrainingError: every trial failed.
    """
    if time_s == 0:
        return Selection(Configuration())
    trials: list[Trial] = []

    def run(configurations: list[Configuration], seconds: float) -> list[Configuration]:
        results = []
        for configuration in configurations:
            results.append(_try(kind, tables, configuration, seconds, device, seed))
            on_trial(results[-1])
        trials.extend(results)
        return [trial.configuration for trial in sorted(results, key=lambda trial: trial.c2st_auc)]

    first = run([Configuration(*pair) for pair in product(KINDS, LEARNING_RATES)], time_s)
    best = run(first[:NUM_FINALISTS], FINAL_FACTOR * time_s)[0]
    if all(trial.c2st_auc == 1 and trial.log_likelihood is None for trial in trials):
        raise TrainingError(f"{kind.name}: every configuration failed in fits of {time_s:g} s: raise the time")
    return Selection(best, tuple(trials))


def _try(
    kind: PeerKind, tables: Tables, configuration: Configuration, seconds: float, device: torch.device, seed: int
) -> Trial:
    torch.manual_seed(seed)
    model = kind.build(tables.dim, **kind.shape).to(device)
    validation = tables.flow_rows(configuration.kind, "validation", device)
    try:
        fit_peer(
            model,
            tables.flow_rows(configuration.kind, "train", device),
            validation,
            max_time_s=seconds,
            learning_rate=configuration.learning_rate,
            batch_size=kind.batch_size,
            bfloat16=kind.mixed_precision and has_bfloat16(device),
            seed=seed,
        )
        held_out = tables.rows("validation")[:MAX_JUDGED_ROWS]
        # Of two samplers the last is the cheaper one, and serves to choose for both.
        rows = draw_rows(kind, model, list(kind.samplers)[-1], tables, configuration, len(held_out), seed)
        result = classifier_test(finite_rows(rows, kind.name)[0], held_out, seed=seed)
    except TrainingError:
        return Trial(configuration, seconds, 1.0, None)
    likelihood = None
    if kind.exact_density:
        with torch.no_grad():
            values = model.log_density(validation).cpu().numpy()  # type: ignore[operator]
        likelihood = float((values + tables.log_det_jacobian(configuration.kind, "validation")).mean())
    return Trial(configuration, seconds, 0.5 if result is None else result[0], likelihood)


def draw_rows(
    kind: PeerKind,
    model: torch.nn.Module,
    row: str,
    tables: Tables,
    configuration: Configuration,
    num_rows: int,
    seed: int,
    *,
    batch_rows: int = 8192,
) -> Rows:
    """Samples of a fitted peer in the user's units, shape (num_rows, num_columns).

    Args:
        kind, model: the peer and its fit.
        row: which of its samplers.
        tables: the table.
        configuration: names the transform to undo.
        num_rows: how many.
        seed: of the latents and of the sampler's own noise.
        batch_rows: rows drawn together.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    draw = kind.sampler(model, row)
    with torch.inference_mode():
        parts = [draw(min(batch_rows, num_rows - first), generator) for first in range(0, num_rows, batch_rows)]
    return tables.transform(configuration.kind).inverse(torch.cat(parts).cpu().numpy())
