"""Pictures of a comparison, in the look of the report: AUC against wall-clock, and against the cost of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sfg_dist.evaluate.pictures import DATA_COLOR, INK, SAMPLES_COLOR, new_figure, style_axes
from sfg_dist.studies.compare.document import NAMES, Method, mean_auc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette; ours in the colour of samples.
COLORS = {
    "sfg": SAMPLES_COLOR,
    "published": "#8a8a8a",
    "nsf": DATA_COLOR,
    "realnvp": "#56B4E9",
    "flow_matching": "#009E73",
    "score_sde": "#CC79A7",
    "score_ode": "#E69F00",
}
WAYS = {"score_ode": "--", "published": ":"}


def curves(methods: Mapping[str, Method], floor: float | None, max_time_s: float) -> Figure:
    """AUC of what each method has after a share of its budget; labels count."""
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots()
    for name, method in methods.items():
        points = [(p.elapsed_s, p.c2st_auc) for p in method.curve if p.c2st_auc is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=COLORS[name],
                linestyle=WAYS.get(name, "-"),
                linewidth=2.4 if name == "sfg" else 1.6,
                marker="o",
                markersize=4,
                label=NAMES[name],
                zorder=3 if name == "sfg" else 2,
            )
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.text(0, floor, " real rows", va="bottom", fontsize=8.5, color=INK)
    axes.set_xlim(
        0, 1.04 * max(max_time_s, *(point.elapsed_s for method in methods.values() for point in method.curve))
    )
    style_axes(axes, x_label="seconds of wall-clock, labels included", y_label="classifier AUC (0.5 is perfect)")
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9.5)
    return figure


def costs(methods: Mapping[str, Method], sizes: Mapping[str, Method]) -> Figure | None:
    """AUC against the cost of a sampled row, logarithmic; other sizes of ours are joined by a line."""
    marks: list[tuple[str, float, float, float]] = []
    for name, method in methods.items():
        value = mean_auc(method)
        if value is not None and method.us_per_sample > 0:
            marks.append((name, method.us_per_sample, *value))
    if not marks:
        return None
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots()
    line = sorted((size.us_per_sample, value[0]) for size in sizes.values() if (value := mean_auc(size)))
    if line:
        axes.plot(*zip(*line, strict=True), color=SAMPLES_COLOR, linewidth=1.2, marker="o", markersize=3.5)
    for name, cost, auc, error in marks:
        axes.errorbar(cost, auc, yerr=error, color=COLORS[name], marker="o", markersize=7, capsize=3, linestyle="none")
        axes.annotate(NAMES[name], (cost, auc), xytext=(8, 5), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xscale("log")
    shown = [cost for _, cost, _, _ in marks] + [cost for cost, _ in line]
    limits = min(shown) / 2, 6 * max(shown)  # room for the names
    axes.set_xlim(*limits)
    _plain_ticks(axes, *limits)
    style_axes(axes, x_label="microseconds a sampled row", y_label="classifier AUC (0.5 is perfect)")
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    return figure


def _plain_ticks(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import NullFormatter

    places: Sequence[float] = [10.0**power for power in range(-2, 7) if low <= 10.0**power <= high]
    if places:
        axes.set_xticks(places, labels=[f"{place:g}" if place < 1e4 else f"{place:,.0f}" for place in places])
        axes.xaxis.set_minor_formatter(NullFormatter())
