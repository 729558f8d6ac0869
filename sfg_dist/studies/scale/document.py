"""The document of a scaling study: read, written with its page, and set beside that of another one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfg_dist.job.documents import parse_document
from sfg_dist.job.errors import ConfigError, DocumentError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.store import Location

FOLDER = "scale"
LOAD = "load average before a run"  # among the facts
RUN_FIELDS = {
    **dict.fromkeys(("stage", "mode"), str), "num_workers": range(1, 1 << 30), "repeat?": int, "wall_s": float,
    "rows?": float, "parts_s?": {str: float},
}  # fmt: skip
"""What is asked of a run."""
_TIMES = ("wall_s", "wall_s_low", "wall_s_high")
_FIELDS = {
    "summary": {str: [{"num_workers": int, "rows": float, **dict.fromkeys(_TIMES, float)}]},
    "runs": [RUN_FIELDS], "job": str, "facts": dict,
}  # fmt: skip
NOT_KEYS = ("num_actors", "address", "notice_s", "price_per_hour")  # of a run: they do not change it


def compare_studies(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Two studies side by side: for each case of both, the ratio of times a row with its spread.

    Args:
        first, second: scale.json, or the directory or URL that holds scale/.

    Returns:
        cases: entries with case, num_workers, wall_s and rows of both, ratio (second over first), ratio_low,
        ratio_high. differences: what in the two jobs, machines and versions is not the same, "key: value -> value".

    Raises:
        ConfigError: a file is none, or nothing is in both.
    """
    studies = [read_study(path) for path in (first, second)]
    entries = []
    for case in studies[0]["summary"]:
        others = {entry["num_workers"]: entry for entry in studies[1]["summary"].get(case, ())}
        for one in studies[0]["summary"][case]:
            other = others.get(one["num_workers"])
            if other is not None and other["rows"] > 0 < min(one[name] for name in _TIMES):
                share = one["rows"] / other["rows"]
                entries.append(
                    {
                        "case": case,
                        "num_workers": one["num_workers"],
                        "wall_s": [one["wall_s"], other["wall_s"]],
                        "rows": [one["rows"], other["rows"]],
                        "ratio": share * other["wall_s"] / one["wall_s"],
                        "ratio_low": share * other["wall_s_low"] / one["wall_s_high"],
                        "ratio_high": share * other["wall_s_high"] / one["wall_s_low"],
                    }
                )
    if not entries:
        raise ConfigError(f"{first} and {second} have no stage with as many workers in common")
    differences = _differences(*(parse_document(one["job"], "its job") for one in studies))
    differences += _differences(*({"facts": one["facts"]} for one in studies))
    return {"of": str(first), "cases": entries, "differences": differences}


def _differences(*jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys of two documents of tables with different values; where a run is written is no matter."""
    keys = [
        (table, key)
        for table in sorted(jobs[0].keys() | jobs[1].keys())
        for key in sorted(_table(jobs[0], table).keys() | _table(jobs[1], table).keys())
        if table != "output" and key not in (*NOT_KEYS, LOAD)
    ]
    values = [(table, key, *(_table(job, table).get(key) for job in jobs)) for table, key in keys]
    return [f"{table}.{key}: {one} -> {other}" for table, key, one, other in values if one != other]


def _table(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = job.get(name)
    return found if isinstance(found, dict) else {}


def write_study(place: str, document: Mapping[str, Any]) -> None:
    """scale.json and its page, in an output directory."""
    from sfg_dist.studies.scale.page import render_page

    source = tomllib.loads(document["job"])["data"]["source"]
    page = render_page(document, title=f"Scaling: {Path(source).name}", job_toml=document["job"])
    output = Location(place, create=True)
    output.write(f"{FOLDER}/scale.html", page.encode())
    output.write(f"{FOLDER}/scale.json", json.dumps(document, indent=1).encode())


def read_study(path: str | Path) -> dict[str, Any]:
    """The document of a study.

    Args:
        path: scale.json, or a directory or URL that holds it.

    Raises:
        ConfigError: there is none, or it is none.
    """
    folder, name = str(path).rstrip("/"), "scale.json"
    if folder.endswith(".json"):
        folder, _, name = folder.rpartition("/")
    if is_url(folder) or Path(folder or ".").is_dir():
        location = Location(folder or ".")
        for candidate in (name, f"{FOLDER}/{name}"):
            if (content := location.read(candidate, LONG_BYTES)) is None:
                continue
            try:
                document: dict[str, Any] = read_json(content, "it", _FIELDS, max_bytes=LONG_BYTES, allow_nan=True)
                parse_document(document["job"], "its job")
                return document
            except (DocumentError, ConfigError) as error:
                raise ConfigError(f"{folder}/{candidate} is no scaling study: {error}") from None
    raise ConfigError(f"{path} holds no scale.json: run `sfg scale` first")
