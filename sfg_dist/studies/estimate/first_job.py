"""The first job for a table: keys that suit its columns, and a budget of pairs and seconds for this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfg_dist.data import ColumnLook, TableLook, look_at
from sfg_dist.data.naming import listed
from sfg_dist.distributed.machine import Machine, this_machine
from sfg_dist.job.commented import commented_toml
from sfg_dist.job.config import Job, parse_job, resolve_job
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.toml_documents import apply_override
from sfg_dist.job.words import GIB, counted, duration, size_of
from sfg_dist.pipeline.budget import MOST_PAIRS, NUM_EPOCHS
from sfg_dist.pipeline.table import table_settings
from sfg_dist.studies.estimate.estimate import Estimate, estimate_job

MINUTES = 5.0
LABEL_SHARE, TRAIN_SHARE = 0.3, 0.4
"""Of the budget; the rest is for reading, starting and the report."""
LEAST_PAIRS = 20_000
HELD_SHARE = 4
"""A table is held whole where so many times its size fits into memory: its values, their copies, and what is fitted."""
DISK_SHARE = 0.25
_PROBE_PAIRS, _CALIBRATION_S = 65_536, 1.5
_MOST_COLUMNS = 200  # that the comments show


@dataclass(frozen=True, eq=False)
class FirstJob:
    """A job that was made for a table."""

    job: Job  # the checked job
    text: str  # the same as a file, with comments
    look: TableLook  # what the table holds
    chosen: tuple[str, ...]  # what was left out or decided, a sentence each


def first_job(
    source: str,
    overrides: Sequence[str] = (),
    *,
    name: str,
    minutes: float = MINUTES,
    on_step: Callable[[str], None] = lambda _: None,
) -> FirstJob:
    """Look at a table and make a job for it.

    Args:
        source: a path, a glob, an ``s3://`` URL or a built-in name.
        overrides: ``table.key=value`` assignments, which stand as they are.
        name: of the job's file; ``output.dir`` is ``runs/`` and its stem, or a free name beside it.
        minutes: that labels, training and the report may take on this machine, about. With ``labels.num_pairs`` among
            the overrides nothing is measured.
        on_step: told in words what goes on.

    Raises:
        DataError: the table cannot be used, or no column of it can.
        ConfigError: an override is wrong, or this machine cannot hold the run.
    """
    machine = this_machine()
    default_dir = f"runs/{Path(name).stem}"
    document: dict[str, dict[str, Any]] = {"data": {"source": source}}
    for assignment in overrides:
        apply_override(document, assignment, Job)
    asked = resolve_job({"output": {"dir": default_dir}, **document}, origin=f"the job for {source}")
    source = asked.data.source
    on_step(f"data: looking at {source}")
    process_gib = asked.labels.memory_gib or _process_gib(machine)
    held = machine.memory_bytes / HELD_SHARE
    look = look_at(source, table_settings(asked), held_bytes=held, memory_gib=process_gib)
    document["data"] = {"source": source, **look.keys, **document["data"]}
    labels = document.setdefault("labels", {})
    if "shuffle" in look.keys:
        labels.setdefault("memory_gib", process_gib)
    comments = _data_comments(look, document["data"])
    is_measured = "num_pairs" not in labels
    if is_measured:
        job = resolve_job({"output": {"dir": default_dir}, **document})
        estimate = _estimate(job, look, machine, on_step)
        labels["num_pairs"], comments["labels.num_pairs"] = _pairs(estimate, minutes)
        comments["labels"] = _memory_comments(estimate, labels, process_gib)
    _add_fit(document, comments, minutes)
    if "dir" not in document.get("output", {}) and (free := _free_directory(default_dir)) != default_dir:
        document.setdefault("output", {})["dir"] = free
        comments["output.dir"] = [f"{default_dir} holds an earlier run."]
    order = [table for table in Job.model_fields if table in document]
    head = _head(source, name, look)
    if is_measured:
        room = f"{counted(machine.num_cpus, 'CPU')} and {size_of(machine.memory_bytes)} of memory"
        head.insert(2, f"Its budget is about {minutes:g} minutes on this machine, which has {room}.")
    text = commented_toml({table: document[table] for table in order}, comments, head)
    job = parse_job(text, origin=name, default_dir=default_dir)
    return FirstJob(job, text, look, tuple(_chosen(look)))


def _process_gib(machine: Machine) -> float:
    """GiB that each process of a run may hold: one worker a CPU, the driver, and one share for all else."""
    return max(0.1, int(10 * machine.memory_bytes / (machine.num_cpus + 2) / GIB) / 10)


def _estimate(job: Job, look: TableLook, machine: Machine, on_step: Callable[[str], None]) -> Estimate:
    """What a number of pairs takes, beside a store that output.dir may hold already."""
    directory = job.output.dir.rstrip("/")
    beside = f"{directory}/budget" if is_url(directory) else os.path.dirname(os.path.abspath(directory))
    probe = job.changed(labels={"num_pairs": _PROBE_PAIRS}, output={"dir": beside})
    return estimate_job(probe, machine=machine, prepared=look.prepared, seconds=_CALIBRATION_S, on_step=on_step)


def _pairs(estimate: Estimate, minutes: float) -> tuple[int, list[str]]:
    """Pairs that the budget has room for, a round number, and a comment on them."""
    time, work = estimate.time, estimate.work
    a_pair = (time.integration_s + time.writing_s) / work.num_pairs
    most = MOST_PAIRS
    if estimate.free_bytes is not None:
        most = min(most, int(DISK_SHARE * estimate.free_bytes / (8 * work.dim)))
    wanted = (LABEL_SHARE * 60 * minutes - time.start_s) / a_pair
    number = _rounded(max(LEAST_PAIRS, min(most, wanted)))
    comment = f"Pairs of latents and labels: about {duration(time.start_s + a_pair * number)} on this machine."
    return number, [comment]


def _rounded(number: float) -> int:
    """The number with its first digit alone.

    Examples:
        >>> _rounded(20_000), _rounded(99_000.5), _rounded(1_500_000)
        (20000, 90000, 1000000)
    """
    power: int = 10 ** (len(str(int(number))) - 1)
    return int(number) // power * power


def _add_fit(document: dict[str, dict[str, Any]], comments: dict[str, list[str]], minutes: float) -> None:
    """The keys of the fit that were not asked for."""
    train = document.setdefault("train", {})
    if "num_epochs" not in train:
        train["num_epochs"] = NUM_EPOCHS
        comments["train.num_epochs"] = ["Passes over the pairs, at most."]
    if "max_time_s" not in train:
        train["max_time_s"] = max(1, round(TRAIN_SHARE * 60 * minutes))
        comments["train.max_time_s"] = ["Seconds of training, at most. More pairs and more time give better samples."]


def _free_directory(directory: str) -> str:
    """The directory itself, or one beside it where it holds pairs already."""
    names = [directory, *(f"{directory}_{number}" for number in range(2, 1000))]
    return next((name for name in names if not os.path.lexists(f"{name}/pairs.zarr")), directory)


def _head(source: str, name: str, look: TableLook) -> list[str]:
    """What stands at the top of the file: how to use it, and what was found in the table."""
    report = look.prepared.report
    split = ", ".join(f"{size:,} {part}" for part, size in report["split"].items())
    lines = [
        f"A job for {source}: `sfg plan {name}` says what it takes, `sfg run {name}` runs it.",
        "`sfg keys` says what every key does.",
        "",
        *([f"Read as: {report['read_as']}."] if report["read_as"] else []),
        f"Rows: {look.num_rows:,} in the table; {split}.",
    ]
    if report["num_duplicate_train_rows"]:
        lines.append(f"Of the training rows {report['num_duplicate_train_rows']:,} repeat an earlier one.")
    return [*lines, "", *_column_lines(look.columns)]


def _column_lines(columns: Sequence[ColumnLook]) -> list[str]:
    """A table of the columns, aligned."""
    rows = [("column", "kind", "lowest", "highest", "gaps", "step", "noticed")]
    for column in columns[:_MOST_COLUMNS]:
        noticed = f"left out: {column.left_out}" if column.left_out else "; ".join(column.noticed)
        gaps = f"{100 * column.gaps:.2g} %" if column.gaps else ""
        rows.append((column.name, column.kind, _shown(column.low), _shown(column.high), gaps, column.step, noticed))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(columns) - _MOST_COLUMNS
    return [*lines, *([f"and {more:,} more columns"] if more > 0 else [])]


def _shown(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.10g}"


def _data_comments(look: TableLook, data: dict[str, Any]) -> dict[str, list[str]]:
    """Comments on the keys of the ``data`` table."""
    dropped = look.prepared.report["num_rows_dropped"]
    comments = {
        "data.columns": ["The columns that are taken; the table above says why others are left out."],
        "data.missing": [f"{dropped:,} of {look.num_rows:,} rows have a gap. They are left out."],
        "data.constant": ["Columns that never change are put back in samples."],
        "data.shuffle": [
            "The table is large: it is read in parts and keeps its order, so its last rows are the held-out ones."
        ],
    }
    constant = look.prepared.report["constant"]
    taken = [name for name in look.prepared.columns if name not in constant]
    if "condition" not in data and len(taken) > 1:
        example = f"condition = [{json.dumps(taken[-1], ensure_ascii=False)}]"
        comments["data"] = [
            "Remove the # of the next line to draw the other columns for given values of it.",
            example,
        ]
    return comments


def _memory_comments(estimate: Estimate, labels: dict[str, Any], process_gib: float) -> list[str]:
    """A comment on the memory of the workers."""
    largest = max(actor.host_bytes for actor in estimate.memory.actors.values())
    lines = [f"A worker holds about {size_of(largest)} of memory."]
    if "memory_gib" not in labels:
        lines += ["With the next line a larger table would be read in parts.", f"memory_gib = {process_gib:g}"]
    return lines


def _chosen(look: TableLook) -> list[str]:
    """What was left out or decided, in sentences."""
    lines = [f"column {column.name!r} is left out: {column.left_out}" for column in look.columns if column.left_out]
    if "missing" in look.keys:
        dropped = look.prepared.report["num_rows_dropped"]
        lines.append(f"{dropped:,} of {look.num_rows:,} rows have a gap and are left out")
    if "constant" in look.keys:
        names = list(look.prepared.report["constant"])
        what = (
            f"column {names[0]!r} never changes and is" if len(names) == 1 else f"{listed(names)} never change and are"
        )
        lines.append(f"{what} put back in samples")
    if "shuffle" in look.keys:
        lines.append("the table is read in parts and keeps its order: its last rows are the held-out ones")
    return lines
