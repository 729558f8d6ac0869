"""A scaling study as a job: labels and training by each number of workers, several times, and what follows from it.

strong: the same pairs, or the same fit, for every number of workers
weak: so many times the pairs; for a fit so many times the pairs in batches so many times as large
    scale/runs/STAGE-MODE-WORKERS-REPEAT.json     one a run, written when it is over; the study goes on from them
    scale/scale.json, scale/scale.html            of all runs of this job that are there

Every training worker has the same number of CPUs, however many there are: the cluster's, divided by the most workers.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfg_dist.config import Job, resolve_job
from sfg_dist.data import Prepared
from sfg_dist.errors import ConfigError
from sfg_dist.objects import is_url
from sfg_dist.output import Listener, OutputDirectory
from sfg_dist.pipeline import Pipeline, as_job
from sfg_dist.planning import check_job, identity_of_keys, versions
from sfg_dist.scale.fits import efficiencies, fit_laws
from sfg_dist.store import Location
from sfg_dist.table_plan import prepare_table
from sfg_dist.train_run import fit_settings

FOLDER = "scale"
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
    use_gpu: bool | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run the study, or what is missing of it, and write scale.json and scale.html.

    Args:
        job: the path of a job file, a mapping of its tables, or a checked job. Its fit is ended by num_epochs.
        workers: numbers of label actors and of training workers.
        stages: "label", "train".
        modes: "strong", "weak".
        repeats: of each run; they take turns, so that a slow hour of the machine meets all of them.
        use_gpu: whether training workers hold a GPU each; if None where the cluster has as many.
        listener: called with every event.

    Returns:
        The document of scale.json: runs, summary (by stage and mode), fit, facts.

    Raises:
        ConfigError: a number, stage or mode is none, or the job does not go with it.
        SfgError: what failed; finished runs are kept.
    """
    study = Study(as_job(job), workers, stages=stages, modes=modes, repeats=repeats, use_gpu=use_gpu, listener=listener)
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
        if repeats < 1:
            raise ConfigError(f"repeats = {repeats}: expected 1 or more")
        if job.executor.kind != "ray":
            raise ConfigError('a scaling study is of Ray workers: leave executor.kind = "inline" out')
        if job.labels.latents is not None and "weak" in modes:
            raise ConfigError("weak scaling needs more pairs for more workers: labels.latents fixes their number")
        if job.executor.actors_per_group > 1 or job.executor.num_cpu_actors:
            raise ConfigError("a scaling study is of actors of one kind: leave actors_per_group and num_cpu_actors out")
        super().__init__(job.output.dir, listener)
        self.job, self.workers, self.stages, self.modes, self.repeats = job, sorted(workers), stages, modes, repeats
        self.use_gpu = use_gpu
        self._prepared: Prepared | None = None

    def run(self) -> dict[str, Any]:
        """All that is missing, then the document and the page."""
        cases = [
            Case(stage, mode, number, repeat)
            for repeat in range(self.repeats)
            for stage in self.stages
            for mode in self.modes
            for number in self.workers
        ]
        with self.stage("scale", runs=len(cases)):
            try:
                for case in cases:
                    if (record := self._kept(case)) is not None:
                        self.emit("run_kept", **_short(record))
                    else:
                        self._make(case)
            finally:
                self._clear(self._work)
            document = self._document(self._all_kept())
            self._write(document)
        return document

    def _keys(self, case: Case) -> dict[str, Any]:
        """What decides a run."""
        job = self._job_of(case, "").model_dump(exclude_none=True)
        keys: dict[str, Any] = identity_of_keys(self.job) | {"source": self.job.data.source}
        keys |= {name: job["labels"].get(name) for name in ("num_pairs", "num_threads", "memory_gib")}
        keys["executor"] = {name: value for name, value in job["executor"].items() if name != "num_actors"}
        keys |= {"host": platform.node(), "versions": versions()}
        if case.stage == "train":  # the most workers decide how many CPUs each has
            keys |= {"train": job["train"], "use_gpu": self.use_gpu, "most_workers": max(self.workers)}
        return keys

    def _kept(self, case: Case) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self.output.read(f"{FOLDER}/runs/{case.name}.json") or b"")
            if record.pop("keys") != json.loads(json.dumps(self._keys(case))):
                return None
        except (ValueError, KeyError):
            return None
        return record

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
        from sfg_dist.distributed.scaling import measure_fit, measure_labels, num_cpus_of_cluster

        job = self._job_of(case, "")
        # Fits over as many pairs share a store, and are not kept waiting for its labels.
        folder = f"{self._work}/{'run' if case.stage == 'label' else job.labels.num_pairs}"
        self._clear(folder if case.stage == "label" else f"{folder}/checkpoints")
        job = self._job_of(case, folder)
        pipeline = _OverTable(job, self._table())
        with pipeline.session():
            pipeline.need_ray()
            if case.stage == "label":
                url = pipeline.open_store().location.url
                return measure_labels(
                    str(Path(url).absolute()) if not is_url(url) else url,
                    case.num_workers,
                    num_threads=job.labels.num_threads,
                    memory_gib=job.labels.memory_gib,
                    num_gpus_per_actor=job.executor.num_gpus_per_actor,
                    shard_timeout_s=job.executor.shard_timeout_s,
                    max_attempts=job.executor.max_attempts,
                ).to_json()
            pairs = pipeline.label()
            url = pairs.location.url
            checkpoints = pipeline.checkpoints_url
            if not is_url(url):
                url, checkpoints = str(Path(url).absolute()), str(Path(checkpoints).absolute())
            cpus = max(1, num_cpus_of_cluster() // max(self.workers))
            settings = fit_settings(job)
            if settings.num_threads is None:
                settings = replace(settings, num_threads=cpus)
            return measure_fit(
                url, checkpoints, settings, case.num_workers, num_cpus_per_worker=cpus, use_gpu=self.use_gpu
            ).to_json()

    def _job_of(self, case: Case, folder: str) -> Job:
        document = self.job.model_dump(exclude_none=True)
        document["output"]["dir"] = folder or self.url
        document["train"]["encoder"] = False
        document["train"].pop("max_time_s", None)
        if case.mode == "weak":
            document["labels"]["num_pairs"] *= case.num_workers
            if case.stage == "train":
                document["train"]["batch_size"] *= case.num_workers
        if case.stage == "label":
            document["executor"]["num_actors"] = case.num_workers
        else:
            document["train"]["num_workers"] = case.num_workers
        return resolve_job(document)

    def _table(self) -> Prepared:
        if self._prepared is None:
            self._prepared = prepare_table(self.job)
        return self._prepared

    def _clear(self, folder: str) -> None:
        if not is_url(folder):
            shutil.rmtree(folder, ignore_errors=True)
            return
        location = Location(folder)
        for entry in list(location.list()):
            location.delete(entry.key)

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
                    entry["parts_s"] = _mean_parts(own, entry["num_workers"])
                summary[f"{stage}, {mode}"] = entries
                if mode == "strong":
                    fit[stage] = fit_laws(columns[0], columns[1])
        facts = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "host": platform.node(), **versions()}
        return {"runs": list(runs), "summary": summary, "fit": fit, "facts": facts}

    def _write(self, document: Mapping[str, Any]) -> None:
        with self.writing(f"{FOLDER}/scale.json and {FOLDER}/scale.html"):
            write_study(self.job, document)
        self.emit("report", path=f"{self.url}/{FOLDER}/scale.html")


class _OverTable(Pipeline):
    """A pipeline over a table that is read already."""

    def __init__(self, job: Job, prepared: Prepared) -> None:
        super().__init__(job)
        self._prepared = prepared


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("stage", "mode", "num_workers", "repeat", "wall_s", "rows") if key in record}


def _mean_parts(runs: Sequence[Mapping[str, Any]], num_workers: int) -> dict[str, float]:
    own = [run["parts_s"] for run in runs if run["num_workers"] == num_workers]
    return {name: sum(parts[name] for parts in own) / len(own) for name in own[0]}


def compare_studies(first: str | Path, second: str | Path) -> list[dict[str, Any]]:
    """Two studies side by side: for each case of both, the ratio of times with its spread.

    Args:
        first, second: scale.json, or the directory that holds scale/.

    Returns:
        Entries with case, num_workers, wall_s of both, ratio (second over first), ratio_low, ratio_high.

    Raises:
        ConfigError: a file is none, or nothing is in both.
    """
    studies = [read_study(path) for path in (first, second)]
    entries = []
    for case in studies[0]["summary"]:
        others = {entry["num_workers"]: entry for entry in studies[1]["summary"].get(case, ())}
        for one in studies[0]["summary"][case]:
            other = others.get(one["num_workers"])
            if other is not None:
                entries.append(
                    {
                        "case": case,
                        "num_workers": one["num_workers"],
                        "wall_s": [one["wall_s"], other["wall_s"]],
                        "ratio": other["wall_s"] / one["wall_s"],
                        "ratio_low": other["wall_s_low"] / one["wall_s_high"],
                        "ratio_high": other["wall_s_high"] / one["wall_s_low"],
                    }
                )
    if not entries:
        raise ConfigError(f"{first} and {second} have no stage with as many workers in common")
    return entries


def write_study(job: Job, document: Mapping[str, Any]) -> None:
    """scale.json and its page, in the job's output directory."""
    from sfg_dist.scale.page import render_page

    page = render_page(document, title=f"Scaling: {Path(job.data.source).name}", job_toml=job.to_toml())
    output = Location(job.output.dir, create=True)
    output.write(f"{FOLDER}/scale.html", page.encode())
    output.write(f"{FOLDER}/scale.json", json.dumps(document, indent=1).encode())


def read_study(path: str | Path) -> dict[str, Any]:
    """The document of a study.

    Args:
        path: scale.json, or a directory or URL that holds it.

    Raises:
        ConfigError: there is none, or it is none.
    """
    folder, name = str(path).rstrip("/"), "scale.json"
    if folder.endswith(".json"):
        folder, _, name = folder.rpartition("/")
    if is_url(folder) or Path(folder or ".").is_dir():
        location = Location(folder or ".")
        for candidate in (name, f"{FOLDER}/{name}"):
            if (content := location.read(candidate)) is None:
                continue
            try:
                document: dict[str, Any] = json.loads(content)
                document["summary"], document["runs"]
                return document
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{folder}/{candidate} is no scaling study: {error!r}") from None
    raise ConfigError(f"{path} holds no scale.json: run `sfg scale` first")
