"""A scaling study as a job: labels and training by each number of workers, several times, and what follows from it.

strong: the same pairs, or the same fit, for every number of workers
weak: so many times the pairs; for a fit so many times the pairs in batches so many times as large
    scale/runs/STAGE-MODE-WORKERS-REPEAT.json     one a run, written when it is over; the study goes on from them
    scale/scale.json, scale/scale.html            of all runs of this job that are there

Every training worker has the same CPUs, or a GPU, however many there are: what the most workers of the study find room
with. A fit has a few epochs and no time limit, whatever the job says. Runs of different numbers of workers take turns,
every other turn from the most to the fewest, after a short run of each stage that is not counted.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfg_dist.data import Prepared
from sfg_dist.distributed.fit.generator import fit_settings
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.version import versions
from sfg_dist.pipeline.check import as_job, check_job
from sfg_dist.pipeline.choices import t_min_of
from sfg_dist.pipeline.output import Listener, OutputDirectory
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.plan import identity_of_keys
from sfg_dist.pipeline.table import prepare_table
from sfg_dist.studies.records import Keys, Records, from_json, to_json
from sfg_dist.studies.scale.document import FOLDER, LOAD, NOT_KEYS, compare_studies, read_study, write_study
from sfg_dist.studies.scale.fits import efficiencies, fit_laws
from sfg_dist.studies.scale.predict import assumptions, predict, shard_bytes, slowdown, validate
from sfg_dist.studies.scale.results import Efficiency, Laws, Run, StudyDocument
from sfg_dist.studies.scale.simulated_cluster import Limits

if TYPE_CHECKING:
    from sfg_dist.job.config import TrainConfig

NUM_EPOCHS = 5  # of a fit: enough for its pace
STAGES, MODES = ("label", "train"), ("strong", "weak")


@dataclass(frozen=True)
class ScaleSettings:
    """What a study measures, predicts and is compared with."""

    # numbers of label actors and of training workers to measure; none reads the study that is there
    workers: Sequence[int] = ()
    stages: Sequence[str] = STAGES  # "label", "train"
    modes: Sequence[str] = ("strong",)  # "strong", "weak"
    repeats: int = 3  # of each run; they take turns, so that a slow hour of the machine meets all of them
    num_epochs: int = NUM_EPOCHS  # of each fit, no more than the job's
    # whether training workers hold a GPU each; if None where the cluster has one for each of the most
    use_gpu: bool | None = None
    simulated_workers: Sequence[int] = ()  # numbers of workers to predict
    shard_seconds: Sequence[float] = (1.0, 10.0, 60.0)  # integration of a shard in the predictions
    # of the clusters there; shard_bytes of 0 stands for what the study's own shards move
    limits: Limits = field(default_factory=Limits)
    compare_with: str | None = None  # another study's directory, URL or scale.json


@dataclass(frozen=True)
class Case:
    """One run to be made."""

    stage: str
    mode: str
    num_workers: int
    repeat: int

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.stage}-{self.mode}-{self.num_workers}-{self.repeat}"


def scale(
    job: str | Path | Mapping[str, Any] | Job, settings: ScaleSettings, *, listener: Listener | None = None
) -> StudyDocument:
    """Run the study, or what is missing of it, predict and compare, and write scale.json and scale.html.

    ``job`` is the path of a job file, a mapping of its tables, or a checked job. All that can be wrong with the
    settings is found before anything is measured. ``listener`` is called with every event.

    Raises:
        ConfigError: a setting is wrong, or the job does not go with it.
        SfgError: what failed; finished runs are kept.
    """
    job = as_job(job)
    place, simulated, other = job.output.dir, settings.simulated_workers, settings.compare_with
    if other is not None:
        read_study(other)
    if settings.workers:
        study = Study(job, settings, listener)
        if simulated and "label" not in settings.stages and not study.has_labels:
            raise ConfigError("a prediction takes its costs from label runs, of which there are none: "
                              "add --stages label")  # fmt: skip
        document = study.run()
    else:
        document = read_study(place)
    if simulated:
        limits = settings.limits
        if not limits.shard_bytes:
            limits = replace(limits, shard_bytes=shard_bytes(document))
        document = replace(
            document,
            validation=validate(document),
            slowdown=slowdown(document),
            assumptions=assumptions(limits),
            predictions=predict(document, simulated, shard_seconds=settings.shard_seconds, limits=limits),
        )
    if other is not None:
        document = replace(document, comparison=compare_studies(other, place))
    if simulated or other is not None:
        write_study(place, document)
    return document


class Study(OutputDirectory):
    """The runs of a study in its job's output directory; arguments and errors as for ``scale``."""

    def __init__(self, job: Job, settings: ScaleSettings, listener: Listener | None = None) -> None:
        check_job(job)
        _check(job, settings)
        super().__init__(job.output.dir, listener)
        self.job = job.changed(executor={"kind": "ray"})  # whoever is sooner, the study is of Ray's workers
        self.settings, self.workers = settings, sorted(settings.workers)
        self.num_epochs = min(settings.num_epochs, job.train.num_epochs)
        self._prepared: Prepared | None = None
        self._warm: set[str] = set()
        self._gpus = settings.use_gpu
        self._cluster: list[str] = []

    def run(self) -> StudyDocument:
        """All that is missing, then the document and the page."""
        settings = self.settings
        cases = [
            Case(stage, mode, number, repeat)
            for repeat in range(settings.repeats)
            for stage in settings.stages
            for mode in settings.modes
            for number in (reversed(self.workers) if repeat % 2 else self.workers)
        ]
        self.require_own()
        with self.stage("scale", runs=len(cases)):
            self._clear(self._work)  # of a study that was killed
            self._cluster = self._shape()
            try:
                for case in cases:
                    if (run := self._kept(case)) is not None:
                        self._tell("run_kept", run)
                    else:
                        self._make(case)
            finally:
                self._clear(self._work)
                document = self._document(self._all_kept())
                if document.runs:  # of a study that is stopped, too
                    with self.writing(f"{FOLDER}/scale.json and {FOLDER}/scale.html"):
                        write_study(self.url, document)
                    self.emit("report", path=f"{self.url}/{FOLDER}/scale.html")
        return document

    @property
    def has_labels(self) -> bool:
        """Whether there are label runs already."""
        return any("/label-" in f"/{entry.key}" for entry in self.output.list(f"{FOLDER}/runs"))

    def _shape(self) -> list[str]:
        """What the runs are made on: this machine, or the nodes of a cluster, from wherever its driver runs."""
        if self.job.executor.address is None:
            return [platform.node()]
        from sfg_dist.distributed.nodes import alive_nodes

        pipeline = Pipeline(self.job)
        with pipeline.session():
            pipeline.need_ray()
            nodes = alive_nodes()
        kinds = [[name for name in node if name.startswith("accelerator_type:")] for node in nodes]
        return sorted(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs {' '.join(sorted(kind))}".strip()
            for node, kind in zip(nodes, kinds, strict=True)
        )

    def _keys(self, case: Case) -> Keys:
        """All that decides a run."""
        job = self._job_of(case, "").model_dump(exclude_none=True)
        identity = identity_of_keys(self.job)
        identity["labels"].setdefault("t_min", t_min_of(self.job, self._table(), None))
        keys: dict[str, object] = identity | {"source": self.job.data.source}
        keys |= {name: job["labels"].get(name) for name in ("num_pairs", "num_threads", "memory_gib")}
        keys["executor"] = {name: value for name, value in job["executor"].items() if name not in NOT_KEYS}
        keys |= {"cluster": self._cluster, "versions": versions()}
        if case.stage == "train":  # the most workers decide how many CPUs each has
            keys |= {"train": job["train"], "use_gpu": self.settings.use_gpu, "most_workers": max(self.workers)}
        return keys

    @property
    def _records(self) -> Records:
        return Records(self.output, f"{FOLDER}/runs", {})

    def _kept(self, case: Case) -> Run | None:
        return self._records.load(case.name, self._keys(case), lambda document: from_json(Run, document, case.name))

    def _all_kept(self) -> list[Run]:
        """Runs of this job, those of earlier calls with other numbers too."""
        found = []
        for entry in sorted(self.output.list(f"{FOLDER}/runs"), key=lambda entry: entry.key):
            words = entry.key.rpartition("/")[2].removesuffix(".json").split("-")
            if len(words) == 4 and words[2].isdigit() and words[3].isdigit():
                run = self._kept(Case(words[0], words[1], int(words[2]), int(words[3])))
                found += [run] if run is not None else []
        return sorted(found, key=lambda run: (run.stage, run.mode, run.num_workers, run.repeat))

    @property
    def _work(self) -> str:
        return f"{self.url}/{FOLDER}/work"

    def _make(self, case: Case) -> None:
        load_before = round(os.getloadavg()[0], 2)
        self.emit("run_started", stage=case.stage, mode=case.mode, num_workers=case.num_workers, repeat=case.repeat)
        run = replace(self._measure(case), mode=case.mode, repeat=case.repeat, load_average=load_before)
        with self.writing(f"{FOLDER}/runs/{case.name}.json"):
            self._records.save(case.name, self._keys(case), to_json(run))
        self._tell("run_finished", run)

    def _tell(self, event: str, run: Run) -> None:
        shown = ("stage", "mode", "num_workers", "repeat", "wall_s", "rows")
        self.emit(event, **{name: getattr(run, name) for name in shown})

    def _measure(self, case: Case) -> Run:
        # Fits over as many pairs share a store, and are not kept waiting for its labels.
        is_label = case.stage == "label"
        folder = f"{self._work}/{'run' if is_label else self._job_of(case, '').labels.num_pairs}"
        self._clear(folder if is_label else f"{folder}/checkpoints")
        pipeline = Pipeline(self._job_of(case, folder), prepared=self._table())
        with pipeline.session():
            pipeline.need_ray()
            self._require_places(case)
            return self._measure_labels(pipeline) if is_label else self._measure_fit(case, pipeline)

    def _require_places(self, case: Case) -> None:
        """Before the first run: for the most workers too."""
        from sfg_dist.distributed.nodes import alive_nodes, require_places

        executor, most = self.job.executor, max(self.workers)
        if case.stage == "label":
            cluster_gpus = sum(node.get("GPU", 0.0) for node in alive_nodes())
            gpus = min(1.0, cluster_gpus) if executor.num_gpus_per_actor is None else executor.num_gpus_per_actor
            require_places(most, num_cpus=self.job.labels.num_threads, num_gpus=gpus, what="actors")
        else:
            gpus = 1.0 if self._has_gpus() else 0.0
            require_places(most, num_cpus=1, num_gpus=gpus, what="training workers")

    def _has_gpus(self) -> bool:
        from sfg_dist.distributed.nodes import alive_nodes, num_places

        if self._gpus is None:
            self._gpus = num_places(alive_nodes(), num_cpus=1, num_gpus=1.0) >= max(self.workers)
        return self._gpus

    def _measure_labels(self, pipeline: Pipeline) -> Run:
        from sfg_dist.studies.scale.measuring import measure_labels

        if "label" not in self._warm:
            job = pipeline.job.changed(
                labels={"num_pairs": min(self.job.labels.num_pairs, self.job.labels.shard_rows)},
                output={"dir": f"{self._work}/warm"},
                executor={"num_actors": 1},
            )
            measure_labels(Pipeline(job, prepared=self._table()).open_store(), job)
            self._warm.add("label")
        return measure_labels(pipeline.open_store(), pipeline.job)

    def _measure_fit(self, case: Case, pipeline: Pipeline) -> Run:
        from sfg_dist.distributed.nodes import alive_nodes, largest_share
        from sfg_dist.studies.scale.measuring import measure_fit

        url, checkpoints = pipeline.label().location.url, pipeline.checkpoints_url
        if not is_url(url):
            url, checkpoints = str(Path(url).absolute()), str(Path(checkpoints).absolute())
        cpus = largest_share(alive_nodes(), max(self.workers))
        settings = fit_settings(pipeline.job)
        if settings.num_threads is None:
            settings = settings.model_copy(update={"num_threads": cpus})
        has_gpus = self._has_gpus()

        def measure(settings: TrainConfig) -> Run:
            number = case.num_workers
            return measure_fit(url, checkpoints, settings, number, num_cpus_per_worker=cpus, use_gpu=has_gpus)

        if "train" not in self._warm:
            measure(settings.model_copy(update={"num_epochs": 1}))
            self._clear(checkpoints)
            self._warm.add("train")
        return replace(measure(settings), worker="1 GPU" if has_gpus else f"{cpus} CPUs")

    def _job_of(self, case: Case, folder: str) -> Job:
        is_fit, times = case.stage == "train", case.num_workers if case.mode == "weak" else 1
        train = {"encoder": False, "num_epochs": self.num_epochs, "max_time_s": None, "patience": None}
        if is_fit:
            train |= {"num_workers": case.num_workers, "batch_size": self.job.train.batch_size * times}
        return self.job.changed(
            output={"dir": folder or self.url},
            labels={"num_pairs": self.job.labels.num_pairs * times},
            train=train,
            executor={} if is_fit else {"num_actors": case.num_workers},
        )

    def _table(self) -> Prepared:
        if self._prepared is None:
            self._prepared = prepare_table(self.job)
        return self._prepared

    def _clear(self, folder: str) -> None:
        self.output.clear(folder.removeprefix(f"{self.url}/"))

    def _document(self, runs: Sequence[Run]) -> StudyDocument:
        summary: dict[str, list[Efficiency]] = {}
        fit: dict[str, Laws] = {}
        for stage, mode in ((stage, mode) for stage in STAGES for mode in MODES):
            own = [run for run in runs if (run.stage, run.mode) == (stage, mode)]
            if own:
                summary[f"{stage}, {mode}"] = efficiencies(own)
                if mode == "strong":
                    fit[stage] = fit_laws([run.num_workers for run in own], [run.wall_s for run in own])
        loads = [run.load_average for run in runs]
        facts = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "host": platform.node(), **versions()}
        if any(run.stage == "train" for run in runs):
            facts["epochs of a fit"] = str(self.num_epochs)
        facts[LOAD] = f"{min(loads, default=0.0):.1f} to {max(loads, default=0.0):.1f}"
        if workers := sorted({run.worker for run in runs if run.worker is not None}):
            facts["a training worker"] = ", ".join(workers)
        return StudyDocument(runs, summary, facts, self.job.to_toml(), fit)


def _check(job: Job, settings: ScaleSettings) -> None:
    """Refuse settings that are wrong, and a job that they do not go with."""
    workers = settings.workers
    for word, values, known in (("stages", settings.stages, STAGES), ("modes", settings.modes, MODES)):
        wrong = [value for value in values if value not in known]
        if wrong or not values:
            raise ConfigError(f"{word}: {wrong[0] if wrong else 'nothing'}: expected some of {', '.join(known)}")
    if not workers or min(workers) < 1 or len(set(workers)) < len(workers):
        raise ConfigError(f"workers {list(workers)}: expected different numbers, 1 or more")
    if settings.repeats < 1 or settings.num_epochs < 1:
        raise ConfigError(
            f"repeats = {settings.repeats}, num_epochs = {settings.num_epochs}: expected 1 or more of both"
        )
    if job.executor.kind == "inline":
        raise ConfigError('a scaling study needs workers of Ray: leave executor.kind = "inline" out')
    if job.labels.latents is not None and "weak" in settings.modes:
        raise ConfigError("weak scaling needs more pairs for more workers: labels.latents fixes their number")
    if job.executor.actors_per_group > 1 or job.executor.num_cpu_actors:
        raise ConfigError("a scaling study needs actors of one kind: leave actors_per_group and num_cpu_actors out")
