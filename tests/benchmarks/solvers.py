"""Label error of every solver against its evaluations, on two moons and on the power table.

    .venv/bin/python tests/benchmarks/solvers.py [--power TABLE.npz] [--quick]

Error: 2-norm of the label's distance from a float64 solution (RK4, 640 evaluations on moons, 160 on power), in the
reference's units; t_min = 1e-4. All in float64 and by the sum over every reference, so that the step is the only error.
The power table: GAP, V, SM1 to SM3 and the minute of the day, a uniform draw of one step of its grid added to each of
the first five, shuffled, the first --rows rows, standardised; with all 200,000 the study takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.flow.adaptive import integrate_adaptive
from sfg_dist.flow.posterior.posterior import posterior_moments
from sfg_dist.flow.posterior.reference import Reference
from sfg_dist.flow.schedule import Schedule
from sfg_dist.flow.solver import GRADING, Denoiser, Flow, graded_grid, integrate, num_steps

SCHEDULE = Schedule("linear", 1e-4)
COLUMNS = (0, 2, 4, 5, 6)  # the others are nearly functions of these
GRID_STEPS = (0.001, 0.01, 1.0, 1.0, 1.0)
FIXED = {
    "euler": (32,),
    "rk4": (16, 20, 24, 32, 40),
    "bs32": (25, 31),
    "dopri5": (25, 31),
    "tsit5": (25, 31),
    "exp_ab1": (20, 32),
    "exp_ab2": (20, 32),
    "exp_ab4": (16, 20, 24, 32),
    "exp_abm3": (16, 20, 24, 32),
    "exp_abm4": (16, 20, 24, 28, 32, 40),
    "exp_abm5": (16, 20, 24, 28, 32, 40),
}
GRADINGS = {"rk4": (1.3, 1.5, 1.7), "exp_abm4": (1.3, 1.4, 1.5, 1.7)}  # the others: the default power alone
ADAPTIVE = {
    "bs32": (1e-3,),
    "dopri5": (1e-3,),
    "exp_abm3": (1e-3,),
    "exp_abm4": (3e-3, 1e-3, 3e-4, 1e-4),
    "exp_abm5": (3e-3, 1e-3, 3e-4, 1e-4),
}


def moons() -> NDArray[np.float64]:
    """Two moons, noise 0.05, standardised, 2000 rows."""
    from sklearn.datasets import make_moons

    return standardised(make_moons(2000, noise=0.05, random_state=0)[0])


def power(path: Path, rows: int) -> NDArray[np.float64]:
    """The power table by the recipe above."""
    with np.load(path, allow_pickle=False) as file:
        measured = file["X"][:, COLUMNS].astype(np.float64)
        minute = file["minute_of_day"].astype(np.float64)
    random = np.random.RandomState(42)
    measured += random.uniform(size=measured.shape) * np.asarray(GRID_STEPS)
    table = np.column_stack([measured, minute])
    return standardised(table[random.permutation(len(table))][:rows])


def standardised(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return (table - table.mean(axis=0)) / table.std(axis=0)


def exact_denoiser(table: NDArray[np.float64]) -> Denoiser:
    """The posterior mean over every reference, float64."""
    reference = Reference(table, dtype=torch.float64)

    def denoiser(z: torch.Tensor, alpha: Any, beta_sq: Any) -> torch.Tensor:
        if isinstance(alpha, float) and alpha == 0:
            return torch.zeros_like(z)
        return posterior_moments(z, reference, alpha=alpha, beta_sq=beta_sq, backend="fused").mean

    return denoiser


def study(case: str, table: NDArray[np.float64], num_latents: int, truth_evaluations: int) -> list[dict[str, Any]]:
    """One row a setting: solver, grid, evaluations, errors."""
    denoiser = exact_denoiser(table)
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((num_latents, table.shape[1])))
    truth = integrate(denoiser, latents, Flow(SCHEDULE, "rk4", truth_evaluations))
    scale = SCHEDULE.alpha(SCHEDULE.t_end)
    records: list[dict[str, Any]] = []

    def record(solver: str, grid: str, evaluations: float, states: torch.Tensor) -> None:
        error = ((states - truth) / scale).norm(dim=1)
        median, p90, p99 = error.quantile(torch.tensor([0.5, 0.9, 0.99], dtype=error.dtype)).tolist()
        row = {"case": case, "solver": solver, "grid": grid, "evaluations": evaluations}
        records.append({**row, "median": median, "p90": p90, "p99": p99})
        print(f"{case:6} {solver:9} {grid:14} {evaluations:6.1f}  {median:.1e}  {p90:.1e}  {p99:.1e}", flush=True)

    for solver, budgets in FIXED.items():
        for budget in budgets:
            for grading in GRADINGS.get(solver, (GRADING,)):
                points = graded_grid(SCHEDULE, num_steps(solver, budget), grading)
                states = integrate(denoiser, latents, Flow(SCHEDULE, solver, budget, points))
                record(solver, f"power {grading}", budget, states)
    for solver, tolerances in ADAPTIVE.items():
        for tolerance in tolerances:
            got = integrate_adaptive(denoiser, latents, Flow(SCHEDULE, solver, solver_tolerance=tolerance))
            record(solver, f"adaptive {tolerance:.0e}", float(got.num_evaluations.double().mean()), got.states)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--power", type=Path, help="the power table, .npz with X and minute_of_day")
    parser.add_argument("--rows", type=int, default=200_000, help="references of the power table")
    parser.add_argument("--quick", action="store_true", help="fewer latents, 20,000 references: a minute or two")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("SFG_BENCH_THREADS", "2")))
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("case   solver    grid            evals   median   p90      p99")
    records = study("moons", moons(), 256 if arguments.quick else 1000, 640)
    if arguments.power:
        rows = min(arguments.rows, 20_000) if arguments.quick else arguments.rows
        records += study("power", power(arguments.power, rows), 64 if arguments.quick else 256, 160)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "solvers.json"
    path.write_text(json.dumps({"name": "solvers", "t_min": SCHEDULE.t_min, "rows": records}, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
