"""Pictures of columns, losses and times, and the look that all pictures of the report share.

Data are blue, samples vermilion, labels green everywhere (Okabe and Ito's palette, which colour-blind readers tell
apart). Pictures are Matplotlib ``Figure`` objects without pyplot, so nothing global is changed, and a user's strings
are never read as mathematics. One inch is 100 pixels of the page.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.shown_columns import ShownColumn, known, robust_limits, short_name
from sfg_dist.job.words import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA_COLOR = "#0072B2"
SAMPLES_COLOR = "#D55E00"
LABELS_COLOR = "#009E73"
INK = "#333333"
FAINT = "#9a9a9a"
PAGE_WIDTH, SMALL_WIDTH = 10.0, 3.3  # inches, of a picture alone and of three beside each other
MAX_MARGINALS = 24
LISTED_VALUES = 25  # with no more distinct values, a column gets one bar for each


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, whose parts are laid out without overlap."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    spacing = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06, wspace=0.03, hspace=0.03)
    return Figure(figsize=(width, height), layout=spacing, facecolor="white")


def style_axes(axes: Axes, *, title: str = "", x_label: str = "", y_label: str = "") -> None:
    """Thin frame, grey ticks, plain text."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(labelsize=8.5, colors=INK, length=3, color=FAINT)
    axes.set_title(title, fontsize=10.5, color=INK, parse_math=False)
    axes.set_xlabel(x_label, fontsize=9.5, color=INK, parse_math=False)
    axes.set_ylabel(y_label, fontsize=9.5, color=INK, parse_math=False)


def to_data_uri(figure: Figure) -> str:
    """The figure as a PNG inside a data: URI."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters that no font here has: they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="png", dpi=150)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in a page."""

    uri: str
    width: int  # pixels
    alt: str
    caption: str


def picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure for a page; an inch is 100 pixels."""
    return Picture(to_data_uri(figure), round(100 * figure.get_figwidth()), alt, caption)


def bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of a histogram over ``robust_limits``; one bin a value where there are few distinct ones."""
    distinct = np.unique(values)
    if 1 < len(distinct) <= LISTED_VALUES:
        inner = distinct[:-1] + np.diff(distinct) / 2
        return np.concatenate([[2 * distinct[0] - inner[0]], inner, [2 * distinct[-1] - inner[-1]]])
    num_bins = int(np.clip(len(values) ** 0.5, 12, 48))
    return np.linspace(*robust_limits(values), num_bins + 1)


def draw_histogram(axes: Axes, column: ShownColumn) -> None:
    """Held-out rows filled, samples as a line, both as densities; says what share of the samples is out of sight."""
    data, samples = known(column.held_out), known(column.samples)
    axes.set_yticks([])
    if not len(data):
        axes.set_xticks([])
        _corner(axes, "no values in the data")
        return
    edges = bin_edges(data) if column.bars is None else np.arange(len(column.bars) + 1) - 0.5
    widths = np.diff(edges)
    heights = [np.histogram(values, edges)[0] / (max(len(values), 1) * widths) for values in (data, samples)]
    axes.stairs(heights[0], edges, fill=True, color=DATA_COLOR, alpha=0.4, linewidth=0)
    axes.stairs(heights[1], edges, color=SAMPLES_COLOR, linewidth=1.6, baseline=None)
    axes.set_xlim(edges[0], edges[-1])
    notes = []
    if max(column.missing) > 0:
        notes.append("missing: {:.1f} % and {:.1f} %".format(*(100 * share for share in column.missing)))
    hidden = float(np.mean((samples < edges[0]) | (samples > edges[-1]))) if len(samples) else 0.0
    if hidden > 0.02:
        notes.append(f"{100 * hidden:.0f} % of samples outside")
    room = 1.1 + 0.25 * len(notes)
    axes.set_ylim(0, room * max(heights[0].max(), heights[1].max(), 1e-300))
    if notes:
        _corner(axes, "\n".join(notes))


def _corner(axes: Axes, text: str) -> None:
    """Small print in the upper corner."""
    axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color=INK)


def draw_column(axes: Axes, column: ShownColumn, title: str) -> None:
    """The histogram of a column with its ticks."""
    draw_histogram(axes, column)
    style_axes(axes, title=title)
    axes.spines["left"].set_visible(False)
    if len(known(column.held_out)):
        column.name_ticks(axes.xaxis, 4)
    if column.has_words:
        axes.tick_params(axis="x", rotation=20)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def add_legend(figure: Figure, *kinds: tuple[str, str]) -> None:
    """Coloured squares with names, one row above the panels; ``kinds`` are (name, colour)."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=name) for name, color in kinds]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=10)


def marginals(columns: Sequence[ShownColumn]) -> Figure:
    """Histograms of the first ``MAX_MARGINALS`` columns, data against samples."""
    num_shown = min(len(columns), MAX_MARGINALS)
    num_across = min(num_shown, 4)
    num_down = -(-num_shown // num_across)
    width = PAGE_WIDTH if num_across > 2 else 4.2 * num_across
    figure = new_figure(width, (2.5 if num_down == 1 else 1.9) * num_down + 0.4)
    grid = figure.subplots(num_down, num_across, squeeze=False).ravel()
    for index, axes in enumerate(grid):
        if index < num_shown:
            draw_column(axes, columns[index], short_name(columns[index].name))
        else:
            axes.set_visible(False)
    add_legend(figure, ("held-out data", DATA_COLOR), ("samples", SAMPLES_COLOR))
    return figure


def loss_curve(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Training and validation loss by epoch on a logarithmic scale; None if no loss was recorded."""
    curves = []
    for key, name, color in (("train_loss", "training", DATA_COLOR), ("validation_loss", "validation", SAMPLES_COLOR)):
        points = [(_number(record.get("epoch")), _number(record.get(key))) for record in history]
        kept = np.array([(epoch, loss) for epoch, loss in points if np.isfinite(epoch) and loss > 0])
        if len(kept):
            curves.append((kept, name, color))
    if not curves:
        return None
    figure = new_figure(7.0, 3.4)
    axes = figure.subplots()
    for kept, name, color in curves:
        marker = "o" if len(kept) <= 30 else None
        axes.plot(kept[:, 0], kept[:, 1], color=color, label=name, linewidth=1.6, marker=marker, markersize=3.5)
    axes.set_yscale("log")
    style_axes(axes, x_label="epoch", y_label="loss")
    _label_log_axis(axes, np.concatenate([kept[:, 1] for kept, _, _ in curves]))
    axes.grid(axis="y", which="both", color="#e8e8e8", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9.5)
    return figure


def _label_log_axis(axes: Axes, values: NDArray[np.float64]) -> None:
    """Plain numbers on the axis, with subdivisions where the values span few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = float(values.min()), float(values.max())
    axes.set_ylim(low / 1.08, high * 1.08)
    decades = np.log10(high / low)
    subdivisions = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(np.arange(1.0, 10.0))
    plain = FuncFormatter(lambda value, _position: f"{value:g}")
    if decades < 0.25:
        axes.set_yticks(np.geomspace(low, high, 4) if high > low else [low], minor=False)
        plain = FuncFormatter(lambda value, _position: f"{value:.3g}")
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=subdivisions, numticks=12))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _number(value: Any) -> float:
    """A record's entry as a number; NaN for a missing one."""
    return float(value) if isinstance(value, (int, float)) else float("nan")


def stage_times(time_s: Mapping[str, float]) -> Figure:
    """A bar for each stage, seconds of wall time."""
    names = list(time_s)
    seconds = np.array([time_s[name] for name in names])
    figure = new_figure(7.0, 0.36 * len(names) + 0.75)
    axes = figure.subplots()
    axes.barh(range(len(names)), seconds, color=DATA_COLOR, alpha=0.75, height=0.62)
    axes.set_yticks(range(len(names)), labels=[short_name(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    longest = max(float(seconds.max()), 1e-9)
    for place, value in enumerate(seconds):
        axes.text(value + 0.012 * longest, place, duration(value), va="center", fontsize=9.5, color=INK)
    axes.set_xlim(0, 1.14 * longest)
    style_axes(axes, x_label="seconds")
    axes.tick_params(axis="y", labelsize=10, length=0)
    return figure
