"""The calibration of a conditional run: its generator draws for the conditions of held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.calibration import Calibration, Draws, calibration
from sfg_dist.evaluate.embedding import Embedding
from sfg_dist.evaluate.judgement import JudgedTables
from sfg_dist.evaluate.neighbours import nearest_rows
from sfg_dist.pipeline.judged_tables import tables_of_run
from sfg_dist.pipeline.table import rows_of_generator

if TYPE_CHECKING:
    from sfg_dist.data import Prepared
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Pairs

NUM_ROWS, NUM_DRAWS, NUM_NEAREST = 2000, 64, 16
"""Held-out rows at most; draws for the condition of each; and training rows of the nearest conditions beside them."""


def calibration_of_run(prepared: Prepared, generator: Generator, pairs: Pairs, *, start: int, seed: int) -> Calibration:
    """The calibration of a run's generator on the first test rows.

    Args:
        prepared: the run's table.
        generator: fitted with conditions.
        pairs: its store, with the reference that the labels come from.
        start: the number of the first latent to take, past those of the samples.
        seed: of the latents and of the figures.

    Raises:
        NoFigureError: there are too few test rows, or no column varies but those of the condition.
    """
    truth = prepared.test[:NUM_ROWS]
    conditions = rows_of_generator(prepared, generator, truth)[:, generator.split.places]
    stop = start + len(truth) * NUM_DRAWS
    repeated = np.repeat(conditions, NUM_DRAWS, axis=0)
    drawn = np.concatenate(list(generator.sample_ranges([(start, stop)], seed, repeated, first=start)))
    tables = tables_of_run(prepared, drawn, generator.types)
    assert tables.train is not None  # a run has training rows
    changing = np.ptp(np.nan_to_num(tables.train), axis=0) > 0
    kept = [
        place
        for place, column in enumerate(tables.columns)
        if column.name not in generator.condition and changing[place]
    ]
    return calibration(
        Draws(
            tuple(tables.columns[place] for place in kept),
            held_out=tables.held_out[: len(truth), kept],
            drawn=tables.samples[:, kept].reshape(len(truth), NUM_DRAWS, len(kept)),
            train=tables.train[:, kept],
            effective_rows=_effective_rows(prepared, generator, pairs, conditions),
            nearest=_nearest(tables, generator.condition, len(truth)),
        ),
        seed=seed,
    )


def _nearest(tables: JudgedTables, condition: Sequence[str], num_rows: int) -> NDArray[np.int64]:
    """The training rows whose conditions lie nearest to those of the first held-out rows."""
    assert tables.train is not None  # a run has training rows
    given = [place for place, column in enumerate(tables.columns) if column.name in condition]
    train, asked = tables.train[:, given], tables.held_out[:num_rows, given]
    points = Embedding(tuple(tables.columns[place] for place in given), train, asked)
    return nearest_rows(points(asked), points(train), NUM_NEAREST)[1]


def _effective_rows(
    prepared: Prepared, generator: Generator, pairs: Pairs, conditions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """1 / (sum of squared weights) of the training rows that the labels for each condition come from (Kish 1965)."""
    import torch

    from sfg_dist.distributed.labels.labeler import conditional_reference

    reference = conditional_reference(pairs, torch.device("cpu"))
    places = generator.split.flow_conditions(generator.transform, conditions)
    weights = torch.softmax(reference.neighbourhood(places).log_weights.double(), dim=1)
    return np.asarray(1 / weights.square().sum(dim=1), dtype=np.float64)
