"""Events in words: one line for each kind that needs nothing of the events before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sfg_dist.job.words import WIDE, duration, failure_line, wide_number

Event = Mapping[str, Any]
FREQUENT = {"ahead", "encoder"}
"""Events that come beside those of a bar, more often than a log needs them."""


def lines_of(event: Event) -> Sequence[str]:
    """The lines of an event; none where it needs more than itself, or is for the log alone."""
    found = _LINES[event["event"]](event) if event["event"] in _LINES else []
    return [found] if isinstance(found, str) else found


def step_of(event: Event) -> str | None:
    """What begins with an event and may go on for long without another; None where nothing does."""
    return _STEPS[event["event"]](event) if event["event"] in _STEPS else None


def _stage(event: Event) -> str | None:
    return {
        "data": lambda: f"data: reading {event['source']}",
        "label": lambda: "label: finding out who labels" if event["missing"] else None,
        "train": lambda: "train: starting the fit",
        "sample": lambda: f"sample: drawing {event['rows']:,} rows",
    }.get(event["stage"], lambda: None)()


def _table(event: Event) -> list[str]:
    from sfg_dist.data.naming import category_words, listed, repeated_values  # brings numpy

    gridded = [name for name, tie in event["ties"].items() if tie.get("step")]
    held, lost = (repeated_values(event.get("atoms", {}), held=is_held) for is_held in (True, False))
    lines = {
        "read as {}": event.get("read_as"),
        "{} rows": ", ".join(f"{size:,} {part}" for part, size in event["split"].items()),
        "{:,} incomplete rows were left out": event["num_rows_dropped"],
        "constant columns, which samples get back as they are: {}": ", ".join(event["constant"]),
        "columns on a grid, dequantized by one step: {}": listed(gridded, limit=8),
        "values that repeat, given back exactly: {}": held,
        "values that repeat, which this transform.kind cannot give back exactly: {}": lost,
    }
    told = [f"data: {line.format(value)}" for line, value in lines.items() if value]
    return told + [f"data: {line[0].lower()}{line[1:-1]}" for line in category_words(event)]


def _time_grid(event: Event) -> list[str]:
    grids = [(way, len(event[way]) - 1) for way in ("decode", "encode") if way in event]
    return [f"label: time grid of {steps} steps fitted to the table ({way})" for way, steps in grids]


def _measured(event: Event) -> str | list[str]:
    auc = event.get("c2st_auc")
    return [] if auc is None else f"evaluate: {event['what']} against held-out rows, AUC {auc:.3f} (0.5 is perfect)"


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


_LINES: Mapping[str, Callable[[Event], str | list[str]]] = {
    "table": _table,
    "executor": lambda e: f"{e['stage']}: {e['words']}",
    "time_grid": _time_grid,
    "extended": lambda e: f"extend: from {e['before']:,} to {e['rows']:,} pairs",
    "worker_lost": lambda e: f"label: worker {e['worker']} was lost: {_one_line(e['reason'])}",
    "attempt_failed": lambda e: f"label: {failure_line(e)}",
    "backup": lambda e: f"label: shard {e['shard']} takes long: {e['worker']} labels it too, and the first one counts",
    "draining": _draining,
    "stopping": lambda e: f"label: stopping: {_one_line(e['reason'])}",
    "ahead": lambda e: (
        f"train: ahead of the labels on {e['rows']:,} pairs, step {e['step']:,}, loss {e['train_loss']:.4f}, "
        f"{e['rows_per_s']:,.0f} rows/s"
    ),
    "trained_ahead": lambda e: f"train: {e['step']:,} steps were done ahead of the labels",
    "resumed_from": lambda e: f"train: goes on from {e['checkpoint']}",
    "encoder": lambda e: (
        f"train: encoder, {e['step']:,} steps, log-likelihood {e['log_likelihood']:.3f} in the flow's coordinates at a "
        f"mass of {e['mass']:.3f}"
    ),
    "measured": _measured,
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
    "run_finished": lambda e: f"{_run(e)}: {e['wall_s']:.1f} s",
    "run_kept": lambda e: f"{_run(e)}: {e['wall_s']:.1f} s (kept)",
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
