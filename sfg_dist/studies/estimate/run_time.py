"""The time of the label stage and its cost, from the pace of a worker and the shards that are left.

    start + makespan of the shards over the workers + a check of each shard

Shards are handed out whole to whoever is free first, so a last wave that is not full counts whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfg_dist.distributed.labels.worker_count import DeviceKind, Workers
from sfg_dist.job.plan import Plan
from sfg_dist.studies.estimate.calibration import Pace

# Ray's start and end on this machine, in units of an actor's imports: speed and load of a machine change both alike.
RAY_IMPORTS = 2.0
CONNECT_S = 3.0  # to a cluster that runs already


@dataclass(frozen=True)
class Time:
    """Seconds of what is left, on this machine or machines like it."""

    data_s: float  # to read and prepare the table and lay out the store, measured; a fitted time grid is estimated
    start_s: float  # to start Ray, and actors until they are at work
    integration_s: float  # of the label stage
    writing_s: float  # shards written, read back, committed and checked
    label_s: float  # the label stage, the three before together
    spread: float  # of single batches in the calibration, relative: what to make of the figures
    waves: int  # shards that the busiest worker does


@dataclass(frozen=True)
class Cost:
    """What the label stage costs."""

    price_per_hour: float  # of one actor, from the job
    actor_hours: float  # actors times the stage's time
    total: float  # in the price's currency


def time_of(
    rows: Sequence[int], plan: Plan, workers: Workers, paces: Mapping[DeviceKind, Pace], *, data_s: float, pads: bool
) -> Time:
    """The time of shards of so many rows, handed out whole to whoever is free first.

    ``paces`` are those of a worker, by kind of device; ``data_s`` is what the data took before. ``pads`` says whether a
    batch that is not full costs as much as one that is; with clusters it does not.
    """
    if not rows:
        return Time(data_s, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    group = workers.actors_per_group
    crews = [
        (pace, plan.batch_rows(kind)) for kind, pace in paces.items() for _ in range(workers.num_actors[kind] // group)
    ]
    crews = crews[: len(rows)]

    def parts(pace: Pace, batch: int, size: int) -> tuple[float, float]:
        padded = -(-size // batch) * batch if pads else size
        return padded * pace.seconds_per_row / group, pace.write_s * size / min(plan.shard_rows, plan.num_pairs)

    free = [(0.0, number) for number in range(len(crews))]
    integration, done = [0.0] * len(crews), [0] * len(crews)
    for size in rows:
        at, number = heapq.heappop(free)
        integrate, write = parts(*crews[number], size)
        integration[number] += integrate
        done[number] += 1
        heapq.heappush(free, (at + integrate + write, number))
    makespan, last = max(free)
    check = max(pace.check_s for pace in paces.values()) * len(rows)
    slowest = max(paces.values(), key=lambda pace: pace.import_s + pace.open_s + pace.first_s)
    start = slowest.open_s + slowest.first_s
    if workers.executor == "inline" and workers.total > 1:
        start += slowest.import_s
    elif workers.executor == "ray":
        start += slowest.import_s + (CONNECT_S if workers.is_elsewhere else RAY_IMPORTS * slowest.import_s)
    writing = makespan - integration[last] + check
    return Time(
        data_s=data_s,
        start_s=start,
        integration_s=integration[last],
        writing_s=writing,
        label_s=start + integration[last] + writing,
        spread=max(pace.spread for pace in paces.values()),
        waves=max(done),
    )


def cost_of(spent: Time, workers: Workers, price_per_hour: float) -> Cost:
    """The price of all actors for the length of the label stage."""
    hours = workers.total * spent.label_s / 3600
    return Cost(price_per_hour, hours, hours * price_per_hour)
