"""The page of a run's report, from the job, the pairs and the generator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.data.column_type import TEMPORAL
from sfg_dist.data.naming import category_words, listed, repeated_values, value_words
from sfg_dist.job.words import counted, duration, failure_line, size_of
from sfg_dist.pipeline.judged_tables import seconds_of
from sfg_dist.store.event_log import executor_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared, Transform
    from sfg_dist.data.column_type import ColumnType
    from sfg_dist.evaluate import ReportContent
    from sfg_dist.job.plan import Plan
    from sfg_dist.pipeline.evaluation import Judged, Metrics
    from sfg_dist.store import Pairs

NUM_PATHS = 300
MAX_FAILURES = 20


def report_page(judged: Judged, metrics: Metrics, made: Mapping[str, Any], log: str, checkpoints_url: str) -> bytes:
    """The page as HTML.

    Args:
        judged: the run, with its samples and labels.
        metrics: their figures.
        made: on which device and by which versions these were measured, as ``evaluation.made_here``; may be empty.
        log: the run's events, which tell who labelled and who fitted.
        checkpoints_url: where the finished fit lies.

    Raises:
        TrainingError: no finished fit lies there.
    """
    from sfg_dist.distributed.fit.checkpoints import load_fitted
    from sfg_dist.evaluate import render_report

    _, history = load_fitted(checkpoints_url)
    return render_report(_with_executors(_content(judged, metrics, history, made), log)).encode()


def _content(
    judged: Judged, metrics: Metrics, history: list[dict[str, float]], made: Mapping[str, Any]
) -> ReportContent:
    """The report's rows in the user's units, figures, paths of the flow for 2-D tables, facts and notes."""
    from sfg_dist.data import Transform
    from sfg_dist.evaluate import ReportContent
    from sfg_dist.evaluate.report_pictures import Flow

    job, prepared, pairs, generator = judged.job, judged.prepared, judged.pairs, judged.generator
    plan = pairs.plan
    is_plane = plan.dim == 2 and len(prepared.columns) == 2 and not plan.condition
    labelling, failures = _labelling(pairs)
    paths = _paths(pairs, Transform.from_arrays(*pairs.transform)) if is_plane else None
    return ReportContent(
        title=_title(Path(job.output.dir).name, Path(job.data.source).name),
        tables=judged.tables,
        labels=judged.plain_labels,
        metrics=metrics,
        history=history,
        flow=Flow(*paths) if paths else None,
        log_density=prepared.log_density,
        job_toml=job.to_toml(),
        facts={
            **({"read as": prepared.report["read_as"]} if prepared.report.get("read_as") else {}),
            "rows": ", ".join(f"{size:,} {part}" for part, size in prepared.report["split"].items()),
            "columns": f"{len(prepared.columns)}, of which {plan.dim} go through the flow",
            "pairs": f"{plan.num_pairs:,} in {plan.num_shards:,} shards",
            "solver": f"{plan.labels['solver']}, {_evaluations(plan.labels)} of "
            + (
                f"all {len(prepared.train):,} rows"
                if plan.labels["estimator"] == "full"
                else f"{plan.labels['num_reference']:,} rows"
            ),
            "t_min": _blur(plan),
            **_time_grid(plan),
            **_condition(plan),
            **_accuracy(plan.labels, metrics.get("label_error") or {}),
            "network": f"{generator.network.num_parameters:,} parameters",
            **({"device": made["device"], "versions": _listed(made["versions"])} if made else {}),
        },
        notes=_notes(prepared, job.labels.latents, plan.condition),
        labelling=labelling,
        failures=failures,
    )


def _with_executors(content: ReportContent, log: str) -> ReportContent:
    """The content with words of who labelled and who fitted, from the run's log."""
    said = executor_words(log)
    made, fitted = ({name: said[stage]} if stage in said else {} for name, stage in (("by", "label"), ("fit", "train")))
    return replace(content, labelling={**made, **content.labelling}, facts={**content.facts, **fitted})


def _labelling(pairs: Pairs) -> tuple[dict[str, str], list[str]]:
    """How the labels were made, and which attempts failed."""
    from sfg_dist.store.status import StatusReader

    status = StatusReader(pairs).read(time.time())
    made = status.provenance
    facts = {
        "workers": f"{counted(made.num_workers, 'process')} on {_few(list(made.hosts))}",
        "devices": ", ".join(f"{name}: {counted(number, 'shard')}" for name, number in made.devices.items()),
        "integration": f"{duration(made.seconds)} over all workers, {made.evaluations:g} evaluations a row",
        "size": size_of(made.bytes),
    }
    if made.started is not None and made.finished is not None:
        facts["from the first shard to the last"] = duration(made.finished - made.started)
    if made.num_retried:
        facts["shards of more than one attempt"] = counted(made.num_retried, "shard")
    if status.extended_at:
        facts["extended at"] = ", ".join(f"{rows:,} pairs" for rows in status.extended_at)
    failures = [failure_line(failure) for driver in status.drivers for failure in driver.failures]
    shown = failures[:MAX_FAILURES]
    if len(failures) > len(shown):
        shown.append(f"and {len(failures) - len(shown)} more")
    return facts, shown


def _few(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _paths(pairs: Pairs, transform: Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(states (num_times, n, 2) in the user's units, log beta^2 of each) for some latents."""
    import torch

    from sfg_dist.flow import Reference, Schedule, label_paths
    from sfg_dist.store import read_rows

    settings = pairs.plan.labels
    latents = torch.from_numpy(read_rows(pairs.latents, 0, min(NUM_PATHS, pairs.plan.num_pairs)))
    beta_sq, states = label_paths(
        latents,
        Reference(torch.from_numpy(pairs.score_reference), sigma_data=pairs.plan.sigma_data),
        schedule=Schedule(settings["schedule"], pairs.plan.t_min),
        num_evaluations=96,
    )
    rows = np.stack([transform.inverse(state.numpy()) for state in states])
    return rows, np.log(np.asarray(beta_sq))


def _evaluations(settings: Mapping[str, Any]) -> str:
    if settings.get("solver_tolerance"):
        return f"as many evaluations as keep the error estimate below {settings['solver_tolerance']:g}"
    return f"{settings['num_evaluations']} evaluations"


def _blur(plan: Plan) -> str:
    blur = plan.identity["blur"]
    words = f"{blur['t_min']:g}"
    if "is_floor" in blur:
        end = "; at its floor" if blur["is_floor"] else "; at its ceiling" if blur["is_ceiling"] else ""
        words += f", by leave-one-out likelihood{end}"
    return words + "; the reference is debiased" * plan.is_debiased


def _time_grid(plan: Plan) -> dict[str, str]:
    """How the time grid was chosen, if it was fitted to the rows."""
    if "time_grid" not in plan.identity:
        return {}
    from sfg_dist.flow import Schedule, graded_grid

    schedule = Schedule(plan.labels["schedule"], plan.t_min)
    said = []
    for direction, points in plan.identity["time_grid"].items():
        is_graded = points == graded_grid(schedule, len(points) - 1)
        said.append(f"{direction} {'graded, since nothing better was found' if is_graded else 'fitted to the table'}")
    return {"time grid": "; ".join(said)}


def _condition(plan: Plan) -> dict[str, str]:
    """The conditions of the labels, and how the law given a condition is estimated."""
    if not plan.condition:
        return {}
    labels = plan.labels
    width = labels.get("condition_bandwidth")
    kernel = "half the distance to the farthest" if width is None else f"{width:g}"
    carried = ", moved along the local regression" if labels["condition_adjust"] == "linear" else ""
    return {
        "conditions": ", ".join(plan.condition),
        "law for a condition": f"the {labels['condition_neighbors']:,} nearest rows, bandwidth {kernel}{carried}",
    }


def _accuracy(settings: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, str]:
    """How exact the labels are: the bound certified at every evaluation, and the error measured at the end."""
    if not error:
        return {}
    reached, asked = error["tolerance_reached"], settings["tolerance"]
    if "condition_neighbors" in settings:
        certified = "every neighbour summed"
    elif error.get("measured"):
        share = 1 - error.get("measured_over", 0) / error["measured"]
        certified = f"as near as the plan expects at {share:.2%} of {error['measured']:,} evaluations measured"
    else:
        bound = f"certified within {reached:.1e} of exact ({asked:g} was asked for)"
        certified = bound if reached else "every row summed"
    return {
        "posterior mean": certified,
        "label error": f"median {error['median']:.1e}, 90th percentile {error['percentile_90']:.1e}, "
        f"measured on {error['num_rows']} labels in float64",
    }


def _step_words(step: float, type_: ColumnType) -> str:
    """The step of a grid; that of stamps, dates and times as a length of time."""
    return duration(float(seconds_of(np.array(step), type_))) if type_.kind in TEMPORAL else f"{step:g}"


def _title(directory: str, source: str) -> str:
    return directory if directory == source else f"{directory}: {source}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _notes(prepared: Prepared, latents: str | None, condition: tuple[str, ...]) -> list[str]:
    """Notes that a reader of the figures must know."""
    notes, report = [], prepared.report
    if report.get("num_rows_dropped"):
        notes.append(f'{report["num_rows_dropped"]:,} incomplete rows were dropped (data.missing = "drop").')
    for name, value in (report.get("constant") or {}).items():
        notes.append(
            f"Column {name} is constant ({value_words(value)}): the flow leaves it out, and samples get it back."
        )
    notes += category_words(report)
    if report.get("categories") or report.get("missing"):
        notes.append(
            "The figures of labels and samples apart read a category as its place in an order that puts like ones side "
            "by side, and a missing value as a number beyond the others."
        )
    by_step: dict[str, list[str]] = {}
    atoms = report.get("atoms") or {}
    for name, tie in (report.get("ties") or {}).items():
        if name in atoms and not tie.get("step"):
            continue
        step = "" if not (width := tie.get("step")) else _step_words(width, prepared.types[name])
        by_step.setdefault(step and f"a grid of {step}", []).append(name)
    for grid, names in by_step.items():
        what = (
            f"lie on {grid}: they are dequantized, and samples are put back on it"
            if grid
            else "repeat on no common grid: they are not dequantized"
        )
        notes.append(f"Values of {listed(names, limit=8)} {what}.")
    if held := repeated_values(atoms, held=True):
        notes.append(f"Values that repeat and are given back exactly: {held}.")
    if lost := repeated_values(atoms, held=False):
        notes.append(f"Values that repeat, which this transform.kind cannot give back exactly: {lost}.")
    if condition:
        notes.append(
            f"Samples are drawn for the {listed(condition, limit=8)} of the validation rows, labels for those of the "
            f"training rows. Both are compared with the test rows in all columns together. The marginals of a "
            f"conditional generator are not corrected after its fit."
        )
    if latents is not None:
        notes.append(
            f"The query points came from {latents}, so labels and samples need not follow the law of the data."
        )
    return notes
