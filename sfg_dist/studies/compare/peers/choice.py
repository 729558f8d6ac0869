"""The configuration of a peer, chosen on validation rows outside the budget, by successive halving.

Round 1 fits every transform with every learning rate for a short time. The best ``NUM_FINALISTS`` are fitted anew for
``FINAL_FACTOR`` times as long, and the best of those is taken. Best is the least AUC of a classifier between samples
and validation rows; the comparison itself takes test rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from sfg_dist.evaluate import classifier_test
from sfg_dist.job.errors import TrainingError
from sfg_dist.studies.compare.judging import finite_rows
from sfg_dist.studies.compare.peers.fitted import fit_to_table
from sfg_dist.studies.compare.peers.kinds import LEARNING_RATES, TRANSFORMS, Configuration, PeerKind
from sfg_dist.studies.compare.tables import Tables

NUM_FINALISTS = 2
FINAL_FACTOR = 3
MAX_JUDGED_ROWS = 4000
SEED = 0  # of all short fits and their samples


@dataclass(frozen=True)
class ShortFit:
    """How good a configuration was."""

    configuration: Configuration  # what was tried
    seconds: float  # of the fit
    c2st_auc: float  # of its samples against the validation rows; 1 where the fit or its samples failed
    log_likelihood: float | None  # mean over validation rows in the user's units, where it is one pass


@dataclass(frozen=True)
class Choice:
    """What was chosen, and every short fit in order."""

    chosen: Configuration
    trials: tuple[ShortFit, ...] = ()


def choose(
    kind: PeerKind, tables: Tables, *, time_s: float, on_trial: Callable[[ShortFit], None] = lambda trial: None
) -> Choice:
    """Choose transform and learning rate of a peer.

    A fit of round 1 takes ``time_s``; 0 takes the default configuration as it is. ``on_trial`` is told each result.

    Raises:
        TrainingError: every fit failed.
    """
    if time_s == 0:
        return Choice(Configuration())
    trials: list[ShortFit] = []

    def ranked(configurations: list[Configuration], seconds: float) -> list[Configuration]:
        results = []
        for configuration in configurations:
            results.append(_try(kind, tables, configuration, seconds))
            on_trial(results[-1])
        trials.extend(results)
        return [trial.configuration for trial in sorted(results, key=lambda trial: trial.c2st_auc)]

    first = ranked([Configuration(*pair) for pair in product(TRANSFORMS, LEARNING_RATES)], time_s)
    best = ranked(first[:NUM_FINALISTS], FINAL_FACTOR * time_s)[0]
    if all(trial.c2st_auc == 1 and trial.log_likelihood is None for trial in trials):
        raise TrainingError(f"{kind.name}: every configuration failed in fits of {time_s:g} s: raise the time")
    return Choice(best, tuple(trials))


def _try(kind: PeerKind, tables: Tables, configuration: Configuration, seconds: float) -> ShortFit:
    held_out = tables.any.coded(tables.rows("validation")[:MAX_JUDGED_ROWS])
    try:
        fitted = fit_to_table(kind, configuration, tables, max_time_s=seconds, seed=SEED)
        # Of two samplers the last is the cheaper one, and serves to choose for both.
        rows = tables.any.coded(fitted.sample(list(kind.samplers)[-1], len(held_out)))
        result = classifier_test(finite_rows(rows, kind.name)[0], held_out, seed=SEED)
    except TrainingError:
        return ShortFit(configuration, seconds, 1.0, None)
    likelihood = float(fitted.log_density("validation").mean()) if not kind.is_over_time else None
    return ShortFit(configuration, seconds, 0.5 if result is None else result[0], likelihood)
