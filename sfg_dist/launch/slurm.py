"""Slurm: sbatch gets every value as a word of its own, and the script holds quoted values only.

Nothing here needs Slurm's accounting. scontrol knows a job while it runs and for some time after its end. After that
the notes of its attempts in the submission's folder say how it ended.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ClusterError, ConfigError
from sfg_dist.job.search_path import PACKAGE_ROOT, inherited_path, is_on_path_by_name
from sfg_dist.launch.profile import Container, Profile, Setup
from sfg_dist.launch.slurm_task import MANY_MACHINES
from sfg_dist.launch.submission import STAGES, Order, Rendered, Submission, pause, run_command, stage_words

PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING")
UNKNOWN = "UNKNOWN:"  # Slurm does not answer, which says nothing about the job
LEAST_WORK_S = 10
ENDING_S = 60  # of the notice, for a late signal, the end of actors and Ray, and the requeue
LEAST_NOTICE_S = 5  # for shards at work
JOB = "{job}"  # stands for a task's job file in the words of a stage
AFTER = "{previous}"  # stands for the previous job's id in a command that is not sent yet


def render(submission: Submission, order: Order) -> Rendered:
    """The files of a submission and the commands that send it."""
    profile, apart = order.profile, order.apart
    if apart and list(order.stages) != ["run"]:
        raise ConfigError("--apart has stages of its own, one job each: leave --stages out")
    _check_walltime(profile)
    parts = [[stage] for stage in STAGES] if apart else [list(order.stages)]
    files = {f"jobs/{number}.toml": _with_notice(job, profile) for number, job in enumerate(order.jobs)}
    commands = []
    for number, part in enumerate(parts):
        folder = submission.path / str(number) if apart else submission.path
        prefix = f"{number}/" if apart else ""
        files[f"{prefix}task.json"] = json.dumps(_task(submission, order.jobs, profile, part), indent=1)
        files[f"{prefix}slurm_task.py"] = resources.files(__package__).joinpath("slurm_task.py").read_text("utf-8")
        files[f"{prefix}job.sh"] = script(profile, str(folder))
        waits = list(order.after) if not number else [AFTER]
        commands.append(sbatch(submission, profile, str(folder), num_jobs=len(order.jobs), after=waits))
    return Rendered(commands, files)


def _with_notice(job: Job, profile: Profile) -> str:
    """The job file, in which shards may use the time between Slurm's signal and the orderly end of the job."""
    there_is = float(max(LEAST_NOTICE_S, profile.slurm.signal_before_s - ENDING_S))
    return job.changed(executor={"notice_s": min(there_is, job.executor.notice_s or there_is)}).to_toml()


def _check_walltime(profile: Profile) -> None:
    """Refuse a signal that comes before anything can be done."""
    walltime_s, ahead_s = seconds_of(profile.slurm.walltime), profile.slurm.signal_before_s
    if walltime_s - ahead_s < LEAST_WORK_S:
        raise ConfigError(
            f"slurm.signal_before_s = {ahead_s} leaves {walltime_s - ahead_s} s of slurm.walltime = "
            f"{profile.slurm.walltime!r} to work in: take a longer walltime or a later signal"
        )


def seconds_of(walltime: str) -> float:
    """A walltime in seconds; infinite for UNLIMITED, INFINITE and 0.

    Slurm writes minutes, minutes:seconds, hours:minutes:seconds, days-hours or days-hours:minutes[:seconds].

    Examples:
        >>> seconds_of("90"), seconds_of("1:30:00"), seconds_of("2-12")
        (5400, 5400, 216000)
    """
    if walltime.lower() in ("unlimited", "infinite"):
        return math.inf
    days, dash, rest = walltime.rpartition("-")
    numbers = [int(word) for word in rest.split(":")]
    if not dash and len(numbers) < 3:  # minutes first
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf


def _task(submission: Submission, jobs: Sequence[Job], profile: Profile, stages: Sequence[str]) -> Mapping[str, object]:
    """task.json, which ``slurm_task.py`` reads."""
    slurm, setup = profile.slurm, profile.setup
    enter = _enter(
        setup.container, slurm.gpus_per_node, ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", MANY_MACHINES, *setup.environment]
    )
    python = [*enter, setup.python or ("python" if setup.container is not None else sys.executable)]
    needs_ray = {job.executor.kind != "inline" for job in jobs}  # whose address makes "auto" take it
    if len(needs_ray) > 1:
        raise ConfigError('of the jobs of one submission some have executor.kind = "inline": take all, or none')
    if needs_ray == {False} and slurm.nodes > 1:
        raise ConfigError(
            'executor.kind = "inline" works on one node: set slurm.nodes = 1 in the profile, or --executor ray'
        )
    return {
        "root": submission.folder,
        "outputs": submission.outputs,
        "jobs": [str(submission.path / "jobs" / f"{number}.toml") for number in range(len(jobs))],
        "stages": [stage_words(stage, JOB) for stage in stages],
        "needs_ray": needs_ray == {True},
        "signal_before_s": slurm.signal_before_s,
        "python": python,
        "sfg": [*python, "-P", "-m", "sfg_dist"],
        "ray": [*python, "-P", "-m", "ray.scripts.scripts"],
        "wait": [*python, "-P", "-m", "sfg_dist.distributed.nodes"],
        "environment": _search_path(setup) | setup.environment,
        "container_prefixes": _prefixes(setup.container),
        "scratch": setup.scratch,
        "cpus_per_node": slurm.cpus_per_node,
        "gpus_per_node": slurm.gpus_per_node,
        "gres": slurm.gres,
        "max_requeues": slurm.max_requeues,
    }


def _search_path(setup: Setup) -> dict[str, str]:
    """PYTHONPATH for a checkout that runs where it lies, since the nodes' processes skip their working directory."""
    if setup.python is not None or setup.container is not None or not is_on_path_by_name():
        return {}
    return {"PYTHONPATH": inherited_path(PACKAGE_ROOT)}


def _enter(container: Container | None, gpus: int, variables: Sequence[str]) -> list[str]:
    """The words that run a command in the container; variables are given by name, their values in the environment."""
    if container is None:
        return []
    named = [word for name in variables for word in ("--env", name)]
    if container.runtime in ("apptainer", "singularity"):
        return [container.runtime, "exec", *(["--nv"] if gpus else []), *container.options, container.image]
    return ["enroot", "start", *named, *container.options, container.image]


def _prefixes(container: Container | None) -> list[str]:
    """Prefixes of variables that the runtime hands to the container whatever its options are."""
    if container is None or container.runtime == "enroot":
        return []
    return ["APPTAINERENV_", "SINGULARITYENV_"]


def script(profile: Profile, folder: str) -> str:
    """The script for sbatch: the site's own lines, then Python in place of the shell, so that signals reach it."""
    setup = profile.setup
    # Until Python takes the signal, it must not end the shell.
    lines = ["#!/bin/bash", "trap '' USR2", "set -e"]
    lines += [f"module load {shlex.quote(name)}" for name in setup.modules]
    lines += setup.commands
    lines += [f"export {name}={shlex.quote(value)}" for name, value in setup.environment.items()]
    python = setup.host_python if setup.container is not None else setup.python or sys.executable
    lines.append(f"exec {shlex.join([python, '-I', f'{folder}/slurm_task.py', folder])}")
    return "\n".join(lines) + "\n"


def sbatch(submission: Submission, profile: Profile, folder: str, *, num_jobs: int, after: Sequence[str]) -> list[str]:
    """The command that queues a script; each value is one word, whatever characters it has."""
    slurm = profile.slurm
    place = submission.folder.replace("%", "%%")
    output = f"{place}/logs/%A_%a.out" if num_jobs > 1 else f"{place}/logs/%j.out"
    words = [
        "sbatch",
        "--parsable",
        f"--job-name={submission.name}",
        f"--output={output}",
        "--open-mode=append",
        f"--nodes={slurm.nodes}",
        f"--time={slurm.walltime}",
        f"--signal=B:USR2@{slurm.signal_before_s}",
        "--requeue",
    ]
    if slurm.cpus_per_node:
        words += ["--ntasks-per-node=1", f"--cpus-per-task={slurm.cpus_per_node}"]
    else:
        words.append("--exclusive")  # whole nodes; without this Slurm gives one CPU
        if not slurm.memory_per_node:
            words.append("--mem=0")  # all of the memory, too
    if slurm.gpus_per_node:
        words.append(f"--gres={slurm.gres}")
    if slurm.memory_per_node:
        words.append(f"--mem={slurm.memory_per_node}")
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(slurm, name)
        if value:
            words.append(f"--{name}={value}")
    if num_jobs > 1:
        words.append(f"--array=0-{num_jobs - 1}")
    if after:
        words += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    return [*words, *slurm.options, f"{folder}/job.sh"]


def send(submission: Submission, rendered: Rendered) -> None:
    """Queue the parts; each waits for the one before.

    Raises:
        ClusterError: sbatch refused one; the parts that are queued already are cancelled.
    """
    for command in rendered.commands:
        words = [word.replace(AFTER, submission.scheduler_ids[-1]) if AFTER in word else word for word in command]
        try:
            answer = run_command(words, what="the job could not be queued", environment=_outside_of_jobs())
        except ClusterError:
            if submission.scheduler_ids:
                cancel(submission)
            raise
        submission.scheduler_ids.append(answer.strip().split(";")[0])
        submission.save()


def _outside_of_jobs() -> dict[str, str]:
    """The environment without the variables of a Slurm job around us, which the new job would take for its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def status(submission: Submission) -> str:
    """The state in a word or two; of several tasks, how many are in each state."""
    states = []
    for name in submission.scheduler_ids:
        try:
            known = _states(name)
        except ClusterError:
            return "unknown: Slurm does not answer"
        tasks = range(len(submission.outputs))
        states += [known.get(task) or _from_attempts(submission, name, task) for task in tasks]
    if not states:
        return "unknown: it was not sent"
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    if len(counts) == 1:
        return states[0].lower()
    return ", ".join(f"{number} {state.lower()}" for state, number in counts.items())


def _states(name: str) -> dict[int, str]:
    """States of a job's tasks as far as Slurm still knows them; a job without an array is task 0."""
    try:
        shown = run_command(["scontrol", "--oneliner", "show", "job", name], what="its state is unknown")
    except ClusterError as error:
        if "Invalid job id" in str(error):  # ended, and forgotten after MinJobAge
            return {}
        raise
    found: dict[int, str] = {}
    for line in shown.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        if "JobState" in fields:
            found |= dict.fromkeys(_tasks(fields.get("ArrayTaskId", "0")), fields["JobState"])
    return found


def _tasks(text: str) -> list[int]:
    """Numbers of tasks from Slurm's text, such as "3", "0-4%2" or "1,3-5"."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _from_attempts(submission: Submission, name: str, task: int) -> str:
    """The state of a task that Slurm has forgotten, from the notes of its last attempt."""
    own = [attempt for attempt in submission.attempts() if (attempt.part, attempt.task) == (name, task)]
    if not own or own[-1].event not in ("ended", "failed"):
        return "UNKNOWN"  # it may be another cluster's, or its node is gone
    return "COMPLETED" if own[-1].status == 0 else "FAILED"


def is_over(state: str) -> bool:
    """Whether a status means that nothing more will happen."""
    words = {word.strip(",").upper() for word in state.split()}
    return not words & {*PENDING, *RUNNING, UNKNOWN}


def logs(submission: Submission) -> list[str]:
    """The log files, the jobs' own output first."""
    folder = submission.path / "logs"
    found = sorted(folder.glob("*.out")) + sorted(folder.glob("*.log"))
    return [str(path) for path in found]


def log_lines(submission: Submission, *, follow: bool, nodes: bool) -> Iterator[str]:
    """Lines of the log files as they come, behind the file's name where it changes.

    With ``follow`` they go on until the submission is over; with ``nodes`` they have what Ray says on the nodes too.
    """
    read: dict[str, int] = {}
    shown = ""
    while True:
        is_last = not follow or is_over(status(submission))
        for path in logs(submission):
            if not nodes and path.endswith(".log"):
                continue
            with Path(path).open(encoding="utf-8", errors="replace") as file:
                file.seek(read.get(path, 0))
                text = file.read()
                read[path] = file.tell()
            if text and path != shown:
                shown = path
                yield f"==> {path} <==\n"
            yield from text.splitlines(keepends=True)
        if is_last:
            return
        pause()


def cancel(submission: Submission) -> None:
    """Cancel all parts, running ones too.

    Raises:
        ClusterError: scancel failed.
    """
    run_command(["scancel", *submission.scheduler_ids], what="the job could not be cancelled")
