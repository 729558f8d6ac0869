"""A Ray cluster that runs already: its job API, through the command ``ray job``."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

from sfg_dist.job.errors import ConfigError
from sfg_dist.job.search_path import child_environment
from sfg_dist.job.threads import wait_passively
from sfg_dist.launch.submission import (
    ANSWER_S,
    HERE,
    Order,
    Rendered,
    Submission,
    run_command,
    stage_words,
    without_address,
)

RAY = [sys.executable, "-P", "-m", "ray.scripts.scripts", "job"]
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
UNKNOWN, NOT_SENT = "unknown: the cluster does not answer", "UNKNOWN: IT WAS NOT SENT"


def render(submission: Submission, order: Order) -> Rendered:
    """The job files and the commands that send them.

    Raises:
        ConfigError: the profile has no address, or the job waits for others.
    """
    profile = order.profile
    if order.apart or order.after:
        raise ConfigError("--to ray: stages run one after the other in one job: leave --apart and --after out")
    if profile.ray.address is None:
        raise ConfigError("--to ray needs the cluster's address: --profile-set ray.address=http://HOST:8265")
    files, commands = {}, []
    environment = {**profile.setup.environment, **profile.ray.environment}
    wait_passively(environment)
    files["runtime.json"] = json.dumps({"env_vars": environment})  # JSON is YAML; values stay off the command line
    for number, job in enumerate(order.jobs):
        files[f"upload/{number}.toml"] = without_address(job).to_toml()
        lines = " && ".join(
            shlex.join([profile.ray.sfg, *stage_words(stage, f"{number}.toml"), *HERE]) for stage in order.stages
        )
        commands.append(
            [
                *RAY, "submit", f"--address={profile.ray.address}", "--no-wait",
                f"--submission-id={submission.id}-{number}", f"--working-dir={submission.path / 'upload'}",
                f"--runtime-env={submission.path / 'runtime.json'}",
                "--", "bash", "-c", lines,
            ]
        )  # fmt: skip
    submission.options = {"address": profile.ray.address}
    return Rendered(commands, files)


def send(submission: Submission, rendered: Rendered) -> None:
    """Send the jobs.

    Raises:
        ClusterError: the cluster refused one.
    """
    for number, command in enumerate(rendered.commands):
        run_command(
            command,
            what="the job could not be sent (needs sfg_dist[cluster] and RAY_AUTH_TOKEN)",
            environment=child_environment(),
        )
        submission.scheduler_ids.append(f"{submission.id}-{number}")
        submission.save()


def status(submission: Submission) -> str:
    """The states of all jobs, each once."""
    states = []
    for name in submission.scheduler_ids:
        command = [*RAY, "status", f"--address={submission.options['address']}", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, env=child_environment())
        except (OSError, subprocess.TimeoutExpired):
            return UNKNOWN
        states.append(state_in(done.stdout + done.stderr, name))
    return ", ".join(dict.fromkeys(states)) or "unknown: it was not sent"


def state_in(text: str, name: str) -> str:
    """The state of a job in the output of ``ray job status``, which may also hold lines of the job itself.

    Examples:
        >>> state_in("Status for job 'a-0': RUNNING", "a-0"), state_in("Job 'a-0' was stopped", "a-0")
        ('running', 'stopped')
    """
    for line in text.splitlines():
        for words, state in (("succeeded", "succeeded"), ("was stopped", "stopped"), ("failed", "failed")):
            if f"Job '{name}' {words}" in line:
                return state
        if (found := re.search(rf"Status for job '{re.escape(name)}': (?:JobStatus\.)?(\w+)", line)) is not None:
            return found.group(1).lower()
    return UNKNOWN


def is_over(state: str) -> bool:
    """Whether a status means that nothing more will happen."""
    return state != UNKNOWN and all(word.upper() in (*ENDED, NOT_SENT) for word in state.split(", "))


def logs_command(submission: Submission, *, follow: bool) -> list[str]:
    """The command that shows the output of the last job's driver."""
    words = [*RAY, "logs", f"--address={submission.options['address']}"]
    return [*words, *(["--follow"] if follow else []), submission.scheduler_ids[-1]]


def cancel(submission: Submission) -> None:
    """Stop the jobs.

    Raises:
        ClusterError: the cluster does not answer.
    """
    for name in submission.scheduler_ids:
        command = [*RAY, "stop", f"--address={submission.options['address']}", name, "--no-wait"]
        run_command(command, what="the cluster could not be asked", environment=child_environment())
