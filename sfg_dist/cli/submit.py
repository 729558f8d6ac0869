"""Commands that send jobs to a cluster and look after them."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfg_dist.cli.command import Debug, Executor, Json, Set, command, load, say
from sfg_dist.job.errors import ClusterError, ConfigError
from sfg_dist.job.search_path import PACKAGE_ROOT, child_environment
from sfg_dist.job.values import as_line, printable, shown

if TYPE_CHECKING:
    from sfg_dist.launch.submission import Submission

POLL_S = 2.0
MAX_SEEDS = 10_000
MAX_UNKNOWN = 150  # times in a row that a scheduler may have no answer before --wait gives up
CHECKOUT = Path(PACKAGE_ROOT)
# Not those that a requeue may follow by itself: preempted, timeout, node_fail.
FINAL = {"completed", "cancelled", "failed", "out_of_memory", "complete", "validationfailed", "succeeded", "stopped"}
Jobs = Annotated[list[Path], typer.Argument(metavar="JOB.toml...", help="One or more job files.")]
Word = Annotated[str, typer.Argument(metavar="SUBMISSION", help="Its id, the start of one, or its name.")]


@command
def submit(
    jobs: Jobs,
    to: Annotated[str, typer.Option("--to", help="slurm, kuberay, or ray for a cluster that runs already.")],
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="The site's TOML file; if left out, the checkout's."),
    ] = None,
    profile_set: Annotated[
        list[str] | None,
        typer.Option("--profile-set", metavar="TABLE.KEY=VALUE", help="Override a key of the profile; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Shown by the scheduler; the job file's name.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="One run a seed, such as 0,1,2 or 0-9.")] = None,
    stages: Annotated[str, typer.Option("--stages", help="Commands of sfg, in order: run, or label,train.")] = "run",
    scale: Annotated[
        str | None, typer.Option("--scale", help="A scaling study by these options: --scale '--workers 1,2,4'.")
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="label, train, sample and evaluate as jobs that wait for each other.")
    ] = False,
    after: Annotated[
        list[str] | None, typer.Option("--after", help="The scheduler's id of a job to wait for; repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended, with status 1 if it failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    set_: Set = None,
    executor: Executor = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Send jobs to a cluster.

    Prints how to follow, stop and resume them. A job that meets its walltime or is preempted goes on where it was.
    """
    from sfg_dist.launch import Order, load_profile
    from sfg_dist.launch import submit as prepare
    from sfg_dist.launch.submission import seeded
    from sfg_dist.pipeline.plan import check_job

    numbers = None if seeds is None else _numbers(seeds)
    resolved = [load(job, set_, executor) for job in jobs]
    for each in resolved:
        check_job(each)  # here, not after a wait in the queue
    if numbers is not None:
        resolved = [each for job in resolved for each in seeded(job, numbers)]
    if len({job.output.dir for job in resolved}) < len(resolved):
        raise ConfigError("two of the jobs write to one output.dir: give each its own")
    site = profile or _shipped_profile(to)
    words = [stage.strip() for stage in stages.split(",")] if scale is None else [f"scale {scale}"]
    allowed = ("run", "label", "train", "sample", "evaluate", "compare")
    for stage in words:
        if scale is None and stage not in allowed:
            raise ConfigError(f"--stages {shown(stages)}: {shown(stage)} is none of {', '.join(allowed)}")
    order = Order(resolved, load_profile(site, profile_set or ()), stages=words, apart=apart, after=after or ())
    submission, rendered, send = prepare(order, to=to, name=name or jobs[0].stem)
    if dry_run:
        document = {"commands": rendered.commands, "files": rendered.files}
        say(json_, document, rendered.text())
        return
    _require_alone(submission.outputs)
    send()
    facts = {"id": submission.id, "scheduler_ids": submission.scheduler_ids, "folder": submission.folder}
    if not wait:
        say(json_, facts, _how_to(submission))
        return
    if not json_:
        print(printable(_how_to(submission)), flush=True)
    state = _wait(submission)
    if json_:
        say(json_, facts | {"state": state}, "")
    if not _went_well(state):
        raise ClusterError(f"{submission.name}: {state}; `sfg logs {submission.id}` shows what it said")


@command
def jobs(
    all_: Annotated[bool, typer.Option("--all", help="Ended ones too, however long ago.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List what was submitted from this account."""
    from sfg_dist.launch.submission import known

    found = [(one, _state(one)) for one in known()]
    if not all_:
        over = [(one, state) for one, state in found if _scheduler(one).is_over(state)]
        recent = {one.id for one, _ in over[-10:]}
        found = [(one, state) for one, state in found if not _scheduler(one).is_over(state) or one.id in recent]
    entries = [
        {"id": one.id, "to": one.to, "name": one.name, "state": state, "scheduler_ids": one.scheduler_ids,
         "attempts": sum(entry["event"] == "started" for entry in one.attempts()), "outputs": one.outputs}
        for one, state in found
    ]  # fmt: skip
    lines = _columns([(e["id"], e["to"], e["state"], e["name"], ", ".join(e["outputs"])) for e in entries])
    say(json_, {"submissions": entries}, "\n".join(lines) or "nothing was submitted from this account")


@command
def logs(
    submission: Word,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="What Ray says on the nodes, too.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a submission says."""
    from sfg_dist.launch import slurm
    from sfg_dist.launch.submission import find

    one = find(submission)
    if one.to != "slurm":
        words = _scheduler(one).logs_command(one, follow=follow)
        status = subprocess.run(words, env=child_environment()).returncode
        if status:
            raise ClusterError(f"{words[0]} ended with status {status}")
        return
    if json_:
        say(json_, {"files": slurm.logs(one)}, "")
        return
    for line in _lines(one, follow, nodes):
        print(printable(line), end="", flush=True)


@command
def cancel(submission: Word, json_: Json = False, debug: Debug = False) -> None:
    """Stop a submission; what is committed is kept, and the same job goes on when it is submitted again."""
    from sfg_dist.launch.submission import find

    one = find(submission)
    _scheduler(one).cancel(one)
    say(json_, {"id": one.id, "cancelled": one.scheduler_ids}, f"{one.id} ({one.name}) is cancelled")


def _shipped_profile(to: str) -> Path | None:
    """The profile in the checkout that holds this package, the only one that is used unasked: profiles are code."""
    path = CHECKOUT / "cluster" / f"{to}.toml"
    return path if to.isalpha() and (CHECKOUT / "pyproject.toml").is_file() and path.is_file() else None


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its longest word; the last one as it is."""
    words = [[as_line(word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in words]


def _numbers(text: str) -> list[int]:
    """0,1,2 or 0-9 or both."""
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
        raise ConfigError(f"--seeds {shown(text)}: a seed stands there twice")
    return found


def _scheduler(submission: Submission) -> Any:
    from sfg_dist.launch import kuberay, ray_jobs, slurm

    return {"slurm": slurm, "kuberay": kuberay, "ray": ray_jobs}[submission.to]


def _state(submission: Submission) -> str:
    """What the scheduler says, once; of what has ended it is not asked again."""
    if (noted := submission.final_state()) is not None:
        return noted
    scheduler, num_lines = _scheduler(submission), len(submission.attempts())
    try:
        state: str = scheduler.status(submission)
    except ClusterError as error:
        return f"unknown: {error}"
    if {word.strip(" 0123456789").lower() for word in state.split(",")} <= FINAL:
        submission.note_final_state(state, num_lines)
    return state


def _require_alone(outputs: Iterable[str]) -> None:
    """Two jobs at one output.dir would train into the same checkpoints."""
    from sfg_dist.launch.submission import known

    wanted = set(outputs)
    for one in known():
        if wanted & set(one.outputs):
            state = _state(one)
            if not (_scheduler(one).is_over(state) or state.startswith("unknown")):
                raise ConfigError(
                    f"{', '.join(sorted(wanted & set(one.outputs)))}: {one.id} ({one.name}, {state}) writes there: "
                    f"wait for it, or `sfg cancel {one.id}` first"
                )


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


def _wait(submission: Submission) -> str:
    scheduler, unknown = _scheduler(submission), 0
    while True:
        state = _state(submission)
        if state.startswith("unknown"):  # it does not know the job yet, or does not answer just now
            unknown += 1
            if unknown > MAX_UNKNOWN:
                return state
        elif scheduler.is_over(state):
            return state
        else:
            unknown = 0
        time.sleep(float(os.environ.get("SFG_POLL_S", POLL_S)))


def _went_well(state: str) -> bool:
    return {word.strip().lower() for word in state.split(",")} <= {"completed", "complete", "succeeded"}


def _lines(submission: Submission, follow: bool, nodes: bool) -> Iterator[str]:
    """Lines of the log files as they come; a file's name where it changes."""
    from sfg_dist.launch import slurm

    read: dict[str, int] = {}
    shown = ""
    while True:
        is_over = not follow or slurm.is_over(slurm.status(submission))
        for path in slurm.logs(submission):
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
        if is_over:
            return
        time.sleep(float(os.environ.get("SFG_POLL_S", POLL_S)))
