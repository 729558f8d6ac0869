"""The cell of a peer: its fit under the budget, its snapshots, and its rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfg_dist.model.precision import has_bfloat16
from sfg_dist.studies.compare.fitting import fit_peer
from sfg_dist.studies.compare.judging import Rows, auc, figures, finite_rows, mean_and_error, us_per_row
from sfg_dist.studies.compare.peers import PeerKind
from sfg_dist.studies.compare.selection import Configuration, draw_rows
from sfg_dist.studies.compare.tables import Tables

ODE_LIKELIHOOD_ROWS = 1000  # an ODE's exact divergence takes thousands of passes a row
DENSITY_BATCH_ROWS = 4096

Found = tuple[dict[str, dict[str, Any]], dict[str, Rows]]


def run_peer(
    kind: PeerKind,
    rows: Iterable[str],
    configuration: Configuration,
    tables: Tables,
    *,
    max_time_s: float,
    marks: Sequence[float],
    num_samples: int,
    metrics: Sequence[str],
    device: torch.device,
    seed: int,
    metric_seed: int,
    on_step: Callable[[str], None] = lambda text: None,
) -> Found:
    """Fit a peer and judge it.

    Args:
        kind: the peer.
        rows: which of its rows of the table.
        configuration: as it was chosen.
        tables: the table.
        max_time_s: wall-clock budget of the fit.
        marks: shares of the budget at which a snapshot is kept; judged after the fit, outside the budget.
        num_samples: rows drawn for the figures.
        metrics: names of the figures.
        device: where to fit.
        seed: of the fit and of the samples.
        metric_seed: of the figures' draws, the same for all methods.
        on_step: told what is done.

    Returns:
        By row of the table, what was found; and its samples in the user's units.
    """
    torch.manual_seed(seed)
    model = kind.build(tables.dim, **kind.shape).to(device)
    fit = fit_peer(
        model,
        tables.flow_rows(configuration.kind, "train", device),
        tables.flow_rows(configuration.kind, "validation", device),
        max_time_s=max_time_s,
        learning_rate=configuration.learning_rate,
        batch_size=kind.batch_size,
        bfloat16=kind.mixed_precision and has_bfloat16(device),
        marks_s=[mark * max_time_s for mark in marks],
        seed=seed,
    )
    on_step(f"fitted, {fit.num_steps:,} steps, best at {fit.best_at_s:.0f} s")
    likelihood = _likelihood(kind, model, tables, configuration, device, metric_seed)
    found: dict[str, dict[str, Any]] = {}
    samples: dict[str, Rows] = {}
    for row in rows:
        drawn = draw_rows(kind, model, row, tables, configuration, num_samples, seed)
        kept, num_bad = finite_rows(drawn, row)
        found[row] = {
            **figures(kept, tables.any, metrics=metrics, seed=metric_seed),
            **likelihood,
            **_cost(kind, model, row, tables, configuration, seed),
            "fit_s": fit.seconds,
            "label_s": 0.0,
            "num_steps": fit.num_steps,
            "best_at_s": fit.best_at_s,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "num_evaluations": kind.evaluations[row] if kind.evaluations[row] > 0 else tables.dim,
            "num_not_finite": num_bad,
            "curve": [],
        }
        samples[row] = kept
        on_step(f"{row} judged")
    judged_rows = min(num_samples, len(tables.any.test))
    for seconds, weights in fit.snapshots:
        model.load_state_dict(weights)
        for row in rows:
            drawn = draw_rows(kind, model, row, tables, configuration, judged_rows, seed)
            good = drawn[np.isfinite(drawn).all(axis=1)]
            if len(good) > len(drawn) / 2:
                found[row]["curve"].append({"elapsed_s": seconds, **auc(good, tables.any, seed=metric_seed)})
    for entry in found.values():
        last = {name: entry[name] for name in ("c2st_auc", "c2st_auc_error")}
        entry["curve"].append({"elapsed_s": entry["fit_s"], **last})
    return found, samples


def _likelihood(
    kind: PeerKind,
    model: torch.nn.Module,
    tables: Tables,
    configuration: Configuration,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Mean log density of test rows in the user's units; of a random part of them where it takes an ODE."""
    test = tables.flow_rows(configuration.kind, "test", device)
    log_det = tables.log_det_jacobian(configuration.kind, "test")
    if not kind.exact_density and len(test) > ODE_LIKELIHOOD_ROWS:
        chosen = np.random.default_rng(seed).permutation(len(test))[:ODE_LIKELIHOOD_ROWS]
        test, log_det = test[torch.from_numpy(chosen).to(device)], log_det[chosen]
    with torch.no_grad():
        parts = [model.log_density(part).cpu().numpy() for part in test.split(DENSITY_BATCH_ROWS)]  # type: ignore[operator]
    values: NDArray[np.float64] = np.concatenate(parts).astype(np.float64) + log_det
    mean, error = mean_and_error(values)
    return {
        "test_log_likelihood": mean if np.isfinite(mean) else None,
        "test_log_likelihood_error": error if np.isfinite(mean) else None,
        "num_likelihood_rows": len(values),
        "num_likelihood_not_finite": int((~np.isfinite(values)).sum()),
    }


def _cost(
    kind: PeerKind, model: torch.nn.Module, row: str, tables: Tables, configuration: Configuration, seed: int
) -> dict[str, float]:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    draw, transform = kind.sampler(model, row), tables.transform(configuration.kind)
    with torch.inference_mode():
        sampling = us_per_row(lambda n: draw(n, generator).cpu())
        drawn = draw(1024, generator).cpu().numpy()
    # The same few columns' maps for all: beside the sampler's own cost, not in it.
    back = us_per_row(lambda n: transform.inverse(drawn[:n]), len(drawn))
    return {"us_per_sample": sampling, "us_per_sample_back": back}
