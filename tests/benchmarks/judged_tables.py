"""Copies, independent columns and real rows of whole tables, by every figure of a judgement.

    python tests/benchmarks/judged_tables.py gas_turbine_emission.npz power_half_year.npz adult_train.parquet
    python tests/benchmarks/judged_tables.py power_half_year.npz --independent     # and whether fidelity is bad

A table is an npz file with an array X, or NAME_train.parquet with NAME_test.parquet beside it. The first are split by
default_rng(0).permutation: the last tenth is held out and the tenth before it left out. power_half_year loses two of
its columns, gains the minute of the day, and gets uniform noise of a step; beijing_multisite loses RAIN and rows with
gaps, and gets noise too; miniboone_small has its own test rows. One half of the held-out rows stand for samples, so
the figures of "samples" are those of real rows that nothing was fitted to. With --independent, training rows with each
column permuted stand for samples, and all held-out rows are compared with.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate import FIGURE_KINDS, judge
from sfg_dist.evaluate.contest import JUDGED_MAX_ROWS
from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables
from sfg_dist.evaluate.verdict import summary, verdicts

TARGETS = ("income", "Revenue", "pm2.5")
Table = NDArray[np.float64]


def numbers(path: Path) -> tuple[tuple[JudgedColumn, ...], Table, Table]:
    """Columns, training rows and held-out rows of an npz file."""
    with np.load(path, allow_pickle=False) as given:
        stored = {name: given[name] for name in given.files}
    generator = np.random.default_rng(0)
    if "X" not in stored:
        train = np.concatenate([stored["train_prefix"], stored["val"]]).astype(np.float64)
        held_out = stored["test"].astype(np.float64)
        return tuple(JudgedColumn(f"x{k}", "number") for k in range(train.shape[1])), train, held_out
    rows, names = stored["X"].astype(np.float64), [str(name) for name in stored.get("columns", ())]
    names = names or [f"x{k}" for k in range(rows.shape[1])]
    if path.stem == "power_half_year":
        kept = [k for k in range(rows.shape[1]) if k not in (1, 3)]
        rows = rows[:, kept] + generator.random((len(rows), len(kept))) * [0.001, 0.01, 1, 1, 1]
        rows = np.concatenate([rows, stored["minute_of_day"][:, None]], axis=1)
        names = [names[k] for k in kept] + ["minute_of_day"]
    if path.stem == "beijing_multisite":
        kept = [k for k, name in enumerate(names) if name != "RAIN"]
        rows, names = rows[:, kept], [names[k] for k in kept]
        rows = rows[~np.isnan(rows).any(axis=1)]
        steps = {"CO": 100.0, "TEMP": 0.1, "PRES": 0.1, "DEWP": 0.1, "WSPM": 0.1}
        rows += generator.random(rows.shape) * [steps.get(name, 1.0) for name in names]
    order, tenth = np.random.default_rng(0).permutation(len(rows)), len(rows) // 10
    columns = tuple(JudgedColumn(name, "number") for name in names)
    return columns, rows[order[: -2 * tenth]], rows[order[-tenth:]]


def mixed(path: Path) -> tuple[tuple[JudgedColumn, ...], Table, Table]:
    """The same of two parquet files; text and truth values by the numbers of their sorted values."""
    import pyarrow.parquet as pq

    parts = [pq.read_table(path), pq.read_table(path.with_name(path.name.replace("_train", "_test")))]
    columns, tables = [], [[], []]
    for name in parts[0].column_names:
        values = [part.column(name).to_pandas() for part in parts]
        if values[0].dtype.kind in "iuf":
            columns.append(JudgedColumn(name, "integer" if values[0].dtype.kind in "iu" else "number"))
            coded = [part.to_numpy(np.float64) for part in values]
        else:
            texts = [[None if value is None or value != value else str(value) for value in part] for part in values]
            known = sorted({text for part in texts for text in part if text is not None})
            code = {text: number for number, text in enumerate(known)} | {None: np.nan}
            columns.append(JudgedColumn(name, "category", tuple(known)))
            coded = [np.array([code[text] for text in part], dtype=np.float64) for part in texts]
        for table, column in zip(tables, coded, strict=True):
            table.append(column)
    train, held_out = (np.stack(table, axis=1) for table in tables)
    return tuple(columns), train, held_out


def main() -> None:
    """Print the figures of each table, and write all of them."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("tables", nargs="+", type=Path)
    options.add_argument("--independent", action="store_true")
    options.add_argument("--figures", nargs="*", default=list(FIGURE_KINDS))
    options.add_argument("--output", type=Path, default=Path("runs/bench/judged_tables.json"))
    asked = options.parse_args()
    record = {}
    for path in asked.tables:
        columns, train, held_out = numbers(path) if path.suffix == ".npz" else mixed(path)
        order = np.random.default_rng(1).permutation(len(held_out))
        samples, others = held_out[order[: len(order) // 2]], held_out[order[len(order) // 2 :]]
        if asked.independent:
            generator = np.random.default_rng(5)
            samples = np.stack([generator.permutation(column) for column in train.T], axis=1)[:JUDGED_MAX_ROWS]
            others = held_out
        target = next((column.name for column in columns if column.name in TARGETS), None)
        started = time.perf_counter()
        found = judge(JudgedTables(columns, samples, others, train, target), figures=asked.figures)
        seconds = time.perf_counter() - started
        print(f"\n{path.stem}: {len(train)} training rows, {len(others)} held out, {seconds:.1f} s")
        print(f"{'figure':26} {'samples':>9} {'error':>9} {'floor':>9} {'copy':>9} {'independent':>12}")
        for name, figure in found.figures.items():
            values = (figure.value, figure.error, figure.floor, figure.copy, figure.independent)
            if figure.value is not None:
                shown = [f"{value:9.4f}" if value is not None else f"{'-':>9}" for value in values]
                print(f"{name:26} {' '.join(shown[:4])}    {shown[4]}", flush=True)
        print(summary(verdicts(found.figures, target)), flush=True)
        record[path.stem] = {"seconds": seconds, "figures": {n: asdict(f) for n, f in found.figures.items()}}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
