"""What a peer is that takes a whole table, with its categories and gaps, and not rows in the flow's coordinates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from sfg_dist.job.errors import ConfigError
from sfg_dist.studies.compare.judging import Draw, FitFacts, Fitted
from sfg_dist.studies.compare.tables import Tables

SAFETY = 0.9
"""The share of the time that is planned for, since a timed run errs."""
MIN_SLOPE = 0.02
"""Of the time a unit that the larger timed run took: noise may hide that it took longer than the smaller one."""


@dataclass(frozen=True)
class TableFit:
    """What a fit is given."""

    tables: Tables
    max_time_s: float
    marks_s: tuple[float, ...]  # times at which a snapshot is kept, where the peer can keep one
    seed: int
    num_threads: int


@dataclass(frozen=True)
class TablePeer:
    """A peer's recipe."""

    name: str  # of its fit, and of its row of the table
    fit: Callable[[TableFit], Fitted]
    settings: Mapping[str, Any]  # what the records keep of it
    package: str | None = None  # that it comes from, which is an extra of the same name

    def require(self) -> None:
        """Refuse a peer whose package is missing.

        Raises:
            ConfigError: it cannot be imported.
        """
        if self.package is not None:
            package_of(self.package)


def package_of(name: str) -> Any:
    """A package that a peer comes from.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"a peer of compare.methods comes from the package {name}, which cannot be imported ({error}): "
            f"pip install 'sfg_dist[{name.lower()}]', or leave the peer out"
        ) from error


def without_density(given: TableFit, name: str, draw: Draw, facts: FitFacts) -> Fitted:
    """A fitted peer that draws rows in the user's units, and has neither a density nor snapshots."""
    return Fitted(
        name=name,
        draw=draw,
        earlier=tuple,
        draw_flow_rows=draw,
        transform=given.tables.any.transform,
        test_log_density=np.empty(0),
        facts=facts,
    )


def seconds_of(run: Callable[[int], object], small: int, large: int) -> tuple[float, float]:
    """The seconds that a run takes whatever its size, and those of each unit: by the line through two timed runs.

    A run of any size before pays for imports and what is compiled once.
    """
    times = []
    for size in (small, large):
        started = time.perf_counter()
        run(size)
        times.append(time.perf_counter() - started)
    unit = max((times[1] - times[0]) / (large - small), MIN_SLOPE * times[1] / large)
    return max(0.0, times[0] - small * unit), unit
