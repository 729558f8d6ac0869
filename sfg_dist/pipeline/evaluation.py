"""What a run is judged by: rows of its samples and labels beside those of the table, and their figures."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.document import JUDGEMENT_FIELDS, calibration_document, judgement_document
from sfg_dist.evaluate.judgement import JudgedTables
from sfg_dist.job.config import METRICS, Job
from sfg_dist.job.errors import DocumentError, StoreError
from sfg_dist.job.reader import MAX_BYTES, MAYBE_NAN, check_fields, read_json
from sfg_dist.job.version import versions
from sfg_dist.pipeline.likelihood import likelihood_figures
from sfg_dist.pipeline.output import OutputDirectory
from sfg_dist.store.event_log import EVENTS_KEY

if TYPE_CHECKING:
    from sfg_dist.data import Prepared
    from sfg_dist.model.generator import Generator
    from sfg_dist.store import Pairs

METRICS_KEY = "metrics.json"

Metrics = dict[str, Any]
"""metrics.json: figures by name for floor, labels, samples, label_error, likelihood and time_s, and the keys of a
judgement (see ``evaluate/document.py``)."""

_FIGURE = (MAYBE_NAN, None)
_FIGURES = {f"{name}?": _FIGURE for name in METRICS}
_ERROR = {"num_rows": int, "median": MAYBE_NAN, "percentile_90": MAYBE_NAN, "tolerance_reached": MAYBE_NAN,
          "measured?": int, "measured_over?": int}  # fmt: skip
_COSTLY_ROW = {"row": int, "log_density": _FIGURE, "column": str}
_LIKELIHOOD = {
    "mean": _FIGURE, "median?": _FIGURE, "standard_error": _FIGURE, "num_rows": int, "mass_established?": bool,
    "costliest?": [_COSTLY_ROW],
}  # fmt: skip
_FIELDS = {
    "floor": _FIGURES, "labels": _FIGURES, "samples": _FIGURES, "label_error": dict,
    "likelihood?": {str: _LIKELIHOOD}, "time_s": {str: MAYBE_NAN}, **JUDGEMENT_FIELDS,
}  # fmt: skip
_MADE_ON = {"event": {"report"}, "device": str, "versions": {str: str}}


@dataclass(frozen=True, eq=False)
class Judged:
    """All that an evaluation looks at; rows are in the user's units."""

    job: Job  # the checked job
    prepared: Prepared  # its table, with the transform of the store
    pairs: Pairs  # the complete store
    generator: Generator  # fitted to them
    samples: NDArray[np.float64]  # rows that it drew, shape (num_samples, num_columns)
    labels: NDArray[np.float64]  # of the first pairs, as many at most, shape (num_labels, num_columns)

    @classmethod
    def of(
        cls, job: Job, prepared: Prepared, pairs: Pairs, generator: Generator, samples_url: str, sample_source: str
    ) -> Judged:
        """With the samples of a place, which ``sample_source`` must have made, and labels beside them."""
        from sfg_dist.store import read_rows
        from sfg_dist.store.table import read_table

        samples = read_table(samples_url, source=sample_source)
        num_labels = min(pairs.plan.num_pairs, job.evaluate.num_samples)
        labels = prepared.transform.inverse(read_rows(pairs.labels, 0, num_labels))
        return cls(job, prepared, pairs, generator, samples, labels)

    def measure(self, emit: Callable[..., None], step: Callable[[str], None]) -> Metrics:
        """All figures but the times; ``emit`` is told of each, ``step`` of what goes on."""
        from sfg_dist.distributed.labels.labeler import label_error
        from sfg_dist.evaluate import floor, measure

        job, prepared = self.job.evaluate, self.prepared
        names = [name for name in job.metrics if name != "kl" or prepared.log_density is not None]
        keys: dict[str, Any] = {"metrics": names, "seed": job.seed, "log_density": prepared.log_density}
        step("evaluate: judging real rows in place of samples, the floor")
        test, train = prepared.coded(prepared.test), prepared.coded(prepared.train)
        metrics: Metrics = {"floor": floor(test, train, **keys)}
        for name, rows in (("labels", self.labels), ("samples", self.samples)):
            step(f"evaluate: judging {name}")
            metrics[name] = measure(prepared.coded(rows), test, train, **keys)
            emit("measured", what=name, **metrics[name])
        step("evaluate: solving some labels again in float64")
        metrics["label_error"] = label_error(self.pairs, memory_gib=self.job.labels.memory_gib)
        emit("label_error", **metrics["label_error"])
        if job.judge:
            metrics |= self._judgement(step)
            emit("judged", figures=metrics["figures"])
        if self.generator.encoder is not None:
            step("evaluate: log-likelihood of the held-out rows")
            metrics["likelihood"] = likelihood_figures(self.generator, prepared, self.pairs)
            emit("likelihood", **metrics["likelihood"])
        return metrics

    @property
    def tables(self) -> JudgedTables:
        """Samples, held-out rows and training rows as a judgement takes them."""
        from sfg_dist.pipeline.judged_tables import tables_of_run

        return tables_of_run(self.prepared, self.samples, self.generator.types, self.job.evaluate.target)

    @property
    def plain_labels(self) -> NDArray[np.float64]:
        """The labels in the units of ``tables``."""
        from sfg_dist.pipeline.judged_tables import plain_rows

        return plain_rows(self.labels, self.prepared.transform.types)

    def _judgement(self, step: Callable[[str], None]) -> Metrics:
        """The keys of the judgement, and of the calibration of a conditional run."""
        from sfg_dist.evaluate.contest import NoFigureError
        from sfg_dist.evaluate.judge import judge
        from sfg_dist.pipeline.calibrating import calibration_of_run

        keys = self.job.evaluate
        found = judgement_document(judge(self.tables, seed=keys.seed, on_step=step))
        if self.generator.condition:
            step("evaluate: calibration, by several samples for each held-out condition")
            try:
                calibration = calibration_of_run(
                    self.prepared, self.generator, self.pairs, start=keys.num_samples, seed=keys.seed
                )
            except NoFigureError as absent:
                found["left_out"].append(f"Not measured, because {absent}: calibration.")
            else:
                found["calibration"] = calibration_document(calibration)
        return found


def stored_metrics(output: OutputDirectory, generator: Generator) -> Metrics:
    """The figures that the last evaluation left in an output directory.

    Raises:
        StoreError: there are none, or none of this generator; or the document is damaged.
    """
    name = f"{output.url}/{METRICS_KEY}"
    content = output.output.read(METRICS_KEY, MAX_BYTES)
    if content is None:
        raise StoreError(f"{name} does not exist: run `sfg evaluate` with its job first")
    if not generator.metrics:
        raise StoreError(f"{name} is older than the model: run `sfg sample` and `sfg evaluate` with its job first")
    try:
        metrics: Metrics = read_json(content, name, _FIELDS, allow_nan=True)
        if metrics["label_error"]:
            check_fields(metrics["label_error"], _ERROR, name)
    except DocumentError as error:
        raise StoreError(f"{error}: run `sfg evaluate` with its job again") from None
    return metrics


def made_here() -> dict[str, Any]:
    """Device and versions of this process, as a report says them."""
    import torch

    device = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else device, "versions": versions()}


def made_on(log: str) -> dict[str, Any]:
    """``made_here`` of the last evaluation in a log of events; empty where it does not say."""
    for line in reversed(log.splitlines()):
        if '"report"' in line:
            try:
                entry = read_json(line, EVENTS_KEY)
                check_fields(entry, _MADE_ON, EVENTS_KEY)
            except DocumentError:
                continue
            return {"device": entry["device"], "versions": entry["versions"]}
    return {}
