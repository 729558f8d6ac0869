"""A scaling study as a job: labels and training by each number of workers, several times, and what follows from it.

strong: the same pairs, or the same fit, for every number of workers
weak: so many times the pairs; for a fit so many times the pairs in batches so many times as large
    scale/runs/STAGE-MODE-WORKERS-REPEAT.json     one a run, written when it is over; the study goes on from them
    scale/scale.json, scale/scale.html            of all runs of this job that are there

Every training worker has the same CPUs, or a GPU, however many there are: what the most workers of the study find room
with. A fit has a few epochs and no time limit, whatever the job says. Runs of different numbers of workers take turns,
every other turn from the most to the fewest, behind a short run of each stage that is not counted.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sfg_dist.data import Prepared
from sfg_dist.distributed.fit.generator import fit_settings
from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError, DocumentError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.job.version import versions
from sfg_dist.pipeline.check import check_job
from sfg_dist.pipeline.output import Listener, OutputDirectory
from sfg_dist.pipeline.pipeline import Pipeline, as_job
from sfg_dist.pipeline.plan import identity_of_keys
from sfg_dist.pipeline.table import prepare_table
from sfg_dist.studies.scale.document import FOLDER, LOAD, NOT_KEYS, RUN_FIELDS, write_study
from sfg_dist.studies.scale.fits import efficiencies, fit_laws

NUM_EPOCHS = 5  # of a fit: enough for its pace
STAGES, MODES = ("label", "train"), ("strong", "weak")


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
    job: str | Path | Mapping[str, Any] | Job,
    workers: Sequence[int],
    *,
    stages: Sequence[str] = STAGES,
    modes: Sequence[str] = ("strong",),
    repeats: int = 3,
    num_epochs: int = NUM_EPOCHS,
    use_gpu: bool | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run the study, or what is missing of it, and write scale.json and scale.html.

    Args:
        job: the path of a job file, a mapping of its tables, or a checked job.
        workers: numbers of label actors and of training workers.
        stages: "label", "train".
        modes: "strong", "weak".
        repeats: of each run; they take turns, so that a slow hour of the machine meets all of them.
        num_epochs: of each fit, no more than the job's.
        use_gpu: whether training workers hold a GPU each; if None where the cluster has one for each of the most.
        listener: called with every event.

    Returns:
        The document of scale.json: runs, summary (by stage and mode), fit, facts.

    Raises:
        ConfigError: a number, stage or mode is none, or the job does not go with it.
        SfgError: what failed; finished runs are kept.
    """
    study = Study(
        as_job(job), workers, stages=stages, modes=modes, repeats=repeats, num_epochs=num_epochs, use_gpu=use_gpu,
        listener=listener,
    )  # fmt: skip
    return study.run()


class Study(OutputDirectory):
    """A study in its job's output directory; arguments as for ``scale``."""

    def __init__(
        self,
        job: Job,
        workers: Sequence[int],
        *,
        stages: Sequence[str],
        modes: Sequence[str],
        repeats: int,
        num_epochs: int = NUM_EPOCHS,
        use_gpu: bool | None = None,
        listener: Listener | None = None,
    ) -> None:
        check_job(job)
        for word, values, known in (("stages", stages, STAGES), ("modes", modes, MODES)):
            wrong = [value for value in values if value not in known]
            if wrong or not values:
                raise ConfigError(f"{word}: {wrong[0] if wrong else 'nothing'}: expected some of {', '.join(known)}")
        if not workers or min(workers) < 1 or len(set(workers)) < len(workers):
            raise ConfigError(f"workers {list(workers)}: expected different numbers, 1 or more")
        if repeats < 1 or num_epochs < 1:
            raise ConfigError(f"repeats = {repeats}, num_epochs = {num_epochs}: expected 1 or more")
        if job.executor.kind != "ray":
            raise ConfigError('a scaling study is of Ray workers: leave executor.kind = "inline" out')
        if job.labels.latents is not None and "weak" in modes:
            raise ConfigError("weak scaling needs more pairs for more workers: labels.latents fixes their number")
        if job.executor.actors_per_group > 1 or job.executor.num_cpu_actors:
            raise ConfigError("a scaling study is of actors of one kind: leave actors_per_group and num_cpu_actors out")
        super().__init__(job.output.dir, listener)
        self.job, self.workers, self.stages, self.modes, self.repeats = job, sorted(workers), stages, modes, repeats
        self.num_epochs, self.use_gpu = min(num_epochs, job.train.num_epochs), use_gpu
        self._prepared: Prepared | None = None
        self._warm: set[str] = set()
        self._gpus = use_gpu
        self._cluster: list[str] = []

    def run(self) -> dict[str, Any]:
        """All that is missing, then the document and the page."""
        cases = [
            Case(stage, mode, number, repeat)
            for repeat in range(self.repeats)
            for stage in self.stages
            for mode in self.modes
            for number in (reversed(self.workers) if repeat % 2 else self.workers)
        ]
        self.require_own()
        with self.stage("scale", runs=len(cases)):
            self._clear(self._work)  # of a study that was killed
            self._cluster = self._shape()
            try:
                for case in cases:
                    if (record := self._kept(case)) is not None:
                        self.emit("run_kept", **_short(record))
                    else:
                        self._make(case)
            finally:
                self._clear(self._work)
                document = self._document(self._all_kept())
                if document["runs"]:  # of a study that is stopped, too
                    self._write(document)
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

    def _keys(self, case: Case) -> dict[str, Any]:
        """What decides a run."""
        job = self._job_of(case, "").model_dump(exclude_none=True)
        keys: dict[str, Any] = identity_of_keys(self.job) | {"source": self.job.data.source}
        keys |= {name: job["labels"].get(name) for name in ("num_pairs", "num_threads", "memory_gib")}
        keys["executor"] = {name: value for name, value in job["executor"].items() if name not in NOT_KEYS}
        keys |= {"cluster": self._cluster, "versions": versions()}
        if case.stage == "train":  # the most workers decide how many CPUs each has
            keys |= {"train": job["train"], "use_gpu": self.use_gpu, "most_workers": max(self.workers)}
        return keys

    def _kept(self, case: Case) -> dict[str, Any] | None:
        try:
            content = self.output.read(f"{FOLDER}/runs/{case.name}.json", LONG_BYTES)
            record: dict[str, Any] = read_json(
                content, case.name, {"keys": dict, **RUN_FIELDS}, max_bytes=LONG_BYTES, allow_nan=True
            )
        except DocumentError:
            return None
        return None if record.pop("keys") != json.loads(json.dumps(self._keys(case))) else record

    def _all_kept(self) -> list[dict[str, Any]]:
        """Records of this job, those of earlier calls with other numbers too."""
        found = []
        for entry in sorted(self.output.list(f"{FOLDER}/runs"), key=lambda entry: entry.key):
            words = entry.key.rpartition("/")[2].removesuffix(".json").split("-")
            if len(words) == 4 and words[2].isdigit() and words[3].isdigit():
                record = self._kept(Case(words[0], words[1], int(words[2]), int(words[3])))
                found += [record] if record is not None else []
        return sorted(found, key=lambda run: (run["stage"], run["mode"], run["num_workers"], run["repeat"]))

    @property
    def _work(self) -> str:
        return f"{self.url}/{FOLDER}/work"

    def _make(self, case: Case) -> dict[str, Any]:
        load_before = os.getloadavg()[0]
        self.emit("run_started", stage=case.stage, mode=case.mode, num_workers=case.num_workers, repeat=case.repeat)
        record = self._measure(case)
        record |= {"mode": case.mode, "repeat": case.repeat, "load_average": round(load_before, 2)}
        with self.writing(f"{FOLDER}/runs/{case.name}.json"):
            content = json.dumps({"keys": self._keys(case), **record}, indent=1)
            self.output.write(f"{FOLDER}/runs/{case.name}.json", content.encode())
        self.emit("run_finished", **_short(record))
        return record

    def _measure(self, case: Case) -> dict[str, Any]:
        # Fits over as many pairs share a store, and are not kept waiting for its labels.
        is_label = case.stage == "label"
        folder = f"{self._work}/{'run' if is_label else self._job_of(case, '').labels.num_pairs}"
        self._clear(folder if is_label else f"{folder}/checkpoints")
        pipeline = _OverTable(self._job_of(case, folder), self._table())
        with pipeline.session():
            pipeline.need_ray()
            self._require_places(case)
            if is_label:
                return self._measure_labels(pipeline)
            return self._measure_fit(case, pipeline)

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

    def _measure_labels(self, pipeline: Pipeline) -> dict[str, Any]:
        from sfg_dist.studies.scale.measuring import measure_labels

        measure = partial(
            measure_labels, num_threads=self.job.labels.num_threads, memory_gib=self.job.labels.memory_gib
        )
        if "label" not in self._warm:
            job = pipeline.job.changed(
                labels={"num_pairs": min(self.job.labels.num_pairs, self.job.labels.shard_rows)},
                output={"dir": f"{self._work}/warm"},
                executor={"num_actors": 1},
            )
            warm = _OverTable(job, self._table())
            measure(warm.open_store(), warm.job.executor)
            self._warm.add("label")
        return measure(pipeline.open_store(), pipeline.job.executor).to_json()

    def _measure_fit(self, case: Case, pipeline: Pipeline) -> dict[str, Any]:
        from sfg_dist.distributed.nodes import alive_nodes, largest_share
        from sfg_dist.studies.scale.measuring import measure_fit

        url, checkpoints = pipeline.label().location.url, pipeline.checkpoints_url
        if not is_url(url):
            url, checkpoints = str(Path(url).absolute()), str(Path(checkpoints).absolute())
        cpus = largest_share(alive_nodes(), max(self.workers))
        settings = fit_settings(pipeline.job)
        if settings.num_threads is None:
            settings = settings.model_copy(update={"num_threads": cpus})
        measure = partial(
            measure_fit, url, checkpoints, num_workers=case.num_workers, num_cpus_per_worker=cpus,
            use_gpu=self._has_gpus(),
        )  # fmt: skip
        if "train" not in self._warm:
            measure(settings.model_copy(update={"num_epochs": 1}))
            self._clear(checkpoints)
            self._warm.add("train")
        return measure(settings).to_json() | {"worker": "1 GPU" if self._has_gpus() else f"{cpus} CPUs"}

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

    def _document(self, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        summary, fit = {}, {}
        for stage in STAGES:
            for mode in MODES:
                own = [run for run in runs if (run["stage"], run["mode"]) == (stage, mode)]
                if not own:
                    continue
                columns = [[run[key] for run in own] for key in ("num_workers", "wall_s", "rows")]
                entries = efficiencies(*columns, mode=mode)
                for entry in entries:
                    entry["parts_s"] = _middle_parts(own, entry["num_workers"])
                summary[f"{stage}, {mode}"] = entries
                if mode == "strong":
                    fit[stage] = fit_laws(columns[0], columns[1])
        loads = [float(run.get("load_average", 0.0)) for run in runs]
        facts = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "host": platform.node(), **versions()}
        if any(run["stage"] == "train" for run in runs):
            facts["epochs of a fit"] = str(self.num_epochs)
        facts[LOAD] = f"{min(loads, default=0.0):.1f} to {max(loads, default=0.0):.1f}"
        if workers := sorted({run["worker"] for run in runs if "worker" in run}):
            facts["a training worker"] = ", ".join(workers)
        return {"runs": list(runs), "summary": summary, "fit": fit, "facts": facts, "job": self.job.to_toml()}

    def _write(self, document: Mapping[str, Any]) -> None:
        with self.writing(f"{FOLDER}/scale.json and {FOLDER}/scale.html"):
            write_study(self.url, document)
        self.emit("report", path=f"{self.url}/{FOLDER}/scale.html")


class _OverTable(Pipeline):
    """A pipeline over a table that is read already."""

    def __init__(self, job: Job, prepared: Prepared) -> None:
        super().__init__(job)
        self._prepared = prepared


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("stage", "mode", "num_workers", "repeat", "wall_s", "rows") if key in record}


def _middle_parts(runs: Sequence[Mapping[str, Any]], num_workers: int) -> dict[str, float]:
    """Of the run whose time is the median, the faster one of two."""
    own = sorted((run for run in runs if run["num_workers"] == num_workers), key=lambda run: float(run["wall_s"]))
    parts: dict[str, float] = own[(len(own) - 1) // 2]["parts_s"]
    return parts
