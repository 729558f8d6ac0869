"""Which files of an output directory this package made: a run writes over no others.

A user may keep own files in an output directory, such as the working directory. Pages and the copy of the job carry a
mark. The other files, and pages of earlier versions, are known by their first bytes. A file that has one of the run's
names and is not known is the user's: a run refuses it before any work.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

import tomli_w

from sfg_dist.job.config import Job, parse_job
from sfg_dist.job.errors import ConfigError, StoreLinkError
from sfg_dist.job.words import as_line

if TYPE_CHECKING:
    from sfg_dist.store import Location

JOB_KEY = "job.toml"
OWN_FOLDERS = ("checkpoints", "model", "samples.zarr", "compare", "scale")
HEAD_BYTES = 1 << 16
JOB_MARK = b"# Written by sfg_dist, which writes over it as long as this is the only comment.\n"
PAGE_MARK = re.compile(rb'<meta name="generator" content="sfg_dist">|--data: #0072B2; --samples: #D55E00;')


def _begins(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda head: not head or re.match(pattern, head) is not None


def _holds(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda head: re.search(pattern, head) is not None


_KNOWN: dict[str, Callable[[bytes], bool]] = {
    "events.jsonl": _begins(rb'\s*\{"time": '),
    "report.html": _holds(PAGE_MARK.pattern),
    "metrics.json": _begins(rb'\{\s*"floor":'),
    "model/generator.json": _holds(rb'"sfg_dist":'),
    "model/model.safetensors": _holds(rb'"network\.'),
    "checkpoints/fit.json": _begins(rb'\{"settings": '),
    "checkpoints/hold.json": _begins(rb'\{"attempt": '),
    "checkpoints/fitted.json": _begins(rb'\{"network": '),
    "checkpoints/history.jsonl": _begins(rb'[^\n]*"step": '),
    "checkpoints/encoder.safetensors": _holds(rb'"identity"'),
    "compare/compare.html": _holds(PAGE_MARK.pattern),
    "compare/compare.json": _begins(rb'\{\s*"methods":'),
    "scale/scale.html": _holds(PAGE_MARK.pattern),
    "scale/scale.json": _begins(rb'\{\s*"runs":'),
}
"""Files that a run writes over or adds to, each with a test of its first bytes."""
_BESIDE_FIT = re.compile(r"checkpoints/(step_\d+/progress\.json|fitted\.safetensors|live\.json|failed\.txt)")


def require_own(output: Location) -> None:
    """Refuse an output directory where a run would follow a link, or write over a foreign file.

    Raises:
        ConfigError: a file with one of the run's names is foreign.
        StoreLinkError: one of the run's names is a link.
    """
    for name in (*OWN_FOLDERS, "pairs.zarr", "tensorboard", JOB_KEY):
        output.look(name)  # refuses a link
    # The writers of a store look through it themselves.
    for entry in chain.from_iterable(map(output.oddities, OWN_FOLDERS)):
        place = f"{output.url}/{as_line(entry.key)}"
        raise StoreLinkError(f"output.dir: {place} {entry.oddity}: remove it, or choose another output.dir")
    for key, is_own in _KNOWN.items():
        head = output.beginning(key, HEAD_BYTES)
        if head is not None and not is_own(head):
            raise ConfigError(_refusal(output, key))
    if not any(map(output.exists, ("checkpoints/fit.json", "checkpoints/hold.json"))):
        for entry in output.list("checkpoints"):
            if _BESIDE_FIT.fullmatch(entry.key):
                raise ConfigError(_refusal(output, entry.key))


def job_to_write(output: Location, job: Job) -> bytes | None:
    """The copy of the job to write into an output directory; None where the user's own file is the same job.

    A copy has the layout of the TOML writer and no comment but its mark. The copy of an earlier version has no mark,
    and lies beside a store.

    Raises:
        ConfigError: somebody wrote or changed the job.toml that is there, and it is another job.
    """
    content = JOB_MARK + job.to_toml().encode()
    there = output.read(JOB_KEY)
    if there is None or not there.strip():
        return content
    is_marked = there.startswith(JOB_MARK)
    if (is_marked or output.exists("pairs.zarr/plan.json")) and _is_laid_out(there.removeprefix(JOB_MARK)):
        return content
    try:
        if parse_job(there.decode("utf-8-sig"), origin=JOB_KEY, default_dir=job.output.dir) == job:
            return None
    except (ConfigError, UnicodeDecodeError):
        pass
    raise ConfigError(_refusal(output, JOB_KEY))


def _is_laid_out(content: bytes) -> bool:
    try:
        return tomli_w.dumps(tomllib.loads(content.decode())).encode() == content
    except (ValueError, RecursionError):
        return False


def _refusal(output: Location, key: str) -> str:
    return (
        f"output.dir: {output.url}/{key} was not left by a run of this package, and the run would write over it: "
        "choose another output.dir, or give that file another name"
    )
