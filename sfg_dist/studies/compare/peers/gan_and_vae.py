"""CTGAN and TVAE by the package ctgan, with its own transform and the settings that it has.

Numbers and categories go in as they are. The package refuses gaps in numbers: see ``plain_columns``. Its fit ends after
a number of epochs, which two short timed runs choose. These, and the mixtures that its transform fits to each column of
numbers, are outside the budget, as transforms are for the other methods. The mixtures take much longer than a few
epochs, so that their seconds cannot be told from those of a whole run: they are fitted once, before the runs.

References:
    Xu et al. 2019, Modeling Tabular data using Conditional GAN, arXiv 1907.00503.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch

from sfg_dist.studies.compare.judging import FitFacts, Fitted, Rows
from sfg_dist.studies.compare.peers.plain_columns import PlainColumns
from sfg_dist.studies.compare.peers.table_peer import SAFETY, TableFit, package_of, seconds_of, without_density

PACKAGE = "ctgan"
TIMED_EPOCHS = (1, 4)
SETTINGS = {"batch_size": 500}


def fit_ctgan(given: TableFit) -> Fitted:
    """Fit a CTGAN for as many epochs as the time allows."""
    return _fit(given, "CTGAN", "_generator", math.floor)


def fit_tvae(given: TableFit) -> Fitted:
    """Fit a TVAE for as many epochs as the time allows."""
    return _fit(given, "TVAE", "decoder", math.ceil)


def _fit(given: TableFit, name: str, network: str, whole: Callable[[float], int]) -> Fitted:
    import pandas as pd

    plain = PlainColumns(given.tables.any.transform)
    matrix = plain.encode(given.tables.rows("train"))
    columns = {str(place): values for place, values in enumerate(matrix.T)}
    discrete = [str(place) for place, size in enumerate(plain.sizes) if size]
    frame = pd.DataFrame(columns).astype(dict.fromkeys(discrete, np.int64))
    package = package_of(PACKAGE)

    def run(epochs: int) -> Any:
        model = getattr(package, name)(epochs=epochs, **SETTINGS, enable_gpu=given.tables.device.type != "cpu")
        model.set_random_state(given.seed)
        model.fit(frame, discrete)
        return model

    with transform_fitted_once(f"{PACKAGE}.synthesizers.{name.lower()}"):
        run(1)
        _, epoch_s = seconds_of(run, *TIMED_EPOCHS)
        epochs = max(1, int(SAFETY * given.max_time_s / epoch_s))
        started = time.perf_counter()
        model = run(epochs)
        seconds = time.perf_counter() - started

    def draw(num_rows: int) -> Rows:
        model.set_random_state(given.seed)
        with torch.no_grad():
            return plain.decode(model.sample(num_rows).to_numpy(dtype=np.float64))

    steps = max(1, whole(len(frame) / SETTINGS["batch_size"]))
    facts = FitFacts(
        label_s=0.0,
        fit_s=seconds,
        num_steps=epochs * steps,
        num_parameters=sum(parameter.numel() for parameter in getattr(model, network).parameters()),
        num_evaluations=1,
        configuration={"epochs": epochs, **SETTINGS, **plain.words},
    )
    return without_density(given, name.lower(), draw, facts)


class _FittedTransform:
    """Stands for the package's transform: it is fitted to the first rows that come, and keeps what they become."""

    def __init__(self, transform: Any) -> None:
        self._transform, self._coded = transform, None

    def fit(self, rows: Any, discrete: Any) -> None:
        """Fit it, the first time."""
        if self._coded is None:
            self._transform.fit(rows, discrete)

    def transform(self, rows: Any) -> Any:
        """What the rows became the first time."""
        if self._coded is None:
            self._coded = self._transform.transform(rows)
        return self._coded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transform, name)


@contextmanager
def transform_fitted_once(module_name: str) -> Iterator[None]:
    """Within, all fits of a module of the package to the same rows share one transform."""
    module: Any = import_module(module_name)
    kind = module.DataTransformer
    shared = _FittedTransform(kind())
    module.DataTransformer = lambda: shared
    try:
        yield
    finally:
        module.DataTransformer = kind
