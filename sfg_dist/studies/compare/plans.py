"""The cells of a comparison before they are made: what decides each, and how it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sfg_dist.job.config import Job
from sfg_dist.job.errors import TrainingError
from sfg_dist.studies.compare.judging import Fitted, Rules
from sfg_dist.studies.compare.own import fit_own, own_job, published_job
from sfg_dist.studies.compare.peers.choice import Choice
from sfg_dist.studies.compare.peers.fitted import fit_to_table
from sfg_dist.studies.compare.peers.kinds import PeerKind
from sfg_dist.studies.compare.peers.table_peer import TableFit, TablePeer
from sfg_dist.studies.compare.tables import Tables
from sfg_dist.studies.records import Keys

Say = Callable[[str, str], None]
"""Told what is done and what comes next; the latter is empty at the end."""


@dataclass(frozen=True)
class CellPlan:
    """A cell to be made."""

    name: str  # of the method, of a peer that serves two rows, or of another size of ours
    seed: int  # added to the seeds of labels and fits
    keys: Keys  # all that decides what is found
    fit: Callable[[Say], Iterator[Fitted]]  # makes it, and gives every row of the table that it serves

    @property
    def record(self) -> str:
        """Name of what is kept of it."""
        return f"cells/{self.name}_{self.seed}"


@dataclass(frozen=True)
class Planner:
    """Makes the plans of one comparison."""

    job: Job
    tables: Tables
    rules: Rules  # the same for every method
    num_threads: int
    keys: Keys  # what every cell depends on

    def own(self, name: str, seed: int, shape: tuple[int, int] | None = None) -> CellPlan:
        """This package, with the network of another ``shape`` where one is given; or the procedure as published."""
        keys, is_published = self.job.compare, name == "published"
        if is_published:
            job = published_job(self.job, self.tables.dim, num_threads=self.num_threads, seed=seed)
        else:
            job = own_job(self.job, num_threads=self.num_threads, seed=seed, shape=shape)
        sections: dict[str, Any] = {
            table: getattr(job, table).model_dump(exclude_none=True) for table in ("transform", "labels", "train")
        }

        def fit(say: Say) -> Iterator[Fitted]:
            table = self.tables.prepared[job.transform.kind]
            fitted = fit_own(
                job, table, self.rules, max_label_share=keys.max_label_share, is_full_batch=is_published, on_step=say
            )
            yield fitted.as_judged(name, job, table)

        return CellPlan(name, seed, {**self.keys, **sections, "max_label_share": keys.max_label_share}, fit)

    def peer(self, kind: PeerKind, choice: Choice, seed: int) -> CellPlan:
        """A peer on rows in the flow's coordinates, with the configuration that was chosen."""
        rows = [row for row in kind.samplers if row in self.job.compare.methods]
        chosen, rules = choice.chosen, self.rules

        def fit(say: Say) -> Iterator[Fitted]:
            fitted = fit_to_table(
                kind, chosen, self.tables, max_time_s=rules.max_time_s, marks_s=self._marks_s, seed=seed
            )
            say(f"fitted, {fitted.fit.num_steps:,} steps, best at {fitted.fit.best_at_s:.0f} s", "judging")
            density = fitted.log_density("test", seed=rules.metric_seed)
            for row in rows:
                yield fitted.as_judged(row, density)

        configuration = {"transform": chosen.kind, "learning_rate": chosen.learning_rate}
        keys = {**self.keys, "rows": rows, "settings": kind.settings, **configuration, "seed": seed}
        return CellPlan(kind.name, seed, keys, fit)

    def table_peer(self, peer: TablePeer, seed: int) -> CellPlan:
        """A peer on the whole table."""

        def fit(say: Say) -> Iterator[Fitted]:
            given = TableFit(self.tables, self.rules.max_time_s, self._marks_s, seed, self.num_threads)
            try:
                fitted = peer.fit(given)
            except Exception as error:
                if peer.package is None:
                    raise
                raise TrainingError(f"the package {peer.package} failed: {error}") from error
            say(f"fitted in {fitted.facts.fit_s:.1f} s", "judging")
            yield fitted

        return CellPlan(peer.name, seed, {**self.keys, "settings": peer.settings, "seed": seed}, fit)

    @property
    def _marks_s(self) -> tuple[float, ...]:
        return tuple(mark * self.rules.max_time_s for mark in self.rules.marks)
