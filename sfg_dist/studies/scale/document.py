"""The document of a scaling study: read, written with its page, and set beside that of another one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sfg_dist.job.errors import ConfigError, DocumentError
from sfg_dist.job.object_stores import is_url
from sfg_dist.job.reader import LONG_BYTES, read_json
from sfg_dist.job.toml_documents import parse_document
from sfg_dist.store import Location
from sfg_dist.studies.records import from_json, to_json
from sfg_dist.studies.scale.results import ComparedCase, Efficiency, StudyComparison, StudyDocument

FOLDER = "scale"
LOAD = "load average before a run"  # among the facts
NOT_KEYS = ("num_actors", "address", "notice_s", "price_per_hour")  # of a run: they do not change it


def compare_studies(first: str | Path, second: str | Path) -> StudyComparison:
    """Two studies side by side, for each stage, mode and number of workers of both; see ``read_study`` for their paths.

    Raises:
        ConfigError: there is no such study, or nothing is in both.
    """
    one, other = read_study(first), read_study(second)
    cases = [
        _compared(case, mine, others[mine.num_workers])
        for case, entries in one.summary.items()
        for others in [{entry.num_workers: entry for entry in other.summary.get(case, ())}]
        for mine in entries
        if mine.num_workers in others
        and others[mine.num_workers].rows > 0 < min(mine.wall_s, mine.wall_s_low, mine.wall_s_high)
    ]
    if not cases:
        raise ConfigError(f"{first} and {second} have no stage with as many workers in common")
    jobs = [parse_document(study.job, "its job") | {"facts": study.facts} for study in (one, other)]
    return StudyComparison(str(first), cases, list(_differences(*jobs)))


def _compared(case: str, mine: Efficiency, other: Efficiency) -> ComparedCase:
    share = mine.rows / other.rows
    return ComparedCase(
        case=case,
        num_workers=mine.num_workers,
        wall_s=(mine.wall_s, other.wall_s),
        rows=(mine.rows, other.rows),
        ratio=share * other.wall_s / mine.wall_s,
        ratio_low=share * other.wall_s_low / mine.wall_s_high,
        ratio_high=share * other.wall_s_high / mine.wall_s_low,
    )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Keys of two documents of tables with different values; where a run is written does not matter."""
    for name in sorted((one.keys() | other.keys()) - {"output"}):
        tables = [table if isinstance(table := job.get(name), dict) else {} for job in (one, other)]
        for key in sorted((tables[0].keys() | tables[1].keys()) - {*NOT_KEYS, LOAD}):
            before, after = (table.get(key) for table in tables)
            if before != after:
                yield f"{name}.{key}: {before} -> {after}"


def write_study(place: str, document: StudyDocument) -> None:
    """scale.json and its page, in an output directory."""
    from sfg_dist.studies.scale.page import render_page

    source = tomllib.loads(document.job)["data"]["source"]
    page = render_page(document, title=f"Scaling: {Path(source).name}", job_toml=document.job)
    output = Location(place, create=True)
    output.write(f"{FOLDER}/scale.html", page.encode())
    output.write(f"{FOLDER}/scale.json", json.dumps(to_json(document), indent=1).encode())


def read_study(path: str | Path) -> StudyDocument:
    """The document of a study, by scale.json, or a directory or URL that holds it.

    Raises:
        ConfigError: there is none, or it is another document.
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
                document = read_json(content, "it", max_bytes=LONG_BYTES, allow_nan=True)
                study = from_json(StudyDocument, document, "it")
                parse_document(study.job, "its job")
                return study
            except (DocumentError, ConfigError) as error:
                raise ConfigError(f"{folder}/{candidate} is no scaling study: {error}") from None
    raise ConfigError(f"{path} holds no scale.json: run `sfg scale` first")
