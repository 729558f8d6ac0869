"""Commands that send jobs to a cluster, list them, show their logs and stop them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfg_dist.cli.command import Executor, Json, Set, aligned, command, load, option, say
from sfg_dist.job.errors import ClusterError, ConfigError
from sfg_dist.job.search_path import child_environment
from sfg_dist.job.shipped import shipped
from sfg_dist.job.words import printable, shown

if TYPE_CHECKING:
    from sfg_dist.job.config import Job
    from sfg_dist.launch.submission import Order, Submission

MAX_SEEDS, MAX_ENDED = 10_000, 10
STAGES = ("run", "label", "train", "sample", "evaluate", "compare")
Jobs = Annotated[list[Path], typer.Argument(metavar="JOB.toml", help="One or more job files.")]
Word = Annotated[str, typer.Argument(metavar="SUBMISSION", help="An id, the beginning of one, or a name.")]
Text = str | None


@dataclass(frozen=True)
class SubmitOptions:
    """Where to send jobs, and which stages of them."""

    to: Annotated[str, option("--to", "WHERE", "slurm, kuberay, or ray for a Ray cluster that runs already.")]
    profile: Annotated[Path | None, option("--profile", "FILE", "The site's profile; if left out, the package's.")] = (
        None
    )
    profile_set: Annotated[
        list[str] | None, option("--profile-set", "TABLE.KEY=VALUE", "Override a key of the profile; repeatable.")
    ] = None
    name: Annotated[Text, option("--name", "NAME", "What the scheduler shows; if left out, the job file's name.")] = (
        None
    )
    seeds: Annotated[Text, option("--seeds", "SEEDS", "Run each job once for each seed, such as 0,1,2 or 0-9.")] = None
    stages: Annotated[str, option("--stages", "STAGES", "The commands to run, in order, such as label,train.")] = "run"
    scale: Annotated[Text, option("--scale", "OPTIONS", "Run sfg scale with such options as '--workers 1,2'.")] = None
    apart: Annotated[bool, typer.Option("--apart", help="Send the stages as jobs that wait for each other.")] = False
    after: Annotated[list[str] | None, option("--after", "ID", "A job of the scheduler to wait for; repeatable.")] = (
        None
    )
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended, with status 1 if it failed.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False


@command
def submit(
    jobs: Jobs, options: SubmitOptions, set_: Set = None, executor: Executor = None, json_: Json = False
) -> None:
    """Send jobs to a cluster.

    It prints how to follow, stop and resume them. A job that meets its walltime or is preempted goes on where it was.
    """
    from sfg_dist.launch.send import submit as prepare
    from sfg_dist.launch.send import wait, went_well

    resolved = _seeded([load(job, set_, executor) for job in jobs], options.seeds)
    submission, rendered, send = prepare(_order(resolved, options), to=options.to, name=options.name or jobs[0].stem)
    if options.dry_run:
        say(json_, {"commands": rendered.commands, "files": rendered.files}, rendered.text())
        return
    send()
    facts = {"id": submission.id, "scheduler_ids": submission.scheduler_ids, "folder": submission.folder}
    if not options.wait:
        say(json_, facts, _how_to(submission))
        return
    if not json_:
        print(printable(_how_to(submission)), flush=True)
    state = wait(submission)
    if json_:
        say(json_, facts | {"state": state}, "")
    if not went_well(state):
        raise ClusterError(f"{submission.name}: {state}; `sfg logs {submission.id}` shows what it said")


def _seeded(jobs: list[Job], seeds: str | None) -> list[Job]:
    """The jobs, checked; once a seed where seeds are given."""
    from sfg_dist.launch.submission import seeded
    from sfg_dist.pipeline.check import check_job

    numbers = None if seeds is None else _numbers(seeds)
    for job in jobs:
        check_job(job)  # here, not after a wait in the queue
    if numbers is not None:
        jobs = [each for job in jobs for each in seeded(job, numbers)]
    if len({job.output.dir for job in jobs}) < len(jobs):
        raise ConfigError("two of the jobs write to one output.dir: give each its own")
    return jobs


def _order(jobs: list[Job], options: SubmitOptions) -> Order:
    from sfg_dist.launch import Order, load_profile

    if options.scale is not None:
        stages = [f"scale {options.scale}"]
    else:
        stages = [stage.strip() for stage in options.stages.split(",")]
        for stage in stages:
            if stage not in STAGES:
                raise ConfigError(
                    f"--stages {shown(options.stages)}: expected some of {', '.join(STAGES)}, got {shown(stage)}"
                )
    profile = load_profile(options.profile or _shipped_profile(options.to), options.profile_set or ())
    return Order(jobs, profile, stages=stages, apart=options.apart, after=options.after or ())


@command
def jobs(
    all_: Annotated[bool, typer.Option("--all", help="List all that have ended, not only the last ten.")] = False,
    json_: Json = False,
) -> None:
    """List what was submitted from this account."""
    from sfg_dist.launch.send import is_over, state_of
    from sfg_dist.launch.submission import known

    found = [(one, state_of(one)) for one in known()]
    if not all_:
        old = [one.id for one, state in found if is_over(one, state)][:-MAX_ENDED]
        found = [(one, state) for one, state in found if one.id not in old]
    entries = [
        {"id": one.id, "to": one.to, "name": one.name, "state": state, "scheduler_ids": one.scheduler_ids,
         "attempts": sum(attempt.event == "started" for attempt in one.attempts()), "outputs": one.outputs}
        for one, state in found
    ]  # fmt: skip
    lines = aligned([(one.id, one.to, state, one.name, ", ".join(one.outputs)) for one, state in found])
    say(json_, {"submissions": entries}, "\n".join(lines) or "nothing was submitted from this account")


@command
def logs(
    submission: Word,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the submission has ended.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="Show Ray's output on the nodes too.")] = False,
    json_: Json = False,
) -> None:
    """Show the output of a submission."""
    from sfg_dist.launch import kuberay, ray_jobs, slurm
    from sfg_dist.launch.submission import find

    one = find(submission)
    if one.to == "slurm":
        if json_:
            say(json_, {"files": slurm.logs(one)}, "")
            return
        for line in slurm.log_lines(one, follow=follow, nodes=nodes):
            print(printable(line), end="", flush=True)
        return
    words = (kuberay if one.to == "kuberay" else ray_jobs).logs_command(one, follow=follow)
    if status := subprocess.run(words, env=child_environment()).returncode:
        raise ClusterError(f"{words[0]} ended with status {status}")


@command
def cancel(submission: Word, json_: Json = False) -> None:
    """Stop a submission.

    What is committed is kept, and the same job goes on when it is submitted again.
    """
    from sfg_dist.launch import send
    from sfg_dist.launch.submission import find

    one = find(submission)
    send.cancel(one)
    say(json_, {"id": one.id, "cancelled": one.scheduler_ids}, f"{one.id} ({one.name}) is cancelled")


def _shipped_profile(to: str) -> Path | None:
    """The profile that comes with the package. A profile runs commands, so no other is used without being named."""
    folder = shipped("cluster")
    return folder / f"{to}.toml" if folder and to.isalpha() and (folder / f"{to}.toml").is_file() else None


def _numbers(text: str) -> list[int]:
    """The seeds of a text such as "0,1,2", "0-9" or both."""
    found: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*([0-9]{1,19})\s*(?:-\s*([0-9]{1,19})\s*)?", part)
        if numbers is None:
            raise ConfigError(f"--seeds {shown(text)}: expected numbers such as 0,1,2 or 0-9")
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if last < first:
            raise ConfigError(f"--seeds {shown(text)}: {first}-{last} goes down: write {last}-{first}")
        if last >= 2**63:
            raise ConfigError(f"--seeds {shown(text)}: a seed is below {2**63:,}")
        if len(found) + last - first >= MAX_SEEDS:
            raise ConfigError(
                f"--seeds {shown(text)}: that is more than {MAX_SEEDS:,} runs, the most that one submission has"
            )
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"--seeds {shown(text)}: a seed is there twice")
    return found


def _how_to(submission: Submission) -> str:
    outputs = submission.outputs
    return "\n".join(
        [
            f"submitted {submission.name} as {', '.join(submission.scheduler_ids)} ({submission.to})",
            f"  follow:  sfg logs --follow {submission.id}",
            f"  watch:   sfg jobs, sfg status --watch {outputs[0]}",
            f"  stop:    sfg cancel {submission.id}",
            "  resume:  the same command again: what is committed is kept",
            f"  results: {', '.join(outputs)}",
        ]
    )
