"""From a table in memory to its generator, in one call."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfg_dist.data.frames import open_frame, source_of
from sfg_dist.data.table import open_columns
from sfg_dist.job.config import READING_KEYS, Job, resolve_job
from sfg_dist.job.errors import ConfigError, TrainingError
from sfg_dist.job.keys import job_keys
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.words import counted, shown
from sfg_dist.pipeline.budget import MOST_PAIRS, NUM_EPOCHS, compile_kernels, label_within
from sfg_dist.pipeline.check import check_job
from sfg_dist.pipeline.output import Listener
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.table import prepare_table, table_settings

if TYPE_CHECKING:
    from sfg_dist.data import Prepared, Table
    from sfg_dist.data.frames import Container
    from sfg_dist.model.generator import Generator

MAX_TIME_S = 60.0
_OF_FILES = {"source", "array", "append", "arrays", *READING_KEYS}


def fit(
    frame: Any,
    *,
    max_time_s: float | None = MAX_TIME_S,
    output: str | Path | Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    **keys: Any,
) -> Generator:
    """Fit a generator to a table in memory.

    Args:
        frame: a frame of pandas or polars, a table of pyarrow, an array of numpy, shape (num_rows, num_columns), or one
            of records; or any object with ``__arrow_c_stream__``.
        max_time_s: the seconds for labels and training together. Reading the table comes before them, as do kernels,
            which a machine compiles once for a number of columns; the calibration comes after them. None sets no limit:
            the job's keys alone decide, and so the generator does not depend on the speed of the machine.
        output: a directory, or an s3:// URL, that keeps what a run leaves, but for the report. The same call goes on
            with its pairs. By default nothing is left behind.
        listener: called with every event, a mapping with "event" and "time". By default nothing is said.
        keys: tables of a job, as in ``labels={"num_pairs": 65_536}``, or single keys with a dot, as in
            ``**{"labels.num_pairs": 65_536}``. With a limit of time ``labels.num_pairs`` and ``train.num_epochs`` are
            the most that there are, and ``compare.max_label_share`` is the largest share of labels in the time.
            Constant columns are kept by default.

    Returns:
        The generator. Its ``sample`` gives tables of the frame's own kind, with the same columns and types.

    Raises:
        ConfigError: a key is wrong.
        DataError: the frame is none, or a column cannot be used; the message names it.
        TrainingError: the time is over before there are pairs, or the fit diverged.

    Examples:
        >>> sfg_dist.fit(pandas.read_csv("table.csv"), max_time_s=30).sample(1000)     # doctest: +SKIP
    """
    document = _document(keys, source_of(frame))
    if output is not None:
        document["output"] = {"dir": os.fspath(output)} if isinstance(output, str | os.PathLike) else output
    is_named = "num_pairs" in document.get("labels", {})
    if max_time_s is not None:
        _check_seconds(max_time_s)
        for table, key, most in (("labels", "num_pairs", MOST_PAIRS), ("train", "num_epochs", NUM_EPOCHS)):
            if isinstance(named := document.setdefault(table, {}), dict):
                named.setdefault(key, most)
    job = resolve_job(document, origin="fit")
    check_job(job)
    container, columns = open_frame(frame, job.data.columns)
    held = _held(job, container, columns)
    del columns
    prepared = prepare_table(job, held)
    with tempfile.TemporaryDirectory(prefix="sfg-fit-") as folder:
        job = job if output is not None else job.changed(output={"dir": folder})
        generator = _fit(job, prepared, max_time_s, listener)
    if is_named and generator.job["labels"]["num_pairs"] < job.labels.num_pairs:
        warnings.warn(
            f"there was time for {generator.job['labels']['num_pairs']:,} of the {job.labels.num_pairs:,} pairs of "
            f"labels.num_pairs: raise max_time_s, or compare.max_label_share = {job.compare.max_label_share:g}",
            stacklevel=2,
        )
    if not container.is_default:
        generator = replace(generator, container=container.select(generator.columns))
    if output is None:
        return replace(generator, job={name: table for name, table in generator.job.items() if name != "output"})
    generator.save(Pipeline(job).model_url)
    return generator


def _held(job: Job, container: Container, columns: Any) -> Table:
    """The columns of a frame as the table of a job."""
    settings, read_as = table_settings(job), counted(columns.num_columns, "column")
    asked = {**container.asked, **settings.asked}
    held = open_columns(job.data.source, columns, identifiers=settings.identifiers, asked=asked, read_as=read_as)
    for name, type_ in zip(held.columns, held.types, strict=True):
        if name in container.dictionaries and not type_.is_coded:
            raise ConfigError(
                f"data.types.{name} = {shown(asked[name])}: the column of the frame has categories, in which no other "
                f"value comes back: make it a plain column first"
            )
    return held


def _fit(job: Job, prepared: Prepared, max_time_s: float | None, listener: Listener | None) -> Generator:
    """Labels and the fit, in output.dir."""
    if max_time_s is None:
        pipeline = Pipeline(job, listener, prepared=prepared)
        with pipeline.session():
            pipeline.label()
            return pipeline.train()
    compile_kernels(job, prepared)
    started = time.perf_counter()
    limit_s = job.compare.max_label_share * max_time_s
    job = label_within(job, prepared, limit_s, started, listener=listener, there=_pairs_there(job))
    label_s = time.perf_counter() - started
    if label_s >= max_time_s:
        raise TrainingError(
            f"{job.labels.num_pairs:,} labels took {label_s:.0f} s of max_time_s = {max_time_s:g}: raise it, or lower "
            f"labels.shard_rows"
        )
    left_s = min(max_time_s - label_s, job.train.max_time_s or max_time_s)
    return Pipeline(job.changed(train={"max_time_s": left_s}), listener, prepared=prepared).train()


def _pairs_there(job: Job) -> int:
    """Pairs of the store that output.dir has already; 0 where there is none."""
    from sfg_dist.store import Location, open_pairs

    directory = job.output.dir
    if not (is_url(directory) or Path(directory).is_dir()) or not Location(directory).exists("pairs.zarr/plan.json"):
        return 0
    return open_pairs(Pipeline(job).pairs_url).plan.num_pairs


def _document(keys: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The document of a job whose table is the frame."""
    document: dict[str, Any] = {"data": {}}
    for name, value in keys.items():
        table, dot, key = name.partition(".")
        there = document.setdefault(table, {})
        given = {key: value} if dot else value
        if not isinstance(given, Mapping) or not isinstance(there, dict):
            raise ConfigError(f"fit: {_advice(name, value)}")
        if twice := sorted(given.keys() & there.keys()):
            raise ConfigError(f"fit: {table}.{twice[0]} is given twice")
        there.update(given)
    data = document["data"]
    if wrong := sorted(_OF_FILES & data.keys()):
        raise ConfigError(f"fit: data.{wrong[0]} is for tables in files: the frame is the table, leave it out")
    document["data"] = {"constant": "keep", **data, "source": source}
    return document


def _advice(name: str, value: Any) -> str:
    """What to write instead of a keyword that is no table of a job."""
    homes = [key.table for key in job_keys() if key.name == name]
    if name in Job.model_fields:
        return f"{name} = {shown(value)}: expected a mapping of its keys, as in {name}={{...}}"
    if homes:
        return f"{name} is a key of {' and '.join(homes)}: write {homes[0]}={{{name!r}: {value!r}}}"
    return f"{name} is neither a table of a job nor a key: the tables are {', '.join(Job.model_fields)}"


def _check_seconds(max_time_s: Any) -> None:
    if isinstance(max_time_s, bool) or not isinstance(max_time_s, int | float) or not 0 < max_time_s <= 1e9:
        raise ConfigError(f"fit: max_time_s must be a number above 0 or None, got {shown(max_time_s)}")
