"""A submission: jobs with a scheduler, what it was told, and where to look for them.

SUBMISSIONS/<id>/              on a file system that the nodes share
    submission.json            what it is; written before anything is sent
    state.json                 how it ended, once the scheduler has said so: it is not asked again
    jobs/0.toml ...            the jobs as resolved, with absolute paths
    logs/                      of the nodes
    attempts/                  what the attempts say of themselves, a file a part and task

A line in ~/.local/state/sfg_dist/submissions.jsonl finds them again.
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
from typing import Any

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ClusterError, ConfigError, DocumentError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.paths import expanded
from sfg_dist.job.reader import MAX_BYTES, read_json
from sfg_dist.job.values import shown
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


@dataclass
class Submission:
    """What was sent.

    Attributes:
        id: of this package's own.
        to: "slurm", "kuberay" or "ray".
        name: of the user's choice.
        folder: see the module.
        outputs: output.dir of each job.
        scheduler_ids: what the scheduler calls it, one a part.
        created: time, in ISO format.
        options: what else is needed to ask after it: the address, the namespace.
    """

    id: str
    to: str
    name: str
    folder: str
    outputs: list[str]
    scheduler_ids: list[str] = field(default_factory=list)
    created: str = ""
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
        """How it ended, as noted; None where that is not known, or where an attempt has begun since."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            noted = read_json(_beginning(self.path / STATE_NAME), STATE_NAME, {"state": str, "lines": int})
            if noted["lines"] == len(self.attempts()):
                return str(noted["state"])
        return None

    def note_final_state(self, state: str, num_lines: int) -> None:
        """Note how it ended, and how many lines its attempts had written before that was asked.

        Another user's submission can be looked at all the same.
        """
        with contextlib.suppress(OSError):
            _replace(self.path / STATE_NAME, json.dumps({"state": state, "lines": num_lines}))

    def attempts(self) -> list[dict[str, Any]]:
        """What the attempts said, in the order of their clocks; a torn last line is left out."""
        found = []
        for file in (self.path / "attempts").glob("*.jsonl"):
            with contextlib.suppress(OSError):
                for line in _beginning(file, MAX_LOG_BYTES).splitlines():
                    with contextlib.suppress(DocumentError):
                        found.append(read_json(line, file.name, {"time?": float}))
        return sorted(found, key=lambda entry: float(entry.get("time", 0.0)))


@dataclass(frozen=True)
class Rendered:
    """What would be sent.

    Attributes:
        commands: of this machine, in order; each a list of words.
        files: by the name within the submission's folder.
    """

    commands: list[list[str]]
    files: dict[str, str]

    def text(self) -> str:
        """For the user's eyes: every file, then every command."""
        parts = [f"# {name}\n{content.rstrip()}" for name, content in self.files.items()]
        parts += [f"# command\n{shlex.join(words)}" for words in self.commands]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Order:
    """What a scheduler is to be told.

    Attributes:
        jobs: one or more; several become an array where the scheduler has such.
        profile: the site.
        stages: commands of ``sfg`` to run, in order; options of one behind its name.
        apart: whether each stage is a job of its own, which waits for the one before.
        after: ids of the scheduler that must have ended well before.
    """

    jobs: Sequence[Job]
    profile: Profile
    stages: Sequence[str] = ("run",)
    apart: bool = False
    after: Sequence[str] = ()


def stage_words(stage: str, job: str) -> list[str]:
    """Words behind ``sfg`` for a stage, whose options may stand behind its name.

    Example:
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
    """A submission of jobs that nothing is written of yet."""
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
    """The job as it reads from any directory."""
    source, latents = job.data.source, job.labels.latents
    return job.changed(
        output={"dir": _absolute(job.output.dir)},
        data={"source": _absolute(source) if _is_path(source) else source},
        labels={"latents": None if latents is None else _absolute(latents)},
    )


def without_address(job: Job) -> Job:
    """The job without the cluster that the command line named: where it is sent, HERE names it."""
    return job.changed(executor={"address": None})


def seeded(job: Job, seeds: Sequence[int]) -> list[Job]:
    """The job once a seed, each in a directory of its own under output.dir."""
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
    """Put the files in place, before anything is sent."""
    try:
        submission.save()
        (submission.path / "logs").mkdir(exist_ok=True)
        for name, content in rendered.files.items():
            path = submission.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Jobs may hold secrets: there is no moment in which others can read them.
            _create(path, content, 0o700 if name.endswith(".sh") else 0o600)
    except OSError as error:
        raise ConfigError(f"setup.dir: {submission.folder} cannot be written ({error.strerror})") from error


def _create(path: Path, content: str, mode: int) -> None:
    """Write a file that must not be there yet, be it as a link."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)


def _replace(path: Path, content: str) -> None:
    """Write a file whole, in place of an older one."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    _create(part, content, 0o666)
    part.replace(path)


def registry() -> Path:
    """The file that finds submissions again."""
    base = os.environ.get("XDG_STATE_HOME") or expanded("~/.local/state")
    return Path(base) / "sfg_dist" / "submissions.jsonl"


def remember(submission: Submission) -> None:
    """Add a line to the registry."""
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
    """A file, or the beginning of one that is longer than it may be."""
    with path.open("rb") as file:
        return file.read(most + 1)


def find(word: str) -> Submission:
    """The submission of an id, a scheduler's id, a name (the newest of that name) or the start of an id.

    Raises:
        ConfigError: there is none, or more than one begins so.
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
    """A scheduler's own command; what it printed.

    Raises:
        ClusterError: it is not there, or it failed; the message has what it said.
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
