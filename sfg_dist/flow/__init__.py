"""The mathematics: noise schedules, the posterior mean, the probability-flow ODE, labels, scores and densities.

Latents and a reference set come in; labels, scores or log densities go out (``labeling``, ``density``). Schedules are
in ``schedule``, solvers in ``solver`` and ``multistep``; the sums over the data, from which the score follows, are the
folder ``posterior``. Of other rooms, only ``job`` may be imported.

Conventions: rows are samples; t = 0 is data and t = 1 is noise; variances end in ``_sq``. At the public functions
places and labels are in the reference's own coordinates. Below them all is centred and of spread 1 (see ``spread``).
"""

from sfg_dist.flow.bandwidth import choose_t_min, favours_debiasing
from sfg_dist.flow.conditional import ConditionalReference, label_given
from sfg_dist.flow.debias import debias, moved_rows
from sfg_dist.flow.density import log_density
from sfg_dist.flow.labeling import Effort, denoiser_of, fit_time_grid, label_batch, label_latents, label_paths, score
from sfg_dist.flow.posterior.clusters import build_order
from sfg_dist.flow.posterior.moments import PosteriorMoments
from sfg_dist.flow.posterior.posterior import posterior_mean, posterior_moments
from sfg_dist.flow.posterior.reference import PreparedReference, Reference, block_ranges
from sfg_dist.flow.schedule import Schedule
from sfg_dist.flow.solver import Flow, graded_grid, integrate

__all__ = [
    "ConditionalReference",
    "Effort",
    "Flow",
    "PosteriorMoments",
    "PreparedReference",
    "Reference",
    "Schedule",
    "block_ranges",
    "build_order",
    "choose_t_min",
    "debias",
    "denoiser_of",
    "favours_debiasing",
    "fit_time_grid",
    "graded_grid",
    "integrate",
    "label_batch",
    "label_given",
    "label_latents",
    "label_paths",
    "log_density",
    "moved_rows",
    "posterior_mean",
    "posterior_moments",
    "score",
]
