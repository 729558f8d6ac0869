"""Real tables from inside scikit-learn."""

import numpy as np
import pytest

from sfg_dist.data import open_table
from sfg_dist.data.bundled import NAMES


@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [
        ("china_colors", (273_280, 3), "red"),
        ("flower_colors", (273_280, 3), "red"),
        ("china_patches_2", (272_214, 4), "p0_0"),
        ("flower_patches_16", (103 * 157, 256), "p0_0"),
        ("digits", (1797, 64), "pixel_0_0"),
        ("wine", (178, 13), "alcohol"),
        ("breast_cancer", (569, 30), "mean radius"),
    ],
)
def test_shapes(name, shape, first):
    table = open_table(name)
    assert table.values.shape == shape
    assert table.values.dtype == np.float64
    assert table.columns[0] == first
    assert len(set(table.columns)) == shape[1]
    assert np.isfinite(table.values).all()


def test_patches_are_grey_levels_in_place():
    small, large = open_table("china_patches_4").values, open_table("china_patches_8").values
    assert set(np.unique(small)) <= set(range(256))
    # the first rows of the first 8 x 8 patch begin with the first 4 x 4 patch
    np.testing.assert_array_equal(large[0].reshape(8, 8)[:4, :4], small[0].reshape(4, 4))


def test_sizes_offered():
    assert {f"china_patches_{size}" for size in range(2, 17)} < set(NAMES)
    assert "china_patches_17" not in NAMES
