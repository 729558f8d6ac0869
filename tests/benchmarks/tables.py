"""The real tables by their recipes, standardised; a table whose file is missing is left out.

A path comes from the command line, or from the folder in the environment variable SFG_BENCH_DATA.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILES = {
    "power": "power_half_year.npz",
    "gas": "gas_turbine_emission.npz",
    "beijing": "beijing_multisite.npz",
}
TITLES = {"power": "power, 6 columns", "gas": "gas turbine, 11 columns", "beijing": "Beijing, 10 columns"}
POWER_COLUMNS = {  # grid steps; what is not named is left out
    "Global_active_power": 0.001,
    "Voltage": 0.01,
    "Sub_metering_1": 1.0,
    "Sub_metering_2": 1.0,
    "Sub_metering_3": 1.0,
}
BEIJING_STEPS = {"PM2.5": 1.0, "PM10": 1.0, "SO2": 1.0, "NO2": 1.0, "O3": 1.0, "CO": 100.0}  # 0.1 for the others
POWER_ROWS = 200_000


def add_options(parser: argparse.ArgumentParser) -> None:
    for name, file in FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"{file}; or from $SFG_BENCH_DATA")


def find(arguments: argparse.Namespace) -> dict[str, Path]:
    """Paths of the tables that are there."""
    folder = os.environ.get("SFG_BENCH_DATA")
    paths = {}
    for name, file in FILES.items():
        path = getattr(arguments, name) or (Path(folder) / file if folder else None)
        if path is not None and path.exists():
            paths[name] = path
    return paths


def missing_note(name: str) -> str:
    return f"{TITLES[name]}: skipped, no {FILES[name]} (--{name} PATH, or SFG_BENCH_DATA=FOLDER)"


def load(name: str, path: Path) -> Tensor:
    """The table as the flow sees it, float32, shape (num_rows, dim)."""
    with np.load(path, allow_pickle=False) as file:
        rows = {"power": _power, "gas": _gas, "beijing": _beijing}[name](file)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    return torch.from_numpy(rows.astype(np.float32))


def _power(file: np.lib.npyio.NpzFile) -> NDArray[np.float64]:
    names, x = file["columns"].tolist(), file["X"].astype(np.float64)
    random = np.random.RandomState(42)
    kept = x[:, [names.index(name) for name in POWER_COLUMNS]]
    kept = kept + random.rand(*kept.shape) * np.array(list(POWER_COLUMNS.values()))
    rows = np.column_stack([kept, file["minute_of_day"].astype(np.float64)])
    random.shuffle(rows)
    return rows[:POWER_ROWS]


def _gas(file: np.lib.npyio.NpzFile) -> NDArray[np.float64]:
    x = file["X"].astype(np.float64)
    return x[np.random.default_rng(0).permutation(len(x))]


def _beijing(file: np.lib.npyio.NpzFile) -> NDArray[np.float64]:
    names = [name for name in file["columns"].tolist() if name != "RAIN"]
    x = file["X"].astype(np.float64)[:, [file["columns"].tolist().index(name) for name in names]]
    x = x[np.isfinite(x).all(axis=1)]
    random = np.random.default_rng(0)
    x = x + random.random(x.shape) * np.array([BEIJING_STEPS.get(name, 0.1) for name in names])
    return x[random.permutation(len(x))]
