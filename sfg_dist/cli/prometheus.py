"""The state of a store in Prometheus' text format, for the textfile collector of a node exporter; needs no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sfg_dist.job.words import printable

if TYPE_CHECKING:
    from sfg_dist.store.status import StoreStatus

LABEL_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def prometheus_text(status: StoreStatus) -> str:
    """The state as metrics named ``sfg_store_*``; what is not known yet is left out.

    Every line carries the label ``store``, so that the files of several stores can lie side by side.
    """
    made = status.provenance
    lines: list[str] = []

    def gauge(name: str, text: str, samples: Sequence[tuple[Mapping[str, str], float | None]]) -> None:
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines.extend([f"# HELP sfg_store_{name} {text}", f"# TYPE sfg_store_{name} gauge"])
            lines.extend(
                _sample(f"sfg_store_{name}", {"store": status.store, **labels}, value) for labels, value in known
            )

    gauge("shards", "Shards of the store.", [({}, status.shards)])
    gauge("shards_done", "Shards that are committed.", [({}, status.shards_done)])
    gauge("shards_running", "Shards at work.", [({}, len(status.shards_running))])
    gauge("shards_failed", "Shards that were given up.", [({}, len(status.shards_failed))])
    gauge("rows", "Pairs of the store.", [({}, status.rows)])
    gauge("rows_done", "Pairs that are committed.", [({}, status.rows_done)])
    gauge("complete", "1 where nothing is left to do.", [({}, int(status.is_complete))])
    gauge("rows_per_second", "Rate of the running drivers together.", [({}, status.rows_per_s)])
    gauge("seconds_left", "Time left at that rate.", [({}, status.seconds_left)])
    gauge("bytes", "Bytes of the committed objects.", [({}, made.bytes)])
    gauge("integration_seconds", "Integration time, summed over shards.", [({}, made.seconds)])
    gauge("evaluations_per_row", "Evaluations of the posterior mean, a row.", [({}, made.evaluations)])
    gauge("tolerance_reached", "Largest certified error of the posterior mean.", [({}, made.tolerance_reached)])
    gauge("shards_retried", "Shards that took more than one attempt.", [({}, made.num_retried)])
    gauge("device_shards", "Shards made on a device.", [({"device": d}, n) for d, n in made.devices.items()])
    gauge(
        "drivers",
        "Drivers by state; a silent one is gone or cut off.",
        [({"state": s}, sum(d.state == s for d in status.drivers)) for s in ("running", "silent", "ended")],
    )
    gauge(
        "attempts_failed",
        "Failed attempts of a driver, by what was done about them.",
        [
            ({"driver": driver.driver, "action": action}, number)
            for driver in status.drivers
            for action, number in driver.num_failures.items()
        ],
    )
    workers = [
        ({"driver": d.driver, "worker": w.worker, "kind": w.kind, "host": w.host, "device": w.device}, w)
        for d in status.running
        for w in d.workers
    ]
    gauge("worker_shards_done", "Shards that a worker has done.", [(n, w.done) for n, w in workers])
    gauge("worker_rows_per_second", "Rate of a worker.", [(n, w.rows_per_s) for n, w in workers])
    return "\n".join(lines) + "\n"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{printable(str(text)).translate(LABEL_ESCAPES)}"' for key, text in labels.items())
    return f"{name}{{{shown}}} {value if isinstance(value, int) else repr(float(value))}"
