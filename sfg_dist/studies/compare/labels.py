"""Names beside the points of a picture, placed so that none covers another name or a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.pictures import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

DISTANCES = (11, 16, 24, 34, 46, 60, 76, 94, 114, 136, 160)  # pixels from a point to the ring that its name touches
NUM_DIRECTIONS = 24
LEADER_FROM = 20  # pixels from which on a line joins a name to its point
MARK = 7  # half the side of the square that a point keeps free, pixels

_Array = NDArray[np.float64]


def place_labels(
    axes: Axes, points: Sequence[tuple[str, float, float]], *, size: float, color: Mapping[str, str]
) -> list[Text]:
    """Write the name of each point (name, x, y) beside it, within the axes; the layout of the figure is fixed by then.

    The names keep clear of what is written in the axes before. ``size`` is of the letters, points; ``color`` is of some
    of the names.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixel = 72 / figure.dpi  # in points
    centres = axes.transData.transform([(x, y) for _, x, y in points])
    taken = [*np.hstack([centres - MARK, centres + MARK]), *(text.get_window_extent().extents for text in axes.texts)]
    texts: list[Text] = []
    for (name, x, y), centre in zip(points, centres, strict=True):
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=color.get(name, INK),
            ha="center", va="center", parse_math=False, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent()
        half = np.array([extent.width / 2 + 2, extent.height / 2 + 1])
        offsets = _offsets(half)
        boxes = np.tile(centre, 2) + np.hstack([offsets - half, offsets + half])
        best = int(np.argmin(_covered(boxes, np.array(taken), np.array(axes.bbox.extents))))
        offset = offsets[best]
        text.set_position(tuple(offset * pixel))
        taken.append(boxes[best])
        if np.hypot(*(np.abs(offset) - half).clip(0)) >= LEADER_FROM:
            axes.annotate(
                "", (x, y), xytext=tuple((offset - offset.clip(-half, half)) * pixel), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5},
            )  # fmt: skip
        texts.append(text)
    return texts


def _offsets(half: _Array) -> _Array:
    """Places for the middle of a name of so many pixels, from its point on; near ones first, from the right around."""
    turns = (np.arange(NUM_DIRECTIONS) + 1) // 2 * np.where(np.arange(NUM_DIRECTIONS) % 2, 1, -1)
    angles = 2 * np.pi * turns / NUM_DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([directions * (distance + half) for distance in DISTANCES])


def _covered(boxes: _Array, taken: _Array, frame: _Array) -> _Array:
    """The area of each box that is taken or outside the frame, square pixels; boxes are (x0, y0, x1, y1)."""

    def shared(others: _Array) -> _Array:
        low = np.maximum(boxes[:, None, :2], others[:, :2])
        high = np.minimum(boxes[:, None, 2:], others[:, 2:])
        return (high - low).clip(0).prod(axis=2)

    areas: _Array = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    result: _Array = shared(taken).sum(axis=1) + areas - shared(frame[None])[:, 0]
    return result
