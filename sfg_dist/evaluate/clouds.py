"""Pictures of rows as points: pairs of columns, densities, the flow's paths, colours and small images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfg_dist.evaluate.compared_rows import Rows, subset
from sfg_dist.evaluate.judgement import JudgedColumn
from sfg_dist.evaluate.marginals import rank_correlation
from sfg_dist.evaluate.pictures import (
    DATA_COLOR,
    FAINT,
    INK,
    LABELS_COLOR,
    PAGE_WIDTH,
    SAMPLES_COLOR,
    SMALL_WIDTH,
    add_legend,
    draw_histogram,
    new_figure,
    style_axes,
)
from sfg_dist.evaluate.shown_columns import ShownColumn, robust_limits, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PAIR_COLUMNS = 5
MAX_POINTS = 2_000
MAX_PATHS = 150
DENSITY_BINS = 90
NUM_SNAPSHOTS = 6


def pair_columns(columns: Sequence[JudgedColumn], held_out: Rows) -> list[int]:
    """The columns to pair: all of up to ``MAX_PAIR_COLUMNS``, else those that the others tell most of.

    That is by rank correlations, or by mutual information where there are categories or missing values.
    """
    dim = len(columns)
    if dim <= MAX_PAIR_COLUMNS:
        return list(range(dim))
    if np.isnan(held_out).any() or any(column.is_discrete for column in columns):
        strength = _information(columns, held_out[:MAX_POINTS])
    else:
        strength = np.abs(rank_correlation(held_out)).sum(axis=0)
    return sorted(int(index) for index in np.argsort(-strength, kind="stable")[:MAX_PAIR_COLUMNS])


def _information(columns: Sequence[JudgedColumn], held_out: Rows) -> NDArray[np.float64]:
    """What all others tell of each column, by normalised mutual information, shape (len(columns),)."""
    from sklearn.metrics import normalized_mutual_info_score

    from sfg_dist.evaluate.trends import binned

    codes = binned(held_out[:0], held_out, tuple(columns))
    told = np.zeros(len(columns))
    for first, second in combinations(range(len(columns)), 2):
        shared = normalized_mutual_info_score(codes[:, first], codes[:, second])
        told[[first, second]] += shared
    return told


def pair_plot(columns: Sequence[ShownColumn], *, generator: np.random.Generator) -> Figure:
    """Every pair of columns: data below the diagonal, samples above, same axes; both on the diagonal."""
    dim = len(columns)
    data, samples = _points(columns, generator)
    side = {2: 5.6, 3: 7.4, 4: 8.8}.get(dim, PAGE_WIDTH)
    figure = new_figure(side, side + 0.3)
    grid = figure.subplots(dim, dim, squeeze=False)
    size = 6.0 if dim <= 3 else 3.5
    for i in range(dim):
        for j in range(dim):
            axes = grid[i, j]
            if i == j:
                draw_histogram(axes, columns[i])
            else:
                cloud, color = (data, DATA_COLOR) if i > j else (samples, SAMPLES_COLOR)
                _draw_cloud(axes, cloud[:, [j, i]], (columns[j].limits, columns[i].limits), size, color)
                columns[i].name_ticks(axes.yaxis, 4)
            axes.set_xlim(columns[j].limits)
            columns[j].name_ticks(axes.xaxis, 3)
            style_axes(
                axes,
                x_label=short_name(columns[j].name) if i == dim - 1 else "",
                y_label=short_name(columns[i].name) if j == 0 else "",
            )
            _turn_words(axes, columns[j])
            if i < dim - 1:
                axes.set_xticklabels([])
            if j > 0 or i == j:
                axes.set_yticklabels([])
    figure.align_labels()
    add_legend(figure, ("held-out data, below", DATA_COLOR), ("samples, above", SAMPLES_COLOR))
    return figure


def pair_panels(first: ShownColumn, second: ShownColumn, *, generator: np.random.Generator) -> Figure:
    """One pair of columns as two clouds of points, held-out rows and samples, on the same axes."""
    figure = new_figure(SMALL_WIDTH, 4.6)
    clouds = _points([first, second], generator)
    kinds = (("held-out data", DATA_COLOR), ("samples", SAMPLES_COLOR))
    for axes, cloud, (name, color) in zip(figure.subplots(2, 1, sharex=True), clouds, kinds, strict=True):
        _draw_cloud(axes, cloud, (first.limits, second.limits), 4.0, color)
        first.name_ticks(axes.xaxis, 4)
        second.name_ticks(axes.yaxis, 4)
        is_last = name == "samples"
        style_axes(axes, x_label=short_name(first.name) if is_last else "", y_label=short_name(second.name))
        axes.set_title(name, fontsize=9, color=color, loc="left", parse_math=False)
        _turn_words(axes, first)
    return figure


def _points(columns: Sequence[ShownColumn], generator: np.random.Generator) -> list[Rows]:
    """Equally many rows of the held-out rows and of the samples, as points of a cloud."""
    tables = [np.stack([getattr(column, part) for column in columns], axis=1) for part in ("held_out", "samples")]
    num_points = min(*map(len, tables), MAX_POINTS)
    chosen = [subset(table, num_points, generator) for table in tables]
    return [
        np.stack([column.spread(values, generator) for column, values in zip(columns, table.T, strict=True)], axis=1)
        for table in chosen
    ]


def _turn_words(axes: Axes, column: ShownColumn) -> None:
    """Turn names and dates below an axis, so that they do not lie on each other."""
    if column.has_words:
        axes.tick_params(axis="x", rotation=30)


def _draw_cloud(
    axes: Axes, cloud: Rows, limits: tuple[tuple[float, float], tuple[float, float]], size: float, color: str
) -> None:
    """Points within the limits; those outside could be too far for a picture's arithmetic."""
    (left, right), (bottom, top) = limits
    x, y = cloud.T
    seen = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    axes.scatter(x[seen], y[seen], s=size, color=color, alpha=0.4, linewidths=0)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def density_panels(
    columns: Sequence[str],
    held_out: Rows,
    labels: Rows | None,
    samples: Rows,
    log_density: Callable[[NDArray[np.float64]], ArrayLike] | None,
    *,
    generator: np.random.Generator,
) -> Figure:
    """The plane's density side by side, on one colour scale: data, labels, samples and, where it is known, the truth.

    Equal numbers of rows of each kind are put into lightly smoothed bins, so that noise looks alike.
    """
    from scipy.ndimage import gaussian_filter

    tables = [("held-out data", held_out, DATA_COLOR), ("samples", samples, SAMPLES_COLOR)]
    if labels is not None:
        tables.insert(1, ("labels", labels, LABELS_COLOR))
    num_rows = min(len(table) for _, table, _ in tables)
    edges = [np.linspace(*robust_limits(column), DENSITY_BINS + 1) for column in held_out.T]
    cell = np.diff(edges[0])[0] * np.diff(edges[1])[0]
    smoothing = float(np.clip(1.4 * (20_000 / num_rows) ** (1 / 6), 0.8, 3.0))
    panels = []
    for name, table, color in tables:
        shown = subset(table, num_rows, generator)
        counts = np.histogram2d(shown[:, 0], shown[:, 1], bins=edges)[0]
        density = gaussian_filter(counts / (num_rows * cell), smoothing, mode="constant")
        panels.append((f"{name}, {num_rows:,} rows", density, color))
    if log_density is not None:
        centers = [edge[:-1] + np.diff(edge) / 2 for edge in edges]
        places = np.stack(np.meshgrid(*centers, indexing="ij"), axis=-1).reshape(-1, 2)
        truth = np.exp(np.asarray(log_density(places), dtype=np.float64)).reshape(DENSITY_BINS, DENSITY_BINS)
        panels.append(("true density", truth, INK))
    return _draw_planes(columns, edges, panels)


def _draw_planes(
    columns: Sequence[str], edges: list[NDArray[np.float64]], panels: list[tuple[str, NDArray[np.float64], str]]
) -> Figure:
    """Square images in one row, on one colour scale."""
    from matplotlib.colors import PowerNorm

    occupied = panels[0][1][panels[0][1] > 0]
    highest = float(np.quantile(occupied, 0.995)) if len(occupied) else 1.0
    figure = new_figure(PAGE_WIDTH, PAGE_WIDTH / len(panels) + 0.4)
    grid = figure.subplots(1, len(panels), sharey=True)
    for axes, (name, density, color) in zip(grid, panels, strict=True):
        norm = PowerNorm(0.6, vmin=0, vmax=highest, clip=True)
        axes.pcolormesh(edges[0], edges[1], density.T, norm=norm, cmap="BuPu")
        style_axes(
            axes, title=name, x_label=short_name(columns[0]), y_label=short_name(columns[1]) if axes is grid[0] else ""
        )
        axes.title.set_color(color)
        axes.title.set_fontweight("bold")
        axes.set_box_aspect(1)
        axes.locator_params(nbins=5)
    return figure


def trajectory_plot(
    columns: Sequence[str], trajectories: NDArray[np.float64], log_beta_sq: NDArray[np.float64]
) -> Figure:
    """The flow from latents to labels: some paths in the plane of two columns, and all rows at a few times.

    Trajectories begin with the latents, in the user's units, shape (num_times, num_rows, 2); ``log_beta_sq`` is the log
    of the noise variance at each time, shape (num_times,).
    """
    figure = new_figure(PAGE_WIDTH, 4.35)
    halves = figure.add_gridspec(1, 2, width_ratios=(0.44, 0.56))
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    _draw_paths(left.subplots(), columns, trajectories)
    flat = trajectories.reshape(-1, 2)
    limits = [robust_limits(column) for column in flat.T]
    # More snapshots lie towards the noise: most of the shape forms in the first few units of log variance.
    targets = log_beta_sq[0] + (log_beta_sq[-1] - log_beta_sq[0]) * np.linspace(0, 1, NUM_SNAPSHOTS) ** 1.7
    for axes, target in zip(right.subplots(2, NUM_SNAPSHOTS // 2).ravel(), targets, strict=True):
        index = int(np.abs(log_beta_sq - target).argmin())
        is_last = target == targets[-1]
        color = LABELS_COLOR if is_last else INK
        cloud = trajectories[index, :MAX_POINTS]
        _draw_cloud(axes, cloud, (limits[0], limits[1]), 4.0, color)
        axes.set(xticks=[], yticks=[])
        beta = float(np.exp(log_beta_sq[index] / 2))
        style_axes(axes, title=f"labels (β = {beta:.2g})" if is_last else f"β = {beta:.2g}")
        axes.set_box_aspect(1)
    return figure


def _draw_paths(axes: Axes, columns: Sequence[str], trajectories: NDArray[np.float64]) -> None:
    from matplotlib.collections import LineCollection

    paths = trajectories[:, :MAX_PATHS].transpose(1, 0, 2)
    axes.add_collection(LineCollection(list(paths), colors=FAINT, linewidths=0.6, alpha=0.6))
    for ends, color, name in ((paths[:, 0], INK, "latents"), (paths[:, -1], LABELS_COLOR, "labels")):
        axes.scatter(ends[:, 0], ends[:, 1], s=9, color=color, linewidths=0, label=name, zorder=3)
    limits = [robust_limits(column) for column in paths.reshape(-1, 2).T]
    axes.set(xlim=limits[0], ylim=limits[1])
    style_axes(
        axes, title=f"paths of {len(paths)} latents", x_label=short_name(columns[0]), y_label=short_name(columns[1])
    )
    axes.set_box_aspect(1)
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9, loc="upper right", markerscale=1.5)


def is_color_table(columns: Sequence[str], held_out: Rows) -> bool:
    """Three columns named red, green, blue (or r, g, b) with values in 0 to 255."""
    names = [name.lower() for name in columns]
    named = names in (["red", "green", "blue"], ["r", "g", "b"])
    return named and bool(held_out.min() >= 0 and 1 < held_out.max() <= 255)


def color_clouds(held_out: Rows, samples: Rows, *, generator: np.random.Generator) -> Figure:
    """Rows of a colour table in their own colour: two planes of the cube and swatches by lightness."""
    num_points = min(len(held_out), len(samples), 3 * MAX_POINTS)
    figure = new_figure(PAGE_WIDTH, 7.3)
    grid = figure.subplots(2, 3, width_ratios=(1, 1, 1))
    for row, (name, table) in zip(grid, (("held-out data", held_out), ("samples", samples)), strict=True):
        shown = subset(table, num_points, generator)
        colors = np.clip(shown / 255, 0, 1)
        for axes, (i, j) in zip(row, ((0, 1), (1, 2)), strict=False):
            axes.scatter(shown[:, i], shown[:, j], s=5, c=colors, linewidths=0)
            axes.set(xlim=(-6, 261), ylim=(-6, 261), xticks=[0, 128, 255], yticks=[0, 128, 255])
            axes.set_facecolor("#f4f4f4")
            style_axes(axes, x_label=("red", "green")[i], y_label=("green", "blue")[j - 1], title=name)
            axes.set_box_aspect(1)
        _draw_swatches(row[2], colors, generator)
        style_axes(row[2], title=f"{name}: 400 colours by lightness")
    return figure


def _draw_swatches(axes: Axes, colors: NDArray[np.float64], generator: np.random.Generator) -> None:
    chosen = colors[generator.integers(len(colors), size=400)]
    by_lightness = chosen[np.argsort(chosen @ np.array([0.299, 0.587, 0.114]))]
    axes.imshow(by_lightness.reshape(20, 20, 3), interpolation="nearest")
    axes.axis("off")


def patch_shape(columns: Sequence[str]) -> tuple[int, int] | None:
    """(height, width) if the columns are the pixels of a small image, else None.

    Pixels are named p{row}_{col} (or another word before the numbers), row after row. 64 columns with other names are
    taken for 8 x 8 digits.
    """
    found = [re.fullmatch(r"[a-z]*_?(\d+)_(\d+)", name) for name in columns]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    if places and len(places) == len(columns):
        first_row, first_column = places[0]
        height, width = places[-1][0] - first_row + 1, places[-1][1] - first_column + 1
        wanted = [(first_row + i, first_column + j) for i in range(height) for j in range(width)]
        return (height, width) if places == wanted and min(height, width) > 1 else None
    return (8, 8) if len(columns) == 64 else None


def patch_mosaic(shape: tuple[int, int], held_out: Rows, samples: Rows, *, generator: np.random.Generator) -> Figure:
    """Rows drawn as grey images, data left and samples right, on the grey scale of the data."""
    across, down = 10, 8
    low, high = (float(limit) for limit in np.quantile(held_out, [0.005, 0.995]))
    high = high if high > low else low + 1
    figure = new_figure(PAGE_WIDTH, 4.25)
    named = (("held-out data", held_out, DATA_COLOR), ("samples", samples, SAMPLES_COLOR))
    for axes, (name, table, color) in zip(figure.subplots(1, 2), named, strict=True):
        chosen = subset(table, across * down, generator)
        height, width = shape
        tiles = np.full((down, height + 1, across, width + 1), np.nan)
        for place, patch in enumerate(chosen):
            tiles[place // across, :height, place % across, :width] = patch.reshape(shape)
        mosaic = tiles.reshape(down * (height + 1), across * (width + 1))[:-1, :-1]
        axes.imshow(mosaic, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        style_axes(axes, title=name)
        axes.title.set_color(color)
        axes.title.set_fontweight("bold")
        axes.axis("off")
    return figure
