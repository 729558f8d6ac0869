"""The stages of a run in order: label, train, sample, evaluate.

Each stage reads what the one before left in the output directory, so each can be run, stopped and run again alone.
Events tell what happens: as JSON lines in events.jsonl, and to a listener such as the command line's display.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfg_dist.distributed.executor import fit_choice, why_ray
from sfg_dist.distributed.fit.generator import TrainHooks, fit_generator, fit_settings
from sfg_dist.distributed.labels.label import Means, label_pending, label_settings
from sfg_dist.distributed.labels.process_pool import Template, early_template
from sfg_dist.job.config import Job, without_removed
from sfg_dist.job.errors import DataError, StoreError
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.object_stores import absolute_url, is_url
from sfg_dist.pipeline.check import as_job, check_job
from sfg_dist.pipeline.choices import default_t_min_of
from sfg_dist.pipeline.evaluation import METRICS_KEY, Judged, Metrics, made_here, made_on, stored_metrics
from sfg_dist.pipeline.output import Listener, OutputDirectory
from sfg_dist.pipeline.ownership import job_to_write
from sfg_dist.pipeline.plan import (
    cluster_order,
    frame_of,
    identity_of_keys,
    plan_of,
    warn_of_old_store,
    warn_of_plain_process,
)
from sfg_dist.pipeline.report import report_page
from sfg_dist.pipeline.table import held_out_conditions, prepare_table, table_of_store
from sfg_dist.store.event_log import stage_times

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sfg_dist.data import Prepared
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Frame, Pairs


def run(
    job: str | Path | Mapping[str, Any] | Job, *, listener: Listener | None = None, overlap: bool = False
) -> Metrics:
    """Label, train, sample and evaluate.

    Args:
        job: the path of a job file, a mapping of its tables, or a checked job.
        listener: called with every event, a mapping with "event" and "time".
        overlap: train on committed shards while the rest is being labelled.

    Returns:
        The metrics, as written to metrics.json.

    Raises:
        SfgError: a stage failed; what is written so far is kept, and the same call goes on from there.

    Examples:
        >>> sfg_dist.run({"data": {"source": "moons"}, "output": {"dir": "runs/moons"}})      # doctest: +SKIP
    """
    pipeline = Pipeline(as_job(job), listener)
    with pipeline.session():
        pipeline.label(overlap=overlap)
        pipeline.train()
        pipeline.sample()
        return pipeline.evaluate()


class Pipeline(OutputDirectory):
    """One job and its output directory; each stage is a method.

    Args:
        job: the checked job.
        listener: called with every event.
        prepared: the job's table, where it is read already.

    Raises:
        ConfigError: keys that are right each alone do not fit together.
    """

    def __init__(self, job: Job, listener: Listener | None = None, *, prepared: Prepared | None = None) -> None:
        check_job(job)
        self.job = job
        super().__init__(job.output.dir, listener)
        self._prepared = prepared
        self._ray: contextlib.ExitStack | None = None

    # Stages.

    def label(self, *, overlap: bool = False) -> Pairs:
        """Make the pairs that are missing.

        Args:
            overlap: whether a worker trains on committed pairs meanwhile (see ``distributed/fit/ahead.py``).
        """
        is_begun = is_url(self.url) or Path(self.pairs_url).exists()
        with early_template(self.job, overlap=overlap, is_needed=not is_begun) as template:
            return self._label(self.open_store(), overlap=overlap, template=template)

    def _label(self, pairs: Pairs, *, overlap: bool = False, template: Template | None = None) -> Pairs:
        missing = len(pairs.pending())
        fresh = missing == pairs.plan.num_shards
        details = {"total": pairs.plan.num_shards, "missing": missing, "rows": pairs.plan.num_pairs}
        # On a full disk the driver waits: its own last word is the error to show, not the first event that is lost.
        with self.dropping_events(), self.stage("label", fresh=fresh, **details):
            if missing:
                warn_of_plain_process(pairs.plan)
                self._label_missing(pairs, overlap, template)
            pairs.require_complete()
        return pairs

    def extend(self) -> Pairs:
        """Add pairs to the job's finished store, up to labels.num_pairs; committed pairs stay as they are."""
        from sfg_dist.store import extend_store

        pairs = self._existing_store(may_differ_in_length=True)
        before = pairs.plan.num_pairs
        pairs = extend_store(self.pairs_url, self.job.labels.num_pairs)
        self.emit("extended", before=before, rows=pairs.plan.num_pairs)
        return self._label(pairs)

    def train(self, *, resume_from: str | None = None) -> Generator:
        """Fit the network on the pairs and save the generator.

        Args:
            resume_from: go on from this checkpoint instead of the newest (see ``Checkpoints.go_back_to``).
        """
        from sfg_dist.distributed.fit.checkpoints import Checkpoints, newest_step
        from sfg_dist.distributed.fit.tensorboard import Board

        pairs = self._existing_store()
        pairs.require_complete()
        job, place = self.job.train, absolute_url(self.checkpoints_url)
        checkpoints = Checkpoints(place, fit_settings(self.job), pairs.plan.run_id)
        if resume_from is not None:
            self.emit("resumed_from", checkpoint=checkpoints.go_back_to(resume_from))
        fresh = not checkpoints.is_ours
        with (
            self.stage("train", fresh=fresh, num_epochs=job.num_epochs, max_time_s=job.max_time_s),
            self.session(),
            Board(self.output, 0 if fresh else newest_step(place)) as board,
        ):
            self.emit("executor", stage="train", **fit_choice(self.job))

            def on_epoch(entry: Mapping[str, float]) -> None:
                self.emit("epoch", **entry)
                board.epoch(entry)

            def on_live(entry: Mapping[str, float]) -> None:
                self.tell("live", **entry)
                board.live(entry)

            def validation() -> NDArray[np.float32]:
                return table_of_store(self.prepared, pairs).flow_rows("validation")

            hooks = TrainHooks(self.emit, on_epoch, on_live, self.need_ray, validation)
            generator = fit_generator(pairs, self.job, place, hooks)
            with self.writing("model"):
                generator.save(self.model_url)
        return generator

    def sample(self) -> str:
        """Draw the samples that are evaluated."""
        from sfg_dist.model.generator import Generator
        from sfg_dist.store.table import write_table

        self.require_own()
        self.step("sample: loading the model")
        generator = Generator.load(self.model_url)
        job = self.job.evaluate
        with self.stage("sample", rows=job.num_samples):
            conditions = held_out_conditions(self.prepared, generator, job.num_samples) if generator.condition else None
            write_table(
                self.samples_url,
                generator.columns,
                job.num_samples,
                lambda ranges: generator.sample_ranges(ranges, job.seed, conditions),
                types=generator.types,
                source=self._sample_source,
            )
        return self.samples_url

    def evaluate(self) -> Metrics:
        """Measure samples and labels against held-out rows; write metrics.json and report.html."""
        self.step("evaluate: loading the model")
        from sfg_dist.model.generator import Generator

        pairs = self._existing_store()
        generator = Generator.load(self.model_url)
        keys = generator.job.get("train")
        if keys is None or without_removed(keys) != self.job.train.model_dump(exclude_none=True):
            warnings.warn(
                f"{self.model_url} was trained with other train keys than this job has; `sfg train` trains anew",
                stacklevel=2,
            )
        table = table_of_store(self.prepared, pairs)
        with self.stage("evaluate", metrics=list(self.job.evaluate.metrics)):
            judged = self._judged(table, pairs, generator)
            metrics = judged.measure(self.emit, self.step)
        self.step("evaluate: drawing the report")
        log, made = self.events.read(), made_here()
        metrics["time_s"] = stage_times(log)
        page = report_page(judged, metrics, made, log, self.checkpoints_url)
        with self.writing("report.html, metrics.json and model"):
            self.output.write("report.html", page)
            self.output.write(METRICS_KEY, json.dumps(metrics, indent=1).encode())
            replace(generator, metrics=metrics).save(self.model_url)
        self.emit("report", path=self.report_url, **made)
        return metrics

    def report(self) -> None:
        """Render report.html anew, from what the stages have left; nothing is measured.

        Raises:
            DataError: the table, whose held-out rows the page shows, is not there any more.
            StoreError: a stage has not left its part yet.
        """
        from sfg_dist.model.generator import Generator

        OutputDirectory.require_own(self)
        pairs, generator = self._open_existing(), Generator.load(self.model_url)
        metrics = stored_metrics(self, generator)
        try:
            table = table_of_store(self.prepared, pairs)
        except DataError as error:
            raise DataError(f"the report shows held-out rows of the table: {error}") from error
        self.step("report: drawing the page")
        judged = self._judged(table, pairs, generator)
        log = self.events.read()
        page = report_page(judged, metrics, made_on(log), log, self.checkpoints_url)
        with self.writing("report.html"):
            self.output.write("report.html", page)

    def _judged(self, table: Prepared, pairs: Pairs, generator: Generator) -> Judged:
        return Judged.of(self.job, table, pairs, generator, self.samples_url, self._sample_source)

    # What the stages share.

    @property
    def prepared(self) -> Prepared:
        """The user's table, cleaned and split; read once."""
        if self._prepared is None:
            with self.stage("data", source=self.job.data.source):
                self._prepared = prepare_table(self.job)
            self.emit("table", **self._prepared.report)
        return self._prepared

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Within, Ray is started when a stage first needs it, and stays up for the stages that follow."""
        with contextlib.ExitStack() as stack:
            outer, self._ray = self._ray, self._ray or stack
            try:
                yield
            finally:
                self._ray = outer

    def need_ray(self) -> None:
        """Start Ray, within a session, unless it is up."""
        from sfg_dist.distributed.cluster import ray_session

        assert self._ray is not None, "a stage that needs Ray runs within a session"
        address = self.job.executor.address
        self.step("Ray: starting on this machine" if address is None else f"Ray: joining the cluster at {address}")
        self._ray.enter_context(ray_session(address))
        self._ray.callback(self.step, "Ray: stopping")
        self.step("Ray: starting the workers")

    def require_own(self) -> None:
        """Refuse links and foreign files, and a job.toml of the user's own that holds another job."""
        super().require_own()
        if is_url(self.url) or Path(self.url).is_dir():
            job_to_write(self.output, self.job)

    def open_store(self) -> Pairs:
        """The store of this job's plan, created when it is not there."""
        from sfg_dist.distributed.labels.requirements import require_budget
        from sfg_dist.store import create_store, open_pairs

        require_budget(self.job)
        self.require_own()
        table, frame = self.prepared, self.frame()
        existing = open_pairs(self.pairs_url).plan if self._has_store() else None
        labels = self.job.labels
        debiasing = ", debiasing the reference" if labels.debias is not False and existing is None else ""
        measuring = ", and measuring the certificate" if labels.certificate == "measured" else ""
        self.step(f"label: planning, {labels.time_grid} time grid{debiasing}{measuring}")
        plan, frame = plan_of(self.job, table, frame, existing=existing)
        require_budget(self.job, plan, table.num_train, has_clusters=frame.make_order is not None)
        self.step(f"label: writing the table into the store{', in clusters' if frame.make_order is not None else ''}")
        pairs = create_store(self.pairs_url, plan, frame)
        warn_of_old_store(pairs)
        self._write_job()
        if labels.t_min in (None, "auto") or labels.debias == "auto":
            self.emit("blur", **plan.identity["blur"])
        if "time_grid" in pairs.plan.identity:
            self.emit("time_grid", **pairs.plan.identity["time_grid"])
        return pairs

    def frame(self) -> Frame:
        """The frame of this job's store, from its table."""
        return frame_of(self.job, self.prepared, cluster_order(self.job, self._ray_up))

    @contextlib.contextmanager
    def _ray_up(self) -> Iterator[None]:
        with self.session():
            self.need_ray()
            yield

    def _has_store(self) -> bool:
        """Whether the pairs' plan is there; makes no directory."""
        return (is_url(self.url) or Path(self.url).is_dir()) and self.output.exists("pairs.zarr/plan.json")

    def _open_existing(self) -> Pairs:
        from sfg_dist.store import open_pairs

        if not self._has_store():
            raise StoreError(f"{self.pairs_url} does not exist: run `sfg label` with this job first")
        return open_pairs(self.pairs_url)

    def _existing_store(self, *, may_differ_in_length: bool = False) -> Pairs:
        self.require_own()
        pairs = self._open_existing()
        # The check is that of labelling, without the table itself, so that training need not read it again.
        plan = pairs.plan
        keys = identity_of_keys(self.job)
        if (kept := default_t_min_of(plan)) is not None:
            keys["labels"].setdefault("t_min", kept)
        wanted = replace(plan, identity={**plan.identity, **keys})
        if not may_differ_in_length and not self.job.labels.latents:
            wanted = replace(wanted, num_pairs=self.job.labels.num_pairs)
        pairs.require_plan(wanted)
        if plan.source != self.job.data.source:
            warnings.warn(
                f"{self.pairs_url} was labelled from {plan.source}, this job names {self.job.data.source}", stacklevel=3
            )
        warn_of_old_store(pairs)
        self._write_job()
        return pairs

    def _write_job(self) -> None:
        if (content := job_to_write(self.output, self.job)) is not None:
            with self.writing("job.toml"):
                self.output.write("job.toml", content)

    @property
    def _sample_source(self) -> str:
        """What decides the samples: the model's bytes, their number and the seed."""
        job = self.job.evaluate
        model = hashlib.sha256(self.output.read("model/model.safetensors") or b"").hexdigest()
        given = f", given {fingerprint(self.prepared.validation)}" if self.job.data.condition else ""
        return f"model {model}, {job.num_samples} rows, seed {job.seed}{given}"

    def _label_missing(self, pairs: Pairs, overlap: bool, template: Template | None) -> None:
        keys = self.job.executor
        with self.session(), contextlib.ExitStack() as stack:
            why = why_ray(keys, num_workers=self.job.train.num_workers, overlap=overlap)
            if why is not None:
                self.need_ray()
            means = Means(why, self.need_ray, template=template)
            if overlap:
                from sfg_dist.distributed.fit.ahead import training_ahead

                def on_live(entry: Mapping[str, float]) -> None:
                    self.tell("ahead", **entry)

                ahead = training_ahead(
                    "inline" if why is None else "ray",
                    absolute_url(self.pairs_url),
                    absolute_url(self.checkpoints_url),
                    fit_settings(self.job),
                    label_actor={
                        "CPU": self.job.labels.num_threads,
                        "GPU": keys.num_gpus_per_actor or 1.0,
                    },
                    on_live=on_live,
                )
                means = replace(means, reserved=stack.enter_context(ahead))
            label_pending(pairs, keys, label_settings(self.job, self.emit), means)
        if overlap:
            from sfg_dist.distributed.fit.checkpoints import newest_step

            self.emit("trained_ahead", step=newest_step(self.checkpoints_url))
