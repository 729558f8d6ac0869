"""The keys of a job as people ask for them: what each takes, its default, and what it does."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.key_types import expected
from sfg_dist.job.words import shown


@dataclass(frozen=True)
class JobKey:
    """One key of a job."""

    table: str  # the table that it stands in
    name: str  # its name there
    takes: str  # what it may be set to, in words
    default: str  # the value that it has where it is not given, as TOML; empty where there is none
    effect: str  # what it does, with its unit


def job_keys(wanted: str | None = None) -> list[JobKey]:
    """All keys of a job, those of one table, or one.

    Args:
        wanted: a table, or ``table.key``.

    Raises:
        ConfigError: there is none of that name; the message has the nearest.

    Examples:
        >>> [(key.name, key.default) for key in job_keys("transform")]
        [('kind', '"quantile"')]
    """
    keys = [
        _key(table, name, field)
        for table, section in Job.model_fields.items()
        for name, field in section.annotation.model_fields.items()  # type: ignore[union-attr]
    ]
    if wanted is None:
        return keys
    found = [key for key in keys if wanted in (key.table, f"{key.table}.{key.name}")]
    if not found:
        names = [*Job.model_fields, *(f"{key.table}.{key.name}" for key in keys)]
        near = difflib.get_close_matches(wanted, names, n=1) or [
            f"{key.table}.{key.name}" for key in keys if key.name == wanted
        ]
        hint = f"did you mean {near[0]}?" if near else f"the tables are {', '.join(Job.model_fields)}"
        raise ConfigError(f"no key or table of a job is called {shown(wanted)}: {hint}")
    return found


def _key(table: str, name: str, field: FieldInfo) -> JobKey:
    takes = expected(field.annotation, field.metadata)
    return JobKey(table, name, takes, _default(field), " ".join((field.description or "").split()))


def _default(field: FieldInfo) -> str:
    default: Any = None if field.is_required() else field.default
    return "" if default is None else json.dumps(default)
