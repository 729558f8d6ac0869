"""What a study says of clusters that are not there: the driver's own loop over workers with the measured costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sfg_dist.job.errors import ConfigError
from sfg_dist.studies.scale.results import Prediction, Run, StudyDocument, Validation
from sfg_dist.studies.scale.simulated_cluster import Costs, Limits, simulate

LEAST_SHARDS, LEAST_JOB_S = 20, 300.0  # of a worker in a prediction: a job is long enough to be worth a cluster
MAX_SHARDS = 60_000  # of a prediction: the loop is the real one and takes its time
LONGEST_S = 1e6  # of what a worker does


def costs_of(document: StudyDocument, num_workers: int | None = None) -> Costs:
    """Costs of a worker, from the label runs with ``num_workers`` of a study.

    None takes those with the most, in which workers have neighbours and the driver has as much to do as it had
    anywhere.

    Raises:
        ConfigError: the study has no label run that can be used.
    """
    runs = _label_runs(document)
    number = max(run.num_workers for run in runs) if num_workers is None else num_workers
    own = [run for run in runs if run.num_workers == number]
    shards = np.concatenate([run.shard_s for run in own])
    mean = float(np.mean(shards))

    def middle(values: Sequence[float]) -> float:
        return float(np.median(values))

    costs = Costs(
        start_s=middle([run.parts_s["start"] + run.warm_up_s for run in own]),
        load_s=middle([run.parts_s["load"] for run in own]),
        integrate_s=mean,
        spread=float(np.std(shards) / mean) if mean else 0.0,
        write_s=middle([number * run.parts_s["write"] / run.num_shards for run in own]),
    )
    # The thread's time has the loop's in it, which a simulation spends again.
    loop = simulate(own[0].num_shards, number, costs)
    loop_s = loop.driver_share * loop.wall_s / own[0].num_shards
    measured_s = middle([run.driver_s / run.num_shards for run in own])
    return replace(costs, driver_s=max(0.0, measured_s - loop_s))


def _label_runs(document: StudyDocument) -> list[Run]:
    runs = [run for run in document.runs if run.stage == "label"]
    if not runs:
        raise ConfigError("the study has no label runs to take costs from: run `sfg scale --stages label` first")
    for run in runs:
        if missing := [part for part in ("start", "load", "write", "end") if part not in run.parts_s]:
            raise ConfigError(f"the label runs of the study: parts_s.{missing[0]} is missing")
        if not (0 < run.num_workers < MAX_SHARDS and 0 < run.num_shards < MAX_SHARDS):
            raise ConfigError(f"the label runs of the study: workers and shards must be 1 to {MAX_SHARDS - 1:,}")
        times = [*run.shard_s, *run.parts_s.values(), run.warm_up_s, run.driver_s]
        if not run.shard_s or not all(0 <= seconds <= LONGEST_S for seconds in times):
            raise ConfigError(f"the label runs of the study: times must lie within 0 and {LONGEST_S:,.0f} seconds")
    return runs


def slowdown(document: StudyDocument) -> float:
    """How many times as long a shard takes where the most workers of the study are at work as where the fewest are.

    Raises:
        ConfigError: the study has no label run.
    """
    numbers = [run.num_workers for run in _label_runs(document)]
    few, many = (costs_of(document, number).integrate_s for number in (min(numbers), max(numbers)))
    return many / few


def shard_bytes(document: StudyDocument) -> float:
    """What a shard of the study's label runs moved: written, and read back for its checksum."""
    return 2.0 * max((run.shard_bytes for run in document.runs if run.stage == "label"), default=0)


def assumptions(limits: Limits) -> dict[str, str]:
    """What a prediction depends on beside the measured costs, in words."""

    def limit(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "no limit" if value is None else f"{value / scale:g} {unit}"

    return {
        "the store's bandwidth": limit(limits.store_bytes_per_s, "MB/s", 1e6),
        "the store's requests": limit(limits.store_requests_per_s, "a second"),
        "a worker's link": limit(limits.worker_bytes_per_s, "MB/s", 1e6),
        "the start of workers": "all at once" if limits.starts_per_s is None else f"{limits.starts_per_s:g} a second",
        "bytes of a shard of the study": f"{limits.shard_bytes / 1e6:.3g} MB",
        "bytes that a worker reads at its start": f"{limits.load_bytes / 1e6:g} MB",
        "a message between worker and driver": f"{1000 * limits.answer_s:g} ms",
        "the driver's machine": f"{limits.driver_scale:g} times the time of this one",
    }


def predict(
    document: StudyDocument,
    workers: Sequence[int],
    *,
    shard_seconds: Sequence[float] = (1.0, 10.0, 60.0),
    limits: Limits | None = None,
    seed: int = 0,
) -> list[Prediction]:
    """Efficiency on other numbers of workers, and what limits it, if a shard takes ``shard_seconds`` of integration.

    A worker has LEAST_JOB_S of work, fewer shards where those of the most workers would be more than MAX_SHARDS, but
    LEAST_SHARDS of them at least; as many for every number of workers. A longer shard has more rows: bytes and the time
    of a write grow with it. ``limits`` are of store, network and driver; their shard_bytes is that of the study's own
    shards.

    Raises:
        ConfigError: a number is not positive, or the study has no label run.
    """
    if min(workers, default=0) < 1 or not min(shard_seconds, default=0) > 0:
        raise ConfigError(
            f"cannot simulate {list(workers)} workers with shards of {list(shard_seconds)} s: all must be positive"
        )
    costs, limits = costs_of(document), limits or Limits()
    found = []
    for seconds in shard_seconds:
        share = seconds / costs.integrate_s
        each = replace(costs, integrate_s=seconds, write_s=costs.write_s * max(1.0, share))
        own_limits = replace(limits, shard_bytes=limits.shard_bytes * share)
        waves = max(LEAST_SHARDS, min(math.ceil(LEAST_JOB_S / seconds), MAX_SHARDS // max(workers)))
        ideal_s = waves * (each.integrate_s + each.write_s)
        for number in workers:
            outcome = simulate(waves * number, number, each, limits=own_limits, seed=seed)
            at_work_s = outcome.wall_s - outcome.ready_s
            found.append(
                Prediction(
                    **vars(outcome), num_workers=number, shard_s=seconds, num_shards=waves * number,
                    efficiency=ideal_s / outcome.wall_s, efficiency_at_work=ideal_s / at_work_s,
                )
            )  # fmt: skip
    return found


def validate(document: StudyDocument) -> list[Validation]:
    """The simulation against the study's own label runs, for each number of workers but the fewest.

    The costs of the fewest workers go in, the time of all others comes out.
    """
    runs = [run for run in _label_runs(document) if run.mode == "strong"]
    numbers = sorted({run.num_workers for run in runs})
    found = []
    for number in numbers[1:]:
        own = [run for run in runs if run.num_workers == number]
        predicted_s, own_s = (
            simulate(own[0].num_shards, number, costs_of(document, other)).wall_s for other in (numbers[0], number)
        )
        measured_s = float(np.median([run.wall_s - run.parts_s["end"] for run in own]))
        found.append(Validation(number, measured_s, predicted_s, own_s))
    return found
