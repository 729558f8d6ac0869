"""A whole scaling study: runs measured, larger clusters predicted, another study set beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.pipeline.output import Listener
from sfg_dist.studies.scale.document import compare_studies, read_study, write_study
from sfg_dist.studies.scale.predict import predict, shard_bytes, slowdown, validate
from sfg_dist.studies.scale.simulation import Limits
from sfg_dist.studies.scale.study import NUM_EPOCHS, Study


@dataclass(frozen=True)
class ScaleSettings:
    """What a study does.

    Attributes:
        workers: numbers of workers to measure; None takes the runs that are there.
        stages: "label", "train".
        modes: "strong", "weak".
        repeats: runs of each number.
        num_epochs: of each fit.
        use_gpu: whether training workers hold a GPU each; None where the cluster has one for each.
        simulated: numbers of workers to predict; empty for none.
        shard_seconds: seconds of a shard in the prediction.
        limits: of the predicted cluster; without ``shard_bytes`` a shard is as large as those measured.
        network_s: from a worker to the driver or back, in the prediction.
        compare_with: another study's directory, URL or scale.json.
    """

    workers: Sequence[int] | None = None
    stages: Sequence[str] = ("label", "train")
    modes: Sequence[str] = ("strong",)
    repeats: int = 3
    num_epochs: int = NUM_EPOCHS
    use_gpu: bool | None = None
    simulated: Sequence[int] = ()
    shard_seconds: Sequence[float] = (1.0, 10.0, 60.0)
    limits: Limits = field(default_factory=Limits)
    network_s: float = 0.002
    compare_with: str | None = None


def run_study(job: Job, settings: ScaleSettings, listener: Listener | None = None) -> dict[str, Any]:
    """Measure what is missing, predict and compare what the settings ask for; the document of scale.json.

    Raises:
        ConfigError: a setting is wrong, or the study lacks the runs that it needs.
        SfgError: what failed; finished runs are kept.
    """
    if settings.compare_with is not None:
        read_study(settings.compare_with)  # refused before anything is measured
    if settings.workers is None:
        document = read_study(job.output.dir)
    else:
        study = Study(
            job, settings.workers, stages=settings.stages, modes=settings.modes, repeats=settings.repeats,
            num_epochs=settings.num_epochs, use_gpu=settings.use_gpu, listener=listener,
        )  # fmt: skip
        if settings.simulated and "label" not in settings.stages and not study.has_labels:
            raise ConfigError("--simulate takes its costs from label runs, of which there are none: add --stages label")
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints of its own
            document = study.run()
    if settings.simulated:
        limits = replace(settings.limits, shard_bytes=settings.limits.shard_bytes or shard_bytes(document))
        document |= {
            "validation": validate(document),
            "slowdown": slowdown(document),
            "assumptions": _assumptions(limits, settings.network_s),
            "predictions": predict(
                document, settings.simulated, shard_seconds=settings.shard_seconds, limits=limits,
                answer_s=settings.network_s,
            ),
        }  # fmt: skip
    if settings.compare_with is not None:
        document["comparison"] = compare_studies(settings.compare_with, job.output.dir)
    if settings.simulated or settings.compare_with is not None:
        write_study(job.output.dir, document)
    return document


def _assumptions(limits: Limits, network_s: float) -> dict[str, str]:
    """What a prediction depends on besides the measured costs, in words."""

    def shown(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "no limit" if value is None else f"{value / scale:g} {unit}"

    return {
        "the store's bandwidth": shown(limits.store_bytes_per_s, "MB/s", 1e6),
        "its requests": shown(limits.store_requests_per_s, "a second"),
        "a worker's link": shown(limits.worker_bytes_per_s, "MB/s", 1e6),
        "workers brought up": "all at once" if limits.starts_per_s is None else f"{limits.starts_per_s:g} a second",
        "a shard of the study": f"{limits.shard_bytes / 1e6:.3g} MB",
        "read by each worker at its start": f"{limits.load_bytes / 1e6:g} MB",
        "to the driver or back": f"{1000 * network_s:g} ms",
        "the driver's machine": f"{limits.driver_scale:g} times the time of this one",
    }
