"""The README's picture: data, the flow from latents to labels, and samples of the trained network.

sfg run jobs/toy_2d.toml --set data.source=pinwheel
python docs/picture.py runs/toy_2d docs/images/pinwheel.png
"""

from __future__ import annotations

import sys

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import sfg_dist
from sfg_dist.data import open_table
from sfg_dist.flow import Schedule, label_paths

NUM_PATHS, NUM_POINTS = 400, 6000
INK, FAINT, COLOUR = "#1c2b33", "#c9d3d8", "#0b6e8f"


def main(run: str, target: str) -> None:
    """Draw the picture of a run of jobs/toy_2d.toml."""
    mpl.use("agg")
    data = open_table("pinwheel", seed=1, max_rows=NUM_POINTS).values
    samples = sfg_dist.Generator.load(f"{run}/model").sample(NUM_POINTS, seed=0)
    latents = torch.randn(NUM_PATHS, 2, generator=torch.Generator().manual_seed(2))
    _, states = label_paths(latents, sfg_dist.Reference(data), schedule=Schedule("linear", 1e-3), num_evaluations=48)

    figure = Figure(figsize=(9, 3.3), dpi=110)
    panels = figure.subplots(1, 3)
    titles = ("the data", "latents flow to labels: no score network", "samples: one pass of a plain network")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9.5, color=INK)
        axes.set_aspect("equal")
        axes.set_axis_off()
        reach = 1.08 * np.abs(data).max()
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
    panels[0].scatter(*data.T, s=0.8, color=COLOUR, linewidths=0, alpha=0.7)
    paths = states.numpy().transpose(1, 0, 2)
    panels[1].add_collection(LineCollection(list(paths), colors=FAINT, linewidths=0.5))
    panels[1].scatter(*paths[:, 0].T, s=3, color=INK, linewidths=0, label="latents")
    panels[1].scatter(*paths[:, -1].T, s=3, color=COLOUR, linewidths=0, label="labels")
    panels[1].legend(loc="lower right", fontsize=7, frameon=False, markerscale=2, handletextpad=0)
    panels[2].scatter(*samples.T, s=0.8, color=COLOUR, linewidths=0, alpha=0.7)
    figure.tight_layout(pad=0.4, w_pad=0.8)
    figure.savefig(target, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
