"""Pictures of a comparison, in the look of the report: AUC against wall-clock, cost and privacy.

They are as wide as a telephone, so that their letters can be read there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sfg_dist.evaluate.pictures import DATA_COLOR, INK, SAMPLES_COLOR, new_figure, style_axes
from sfg_dist.studies.compare.document import ATTACK, FIDELITY, NAMES, OURS, Method, mean_figure
from sfg_dist.studies.compare.labels import place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.8, 4.6  # inches; two stand side by side on a wide page
LETTERS = 10.5
PEER_COLOR, ERROR_COLOR = "#4a5a68", "#c3c9ce"
# Okabe and Ito's palette first; ours in the colour of samples.
COLORS = {
    "sfg": SAMPLES_COLOR,
    "published": "#8a8a8a",
    "nsf": DATA_COLOR,
    "realnvp": "#56B4E9",
    "flow_matching": "#009E73",
    "score_sde": "#CC79A7",
    "score_ode": "#E69F00",
    "gaussian_copula": "#7a5195",
    "tabddpm": "#003f5c",
    "ctgan": "#a05d56",
    "tvae": "#b8a100",
    "forest_diffusion": "#2f7d32",
}
WAYS = {"score_ode": "--", "published": ":"}
FIDELITY_LABEL = "AUC of boosted trees (0.5 is perfect)"


def curves(methods: Mapping[str, Method], floor: float | None, max_time_s: float) -> Figure:
    """AUC of what each method has after a share of its budget; labels count."""
    figure = new_figure(WIDTH, HEIGHT + 0.9)
    axes = figure.subplots()
    for name, method in methods.items():
        points = [(p.elapsed_s, p.c2st_auc) for p in method.curve if p.c2st_auc is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=COLORS[name],
                linestyle=WAYS.get(name, "-"),
                linewidth=2.4 if name == OURS else 1.6,
                marker="o",
                markersize=4,
                label=NAMES[name],
                zorder=3 if name == OURS else 2,
            )
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.text(0, floor, " real rows", va="bottom", fontsize=LETTERS, color=INK)
    axes.set_xlim(
        0, 1.04 * max(max_time_s, *(point.elapsed_s for method in methods.values() for point in method.curve))
    )
    _style(axes, "seconds of wall-clock, labels included", "classifier AUC (0.5 is perfect)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=LETTERS)
    return figure


def costs(methods: Mapping[str, Method], sizes: Mapping[str, Method]) -> Figure | None:
    """Fidelity against the cost of a sampled row, logarithmic; other sizes of ours are joined by a line."""
    points = {
        name: (method.us_per_sample, 0.0, *value)
        for name, method in methods.items()
        if (value := mean_figure(method, FIDELITY)) and method.us_per_sample > 0
    }
    if not points:
        return None
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    line = sorted((size.us_per_sample, value[0]) for size in sizes.values() if (value := mean_figure(size, FIDELITY)))
    if line:
        axes.plot(*zip(*line, strict=True), color=SAMPLES_COLOR, linewidth=1.2, marker="o", markersize=3.5)
    axes.set_xscale("log")
    shown = [point[0] for point in points.values()] + [cost for cost, _ in line]
    limits = min(shown) / 3, 3 * max(shown)
    axes.set_xlim(*limits)
    _plain_ticks(axes, *limits)
    _style(axes, "microseconds a sampled row", FIDELITY_LABEL)
    floor = next(iter(methods.values())).figures[FIDELITY][0].floor
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.text(
            0.01, floor, "real rows", va="bottom", fontsize=LETTERS, color=INK, transform=axes.get_yaxis_transform()
        )
    _draw_points(axes, points)
    return figure


def privacy(methods: Mapping[str, Method]) -> Figure | None:
    """Fidelity against the AUC of a membership attack; real rows are marked."""
    points: dict[str, tuple[float, float, float, float]] = {}
    for name, method in methods.items():
        attack, fidelity = mean_figure(method, ATTACK), mean_figure(method, FIDELITY)
        if attack and fidelity:
            points[name] = (*attack, *fidelity)
    if not points:
        return None
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    _style(axes, "AUC of a membership attack (0.5 is private)", FIDELITY_LABEL)
    figures = methods[next(iter(points))].figures
    real = figures[ATTACK][0].floor, figures[FIDELITY][0].floor
    marks = [(0.5 if real[0] is None else real[0], 0.5 if real[1] is None else real[1])]
    axes.plot(*marks[0], color=INK, marker="x", markersize=8, markeredgewidth=1.6, linestyle="none")
    _draw_points(axes, points, {"real rows": marks[0]})
    return figure


def _draw_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float, float, float]],
    others: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Each method at (x, y) with its name, from (x, error of x, y, error of y); ``others`` get a name alone."""
    for name, (x, x_error, y, y_error) in points.items():
        own = name == OURS
        axes.errorbar(
            x, y, xerr=x_error or None, yerr=y_error or None, color=SAMPLES_COLOR if own else PEER_COLOR, marker="o",
            markersize=8 if own else 6, ecolor=ERROR_COLOR, elinewidth=1, linestyle="none", zorder=3 if own else 2,
        )  # fmt: skip
    axes.margins(0.16)
    named = [(NAMES[name], x, y) for name, (x, _, y, _) in points.items()]
    named += [(name, *place) for name, place in (others or {}).items()]
    place_labels(axes, named, size=LETTERS, color={NAMES[OURS]: SAMPLES_COLOR})


def _style(axes: Axes, x_label: str, y_label: str) -> None:
    style_axes(axes)
    axes.tick_params(labelsize=LETTERS)
    axes.set_xlabel(x_label, fontsize=LETTERS, color=INK)
    axes.set_ylabel(y_label, fontsize=LETTERS, color=INK)
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)


def _plain_ticks(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import NullFormatter

    places: Sequence[float] = [10.0**power for power in range(-2, 7) if low <= 10.0**power <= high]
    if places:
        axes.set_xticks(places, labels=[f"{place:g}" if place < 1e4 else f"{place:,.0f}" for place in places])
        axes.xaxis.set_minor_formatter(NullFormatter())
