"""Commands on a saved model: rows drawn to a table of any length."""

from __future__ import annotations

import re
from pathlib import Path

from sfg_dist.command import say
from sfg_dist.display import Display
from sfg_dist.errors import ConfigError


def sample_model(
    model: str, *, num: float | None, seed: int, start: float, share: str | None, out: str | None, as_json: bool
) -> None:
    """Draw rows from a saved model to a table, with a bar; what ``sfg sample MODEL`` does.

    Args:
        model: a model's directory or URL.
        num: rows, 1000 for None.
        seed: of the latents.
        start: the first row.
        share: "K/M", K from 1 to M, of a table in parts; None for all of it.
        out: the table, samples.csv for None.
        as_json: the result as one document.

    Raises:
        ConfigError: a number or the place cannot be meant.
        StoreError: the model cannot be read, or the table not be written.
    """
    from sfg_dist.model.generator import Generator
    from sfg_dist.store.table import write_table

    num_rows, first = _whole("-n", 1000 if num is None else num), _whole("--start", start)
    part = _share(share)
    if "://" not in model and not Path(model).exists():
        raise ConfigError(f"{model} does not exist: name a job file, or a saved model's directory")
    generator = Generator.load(model)
    path = out or "samples.csv"
    done = made = 0
    with Display(as_json) as display:
        mine = num_rows // part[1] if part[1] > 1 else num_rows

        def on_progress(rows: int) -> None:
            nonlocal done, made
            made += rows
            done += rows
            if made or done:
                display.tell("drawn", done=done, made=made, total=max(mine, done))

        display.tell("stage_started", stage="draw", total=mine)
        there = write_table(
            path,
            generator.columns,
            num_rows,
            lambda ranges: generator.sample_ranges(((first + a, first + b) for a, b in ranges), seed),
            source=f"model {generator.digest}, rows {first} to {first + num_rows}, seed {seed}",
            share=part,
            on_progress=on_progress,
        )
    lacking = "" if there == num_rows else f" of {num_rows:,}; the other shares make the rest"
    say(as_json, {"samples": path, "rows": there, "is_whole": not lacking}, f"{there:,} rows in {path}{lacking}")


def _whole(option: str, value: float) -> int:
    if value < 0 or value != int(value):
        raise ConfigError(f"{option} must be a whole number of rows, got {value}")
    return int(value)


def _share(text: str | None) -> tuple[int, int]:
    """(k, m) with k from 0."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--share {text}: expected K/M with K from 1 to M, for example 1/4")
    return int(found[1]) - 1, int(found[2])
