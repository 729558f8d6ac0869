"""What the curves of single columns lose on held-out rows: by following noise, and beyond the training rows.

    python tests/benchmarks/column_laws.py TABLE... [--rows 10000 30000]

"heavy" stands for a made table of 9 columns: Student's t with 1 to 4 degrees of freedom, one column of spread by
another, two clipped at one end. Nats are the mean over held-out rows of the sum over columns, as if these were
independent and normal in the flow's coordinates, so what columns say of each other is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data import Prepared, Transform, prepare, quantile

_Array = NDArray[np.float64]


def heavy_table(num_rows: int = 20_625, seed: int = 7) -> _Array:
    """Heavy tails that come together, and clips at one end."""
    random = np.random.default_rng(seed)
    degrees = np.array([1, 1.5, 2, 2.5, 3, 3, 4])
    rows = random.standard_normal((num_rows, 9)) @ (random.standard_normal((9, 9)) / 3 + np.eye(9))
    rows[:, :7] /= np.sqrt(random.chisquare(3, (num_rows, 1)) / 3)
    rows[:, :7] /= np.sqrt(random.chisquare(degrees, (num_rows, 7)) / degrees)
    rows[:, 0] *= np.exp(0.8 * rows[:, 7])
    rows[:, 1] = np.maximum(rows[:, 1], np.quantile(rows[:, 1], 0.08))
    rows[:, 4] = np.minimum(rows[:, 4], np.quantile(rows[:, 4], 0.97))
    return rows


def nats(prepared: Prepared, transform: Transform) -> _Array:
    """Of each held-out row, shape (num_test,)."""
    noise = prepared.noise("test")
    scores = transform.forward(prepared.test, noise=noise).astype(np.float64)
    normal = (-0.5 * scores**2 - 0.5 * np.log(2 * np.pi)).sum(axis=1)
    return np.asarray(normal + transform.log_det_jacobian(prepared.test, noise=noise))


def main() -> None:
    """Print a line for each table and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000])
    arguments = parser.parse_args()
    choose: Callable[..., int] = quantile.choose_spacing
    print("| table | training rows | 20 rows a knot, straight | 20 rows a knot, law | knots chosen, law | its least |")
    with tempfile.TemporaryDirectory() as folder:
        for table in arguments.tables:
            source = table
            if table == "heavy":
                source = str(Path(folder, "heavy.npy"))
                np.save(source, heavy_table())
            for num_rows in arguments.rows:
                chosen = prepare(source, max_rows=round(num_rows / 0.8))
                quantile.choose_spacing = lambda values, num_rows: 20
                fixed = prepare(source, max_rows=round(num_rows / 0.8))
                quantile.choose_spacing = choose
                straight = replace(fixed.transform, tails=np.zeros_like(fixed.transform.tails))
                found = nats(chosen, chosen.transform)
                means = (nats(fixed, straight).mean(), nats(fixed, fixed.transform).mean(), found.mean())
                cells = [Path(table).stem, f"{len(chosen.train):,}", *(f"{mean:.2f}" for mean in means)]
                print("|", " | ".join([*cells, f"{found.min():.1f}"]), "|")


if __name__ == "__main__":
    main()
