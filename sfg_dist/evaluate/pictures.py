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

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.job.words import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA_COLOR = "#0072B2"
SAMPLES_COLOR = "#D55E00"
LABELS_COLOR = "#009E73"
INK = "#333333"
FAINT = "#9a9a9a"
PAGE_WIDTH = 10.0  # inches
MAX_MARGINALS = 24
MAX_NAME_LENGTH = 22
SHOWN_SHARE = 0.99  # of the data lie within the limits of an axis, before its margin is added
MAX_BAR_NAMES, MAX_BAR_LETTERS = 6, 10  # of categories below an axis
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


def short_name(name: str) -> str:
    """A column's name, cut to what fits under an axis."""
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return printable if len(printable) <= MAX_NAME_LENGTH else printable[: MAX_NAME_LENGTH - 1] + "…"


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


def robust_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Limits that hold ``SHOWN_SHARE`` of the values and a margin: one outlier does not flatten a plot."""
    tail = (1 - SHOWN_SHARE) / 2
    low, high = (float(limit) for limit in np.quantile(values, [tail, 1 - tail]))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) if high > low else max(1.0, abs(low)) * 0.5
    return low - margin, high + margin


def bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of a histogram over ``robust_limits``; one bin a value where there are few distinct ones."""
    distinct = np.unique(values)
    if 1 < len(distinct) <= LISTED_VALUES:
        inner = distinct[:-1] + np.diff(distinct) / 2
        return np.concatenate([[2 * distinct[0] - inner[0]], inner, [2 * distinct[-1] - inner[-1]]])
    num_bins = int(np.clip(len(values) ** 0.5, 12, 48))
    return np.linspace(*robust_limits(values), num_bins + 1)


def draw_histogram(
    axes: Axes, data: NDArray[np.float64], samples: NDArray[np.float64], num_bars: int | None = None
) -> None:
    """Data filled, samples as a line, both as densities; says what share of the samples is out of sight.

    Categories 0, 1, 2 and so on have ``num_bars`` bars.
    """
    edges = bin_edges(data) if num_bars is None else np.arange(num_bars + 1) - 0.5
    widths = np.diff(edges)
    heights = [np.histogram(column, edges)[0] / (len(column) * widths) for column in (data, samples)]
    axes.stairs(heights[0], edges, fill=True, color=DATA_COLOR, alpha=0.4, linewidth=0)
    axes.stairs(heights[1], edges, color=SAMPLES_COLOR, linewidth=1.6, baseline=None)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([])
    hidden = np.mean((samples < edges[0]) | (samples > edges[-1]))
    has_note = hidden > 0.02
    axes.set_ylim(0, (1.4 if has_note else 1.1) * max(heights[0].max(), heights[1].max(), 1e-300))
    if has_note:
        text = f"{100 * hidden:.0f} % of samples outside"
        axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=INK)


def add_legend(figure: Figure, *kinds: tuple[str, str]) -> None:
    """Coloured squares with names, one row above the panels; ``kinds`` are (name, colour)."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=name) for name, color in kinds]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=10)


def marginals(
    columns: Sequence[str], held_out: Rows, samples: Rows, categories: Mapping[str, Sequence[str]] | None = None
) -> Figure:
    """Histograms of the first ``MAX_MARGINALS`` columns, data against samples.

    ``categories`` has the names of the numbers 0, 1, 2 and so on in columns of categories.
    """
    num_shown = min(len(columns), MAX_MARGINALS)
    num_across = min(num_shown, 4)
    num_down = -(-num_shown // num_across)
    width = PAGE_WIDTH if num_across > 2 else 4.2 * num_across
    figure = new_figure(width, (2.5 if num_down == 1 else 1.9) * num_down + 0.4)
    grid = figure.subplots(num_down, num_across, squeeze=False).ravel()
    for index, axes in enumerate(grid):
        if index >= num_shown:
            axes.set_visible(False)
            continue
        names = (categories or {}).get(columns[index])
        draw_histogram(axes, held_out[:, index], samples[:, index], None if names is None else len(names))
        style_axes(axes, title=short_name(columns[index]))
        axes.spines["left"].set_visible(False)
        if names is None:
            axes.locator_params(axis="x", nbins=4)
        else:
            _name_bars(axes, names)
    add_legend(figure, ("held-out data", DATA_COLOR), ("samples", SAMPLES_COLOR))
    return figure


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    """The names of categories below their bars, of all or of some that lie evenly."""
    places = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_BAR_NAMES)).round().astype(int)).tolist()
    shown = [short_name(names[place])[:MAX_BAR_LETTERS] for place in places]
    axes.set_xticks(places, labels=shown, parse_math=False, rotation=20, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=7)


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
