"""A comparison as a job: every method on one split and under one budget, cell by cell.

    budget of ours = labels + fit,    budget of a peer = fit,    both wall-clock, one method at a time on the machine

Outside the budget: reading the table, the choice of a peer's configuration (``peers.choice``), drawing and judging.
A cell is the fit of one method with one seed. One that is finished is not made again:

    compare/cells/NAME.json         what was found, under the keys that decide it; written last
    compare/cells/NAME.ROW.npy      samples in the user's units, one file for each row of the table
    compare/selection/NAME.json     which configuration a peer takes, likewise
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfg_dist.data import Prepared, prepare
from sfg_dist.data.coding import are_plain
from sfg_dist.distributed.machine import default_device
from sfg_dist.evaluate import floor
from sfg_dist.evaluate.judge import References
from sfg_dist.job.config import MIXED_METHODS, NUMBER_METHODS, READING_KEYS, Job
from sfg_dist.job.errors import ConfigError, DocumentError, TrainingError
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.threads import usable_cpus
from sfg_dist.job.version import __version__, versions
from sfg_dist.pipeline.check import as_job
from sfg_dist.pipeline.output import Listener, OutputDirectory
from sfg_dist.pipeline.table import check_target, table_settings
from sfg_dist.store import Location
from sfg_dist.studies.compare.document import NOT_PEERS, Comparison, make_document
from sfg_dist.studies.compare.judged import SHOWN_FIGURES
from sfg_dist.studies.compare.judging import Cell, Figures, Rules, auc, judge
from sfg_dist.studies.compare.peers.choice import FINAL_FACTOR, NUM_FINALISTS, Choice, ShortFit, choose
from sfg_dist.studies.compare.peers.kinds import LEARNING_RATES, PEERS, TRANSFORMS, PeerKind
from sfg_dist.studies.compare.peers.table_kinds import TABLE_PEERS
from sfg_dist.studies.compare.plans import CellPlan, Planner
from sfg_dist.studies.compare.tables import Tables
from sfg_dist.studies.records import Keys, Records, from_json, to_json

FOLDER = "compare"
MARKS = (0.125, 0.25, 0.5)
"""Shares of the budget at which a snapshot of each method is kept."""
RECORD_FIELDS = {"found": dict, "tables?": [str]}


def compare(job: str | Path | Mapping[str, Any] | Job, *, listener: Listener | None = None) -> Comparison:
    """Train every method of ``compare.methods`` under one budget, judge all of them alike, and write the page.

    ``job`` is the path of a job file, a mapping of its tables, or a checked job. Finished cells in output.dir are kept,
    so the same call goes on after an interruption. ``listener`` is called with every event, a mapping with "event" and
    "time".

    Raises:
        ConfigError: the job cannot be compared, or a peer's library is missing.
        SfgError: what failed, with what to do; finished cells are kept.
    """
    with ComparisonRun(as_job(job), listener).on_threads() as comparison:
        return comparison.run()


class ComparisonRun(OutputDirectory):
    """One job's comparison in its output directory; arguments and errors as for ``compare``."""

    def __init__(self, job: Job, listener: Listener | None = None) -> None:
        _check(job)
        super().__init__(job.output.dir, listener)
        self.job = job
        self.num_threads = job.compare.num_threads or usable_cpus()
        self.device = default_device()

    @contextmanager
    def on_threads(self) -> Iterator[ComparisonRun]:
        """Within, torch computes on the comparison's threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        try:
            yield self
        finally:
            torch.set_num_threads(before)

    @cached_property
    def table(self) -> Prepared:
        """The table through the job's transform."""
        return prepare(self.job.data.source, table_settings(self.job), kind=self.job.transform.kind)

    @property
    def peers(self) -> list[PeerKind]:
        """The peers on rows in the flow's coordinates."""
        return [kind for kind in PEERS if any(row in self.job.compare.methods for row in kind.samplers)]

    @cached_property
    def tables(self) -> Tables:
        """The table through each transform that a method takes."""
        job, settings = self.job, table_settings(self.job)
        on_scores = any(peer.name in job.compare.methods for peer in TABLE_PEERS)
        published = ["standardize"] if "published" in job.compare.methods else []
        others = [*(TRANSFORMS if self.peers else ()), *published, *(["quantile"] if on_scores else ())]
        tables: dict[str, Prepared] = {job.transform.kind: self.table}
        for kind in dict.fromkeys(others):
            tables[kind] = tables.get(kind) or prepare(job.data.source, settings, kind=kind)
        return Tables(tables, self.device)

    @cached_property
    def records(self) -> Records:
        """The finished parts."""
        return Records(self.output, FOLDER, RECORD_FIELDS)

    @cached_property
    def rules(self) -> Rules:
        """What every method is given and judged by."""
        job = self.job.evaluate
        return Rules(self.job.compare.max_time_s, MARKS, job.num_samples, list(job.metrics), job.seed, job.target)

    @cached_property
    def references(self) -> References:
        """What the figures of all methods stand beside."""
        return References()

    def run(self) -> Comparison:
        """All that is missing, then the document and the page."""
        self.step(f"data: reading {self.job.data.source}")
        self.settle_methods()
        keys = self.job.compare
        self.require_own()
        with self.stage("compare", methods=list(keys.methods), max_time_s=keys.max_time_s):
            self.emit("table", **self.tables.any.report)
            failures: list[str] = []
            choices: dict[str, Choice] = {}
            for kind in self.peers:
                try:
                    choices[kind.name] = self._choice(kind)
                except TrainingError as error:
                    failures.append(str(error))
                    self.emit("cell_failed", method=kind.name, seed=0, reason=str(error))
            found: dict[str, list[Cell]] = {}
            for plan in (plan for seed in range(keys.num_seeds) for plan in self._plans(seed, choices)):
                try:
                    cells = self._cells(plan)
                except TrainingError as error:  # the others need not wait for it
                    failures.append(f"{plan.name}, seed {plan.seed}: {error}")
                    self.emit("cell_failed", method=plan.name, seed=plan.seed, reason=str(error))
                    continue
                for row, cell in cells.items():
                    found.setdefault(row, []).append(cell)
            if not found:
                raise TrainingError(f"{'; '.join(failures)}; or leave it out of compare.methods")
            self.step("compare: judging real rows in place of samples, and drawing the page")
            document = make_document(found, self.job, floor=self._floor(), choices=choices, facts=self._facts())
            self._write(document)
            if failures:
                raise TrainingError(
                    f"{'; '.join(failures)}; or leave it out of compare.methods. The rest is finished, and shown in "
                    f"{self.url}/{FOLDER}/compare.html"
                )
        return document

    def settle_methods(self) -> None:
        """Settle which methods "auto" stands for, and refuse now, not after the first hour.

        Raises:
            ConfigError: a library is missing.
            DataError: the table cannot be read, or has no column ``evaluate.target``.
        """
        if self.job.compare.methods == "auto":
            is_mixed = not are_plain(self.table.transform.codings)
            methods = MIXED_METHODS if is_mixed else NUMBER_METHODS
            self.job = self.job.changed(compare={"methods": list(methods)})
        for kind in self.peers:
            kind.build(2, **kind.shape)
        for peer in TABLE_PEERS:
            if peer.name in self.job.compare.methods:
                peer.require()
        check_target(self.table.source, self.table.columns, self.job.evaluate.target, "evaluate.target")

    def _plans(self, seed: int, choices: Mapping[str, Choice]) -> Iterator[CellPlan]:
        """The cells of a seed in the order of compare.methods; other sizes of ours last."""
        keys = self.job.compare
        planner = Planner(self.job, self.tables, self.rules, self.num_threads, self._common_keys)
        table_peers = {peer.name: peer for peer in TABLE_PEERS}
        done: set[str] = set()
        for method in keys.methods:
            if method in NOT_PEERS:
                yield planner.own(method, seed)
                continue
            if method in table_peers:
                yield planner.table_peer(table_peers[method], seed)
                continue
            kind = next(kind for kind in self.peers if method in kind.samplers)
            if kind.name not in done and kind.name in choices:  # one fit may serve two rows
                done.add(kind.name)
                yield planner.peer(kind, choices[kind.name], seed)
        for size in keys.sizes:
            width, depth = map(int, size.split("x"))
            yield planner.own(f"sfg_{size}", seed, (width, depth))

    @cached_property
    def _data_keys(self) -> Keys:
        table = self.tables.any
        return {
            "data": self.job.data.model_dump(exclude={"source", *READING_KEYS}, exclude_none=True),
            "table": table.table_fingerprint(),
            "test": fingerprint(table.test),
            "num_threads": self.num_threads,
            "device": self.device.type,
            "sfg_dist": __version__,
        }

    @property
    def _common_keys(self) -> Keys:
        return {**self._data_keys, **vars(self.rules), "figures": SHOWN_FIGURES}

    def _choice(self, kind: PeerKind) -> Choice:
        time_s = self.job.compare.selection_time_s
        keys = {
            **self._data_keys,
            "settings": kind.settings,
            "time_s": time_s,
            "kinds": TRANSFORMS,
            "learning_rates": LEARNING_RATES,
            "rounds": [NUM_FINALISTS, FINAL_FACTOR],
        }
        name = f"selection/{kind.name}"
        kept = self.records.load(name, keys, lambda document: from_json(Choice, document["found"], name))
        if kept is not None:
            return kept
        self.emit("selection_started", method=kind.name, time_s=time_s)

        def on_trial(trial: ShortFit) -> None:
            tried = trial.configuration
            self.emit(
                "trial", method=kind.name, transform=tried.kind, learning_rate=tried.learning_rate,
                seconds=trial.seconds, c2st_auc=trial.c2st_auc,
            )  # fmt: skip

        choice = choose(kind, self.tables, time_s=time_s, on_trial=on_trial)
        self._keep(name, keys, to_json(choice))
        chosen = choice.chosen
        self.emit(
            "selected", method=kind.name, transform=chosen.kind, learning_rate=chosen.learning_rate, **kind.settings
        )
        return choice

    def _cells(self, plan: CellPlan) -> dict[str, Cell]:
        """The cell's rows of the table, made or kept."""
        told = partial(self.emit, method=plan.name, seed=plan.seed)
        kept = self.records.load(plan.record, plan.keys, partial(kept_cells, self.output, plan.record))
        if kept is not None:
            told("cell_kept")
            return kept
        load_before = os.getloadavg()[0]
        told("cell_started", max_time_s=self.rules.max_time_s)
        torch.set_num_threads(self.num_threads)

        def say(done: str, following: str) -> None:
            told("cell_step", text=done, next=following)

        found, samples = {}, {}
        for fitted in plan.fit(say):
            found[fitted.name], samples[fitted.name] = judge(fitted, self.tables.any, self.rules, self.references)
            say(f"{fitted.name} judged", "")
        load_average = (round(load_before, 2), round(os.getloadavg()[0], 2))
        found = {row: replace(cell, load_average=load_average) for row, cell in found.items()}
        self._keep(plan.record, plan.keys, {row: cell.to_json() for row, cell in found.items()}, samples)
        for row, cell in found.items():
            shown = ("c2st_auc", "c2st_auc_error", "test_log_likelihood", "us_per_sample", "label_s", "fit_s")
            self.emit("cell_finished", method=row, seed=plan.seed, **{key: getattr(cell, key) for key in shown})
        return found

    def _keep(
        self, name: str, keys: Keys, found: Mapping[str, object], samples: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write a part, its samples before it: an interruption keeps nothing of it."""
        with self.writing(f"{FOLDER}/{name}.json"):
            self.output.delete(f"{FOLDER}/{name}.json")
            for row, rows in (samples or {}).items():
                content = io.BytesIO()
                np.save(content, rows, allow_pickle=False)
                self.output.write(f"{FOLDER}/{name}.{row}.npy", content.getvalue())
            self.records.save(name, keys, {"tables": list(samples or {}), "found": found})

    def _floor(self) -> Figures:
        """The figures of training rows in place of samples; kept like a cell."""
        job, table = self.job.evaluate, self.tables.any
        keys = {name: value for name, value in self._common_keys.items() if name not in ("max_time_s", "num_threads")}
        name = "cells/floor"
        kept = self.records.load(name, keys, lambda document: from_json(Figures, document["found"], name))
        if kept is not None:
            return kept
        names = [name for name in job.metrics if name != "kl" or table.log_density is not None]
        test, train = table.coded(table.test), table.coded(table.train)
        half = np.random.default_rng(job.seed).permutation(len(train))[: len(train) // 2]
        found = floor(test, train, metrics=names, seed=job.seed, log_density=table.log_density)
        result = {**auc(train[half], table, seed=job.seed), **found}
        self._keep(name, keys, result)
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

    def _write(self, document: Comparison) -> None:
        from sfg_dist.studies.compare.page import render_page

        page = render_page(document, title=f"Comparison: {document.facts['source']}", job_toml=self.job.to_toml())
        with self.writing(f"{FOLDER}/compare.json and {FOLDER}/compare.html"):
            self.output.write(f"{FOLDER}/compare.html", page.encode())
            self.output.write(f"{FOLDER}/compare.json", json.dumps(to_json(document), indent=1).encode())
        self.emit("report", path=f"{self.url}/{FOLDER}/compare.html")


def kept_cells(output: Location, record: str, document: dict[str, Any]) -> dict[str, Cell]:
    """The rows of a kept cell from its document.

    Raises:
        DocumentError: a figure is missing or wrong, or the samples are gone.
    """
    if not all(output.exists(f"{FOLDER}/{record}.{row}.npy") for row in document.get("tables", ())):
        raise DocumentError(f"{record}: samples are missing")
    return {row: Cell.from_json(cell, f"{record}: {row}") for row, cell in document["found"].items()}


def _check(job: Job) -> None:
    """Refuse a job whose methods would not learn one and the same law."""
    if getattr(job.data, "condition", None):
        raise ConfigError("sfg compare: the peers are unconditional: leave data.condition out")
    if job.labels.latents is not None or job.labels.direction == "encode":
        raise ConfigError(
            'sfg compare needs labels of drawn latents: leave out labels.latents and direction = "encode"'
        )
