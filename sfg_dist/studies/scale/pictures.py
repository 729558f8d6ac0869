"""Pictures of a scaling study, in the look of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sfg_dist.evaluate.pictures import DATA_COLOR, INK, SAMPLES_COLOR, new_figure, style_axes
from sfg_dist.studies.scale.fits import amdahl
from sfg_dist.studies.scale.results import AmdahlFit, Efficiency, Laws, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGE_COLORS = {"label": SAMPLES_COLOR, "train": DATA_COLOR}
PART_COLORS = {
    "start": "#E69F00",
    "load": "#F0E442",
    "integrate": DATA_COLOR,
    "step": DATA_COLOR,
    "write": "#009E73",
    "wait": "#8a8a8a",
    "end": "#d0d0d0",
}


def efficiency(summary: Mapping[str, Sequence[Efficiency]], fit: Mapping[str, Laws]) -> Figure:
    """Efficiency against the number of workers, with its spread; a fitted law where there is one."""
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots()
    for case, entries in summary.items():
        stage, mode = case.split(", ")
        n = [entry.num_workers for entry in entries]
        low = [max(0.0, entry.efficiency - entry.efficiency_low) for entry in entries]
        high = [max(0.0, entry.efficiency_high - entry.efficiency) for entry in entries]
        axes.errorbar(
            n, [entry.efficiency for entry in entries], yerr=[low, high], color=STAGE_COLORS[stage],
            linestyle="-" if mode == "strong" else "--", marker="o", markersize=5, capsize=3, linewidth=1.6,
            label=f"{stage}, {mode}",
        )  # fmt: skip
        if mode == "strong" and stage in fit and isinstance(law := fit[stage].amdahl, AmdahlFit):
            grid = np.geomspace(min(n), max(n), 60)
            parameters = np.array([law.time_of_one_s.value, law.serial_share.value])
            base = amdahl(np.array([float(min(n))]), parameters)[0] * min(n)
            times = grid * amdahl(grid, parameters)
            axes.plot(grid, base / times, color=STAGE_COLORS[stage], linewidth=0.9, linestyle=":")
    axes.axhline(1.0, color=INK, linewidth=0.8)
    _ticks_at(axes, {entry.num_workers for entries in summary.values() for entry in entries})
    axes.set_ylim(0, None)
    style_axes(axes, x_label="workers", y_label="efficiency (1 is perfect)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9.5)
    return figure


def parts(summary: Mapping[str, Sequence[Efficiency]]) -> Figure:
    """Where the time of a worker goes, a stacked bar for each number of workers."""
    figure = new_figure(9.0, max(2.2, 0.6 + 0.42 * sum(map(len, summary.values()))))  # the legend needs its height
    axes = figure.subplots()
    names: list[str] = []
    shown: set[str] = set()
    for case, entries in summary.items():
        for entry in entries:
            left = 0.0
            for name, seconds in entry.parts_s.items():
                axes.barh(
                    len(names), seconds, left=left, height=0.62, color=PART_COLORS.get(name, INK),
                    label=None if name in shown else name,
                )  # fmt: skip
                shown.add(name)
                left += seconds
            names.append(f"{case}, {entry.num_workers}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    style_axes(axes, x_label="seconds of a worker", y_label="")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9.5)
    return figure


def predictions(entries: Sequence[Prediction]) -> Figure:
    """Efficiency of simulated clusters, a line for each length of shard."""
    figure = new_figure(9.0, 3.8)
    axes = figure.subplots()
    lengths = sorted({entry.shard_s for entry in entries})
    for place, seconds in enumerate(lengths):
        own = [entry for entry in entries if entry.shard_s == seconds]
        shade = 0.25 + 0.65 * place / max(1, len(lengths) - 1)
        axes.plot(
            [entry.num_workers for entry in own], [entry.efficiency for entry in own], marker="o", markersize=4,
            color=SAMPLES_COLOR, alpha=shade, label=f"shards of {seconds:g} s",
        )  # fmt: skip
    _ticks_at(axes, {entry.num_workers for entry in entries})
    axes.set_ylim(0, 1.05)
    style_axes(axes, x_label="simulated workers", y_label="efficiency, start-up included")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9.5)
    return figure


def _ticks_at(axes: Axes, numbers: set[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(numbers), [str(number) for number in sorted(numbers)])
