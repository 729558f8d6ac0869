"""What a study says of clusters that are not there: the driver's own loop over workers with the measured costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sfg_dist.job.errors import ConfigError, DocumentError
from sfg_dist.job.reader import check_fields
from sfg_dist.studies.scale.simulation import Costs, Limits, simulate

LEAST_SHARDS, LEAST_JOB_S = 20, 300.0  # a worker's, in a prediction: a job is long enough to be worth a cluster
MAX_SHARDS = 60_000  # of a prediction: the loop is the real one and takes its time


def costs_of(document: Mapping[str, Any], num_workers: int | None = None) -> Costs:
    """Costs of a worker, from the label runs of a study.

    Args:
        document: of scale.json.
        num_workers: runs with so many; those with the most if None, in which workers have neighbours and the driver
            has as much to do as it had anywhere.

    Raises:
        ConfigError: the study has no label run.
    """
    runs = _label_runs(document)
    number = max(run["num_workers"] for run in runs) if num_workers is None else num_workers
    own = [run for run in runs if run["num_workers"] == number]
    shards = np.concatenate([run["shard_s"] for run in own])
    mean = float(np.mean(shards))

    def middle(values: Sequence[float]) -> float:
        return float(np.median(values))

    costs = Costs(
        start_s=middle([run["parts_s"]["start"] + run["warm_up_s"] for run in own]),
        load_s=middle([run["parts_s"]["load"] for run in own]),
        integrate_s=mean,
        spread=float(np.std(shards) / mean) if mean else 0.0,
        write_s=middle([number * run["parts_s"]["write"] / run["num_shards"] for run in own]),
    )
    # The thread's time has the loop's in it, which a simulation spends again.
    loop = simulate(own[0]["num_shards"], number, costs)
    loop_s = loop.driver_share * loop.wall_s / own[0]["num_shards"]
    measured_s = middle([run["driver_s"] / run["num_shards"] for run in own])
    return replace(costs, driver_s=max(0.0, measured_s - loop_s))


def _label_runs(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    runs = [run for run in document["runs"] if run["stage"] == "label"]
    if not runs:
        raise ConfigError("the study has no label runs to take costs from: run `sfg scale --stages label` first")
    try:
        check_fields(runs, [_LABEL_RUN], "the label runs of the study")
    except DocumentError as error:
        raise ConfigError(str(error)) from None
    for run in runs:
        times = [*run["shard_s"], *run["parts_s"].values(), run["warm_up_s"], run["driver_s"]]
        if not run["shard_s"] or not 0 <= min(times) <= max(times) <= _LONGEST_S:
            raise ConfigError(f"the label runs of the study: times must lie within 0 and {_LONGEST_S:,.0f} seconds")
    return runs


_LONGEST_S = 1e6
_LABEL_RUN = {
    "num_workers": range(1, MAX_SHARDS),
    **dict.fromkeys(("warm_up_s", "driver_s"), float), "num_shards": range(1, MAX_SHARDS), "shard_s": [float],
    "parts_s": dict.fromkeys(("start", "load", "write"), float),
}  # fmt: skip


def slowdown(document: Mapping[str, Any]) -> float:
    """How many times as long a shard takes where the most workers of the study are at work as where the fewest are.

    Raises:
        ConfigError: the study has no label run.
    """
    numbers = [run["num_workers"] for run in _label_runs(document)]
    few, many = (costs_of(document, number).integrate_s for number in (min(numbers), max(numbers)))
    return many / few


def shard_bytes(document: Mapping[str, Any]) -> float:
    """What a shard of the study's label runs moved: written, and read back for its checksum."""
    return 2.0 * max((run["shard_bytes"] for run in document["runs"] if run["stage"] == "label"), default=0.0)


def predict(
    document: Mapping[str, Any],
    workers: Sequence[int],
    *,
    shard_seconds: Sequence[float] = (1.0, 10.0, 60.0),
    limits: Limits | None = None,
    answer_s: float | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Efficiency on other numbers of workers, and what limits it.

    A worker has LEAST_JOB_S of work, fewer shards where those of the most workers would be more than MAX_SHARDS, but
    LEAST_SHARDS of them at least; as many for every number of workers. A longer shard has more rows: bytes and the time
    of a write grow with it.

    Args:
        document: of scale.json.
        workers: numbers to simulate.
        shard_seconds: integration of a shard.
        limits: of store, network and driver; shard_bytes is that of the study's own shards.
        answer_s: from a worker to the driver or back.
        seed: of the spread.

    Returns:
        Entries with num_workers, shard_s, num_shards, wall_s, ready_s, efficiency (against workers with these costs
        that are at work from the first second to the last), efficiency_at_work (the same from when they are ready),
        limit, parts_s, driver_share, store_share.

    Raises:
        ConfigError: a number is not positive, or the study has no label run.
    """
    if min(workers, default=0) < 1 or not min(shard_seconds, default=0) > 0:
        raise ConfigError(
            f"cannot simulate {list(workers)} workers with shards of {list(shard_seconds)} s: all must be positive"
        )
    costs, limits = costs_of(document), limits or Limits()
    if answer_s is not None:
        costs = replace(costs, answer_s=answer_s)
    found = []
    for seconds in shard_seconds:
        share = seconds / costs.integrate_s
        each = replace(costs, integrate_s=seconds, write_s=costs.write_s * max(1.0, share))
        own_limits = replace(limits, shard_bytes=limits.shard_bytes * share)
        waves = max(LEAST_SHARDS, min(math.ceil(LEAST_JOB_S / seconds), MAX_SHARDS // max(workers)))
        for number in workers:
            outcome = simulate(waves * number, number, each, limits=own_limits, seed=seed)
            ideal = waves * (each.integrate_s + each.write_s)
            found.append(
                {
                    "num_workers": number,
                    "shard_s": seconds,
                    "num_shards": waves * number,
                    "wall_s": outcome.wall_s,
                    "ready_s": outcome.ready_s,
                    "efficiency": ideal / outcome.wall_s,
                    "efficiency_at_work": ideal / (outcome.wall_s - outcome.ready_s),
                    "limit": outcome.limit,
                    "parts_s": outcome.parts_s,
                    "driver_share": outcome.driver_share,
                    "store_share": outcome.store_share,
                }
            )
    return found


def validate(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The simulation against the study's own label runs: what the fewest workers cost in, the time of all others out.

    Returns:
        Entries, one a number of workers but the fewest, with num_workers, measured_s (median, up to the last commit),
        predicted_s, and predicted_own_s, by the costs of runs with as many workers: where that is right and predicted_s
        is not, workers slow each other down.
    """
    runs = [run for run in _label_runs(document) if run["mode"] == "strong"]
    found = []
    for number in sorted({run["num_workers"] for run in runs})[1:]:
        own = [run for run in runs if run["num_workers"] == number]
        predicted, with_own = (
            simulate(own[0]["num_shards"], number, costs).wall_s
            for costs in (costs_of(document, min(run["num_workers"] for run in runs)), costs_of(document, number))
        )
        measured = float(np.median([run["wall_s"] - run["parts_s"]["end"] for run in own]))
        found.append(
            {"num_workers": number, "measured_s": measured, "predicted_s": predicted, "predicted_own_s": with_own}
        )
    return found
