"""Events in words: one line for each kind that needs nothing of the events before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sfg_dist.job.words import WIDE, duration, failure_line, wide_number

Event = Mapping[str, Any]


def lines_of(event: Event) -> Iterator[str]:
    """The lines of an event; none where it needs more than itself, or is for the log alone."""
    kind = event["event"]
    if kind == "table":
        yield from _table(event)
    elif kind in ("run_kept", "run_finished"):
        yield f"{_run(event)}: {event['wall_s']:.1f} s{' (kept)' if kind == 'run_kept' else ''}"
    elif kind == "measured" and event.get("c2st_auc") is not None:
        yield f"evaluate: {event['what']} against held-out rows, AUC {event['c2st_auc']:.3f} (0.5 is perfect)"
    elif kind in _LINES:
        yield _LINES[kind](event)


def step_of(event: Event) -> str | None:
    """What begins with an event and may go on for long without another; None where nothing does."""
    return _STEPS[event["event"]](event) if event["event"] in _STEPS else None


def _stage(event: Event) -> str | None:
    return {
        "data": lambda: f"data: reading {event['source']}",
        "label": lambda: "label: starting the workers" if event["missing"] else None,
        "train": lambda: "train: starting the fit",
        "sample": lambda: f"sample: drawing {event['rows']:,} rows",
    }.get(event["stage"], lambda: None)()


def _table(event: Event) -> Iterator[str]:
    from sfg_dist.data.naming import listed, repeated_values  # brings numpy

    if event.get("read_as"):
        yield f"data: read as {event['read_as']}"
    yield "data: " + ", ".join(f"{size:,} {part}" for part, size in event["split"].items()) + " rows"
    if event["num_rows_dropped"]:
        yield f"data: {event['num_rows_dropped']:,} incomplete rows were left out"
    if event["constant"]:
        yield f"data: constant columns, which samples get back as they are: {', '.join(event['constant'])}"
    if gridded := [name for name, tie in event["ties"].items() if tie.get("step")]:
        yield f"data: columns on a grid, dequantized by one step: {listed(gridded, limit=8)}"
    for what, is_held in (("given back exactly", True), ("which this transform.kind cannot give back exactly", False)):
        if repeated := repeated_values(event.get("atoms", {}), held=is_held):
            yield f"data: values that repeat, {what}: {repeated}"


def _draining(event: Event) -> str:
    when = f" in {duration(event['deadline'] - event['time'])}" if event.get("deadline") else ""
    return f"label: node {event['node']} leaves{when}: its workers finish what they can, and others take the rest"


def _cell(event: Event) -> str:
    return f"{event['method']}, seed {event['seed']}"


def _run(event: Event) -> str:
    return f"{event['stage']}, {event['mode']}, {event['num_workers']} workers, run {event['repeat'] + 1}"


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3f}" if abs(value) < WIDE else wide_number(value)


def _selected(event: Event) -> str:
    keys = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "time", "method"))
    return f"{event['method']}: takes {keys}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


_LINES: Mapping[str, Callable[[Event], str]] = {
    "extended": lambda e: f"extend: from {e['before']:,} to {e['rows']:,} pairs",
    "worker_lost": lambda e: f"label: worker {e['worker']} was lost: {_one_line(e['reason'])}",
    "attempt_failed": lambda e: f"label: {failure_line(e)}",
    "backup": lambda e: f"label: shard {e['shard']} takes long: {e['worker']} labels it too, and the first one counts",
    "draining": _draining,
    "stopping": lambda e: f"label: stopping: {_one_line(e['reason'])}",
    "trained_ahead": lambda e: f"train: {e['step']:,} steps were done ahead of the labels",
    "resumed_from": lambda e: f"train: goes on from {e['checkpoint']}",
    "trial": lambda e: (
        f"{e['method']}: {e['transform']}, learning rate {e['learning_rate']:g}, {e['seconds']:g} s: "
        f"validation AUC {e['c2st_auc']:.3f}"
    ),
    "selected": _selected,
    "cell_kept": lambda e: f"{_cell(e)}: done already",
    "cell_failed": lambda e: f"{_cell(e)} failed: {e['reason']}",
    "cell_step": lambda e: f"{_cell(e)}: {e['text']}",
    "cell_finished": lambda e: (
        f"{_cell(e)}: AUC {_number(e['c2st_auc'])}, log-likelihood {_number(e['test_log_likelihood'])}, "
        f"{e['us_per_sample']:.1f} us a row"
    ),
}

_STEPS: Mapping[str, Callable[[Event], str | None]] = {
    "step": lambda e: str(e["text"]),
    "stage_started": _stage,
    "calibrating": lambda _: "train: calibrating the generator",
    "selection_started": lambda e: (
        f"{e['method']}: choosing transform and learning rate by fits of {e['time_s']:g} s and more"
    ),
    "cell_started": lambda e: f"{_cell(e)}: fitting for {duration(e['max_time_s'])}, labels included",
    "cell_step": lambda e: f"{_cell(e)}: {e['next']}" if e["next"] else None,
    "run_started": _run,
}
