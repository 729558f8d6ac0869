"""Jobs to a scheduler: sent, asked after, waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sfg_dist.job.errors import ClusterError, ConfigError
from sfg_dist.job.words import shown
from sfg_dist.launch import kuberay, ray_jobs, slurm
from sfg_dist.launch.submission import (
    Order,
    Rendered,
    Submission,
    known,
    new_submission,
    pause,
    remember,
    with_absolute_paths,
    write_files,
)

MAX_UNKNOWN = 150  # times in a row that a scheduler may have no answer before a wait ends
# A requeue may follow "preempted", "timeout" and "node_fail" by itself, so these are not among them.
FINAL = {"completed", "cancelled", "failed", "out_of_memory", "complete", "validationfailed", "succeeded", "stopped"}
SUCCESS = {"completed", "complete", "succeeded"}


class Scheduler(Protocol):
    """What each scheduler's module offers."""

    def render(self, submission: Submission, order: Order) -> Rendered:
        """The files of a submission and the commands that send it; ConfigError for what the scheduler cannot do."""

    def send(self, submission: Submission, rendered: Rendered) -> None:
        """Run the commands and note the scheduler's ids; ClusterError if one fails."""

    def status(self, submission: Submission) -> str:
        """The state in a word or two, or a text that begins with "unknown"."""

    def is_over(self, state: str) -> bool:
        """Whether nothing more happens after this state."""

    def cancel(self, submission: Submission) -> None:
        """Stop it; ClusterError if that fails."""


SCHEDULERS: dict[str, Scheduler] = {"slurm": slurm, "kuberay": kuberay, "ray": ray_jobs}


def submit(order: Order, *, to: str, name: str) -> tuple[Submission, Rendered, Callable[[], Submission]]:
    """Render a submission to "slurm", "kuberay" or "ray", which shows it by this name; the third result sends it.

    Raises:
        ConfigError: the scheduler cannot do what is asked.
    """
    if to not in SCHEDULERS:
        raise ConfigError(f"--to {shown(to)}: expected slurm, kuberay or ray")
    scheduler = SCHEDULERS[to]
    order = replace(order, jobs=[with_absolute_paths(job) for job in order.jobs])
    submission = new_submission(order.jobs, to, name, order.profile)
    rendered = scheduler.render(submission, order)

    def send() -> Submission:
        _require_alone(submission)
        write_files(submission, rendered)
        remember(submission)  # before anything is sent: what is half sent must be found again
        scheduler.send(submission, rendered)
        submission.save()
        return submission

    return submission, rendered, send


def _require_alone(submission: Submission) -> None:
    """Refuse a second job at one output.dir: both would train into the same checkpoints."""
    for one in known():
        if shared := set(submission.outputs) & set(one.outputs):
            state = state_of(one)
            if not (is_over(one, state) or state.startswith("unknown")):
                raise ConfigError(
                    f"{', '.join(sorted(shared))}: {one.id} ({one.name}, {state}) writes there: wait for it, or "
                    f"`sfg cancel {one.id}` first"
                )


def state_of(submission: Submission) -> str:
    """The state by the scheduler's word; it is not asked again about what has ended."""
    if (noted := submission.final_state()) is not None:
        return noted
    num_lines = len(submission.attempts())
    try:
        state = SCHEDULERS[submission.to].status(submission)
    except ClusterError as error:
        return f"unknown: {error}"
    if {word.strip(" 0123456789").lower() for word in state.split(",")} <= FINAL:
        submission.note_final_state(state, num_lines)
    return state


def is_over(submission: Submission, state: str) -> bool:
    """Whether nothing more happens after this state."""
    return SCHEDULERS[submission.to].is_over(state)


def wait(submission: Submission) -> str:
    """The state once the submission is over, or once the scheduler has not known it for long."""
    num_unknown = 0
    while num_unknown <= MAX_UNKNOWN:
        state = state_of(submission)
        if state.startswith("unknown"):  # the scheduler does not know the job yet, or does not answer just now
            num_unknown += 1
        elif is_over(submission, state):
            break
        else:
            num_unknown = 0
        pause()
    return state


def went_well(state: str) -> bool:
    """Whether every part ended as it should."""
    return {word.strip().lower() for word in state.split(",")} <= SUCCESS


def cancel(submission: Submission) -> None:
    """Stop a submission.

    Raises:
        ClusterError: the scheduler failed.
    """
    SCHEDULERS[submission.to].cancel(submission)
