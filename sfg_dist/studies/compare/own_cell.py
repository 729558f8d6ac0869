"""The cell of this package: what ``ours`` fits under the budget, judged as the peers are in ``peer_cell``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared
from sfg_dist.job.config import Job
from sfg_dist.job.errors import TrainingError
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.model import Generator
from sfg_dist.model.sampling import BLOCK_ROWS, draw_ranges, unit_ranges
from sfg_dist.studies.compare.judging import Rows, auc, figures, finite_rows, mean_and_error, us_per_row
from sfg_dist.studies.compare.ours import fit_own


def run_own(
    name: str,
    job: Job,
    prepared: Prepared,
    *,
    max_time_s: float,
    max_label_share: float,
    marks: Sequence[float],
    num_samples: int,
    metrics: Sequence[str],
    metric_seed: int,
    is_full_batch: bool = False,
    on_step: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Rows]]:
    """Label, fit and judge; arguments as for ``fit_own`` and ``run_peer``, results as those of the latter."""
    fit = fit_own(
        job,
        prepared,
        max_time_s=max_time_s,
        max_label_share=max_label_share,
        marks=marks,
        is_full_batch=is_full_batch,
        on_step=on_step,
    )
    seed = job.train.seed
    rows, num_bad = finite_rows(_draw_rows(fit.generator, num_samples, seed), name)
    drawn = prepared.transform.forward(rows[:4096])
    back = us_per_row(lambda n: prepared.transform.inverse(drawn[:n]), len(drawn))
    found: dict[str, Any] = {
        **figures(rows, prepared, metrics=metrics, seed=metric_seed),
        **_likelihood(fit.generator, prepared),
        "us_per_sample": us_per_row(lambda n: _draw_labels(fit.generator, n, seed, job.train.num_threads)),
        "us_per_sample_back": back,
        "fit_s": fit.fit_s,
        "label_s": fit.label_s,
        "configuration": _configuration(job),
        "num_pairs": fit.num_pairs,
        "num_pairs_wanted": job.labels.num_pairs,
        "num_steps": fit.num_steps,
        "num_parameters": fit.generator.network.num_parameters,
        "num_evaluations": 1,
        "num_not_finite": num_bad,
        "curve": [],
    }
    judged_rows = min(num_samples, len(prepared.test))
    for seconds, generator in fit.snapshots:
        good, _ = finite_rows(_draw_rows(generator, judged_rows, seed), name)
        found["curve"].append({"elapsed_s": seconds, **auc(good, prepared, seed=metric_seed)})
    last = {key: found[key] for key in ("c2st_auc", "c2st_auc_error")}
    found["curve"].append({"elapsed_s": fit.label_s + fit.fit_s, **last})
    on_step("judged")
    return {name: found}, {name: rows}


def _draw_rows(generator: Generator, num_rows: int, seed: int) -> NDArray[np.float64]:
    """``Generator.sample`` without offsets, as the prepared table is."""
    return np.concatenate([np.empty((0, len(generator.columns))), *generator.sample_ranges([(0, num_rows)], seed)])


def _draw_labels(generator: Generator, num_rows: int, seed: int, num_threads: int | None) -> None:
    """All that ``Generator.sample`` does but the way back to the user's units, which the peers' draws leave out too."""

    def block_rows(block: int) -> NDArray[np.float64]:
        first = block * BLOCK_ROWS
        drawn = normal_rows(seed, Stream.SAMPLE, first, first + BLOCK_ROWS, generator.network.num_inputs)
        return generator.predict_labels(drawn).astype(np.float64)

    dim = generator.network.dim
    for _ in draw_ranges(block_rows, unit_ranges(0, num_rows, dim), dim, num_threads=num_threads):
        pass


def _configuration(job: Job) -> dict[str, Any]:
    """What is shown of the job beside the peers' configurations."""
    labels = job.labels.model_dump(include={"estimator", "solver", "num_evaluations", "schedule", "t_min"})
    names = {
        "width",
        "depth",
        "block",
        "activation",
        "optimizer",
        "batch_size",
        "learning_rate",
        "learning_rate_schedule",
        "weight_decay",
        "ema_decay",
        "precision",
        "calibrate",
    }
    return {"transform": job.transform.kind, **labels, **job.train.model_dump(include=names)}


def _likelihood(generator: Generator, prepared: Prepared) -> dict[str, Any]:
    """Mean log density of the test rows in the user's units, where the generator gives one.

    The rows have the dequantization noise that the peers' have.
    """
    log_prob = getattr(generator, "log_prob", None)
    found: dict[str, Any] = {
        "test_log_likelihood": None,
        "test_log_likelihood_error": None,
        "num_likelihood_rows": 0,
        "num_likelihood_not_finite": 0,
    }
    if log_prob is None:
        return found
    try:
        values = np.asarray(log_prob(prepared.test, noise=prepared.noise("test")), dtype=np.float64)
    except TrainingError:  # the generator has no encoder
        return found
    found["num_likelihood_rows"] = len(values)
    found["num_likelihood_not_finite"] = int((~np.isfinite(values)).sum())
    if not found["num_likelihood_not_finite"]:
        found["test_log_likelihood"], found["test_log_likelihood_error"] = mean_and_error(values)
    return found
