"""Jobs of small tables in files, and fits of them by one rank and by two, for networks of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sfg_dist
from sfg_dist.data.transform import Transform
from sfg_dist.distributed.fit.training import fit_inline, fit_with_workers
from sfg_dist.job.config import resolve_job
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs


def table_job(source, directory, train, **tables):
    """4,096 pairs of a table; ``tables`` hold further keys by table."""
    document: dict[str, Any] = {
        "data": {"source": source},
        "labels": {"num_pairs": 4096, "num_evaluations": 8, "t_min": 1e-3},
        "train": train,
        "executor": {"kind": "inline"},
        "output": {"dir": str(directory)},
    }
    for name, keys in tables.items():
        document[name] = document.get(name, {}) | keys
    return resolve_job(document)


def fitted_run(job):
    """The pipeline of a job, and the generator that it trains."""
    pipeline = Pipeline(job)
    pipeline.label()
    return pipeline, pipeline.train()


def rows_of_two_and_one(url, settings, folder) -> tuple[NDArray, NDArray]:
    """5,000 samples of the fit by two workers of Ray, and of the fit inline.

    The loss must be the same up to the order in which two ranks add up a gradient, and nearly all rows must be.
    """
    alone, alone_history = fit_inline(url, folder / "alone", settings)
    network, history = fit_with_workers(url, folder / "c", settings, use_gpu=False)
    assert [entry["step"] for entry in history] == [entry["step"] for entry in alone_history]
    for two, one in zip(history, alone_history, strict=True):
        for loss in ("train_loss", "validation_loss"):
            assert two[loss] == pytest.approx(one[loss], rel=1e-3)
    transform = Transform.from_arrays(*open_pairs(url).transform)
    rows, alone_rows = (sfg_dist.Generator(each, transform).sample(5000, seed=1) for each in (network, alone))
    assert (np.abs(rows - alone_rows) < 1e-2).all(axis=1).mean() > 0.98
    return rows, alone_rows
