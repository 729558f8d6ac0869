"""What of an output directory this package made: nothing else is written over.

An output directory may be one where the user keeps files of theirs, such as the working directory. A page and the copy
of the job have a mark; the other files are known by how they begin, and so are pages that earlier versions made. A file
of one of these names that is not known is the user's: a run refuses it by name, before it does anything.
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
from sfg_dist.job.values import printable

if TYPE_CHECKING:
    from sfg_dist.store import Location

JOB_KEY = "job.toml"
OWN_FOLDERS = ("checkpoints", "model", "samples.zarr", "compare", "scale")
HEAD_BYTES = 1 << 16
JOB_MARK = b"# Written by sfg_dist, which writes over it as long as this is the only comment.\n"
_PAGE = re.compile(rb'<meta name="generator" content="sfg_dist">|--data: #0072B2; --samples: #D55E00;')


def _begins(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda head: not head or re.match(pattern, head) is not None


def _holds(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda head: re.search(pattern, head) is not None


_KNOWN: dict[str, Callable[[bytes], bool]] = {
    "events.jsonl": _begins(rb'\s*\{"time": '),
    "report.html": _holds(_PAGE.pattern),
    "metrics.json": _begins(rb'\{\s*"floor":'),
    "model/generator.json": _holds(rb'"sfg_dist":'),
    "model/model.safetensors": _holds(rb'"network\.'),
    "checkpoints/fit.json": _begins(rb'\{"settings": '),
    "checkpoints/hold.json": _begins(rb'\{"attempt": '),
    "checkpoints/fitted.json": _begins(rb'\{"network": '),
    "checkpoints/history.jsonl": _begins(rb'[^\n]*"step": '),
    "checkpoints/encoder.safetensors": _holds(rb'"identity"'),
    "compare/compare.html": _holds(_PAGE.pattern),
    "scale/scale.html": _holds(_PAGE.pattern),
}
"""Files that are written over or added to, and how those of this package are known."""
_BESIDE_FIT = re.compile(r"checkpoints/(step_\d+/progress\.json|fitted\.safetensors|live\.json|failed\.txt)")


def require_own(output: Location) -> None:
    """Refuse an output directory where a run would follow a link, or write over what something else has made.

    Raises:
        ConfigError: a file has a name that the run's own have, and another made it.
        StoreLinkError: a name of the run's own is a link.
    """
    for name in (*OWN_FOLDERS, "pairs.zarr", "tensorboard", JOB_KEY):
        output.look(name)  # refuses a link
    # A store is looked through by those who write to it.
    for entry in chain.from_iterable(map(output.oddities, OWN_FOLDERS)):
        place = f"{output.url}/{printable(entry.key)}"
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
    """The copy of the job that belongs into an output directory; None where the user's own file says the same.

    A copy is laid out as a program does it, and has no comments beside its mark. One that an earlier version made has
    no mark and lies beside a store.

    Raises:
        ConfigError: a job.toml is there that somebody wrote or changed, and it is another job.
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
        f"output.dir: {output.url}/{key} is not what a run of this package has left, and the run would write over it: "
        f"choose another output.dir, or give that file another name"
    )
