"""A job file with comments, as a person would write it: the keys that were chosen, with the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tomli_w

from sfg_dist.job.words import as_line


def commented_toml(
    document: Mapping[str, Mapping[str, Any]], comments: Mapping[str, Iterable[str]], head: Iterable[str]
) -> str:
    """The text of a job file.

    Args:
        document: keys of a job by table.
        comments: lines above a key, by ``table.key``; those of a ``table`` stand below its keys.
        head: lines at the top of the file.

    Examples:
        >>> print(commented_toml({"labels": {"seed": 1}}, {"labels.seed": ["of the latents"]}, ["A job."]), end="")
        # A job.
        <BLANKLINE>
        [labels]
        # of the latents
        seed = 1
    """
    lines = [_comment(line) for line in head]
    for table, keys in document.items():
        lines += ["", f"[{table}]"]
        nested = {}
        for key, value in keys.items():
            if isinstance(value, Mapping):
                nested[key] = value
                continue
            lines += [_comment(line) for line in comments.get(f"{table}.{key}", ())]
            lines.append(f"{key} = {value:_}" if type(value) is int else tomli_w.dumps({key: value}).rstrip("\n"))
        lines += [_comment(line) for line in comments.get(table, ())]
        if nested:  # tables of their own, behind the plain keys
            lines += ["", tomli_w.dumps({table: nested}).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _comment(line: str) -> str:
    return f"# {as_line(line)}".rstrip()
