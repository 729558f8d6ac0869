"""Commands on a saved model: rows drawn to a table of any length, and its export to another format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfg_dist.cli.command import Json, command, say, whole
from sfg_dist.cli.display import Display
from sfg_dist.job.arguments import MAX_COUNT
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.words import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sfg_dist.model.generator import Generator


@dataclass(frozen=True)
class SampleOptions:
    """The rows that ``sfg sample MODEL`` draws, and where it writes them."""

    num: Annotated[
        int | None,
        typer.Option(
            "-n", "--num", metavar="ROWS", parser=whole, help="The number of rows to draw; 1000 if not given."
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", metavar="NUMBER", parser=whole, help="The seed of the latents.")] = 0
    start: Annotated[
        int,
        typer.Option(
            "--start",
            metavar="ROW",
            parser=whole,
            help="The first row to draw. A row is the same whatever other rows are drawn.",
        ),
    ] = 0
    share: Annotated[
        str | None,
        typer.Option("--share", metavar="K/M", help="Write share K of M of a table in parts; K counts from 1."),
    ] = None
    given: Annotated[
        list[str] | None,
        typer.Option("--given", metavar="COLUMN=VALUE", help="The value of a given column, for all rows; repeatable."),
    ] = None
    given_table: Annotated[
        str | None,
        typer.Option(
            "--given-table", metavar="FILE", help="A table with the given columns' values, one sample for each row."
        ),
    ] = None
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="PLACE",
            help="The table to write: .zarr, .parquet, .csv or .npy; samples.csv if not given. A .zarr, and a "
            ".parquet at a URL or with a slash at its end, is written in parts: a killed command goes on where it "
            "stopped.",
        ),
    ] = None


def sample_model(model: str, options: SampleOptions, as_json: bool) -> None:
    """Draw rows from a saved model, a directory or URL, to a table, with a bar.

    Raises:
        ConfigError: an option or the place is wrong.
        StoreError: the model cannot be read, or the table cannot be written.
    """
    seed, num = options.seed, options.num
    num_rows, first = _rows("--num", 1000 if num is None else num), _rows("--start", options.start)
    if seed < 0:
        raise ConfigError(f"--seed: expected a whole number of 0 or more, got {seed}")
    part, values = _share(options.share), _given(options.given)
    if "://" not in model and not Path(model).exists():
        raise ConfigError(f"{model} does not exist: name a job file, or a saved model's directory")
    path = options.out or "samples.csv"
    done = made = 0
    with Display(as_json) as display:
        from sfg_dist.job.fingerprint import fingerprint
        from sfg_dist.model.generator import Generator
        from sfg_dist.store.table import write_table

        display.step("draw: loading the model")
        generator = Generator.load(model)
        conditions: NDArray[np.float64] | None
        if options.given_table is not None:
            conditions, num_rows = _read_conditions(options.given_table, generator, values, num, num_rows)
        else:
            conditions = generator.conditions_of(values, num_rows)
        told = "" if conditions is None else f", given {fingerprint(conditions)}"
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
            lambda ranges: generator.sample_ranges(
                ((first + a, first + b) for a, b in ranges), seed, conditions, first=first
            ),
            types=generator.types,
            source=f"model {generator.digest}, rows {first} to {first + num_rows}, seed {seed}{told}",
            share=part,
            on_progress=on_progress,
        )
    lacking = "" if there == num_rows else f" of {num_rows:,}; the other shares write the rest"
    say(as_json, {"samples": path, "rows": there, "is_whole": not lacking}, f"{there:,} rows in {path}{lacking}")


@command
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved model: a directory or an s3:// URL.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format: onnx.")] = "onnx",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file to write, a path or URL; generator.onnx or network.onnx if not given.",
        ),
    ] = None,
    network_only: Annotated[
        bool, typer.Option("--network-only", help="Export the network alone, without calibration and transform.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write a saved model in another format.

    The graph is compared with the model first. It takes N(0, 1) latents, and conditions where the model has them, and
    gives rows in the units of your table.
    """
    if to != "onnx":
        raise ConfigError(f"--to {shown(to)}: the only format is onnx")
    path = out or ("network.onnx" if network_only else "generator.onnx")
    folder, _, name = path.rpartition("/")
    if not name:
        raise ConfigError(f"--out {path}: expected the name of a file")
    with Display(json_) as display:
        from sfg_dist.model.export_onnx import export_onnx
        from sfg_dist.model.generator import Generator
        from sfg_dist.store import Location

        display.step("export: building the graph, and comparing it with the model")
        content, agreement = export_onnx(Generator.load(_existing(model)), network_only=network_only)
    Location(folder or ("/" if path.startswith("/") else "."), create=True).write(name, content)
    facts = agreement.to_dict()
    differ = f"the outputs of the network differ by {facts['raw_labels_max']:.1e} at most"
    if not network_only:
        share = f"{100 * facts['values_within']:.4g} %"
        differ += f", {share} of the values by 1e-5 or less, all by {facts['values_max']:.1e} or less"
        if facts["cells_differing"]:
            differ += f", {facts['cells_differing']:,} values fall on another point of their grid"
    say(json_, {"model": path, "agreement": facts}, f"{path}: on {facts['rows']:,} rows {differ}")


def _existing(model: str) -> str:
    if "://" not in model and not Path(model).exists():
        raise ConfigError(f"{model} does not exist: name a saved model's directory")
    return model


def _given(assignments: list[str] | None) -> dict[str, str] | None:
    """Values as text by column name; None where nothing is given."""
    values = {}
    for assignment in assignments or ():
        name, equals, text = assignment.rpartition("=")
        if name in values:
            raise ConfigError(f"--given {shown(assignment)}: {shown(name)} is given twice")
        if not equals or not name or not text:
            raise ConfigError(f"--given {shown(assignment)}: expected column=value, for example temperature=20.5")
        values[name] = text
    return values or None


def _read_conditions(
    path: str, generator: Generator, given: dict[str, str] | None, num: int | None, num_rows: int
) -> tuple[NDArray[np.float64], int]:
    """The conditions of each row by a table that has them, and its length."""
    from sfg_dist.data import TextFormat, open_table
    from sfg_dist.data.column_type import UnfitValueError, asked_categories
    from sfg_dist.data.sources import is_text

    if given is not None:
        raise ConfigError("--given has values for all rows, --given-table for each row: give only one of them")
    if not generator.condition:
        raise ConfigError("this generator was trained without data.condition: leave out --given-table")
    types = [generator.types[place] for place in generator.split.places]
    text = TextFormat.of_types(types, header=True) if is_text(path) else None  # columns are found by their names
    asked = asked_categories(generator.condition, types)
    table = open_table(path, columns=list(generator.condition), text=text, asked=asked)
    values = table.retyped(types)
    for name, type_, column in zip(generator.condition, types, values.T, strict=True):
        try:
            type_.check_held(column)
        except UnfitValueError as error:
            raise ConfigError(f"{path}: column {name!r}: {error}") from error
    if num is not None and num_rows != len(values):
        raise ConfigError(
            f"-n {num_rows}: {path} has {len(values):,} rows, and one sample is drawn for each: leave out -n"
        )
    return generator.check_conditions(values), len(values)


def _rows(option: str, value: int) -> int:
    if not 0 <= value <= MAX_COUNT:
        raise ConfigError(f"{option}: expected a whole number of rows, 0 to {MAX_COUNT:,}, got {value:,}")
    return value


def _share(text: str | None) -> tuple[int, int]:
    """(k, m) with k from 0."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--share {shown(text)}: expected K/M with K from 1 to M, for example 1/4")
    return int(found[1]) - 1, int(found[2])
