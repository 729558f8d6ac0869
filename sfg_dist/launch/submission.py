"""A submission: jobs that were sent to a scheduler together, and the folder that describes them.

SUBMISSIONS/<id>/              on a file system that the nodes share
    submission.json            the submission; written before anything is sent
    state.json                 how it ended; written when the scheduler says so, which is then not asked again
    jobs/0.toml ...            the resolved jobs, with absolute paths
    logs/                      of the nodes
    attempts/                  notes of the attempts, one file for each task of a part

~/.local/state/sfg_dist/submissions.jsonl has a line for each submission.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ClusterError, ConfigError, DocumentError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.paths import expanded
from sfg_dist.job.reader import MAX_BYTES, read_json
from sfg_dist.job.words import shown
from sfg_dist.launch.profile import Profile, one_line

STAGES = ("label", "train", "sample", "evaluate")
ID_NAME, STATE_NAME = "submission.json", "state.json"
HERE = ("--set", "executor.address=auto")  # for a driver that runs on a node of the cluster
MAX_LOG_BYTES = 64 << 20
_FIELDS = {
    **dict.fromkeys(("id", "to", "name", "folder", "created?"), str),
    "outputs": [str],
    "scheduler_ids?": [str],
    "options?": {str: str},
}
ANSWER_S = 120.0  # for a scheduler's command to answer
POLL_S = 2.0  # between two questions; SFG_POLL_S overrides it


@dataclass(frozen=True)
class Attempt:
    """A line that an attempt of a task wrote about itself."""

    event: str = ""  # "started", "requeued", "ended" or "failed"
    part: str = ""  # the scheduler's id of the part
    task: int = 0  # the number of the job within the part
    time: float = 0.0  # when, in seconds
    status: int | None = None  # the exit status, behind "ended"


@dataclass
class Submission:
    """Jobs that were sent together."""

    id: str  # this package's own
    to: str  # "slurm", "kuberay" or "ray"
    name: str  # chosen by the user
    folder: str  # see the module
    outputs: list[str]  # output.dir of each job
    scheduler_ids: list[str] = field(default_factory=list)  # the scheduler's own, one a part
    created: str = ""  # time, in ISO format
    # what else the scheduler needs to be asked: an address, a namespace
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    def save(self) -> None:
        """Write submission.json, whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.path / ID_NAME, json.dumps(asdict(self), indent=1))

    def final_state(self) -> str | None:
        """How it ended, as noted; None where nothing is noted, or where an attempt has begun since."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            noted = read_json(_beginning(self.path / STATE_NAME), STATE_NAME, {"state": str, "lines": int})
            if noted["lines"] == len(self.attempts()):
                return str(noted["state"])
        return None

    def note_final_state(self, state: str, num_lines: int) -> None:
        """Note how it ended, and how many lines its attempts had written before the scheduler was asked."""
        with contextlib.suppress(OSError):  # of another user, or on a full disk
            _replace(self.path / STATE_NAME, json.dumps({"state": state, "lines": num_lines}))

    def attempts(self) -> list[Attempt]:
        """What the attempts noted, in the order of their clocks; lines that cannot be read are left out."""
        found = []
        for file in (self.path / "attempts").glob("*.jsonl"):
            with contextlib.suppress(OSError):
                for line in _beginning(file, MAX_LOG_BYTES).splitlines():
                    with contextlib.suppress(DocumentError):
                        noted = read_json(line, file.name, {"time?": float})
                        found.append(Attempt(**{name: noted[name] for name in _ATTEMPT_KEYS if name in noted}))
        return sorted(found, key=lambda attempt: attempt.time)


_ATTEMPT_KEYS = tuple(key.name for key in fields(Attempt))


@dataclass(frozen=True)
class Rendered:
    """What would be sent."""

    commands: list[list[str]]  # to run on this machine in order, each a list of words
    files: dict[str, str]  # contents by name within the submission's folder

    def text(self) -> str:
        """Every file, then every command, for the user to read."""
        parts = [f"# {name}\n{content.rstrip()}" for name, content in self.files.items()]
        parts += [f"# command\n{shlex.join(words)}" for words in self.commands]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Order:
    """What a scheduler is asked for."""

    jobs: Sequence[Job]  # one or more; several become an array where the scheduler has arrays
    profile: Profile  # the site
    stages: Sequence[str] = ("run",)  # commands of ``sfg`` to run in order, each with its options
    apart: bool = False  # whether each stage is a scheduler's job of its own that waits for the stage before
    after: Sequence[str] = ()  # the scheduler's ids of jobs that must have succeeded first


def stage_words(stage: str, job: str) -> list[str]:
    """The words behind ``sfg`` for a stage, whose options stand behind its name.

    Examples:
        >>> stage_words("scale --workers 1,2", "job.toml")
        ['scale', 'job.toml', '--workers', '1,2']

    Raises:
        ConfigError: a quote is not closed.
    """
    try:
        name, *options = shlex.split(stage)
    except ValueError as error:
        raise ConfigError(f"stage {stage!r}: {error}") from None
    return [name, job, *options]


def new_submission(jobs: Sequence[Job], to: str, name: str, profile: Profile) -> Submission:
    """A submission that is not written anywhere yet."""
    now = datetime.datetime.now(datetime.UTC)
    identifier = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = Path(expanded(profile.setup.dir)).absolute() / identifier
    return Submission(
        id=identifier,
        to=to,
        name=one_line(name),
        folder=str(folder),
        outputs=[job.output.dir for job in jobs],
        created=now.isoformat(timespec="seconds"),
    )


def with_absolute_paths(job: Job) -> Job:
    """The job with paths that mean the same in any working directory."""
    source, latents = job.data.source, job.labels.latents
    return job.changed(
        output={"dir": _absolute(job.output.dir)},
        data={"source": _absolute(source) if _is_path(source) else source},
        labels={"latents": None if latents is None else _absolute(latents)},
    )


def without_address(job: Job) -> Job:
    """The job without the address of a cluster; on the cluster itself ``HERE`` names it."""
    return job.changed(executor={"address": None})


def seeded(job: Job, seeds: Sequence[int]) -> list[Job]:
    """One job a seed, each in a directory of its own under output.dir."""
    folder = job.output.dir.rstrip("/")
    return [
        job.changed(labels={"seed": seed}, train={"seed": seed}, output={"dir": f"{folder}/seed_{seed}"})
        for seed in seeds
    ]


def _absolute(path: str) -> str:
    return path if is_url(path) else str(Path(path).absolute())


def _is_path(source: str) -> bool:
    return not is_url(source) and ("/" in source or "." in source or Path(source).exists())


def write_files(submission: Submission, rendered: Rendered) -> None:
    """Write the submission's files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        submission.save()
        (submission.path / "logs").mkdir(exist_ok=True)
        for name, content in rendered.files.items():
            path = submission.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Jobs may hold secrets: others can read them at no moment.
            _create(path, content, 0o700 if name.endswith(".sh") else 0o600)
    except OSError as error:
        raise ConfigError(f"setup.dir: {submission.folder} cannot be written ({error.strerror})") from error


def _create(path: Path, content: str, mode: int) -> None:
    """Write a new file; a file or link of that name is refused."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)


def _replace(path: Path, content: str) -> None:
    """Replace a file by a whole new one."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    _create(part, content, 0o600)
    part.replace(path)


def registry() -> Path:
    """The file that lists this user's submissions."""
    base = os.environ.get("XDG_STATE_HOME") or expanded("~/.local/state")
    return Path(base) / "sfg_dist" / "submissions.jsonl"


def remember(submission: Submission) -> None:
    """Add a submission to the registry.

    Raises:
        ConfigError: the registry cannot be written.
    """
    path = registry()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": submission.id, "folder": submission.folder}) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}), and `sfg jobs` would not find the submission again: set "
            f"XDG_STATE_HOME to a directory of your own"
        ) from error


def known() -> Iterator[Submission]:
    """Every submission whose folder is still there, oldest first."""
    try:
        lines = _beginning(registry(), MAX_LOG_BYTES).splitlines()
    except (OSError, ConfigError):  # nothing was submitted, or there is no home to remember it in
        return
    for line in lines:
        with contextlib.suppress(ValueError, OSError):
            folder = Path(read_json(line, "the registry", {"folder": str})["folder"])
            document = read_json(_beginning(folder / ID_NAME), ID_NAME, _FIELDS)
            yield Submission(
                **{field.name: document[field.name] for field in fields(Submission) if field.name in document}
            )


def _beginning(path: Path, most: int = MAX_BYTES) -> bytes:
    """The first ``most + 1`` bytes of a file."""
    with path.open("rb") as file:
        return file.read(most + 1)


def find(word: str) -> Submission:
    """The submission by its id or the start of it, a scheduler's id, or its name (the newest of that name).

    Raises:
        ConfigError: there is none, or more than one.
    """
    everything = list(known())
    exact = [one for one in everything if word in (one.id, one.name) or word in one.scheduler_ids]
    if exact:
        return exact[-1]
    found = [one for one in everything if one.id.startswith(word)]
    if not found:
        raise ConfigError(f"no submission is called {shown(word)}: `sfg jobs` lists them")
    if len(found) > 1:
        raise ConfigError(f"{word!r} means {len(found)} submissions: {', '.join(one.id for one in found)}")
    return found[0]


def pause() -> None:
    """The time between two looks at a submission."""
    time.sleep(float(os.environ.get("SFG_POLL_S", POLL_S)))


def run_command(words: Sequence[str], *, what: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a scheduler's own command and give back what it printed; ``what`` begins the message of an error.

    Raises:
        ClusterError: the command is missing, failed or did not answer.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            env=None if environment is None else dict(environment),
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{what}: {words[0]} did not answer within {ANSWER_S:g} s") from None
    except FileNotFoundError:
        raise ClusterError(f"{what}: the command {words[0]} is not on this machine") from None
    except OSError as error:
        raise ClusterError(f"{what}: {words[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise ClusterError(f"{what}: {words[0]}: {said[-1]}")
    return done.stdout
