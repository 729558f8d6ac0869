"""Names beside the points of a picture, placed so that none covers another name or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from sfg_dist.evaluate.pictures import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

DISTANCES = (11, 16, 24, 34, 46, 60, 76, 94, 114, 136, 160)  # pixels from a point to the nearest part of its name
NUM_DIRECTIONS = 24
LEADER_FROM = 20  # pixels from which on a line joins a name to its point
MARK = 7  # half the side of the square that a point keeps free, pixels


def place_labels(
    axes: Axes, points: Sequence[tuple[str, float, float]], *, size: float, color: Mapping[str, str]
) -> list[Text]:
    """Write the name of each point (name, x, y) beside it, within the axes; the layout of the figure is fixed by then.

    The names keep clear of what is written in the axes before. ``size`` is of the letters, points; ``color`` is of some
    of the names.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixel = 72 / figure.dpi
    centres = [tuple(axes.transData.transform((x, y)).tolist()) for _, x, y in points]
    taken = [Bbox.from_extents(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in centres]
    taken += [text.get_window_extent() for text in axes.texts]
    texts: list[Text] = []
    for (name, x, y), centre in zip(points, centres, strict=True):
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=color.get(name, INK),
            ha="center", va="center", parse_math=False, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent()
        half_width, half_height = extent.width / 2 + 2, extent.height / 2 + 1
        places = list(_places(centre, half_width, half_height))
        boxes = [Bbox.from_extents(a - half_width, b - half_height, a + half_width, b + half_height) for a, b in places]
        costs = [_overlap(box, taken, axes.bbox) for box in boxes]
        best = costs.index(min(costs))
        offset = (places[best][0] - centre[0], places[best][1] - centre[1])
        text.set_position((offset[0] * pixel, offset[1] * pixel))
        taken.append(boxes[best])
        gap = math.hypot(max(0, abs(offset[0]) - half_width), max(0, abs(offset[1]) - half_height))
        if gap >= LEADER_FROM:
            end = (offset[0] * max(0, 1 - half_width / max(abs(offset[0]), half_width)) * pixel,
                   offset[1] * max(0, 1 - half_height / max(abs(offset[1]), half_height)) * pixel)  # fmt: skip
            axes.annotate(
                "", (x, y), xytext=end, textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5},
            )  # fmt: skip
        texts.append(text)
    return texts


def _places(centre: tuple[float, float], half_width: float, half_height: float) -> Iterator[tuple[float, float]]:
    """Centres for a name around a point, the nearest first and those to the right before others."""
    for distance, turn in product(DISTANCES, range(NUM_DIRECTIONS)):
        side = (turn + 1) // 2 * (1 if turn % 2 else -1)
        angle = 2 * math.pi * side / NUM_DIRECTIONS
        across, up = math.cos(angle), math.sin(angle)
        yield centre[0] + across * (distance + half_width), centre[1] + up * (distance + half_height)


def _overlap(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """The area that a name would share with others or have outside the frame, square pixels."""
    from matplotlib.transforms import Bbox

    def shared(other: Bbox) -> float:
        both = Bbox.intersection(box, other)
        return 0.0 if both is None else both.width * both.height

    return sum(map(shared, taken)) + box.width * box.height - shared(frame)
