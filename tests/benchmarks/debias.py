"""A debiased reference beside a plain one: the order of the density's error, and the AUC of labels of real tables.

    python tests/benchmarks/debias.py --dims 2 6
    python tests/benchmarks/debias.py --tables FOLDER            # of the four .npz that jobs/uci_*.toml name

Order: the law is a mixture of three normals, whose density is known. For each number of rows and each kind of reference
the blur is the best of a grid with steps of a twelfth in its logarithm. The error is the integrated squared error, by
draws of a wider law. The order is its slope in the logarithm of the number of rows. "own left out" leaves a row's own
kernel out of the score that it is moved by.

Labels: 30,000 of the training rows at most, as jobs/uci_*.toml prepare them, labels of default settings but t_min, and
the AUC of ``distances.c2st_auc`` against as many of the validation and test rows, mean of --draws sets of labels.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from sfg_dist.evaluate import distances
from sfg_dist.flow import Reference, Schedule, choose_t_min, debias, label_latents, log_density, moved_rows
from sfg_dist.flow.debias import own_moments
from sfg_dist.job.config import load_job
from sfg_dist.pipeline.table import prepare_table

JOBS = Path(__file__).parents[2] / "jobs"
TABLES = {
    "gas turbine": ("uci_gas_turbine", "gas_turbine_emission.npz"),
    "protein": ("uci_protein", "protein.npz"),
    "power": ("uci_power", "power_half_year.npz"),
    "Beijing": ("uci_beijing", "beijing_multisite.npz"),
}
MAX_ROWS, MAX_LABELS = 30_000, 16_384
STEP = math.exp(1 / 12)
PLACES = 4000


class Mixture:
    """Three normals of unlike width, about one spread apart."""

    def __init__(self, dim: int) -> None:
        generator = np.random.default_rng(dim)
        self.weights = np.array([0.5, 0.3, 0.2])
        self.means = generator.standard_normal((3, dim)) * 0.8
        self.spreads = np.array([0.8, 0.5, 0.6])

    def sample(self, num_rows: int, generator: np.random.Generator, widened: float = 1.0) -> Tensor:
        part = generator.choice(3, num_rows, p=self.weights)
        noise = generator.standard_normal((num_rows, self.means.shape[1]))
        return torch.from_numpy(self.means[part] + widened * self.spreads[part, None] * noise)

    def density(self, x: Tensor, widened: float = 1.0) -> Tensor:
        dim, total = x.shape[1], torch.zeros(len(x), dtype=torch.float64)
        for weight, mean, spread in zip(self.weights, self.means, widened * self.spreads, strict=True):
            squares = (x - torch.from_numpy(mean)).square().sum(dim=1) / spread**2
            total += weight * torch.exp(-squares / 2) / (2 * math.pi * spread**2) ** (dim / 2)
        return total


def left_out(rows: Tensor, reference: Reference, blur: float) -> Tensor:
    """As ``moved_rows`` without a row's own kernel; one that has no other near stays."""
    moments = own_moments(rows, reference, blur)
    share = torch.exp(-moments.log_kernel_sum)[:, None].clamp_max(1 - 1e-6)
    mean = ((moments.mean.double() + reference.center) - share * rows) / (1 - share)
    return torch.where(share < 0.999, (rows + mean) / 2, rows)


KINDS: dict[str, Callable[[Tensor, Reference, float], Tensor]] = {
    "plain": lambda rows, *_: rows,
    "debiased": moved_rows,
    "own left out": left_out,
}


def best_error(kind: str, rows: Tensor, mixture: Mixture, start: float, places: Tensor) -> tuple[float, float]:
    """The least error over blurs, searched from one of them on, and its blur."""
    reference = Reference(rows, sigma_data=1.0)
    exact, weights = mixture.density(places), 1 / mixture.density(places, 1.3)
    found: dict[float, float] = {}

    def error(blur: float) -> float:
        if blur not in found:
            moved = Reference(KINDS[kind](rows, reference, blur), sigma_data=1.0)
            t_min = blur**2  # of "linear_floor", whose blur is its root
            density = log_density(places, moved, t_min=t_min, schedule="linear_floor").double().exp()
            found[blur] = float(((density - exact).square() * weights).mean())
        return found[blur]

    best = start
    for factor in (STEP, 1 / STEP):
        while error(best * factor) < error(best):
            best *= factor
    return error(best), best


def order(dim: int, sizes: list[int], num_tables: int) -> None:
    mixture = Mixture(dim)
    places = mixture.sample(PLACES, np.random.default_rng(1), 1.3)
    table = Table(title=f"integrated squared error, {dim} columns (best blur)")
    for name in ("rows", *KINDS):
        table.add_column(name)
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    starts = dict.fromkeys(KINDS, 0.3)
    for num_rows in sizes:
        cells = []
        for kind in KINDS:
            values = []
            for seed in range(max(1, num_tables * sizes[0] // num_rows)):
                rows = mixture.sample(num_rows, np.random.default_rng([dim, num_rows, seed]))
                value, starts[kind] = best_error(kind, rows, mixture, starts[kind], places)
                values.append(value)
            errors[kind].append(float(np.mean(values)))
            cells.append(f"{errors[kind][-1]:.3g} ({starts[kind]:.3f})")
        table.add_row(f"{num_rows:,}", *cells)
    slopes = {kind: np.polyfit(np.log(sizes), np.log(values), 1)[0] for kind, values in errors.items()}
    table.add_row("order", *(f"{slope:.3f}" for slope in slopes.values()))
    table.add_row("in theory", f"{-4 / (dim + 4):.3f}", *[f"{-8 / (dim + 8):.3f}"] * 2)
    common.console.print(table)


def judge(name: str, folder: Path, blurs: list[str], num_draws: int, *, of_law: bool) -> None:
    job, file = TABLES[name]
    prepared = prepare_table(load_job(JOBS / f"{job}.toml", [f"data.source={folder / file}"]))
    generator = np.random.default_rng(0)
    rows = prepared.reference()
    if len(rows) > MAX_ROWS:
        rows = rows[np.sort(generator.choice(len(rows), MAX_ROWS, replace=False))]
    held_out = generator.permutation(np.concatenate([prepared.validation, prepared.test]))[:MAX_LABELS]
    num_labels = len(held_out)
    held_out, train = prepared.coded(held_out), prepared.coded(prepared.transform.inverse(rows))

    def auc(judged: np.ndarray, seed: int) -> float:
        return distances.c2st_auc(judged, held_out, generator=np.random.default_rng(seed))[0]

    common.console.print(f"{name}: {len(rows):,} rows, {num_labels:,} labels and held-out rows")
    kinds = [(False, None), *itertools.product((False, True), blurs)]
    for is_debiased, asked in kinds:
        if asked is None:
            said, judged = "real rows", [train] * num_draws
        else:
            t_min = choose_t_min(rows, debias=is_debiased, sigma_data=1.0).t_min if asked == "auto" else float(asked)
            reference = Reference(debias(rows, t_min=t_min, sigma_data=1.0) if is_debiased else rows, sigma_data=1.0)
            said, judged = f"{'debiased' if is_debiased else 'plain'} {asked} ({t_min:.2g})", []
            for seed in range(num_draws):
                noise = np.random.default_rng(seed).standard_normal((num_labels, rows.shape[1]), dtype=np.float32)
                if of_law:
                    index = generator.integers(len(rows), size=num_labels)
                    blur = Schedule("linear", t_min).blur
                    labels = (reference.take(index).numpy() + blur * noise).astype(np.float32)
                else:
                    labels = label_latents(noise, reference, t_min=t_min)
                judged.append(prepared.coded(prepared.transform.inverse(labels)))
        figure = np.mean([auc(table, seed) for seed, table in enumerate(judged)])
        common.console.print(f"{name}, {said}: {figure:.4f}")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--dims", type=int, nargs="*", default=[])
    options.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    options.add_argument("--repeats", type=int, default=8, help="tables of the first size; fewer of larger ones")
    options.add_argument("--tables", type=Path, metavar="FOLDER")
    options.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    options.add_argument("--blurs", nargs="+", default=["1e-3", "1e-2", "auto"])
    options.add_argument("--draws", type=int, default=1)
    options.add_argument(
        "--law", action="store_true", help="blurred rows, whose law is the labels', in place of labels"
    )
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    common.start(arguments.threads)
    for dim in arguments.dims:
        order(dim, arguments.sizes, arguments.repeats)
    for name in arguments.only if arguments.tables else []:
        judge(name, arguments.tables, arguments.blurs, arguments.draws, of_law=arguments.law)


if __name__ == "__main__":
    main()
