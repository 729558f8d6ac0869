"""Real tables that lie inside scikit-learn's wheel; nothing is downloaded.

| name | rows | columns |
| --- | --- | --- |
| china_colors, flower_colors | one a pixel of a photograph, 273,280 | red, green, blue, 0 to 255 |
| china_patches_N, flower_patches_N | N x N pixel patches, N = 2 to 16 | grey levels p0_0 ... 0 to 255 |
| digits | 1,797 | 64 pixels, 0 to 16; three are constant |
| wine, breast_cancer | 178, 569 | 13, 30 measurements |

Patches are taken every ``max(1, N // 4)`` pixels in both directions. So neighbours overlap, and a random split puts
overlapping patches on both sides; patches that do not overlap would be too few for large N. Grey is 0.299 red +
0.587 green + 0.114 blue, rounded to a whole level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfg_dist.data.column_type import FLOAT, ColumnType

_PHOTOS = ("china", "flower")
_TABLES = ("digits", "wine", "breast_cancer")

NAMES: tuple[str, ...] = (
    *(f"{photo}_colors" for photo in _PHOTOS),
    *_TABLES,
    *(f"{photo}_patches_{size}" for photo in _PHOTOS for size in range(2, 17)),
)
SUMMARY = "china_colors, flower_colors, digits, wine, breast_cancer, china_patches_N, flower_patches_N (N = 2 to 16)"


def type_of(name: str) -> ColumnType:
    """The type of a bundled table's columns: levels of a photograph are bytes."""
    return FLOAT if name in _TABLES else ColumnType("integer", "uint8")


def load(name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """A bundled table by its name: values, float64 of shape (num_rows, num_columns), and the names of its columns.

    Examples:
        >>> values, columns = load("wine")
        >>> values.shape, columns[0]
        ((178, 13), 'alcohol')
    """
    if name in _TABLES:
        return _load_table(name)
    photo, kind = name.split("_", 1)
    pixels = _load_photo(photo)
    if kind == "colors":
        return pixels.reshape(-1, 3), ("red", "green", "blue")
    return _cut_patches(pixels, size=int(kind.removeprefix("patches_")))


def _load_table(name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    values: NDArray[np.float64] = np.ascontiguousarray(bunch.data, dtype=np.float64)
    return values, tuple(str(column) for column in bunch.feature_names)


def _load_photo(photo: str) -> NDArray[np.float64]:
    """Pixels 0 to 255, shape (height, width, 3)."""
    from sklearn.datasets import load_sample_image

    pixels: NDArray[Any] = load_sample_image(f"{photo}.jpg")
    return pixels.astype(np.float64)


def _cut_patches(pixels: NDArray[np.float64], *, size: int) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    stride = max(1, size // 4)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (size, size))[::stride, ::stride]
    names = tuple(f"p{row}_{column}" for row in range(size) for column in range(size))
    return np.ascontiguousarray(windows.reshape(-1, size * size)), names
