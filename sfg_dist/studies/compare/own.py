"""This package under the budget: its ordinary pipeline, labels included; and the procedure as published.

Both run the stages of ``Pipeline`` in this process, on as many threads as the peers, in a directory that is removed.
The label stage may take a stated share of the budget: after a first part its pace is known, and no more pairs are made
than that share allows. The fit has the rest. Outside the budget is, for ours as for the peers, what a machine or a
process does once: importing libraries and compiling kernels.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared
from sfg_dist.data.cells import draws_cells
from sfg_dist.distributed.fit.checkpoints import load_average
from sfg_dist.job.config import ExecutorConfig, Job, resolve_job
from sfg_dist.job.errors import TrainingError
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.model import MLP, Calibration, Generator
from sfg_dist.model.cell_network import CellNetwork
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.model.sampling import SAMPLE_ROWS, draw_ranges, unit_ranges
from sfg_dist.pipeline.budget import compile_kernels, label_within
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.studies.compare.judging import Draw, FitFacts, Fitted, Rows, Rules

RESERVED_SHARE = 0.015  # of the budget, for opening the pairs, starting the encoder's process and saving the network
CHECKPOINTS_A_BUDGET = 16  # snapshots are read from them; each costs the fit some 50 ms
MIN_CHECKPOINT_S = 0.5
MANY_EPOCHS = 1_000_000  # the clock ends the fit, not the epochs

# Hidden units by the columns of the data sets that the paper's code names them for.
PUBLISHED_WIDTHS = {6: 256, 8: 512, 21: 1024, 43: 1400}
PUBLISHED_TRANSFORM = {"kind": "standardize"}
PUBLISHED_LABELS: Mapping[str, Any] = {
    "num_pairs": 200_000, "t_min": 0.01, "schedule": "linear_floor", "estimator": "minibatch", "num_reference": 1000,
    "solver": "euler", "time_grid": "uniform", "num_evaluations": 500, "batch_size": 5000, "shard_rows": 5000,
}  # fmt: skip
PUBLISHED_TRAIN: Mapping[str, Any] = {
    "depth": 2, "block": "plain", "activation": "tanh", "linear_skip": False, "validation_fraction": 0.001,
    "optimizer": "adamw", "precision": "float32", "learning_rate": 2e-3, "weight_decay": 0,
    "learning_rate_schedule": "constant", "ema_decay": 0, "calibrate": False,
}  # fmt: skip
SHOWN_LABELS = {"estimator", "solver", "num_evaluations", "schedule", "t_min"}
SHOWN_TRAIN = {"width", "depth", "block", "activation", "experts", "optimizer", "batch_size",
               "learning_rate", "learning_rate_schedule", "weight_decay", "ema_decay", "precision",
               "calibrate"}  # fmt: skip
"""Keys that the page shows beside the peers' configurations."""


@dataclass(frozen=True)
class OwnFit:
    """What the pipeline made under the budget: the result, and (seconds of the budget, generator as it stood)."""

    generator: Generator
    facts: FitFacts
    snapshots: Sequence[tuple[float, Generator]]

    def as_judged(self, name: str, job: Job, table: Prepared) -> Fitted:
        """The fit as a row of the table."""
        seed = job.train.seed
        return Fitted(
            name=name,
            draw=partial(_samples, self.generator, seed),
            earlier=partial(self._earlier, seed),
            draw_flow_rows=partial(_draw_labels, self.generator, seed, job.train.num_threads),
            transform=table.transform,
            test_log_density=_test_log_density(self.generator, table),
            facts=self.facts,
        )

    def _earlier(self, seed: int) -> Iterator[tuple[float, Draw]]:
        for seconds, generator in self.snapshots:
            yield seconds, partial(_samples, generator, seed)


def own_job(job: Job, *, num_threads: int, seed: int, shape: tuple[int, int] | None = None) -> Job:
    """The job as its cell runs it: in this process, ended by the clock.

    ``seed`` is added to the seeds of labels and of the fit; ``shape`` is another width and depth of the network.
    """
    width, depth = shape or (job.train.width, job.train.depth)
    # One process, since each method has the same number of threads.
    return job.model_copy(update={"executor": ExecutorConfig(kind="inline", num_actors=1)}).changed(
        labels={"num_threads": num_threads, "seed": job.labels.seed + seed},
        train={
            "num_threads": num_threads,
            "num_workers": 1,
            "seed": job.train.seed + seed,
            "num_epochs": MANY_EPOCHS,
            "width": width,
            "depth": depth,
        },
    )


def published_job(job: Job, dim: int, *, num_threads: int, seed: int) -> Job:
    """The procedure as published, on the job's table and split: mini-batches, uniform Euler steps, a tanh network.

    The width is that of the published data set with the nearest number of columns.
    """
    document = own_job(job, num_threads=num_threads, seed=seed).model_dump(exclude_none=True)
    nearest = min(PUBLISHED_WIDTHS, key=lambda columns: abs(np.log(columns / dim)))
    document["transform"] = dict(PUBLISHED_TRANSFORM)
    document["labels"] = {"num_threads": num_threads, "seed": job.labels.seed + seed, **PUBLISHED_LABELS}
    document["train"] = {
        **{name: document["train"][name] for name in ("num_threads", "num_workers", "seed", "num_epochs")},
        "width": PUBLISHED_WIDTHS[nearest],
        **PUBLISHED_TRAIN,
    }
    return resolve_job(document)


def fit_own(
    job: Job,
    prepared: Prepared,
    rules: Rules,
    *,
    max_label_share: float,
    is_full_batch: bool = False,
    on_step: Callable[[str, str], None] = lambda done, following: None,
) -> OwnFit:
    """Run the label and the train stage of ``own_job`` or ``published_job`` within the budget of ``rules``.

    Labels may take ``max_label_share`` of it. With ``is_full_batch`` one batch holds all pairs, as published.

    Raises:
        TrainingError: the labels alone took the whole budget.
    """
    compile_kernels(job, prepared)
    max_time_s, wanted = rules.max_time_s, job.labels.num_pairs
    reserved_s = RESERVED_SHARE * max_time_s + _calibration_time(job, prepared)
    with tempfile.TemporaryDirectory(prefix="sfg-compare-") as folder:
        job = job.changed(output={"dir": folder})
        started = time.perf_counter()
        job = label_within(job, prepared, max_label_share * max_time_s, started)
        label_s = time.perf_counter() - started
        left_s = max_time_s - label_s - reserved_s
        num_pairs = job.labels.num_pairs
        on_step(f"{num_pairs:,} labels in {label_s:.1f} s", "fitting the network")
        if left_s <= 0:
            raise TrainingError(
                f"the labels took {label_s:.0f} s of the {max_time_s:g} s: raise compare.max_time_s or lower "
                f"labels.num_pairs"
            )
        keys = {"max_time_s": left_s, "checkpoint_interval_s": max(MIN_CHECKPOINT_S, max_time_s / CHECKPOINTS_A_BUDGET)}
        if is_full_batch:
            keys |= {"batch_size": num_pairs, "shuffle_rows": num_pairs}
        watcher = _Watcher(folder, label_s, [mark * max_time_s for mark in rules.marks])
        started = time.perf_counter()
        generator = Pipeline(job.changed(train=keys), watcher, prepared=prepared).train()
        fit_s = time.perf_counter() - started
        on_step(f"fitted in {fit_s:.1f} s, {watcher.num_steps:,} steps", "judging")
    facts = FitFacts(
        label_s=label_s,
        fit_s=fit_s,
        num_steps=watcher.num_steps,
        num_parameters=generator.network.num_parameters,
        num_evaluations=1,
        configuration={
            "transform": job.transform.kind,
            **job.labels.model_dump(include=SHOWN_LABELS),
            **job.train.model_dump(include=SHOWN_TRAIN),
        },
        num_pairs=num_pairs,
        num_pairs_wanted=wanted,
    )
    snapshots = [(seconds, _as_it_stood(generator, weights, prepared, job)) for seconds, weights in watcher.snapshots]
    return OwnFit(generator, facts, snapshots)


def _calibration_time(job: Job, prepared: Prepared) -> float:
    """Seconds that follow the last step of the fit, measured on a network of the same size."""
    if not job.train.calibrate or draws_cells(prepared.transform, job.train.cells):
        return 0.0
    shape = job.train.model_dump(include={"width", "depth", "block", "activation", "linear_skip"})
    reference, experts = prepared.reference(), job.train.experts
    network: MLP | ExpertNetwork = MLP(prepared.transform.dim, **shape)
    if experts > 1:
        network = ExpertNetwork.of_reference(reference, prepared.transform.dim, experts=experts, **shape)
    _calibrated(network, reference, job.train.seed)  # compiled now, or read from the cache
    started = time.perf_counter()
    _calibrated(network, reference, job.train.seed)
    return time.perf_counter() - started


def _calibrated(network: MLP | ExpertNetwork, reference: NDArray[np.float32], seed: int) -> Calibration:
    """What follows the last step of a fit."""
    if isinstance(network, ExpertNetwork):
        network.match_shares(reference, seed=seed)
    return Calibration.fit(network, reference, seed=seed)


class _Watcher:
    """Keeps the averaged weights of the newest checkpoint in the fit's folder when a mark, in seconds, is passed.

    The labels took ``label_s`` of the budget before.
    """

    def __init__(self, folder: str, label_s: float, marks_s: Sequence[float]) -> None:
        self.checkpoints = f"{folder}/checkpoints"
        self.label_s = label_s
        self.waiting = [mark for mark in marks_s if mark > label_s]
        self.snapshots: list[tuple[float, Mapping[str, Any]]] = []
        self.num_steps = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Look at an event of the pipeline."""
        if event["event"] != "epoch":
            return
        self.num_steps = int(event["step"])
        if self.waiting and self.label_s + event["elapsed_s"] >= self.waiting[0]:
            newest = load_average(self.checkpoints)
            if newest is not None:
                elapsed_s, weights = newest
                while self.waiting and self.label_s + event["elapsed_s"] >= self.waiting[0]:
                    del self.waiting[0]
                self.snapshots.append((self.label_s + elapsed_s, weights))


def _as_it_stood(generator: Generator, weights: Mapping[str, Any], prepared: Prepared, job: Job) -> Generator:
    """The generator with earlier weights, calibrated like the last ones."""
    network = copy.deepcopy(generator.network)
    network.load_state_dict(weights)
    calibration = None
    if not isinstance(network, CellNetwork) and generator.calibration is not None:
        calibration = _calibrated(network, prepared.reference(), job.train.seed)
    elif isinstance(network, ExpertNetwork):
        network.match_shares(prepared.reference(), seed=job.train.seed)
    return replace(generator, network=network, calibration=calibration)


def _samples(generator: Generator, seed: int, num_rows: int) -> Rows:
    """``Generator.sample`` without offsets, as the prepared table is."""
    return np.concatenate([np.empty((0, len(generator.columns))), *generator.sample_ranges([(0, num_rows)], seed)])


def _draw_labels(generator: Generator, seed: int, num_threads: int | None, num_rows: int) -> None:
    """All that ``Generator.sample`` does but the way back to the user's units, which the peers' draws leave out too."""

    def block_rows(block: int) -> NDArray[np.float64]:
        first = block * SAMPLE_ROWS
        drawn = normal_rows(seed, Stream.SAMPLE, first, first + SAMPLE_ROWS, generator.network.num_inputs)
        return generator.predict_labels(drawn).astype(np.float64)

    dim = generator.network.dim
    for _ in draw_ranges(block_rows, unit_ranges(0, num_rows, dim), dim, num_threads=num_threads):
        pass


def _test_log_density(generator: Generator, table: Prepared) -> NDArray[np.float64]:
    """Log density of the test rows, with the dequantization noise that the peers' have; empty without an encoder."""
    try:
        return np.asarray(generator.log_prob(table.test, noise=table.noise("test")), dtype=np.float64)
    except TrainingError:
        return np.empty(0)
