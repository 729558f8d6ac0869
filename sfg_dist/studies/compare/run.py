"""A comparison as a job: every method on one split and under one budget, cell by cell.

    budget of ours = labels + fit,    budget of a peer = fit,    both wall-clock, one method at a time on the machine

Outside the budget: reading the table, the choice of a peer's configuration (``selection``), drawing and judging.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfg_dist.data import prepare
from sfg_dist.distributed.machine import default_device
from sfg_dist.evaluate import floor
from sfg_dist.job.config import READING_KEYS, Job
from sfg_dist.job.errors import ConfigError, TrainingError
from sfg_dist.job.plan import fingerprint
from sfg_dist.job.version import __version__, versions
from sfg_dist.model.sampling import num_cpus
from sfg_dist.pipeline.output import Listener, OutputDirectory
from sfg_dist.pipeline.pipeline import as_job
from sfg_dist.pipeline.table import table_settings
from sfg_dist.studies.compare.cells import FOLDER, Records
from sfg_dist.studies.compare.document import make_document
from sfg_dist.studies.compare.judging import auc
from sfg_dist.studies.compare.ours import own_job, published_job
from sfg_dist.studies.compare.own_cell import run_own
from sfg_dist.studies.compare.peer_cell import run_peer
from sfg_dist.studies.compare.peers import KINDS, LEARNING_RATES, PeerKind, peer_kinds
from sfg_dist.studies.compare.selection import FINAL_FACTOR, NUM_FINALISTS, Selection, Trial, select
from sfg_dist.studies.compare.tables import Tables

MARKS = (0.125, 0.25, 0.5)
"""Shares of the budget at which a snapshot of each method is kept."""

Cell = Callable[[Callable[[str], None]], tuple[dict[str, dict[str, Any]], Mapping[str, Any]]]


def compare(job: str | Path | Mapping[str, Any] | Job, *, listener: Listener | None = None) -> dict[str, Any]:
    """Train every method of ``compare.methods`` under one budget, judge all of them alike, and write the page.

    Finished cells in output.dir are kept, so the same call goes on after an interruption.

    Args:
        job: the path of a job file, a mapping of its tables, or a checked job.
        listener: called with every event, a mapping with "event" and "time".

    Returns:
        The document of compare.json.

    Raises:
        ConfigError: the job cannot be compared, or a peer's library is missing.
        SfgError: what failed, with what to do; finished cells are kept.
    """
    with Comparison(as_job(job), listener).on_threads() as comparison:
        return comparison.run()


class Comparison(OutputDirectory):
    """One job's comparison in its output directory.

    Args:
        job: the checked job.
        listener: called with every event.

    Raises:
        ConfigError: the job cannot be compared, or a peer's library is missing.
    """

    def __init__(self, job: Job, listener: Listener | None = None) -> None:
        _check(job)
        super().__init__(job.output.dir, listener)
        self.job = job
        self.num_threads = job.compare.num_threads or num_cpus()
        self.device = default_device()
        self.peers = [kind for kind in peer_kinds() if any(row in job.compare.methods for row in kind.samplers)]
        for kind in self.peers:
            kind.build(2, **kind.shape)  # a missing library is missed now, not after the first hour

    @contextmanager
    def on_threads(self) -> Iterator[Comparison]:
        """Within, torch computes on the comparison's threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        try:
            yield self
        finally:
            torch.set_num_threads(before)

    @cached_property
    def tables(self) -> Tables:
        """The table through each transform that a method takes."""
        job = self.job
        kinds = [job.transform.kind, *(KINDS if self.peers else ()), *self._published_kinds]
        settings = table_settings(job)
        return Tables({kind: prepare(job.data.source, settings, kind=kind) for kind in dict.fromkeys(kinds)})

    @property
    def _published_kinds(self) -> list[str]:
        return ["standardize"] if "published" in self.job.compare.methods else []

    @cached_property
    def records(self) -> Records:
        """The finished parts."""
        return Records(self.output)

    def run(self) -> dict[str, Any]:
        """All that is missing, then the document and the page."""
        job, keys = self.job, self.job.compare
        self.require_own()
        with self.stage("compare", methods=list(keys.methods), max_time_s=keys.max_time_s):
            self.emit("table", **self.tables.any.report)
            failures: list[str] = []
            selections = {}
            for kind in self.peers:
                try:
                    selections[kind.name] = self._selection(kind)
                except TrainingError as error:
                    failures.append(str(error))
                    self.emit("cell_failed", method=kind.name, seed=0, reason=str(error))
            found: dict[str, list[dict[str, Any]]] = {}
            for seed in range(keys.num_seeds):
                for name, cell_keys, cell in self._cells(seed, selections):
                    try:
                        entries = self._cell(name, seed, cell_keys, cell)
                    except TrainingError as error:  # the others need not wait for it
                        failures.append(f"{name}, seed {seed}: {error}")
                        self.emit("cell_failed", method=name, seed=seed, reason=str(error))
                        continue
                    for row, entry in entries.items():
                        found.setdefault(row, []).append(entry)
            if not found:
                raise TrainingError(f"{'; '.join(failures)}; or leave it out of compare.methods")
            document = make_document(
                found,
                job=job,
                floor=self._floor(),
                selections=selections,
                peers=[kind for kind in self.peers if kind.name in selections],
                facts=self._facts(),
            )
            document = self._write(document)
            if failures:
                raise TrainingError(
                    f"{'; '.join(failures)}; or leave it out of compare.methods. The rest is finished, and shown in "
                    f"{self.url}/{FOLDER}/compare.html"
                )
        return document

    def _cells(self, seed: int, selections: Mapping[str, Selection]) -> Iterator[tuple[str, dict[str, Any], Cell]]:
        """Name, keys and work of each cell of a seed, in the order of compare.methods; other sizes of ours last."""
        keys = self.job.compare
        done: set[str] = set()
        for method in keys.methods:
            if method in ("sfg", "published"):
                yield method, *self._own_cell(method, seed)
                continue
            kind = next(kind for kind in self.peers if method in kind.samplers)
            if kind.name not in done and kind.name in selections:  # one fit may serve two rows
                done.add(kind.name)
                yield kind.name, *self._peer_cell(kind, selections[kind.name], seed)
        for size in keys.sizes:
            width, depth = map(int, size.split("x"))
            yield f"sfg_{size}", *self._own_cell(f"sfg_{size}", seed, (width, depth))

    def _own_cell(self, name: str, seed: int, shape: tuple[int, int] | None = None) -> tuple[dict[str, Any], Cell]:
        keys, is_published = self.job.compare, name == "published"
        if is_published:
            job = published_job(self.job, self.tables.dim, num_threads=self.num_threads, seed=seed)
        else:
            job = own_job(self.job, num_threads=self.num_threads, seed=seed, shape=shape)
        sections = {
            table: getattr(job, table).model_dump(exclude_none=True) for table in ("transform", "labels", "train")
        }

        def cell(on_step: Callable[[str], None]) -> tuple[dict[str, dict[str, Any]], Mapping[str, Any]]:
            return run_own(
                name,
                job,
                self.tables.prepared[job.transform.kind],
                max_time_s=keys.max_time_s,
                max_label_share=keys.max_label_share,
                is_full_batch=is_published,
                on_step=on_step,
                **self._judged_by,
            )

        return {**self._common_keys, **sections, "max_label_share": keys.max_label_share}, cell

    def _peer_cell(self, kind: PeerKind, selection: Selection, seed: int) -> tuple[dict[str, Any], Cell]:
        rows = [row for row in kind.samplers if row in self.job.compare.methods]
        chosen = selection.chosen

        def cell(on_step: Callable[[str], None]) -> tuple[dict[str, dict[str, Any]], Mapping[str, Any]]:
            return run_peer(
                kind,
                rows,
                chosen,
                self.tables,
                max_time_s=self.job.compare.max_time_s,
                device=self.device,
                seed=seed,
                on_step=on_step,
                **self._judged_by,
            )

        configuration = {"transform": chosen.kind, "learning_rate": chosen.learning_rate}
        return {**self._common_keys, "rows": rows, "settings": kind.settings, **configuration, "seed": seed}, cell

    @cached_property
    def _judged_by(self) -> dict[str, Any]:
        job = self.job.evaluate
        return {
            "marks": MARKS,
            "num_samples": job.num_samples,
            "metrics": list(job.metrics),
            "metric_seed": job.seed,
        }

    @cached_property
    def _data_keys(self) -> dict[str, Any]:
        table = self.tables.any
        return {
            "data": self.job.data.model_dump(exclude={"source", *READING_KEYS}, exclude_none=True),
            "table": table.table_fingerprint(),
            "test": fingerprint(table.test),
            "num_threads": self.num_threads,
            "device": self.device.type,
            "sfg_dist": __version__,
        }

    @cached_property
    def _common_keys(self) -> dict[str, Any]:
        return {**self._data_keys, **self._judged_by, "max_time_s": self.job.compare.max_time_s}

    def _selection(self, kind: PeerKind) -> Selection:
        time_s = self.job.compare.selection_time_s
        keys = {
            **self._data_keys,
            "settings": kind.settings,
            "time_s": time_s,
            "kinds": KINDS,
            "learning_rates": LEARNING_RATES,
            "rounds": [NUM_FINALISTS, FINAL_FACTOR],
        }
        name = f"selection/{kind.name}"
        kept = self.records.load(name, keys)
        if kept is not None:
            return Selection.from_json(kept)
        self.emit("selection_started", method=kind.name, time_s=time_s)

        def on_trial(trial: Trial) -> None:
            self.emit(
                "trial",
                method=kind.name,
                transform=trial.configuration.kind,
                learning_rate=trial.configuration.learning_rate,
                seconds=trial.seconds,
                c2st_auc=trial.c2st_auc,
            )

        selection = select(kind, self.tables, time_s=time_s, device=self.device, seed=0, on_trial=on_trial)
        with self.writing(f"{FOLDER}/{name}.json"):
            self.records.save(name, keys, selection.to_json())
        chosen = selection.chosen
        self.emit(
            "selected", method=kind.name, transform=chosen.kind, learning_rate=chosen.learning_rate, **kind.settings
        )
        return selection

    def _cell(self, name: str, seed: int, keys: dict[str, Any], cell: Cell) -> dict[str, dict[str, Any]]:
        record = f"cells/{name}_{seed}"
        kept = self.records.load(record, keys)
        if kept is not None:
            self.emit("cell_kept", method=name, seed=seed)
            return kept
        load_before = os.getloadavg()[0]
        self.emit("cell_started", method=name, seed=seed, max_time_s=self.job.compare.max_time_s)
        torch.set_num_threads(self.num_threads)

        def on_step(text: str) -> None:
            self.emit("cell_step", method=name, seed=seed, text=text)

        found, tables = cell(on_step)
        for entry in found.values():
            # Above the number of threads, others were at work on the machine.
            entry["load_average"] = [round(load_before, 2), round(os.getloadavg()[0], 2)]
        with self.writing(f"{FOLDER}/{record}.json"):
            self.records.save(record, keys, found, tables)
        for row, entry in found.items():
            shown = ("c2st_auc", "c2st_auc_error", "test_log_likelihood", "us_per_sample", "label_s", "fit_s")
            self.emit("cell_finished", method=row, seed=seed, **{key: entry[key] for key in shown})
        return found

    def _floor(self) -> dict[str, Any]:
        """The figures of training rows in place of samples; kept like a cell."""
        job, table = self.job.evaluate, self.tables.any
        keys = {name: value for name, value in self._common_keys.items() if name not in ("max_time_s", "num_threads")}
        kept = self.records.load("cells/floor", keys)
        if kept is not None:
            return kept
        names = [name for name in job.metrics if name != "kl" or table.log_density is not None]
        found = floor(table.test, table.train, metrics=names, seed=job.seed, log_density=table.log_density)
        half = np.random.default_rng(job.seed).permutation(len(table.train))[: len(table.train) // 2]
        result: dict[str, Any] = {**auc(table.train[half], table, seed=job.seed), **found}
        with self.writing(f"{FOLDER}/cells/floor.json"):
            self.records.save("cells/floor", keys, result)
        return result

    def _facts(self) -> dict[str, str]:
        from importlib.metadata import PackageNotFoundError, version

        found = dict(versions())
        try:
            found["zuko"] = version("zuko")
        except PackageNotFoundError:
            found["zuko"] = "not installed"
        sizes = self.tables.any.sizes
        return {
            "source": Path(self.job.data.source).name,
            "rows": ", ".join(f"{size:,} {part}" for part, size in sizes.items()),
            "columns": f"{len(self.tables.any.columns)}, of which {self.tables.dim} through the flow",
            "device": self.device.type,
            "threads": str(self.num_threads),
            "versions": ", ".join(f"{name} {number}" for name, number in found.items()),
        }

    def _write(self, document: dict[str, Any]) -> dict[str, Any]:
        from sfg_dist.studies.compare.page import render_page

        page = render_page(document, title=f"Comparison: {document['facts']['source']}", job_toml=self.job.to_toml())
        with self.writing(f"{FOLDER}/compare.json and {FOLDER}/compare.html"):
            self.output.write(f"{FOLDER}/compare.html", page.encode())
            self.output.write(f"{FOLDER}/compare.json", json.dumps(document, indent=1).encode())
        self.emit("report", path=f"{self.url}/{FOLDER}/compare.html")
        return document


def _check(job: Job) -> None:
    """Refuse a job whose methods would not learn one and the same law."""
    if getattr(job.data, "condition", None):
        raise ConfigError("sfg compare: the peers are unconditional: leave data.condition out")
    if job.labels.latents is not None or job.labels.direction == "encode":
        raise ConfigError(
            'sfg compare needs labels of drawn latents: leave out labels.latents and direction = "encode"'
        )
