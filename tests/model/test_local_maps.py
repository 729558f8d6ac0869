"""Maps of parts of the space."""

import numpy as np
import pytest

from sfg_dist.job.errors import DocumentError
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.local_maps import LocalMaps


def sheet(num_rows, seed, *, thickness):
    """Rows near the surface z = x y, which no map of one or two columns finds."""
    generator = np.random.default_rng(seed)
    x, y, z = generator.standard_normal((3, num_rows))
    return np.stack([x, y, x * y + thickness * z], axis=1)


def off_sheet(rows):
    return float((rows[:, 2] - rows[:, 0] * rows[:, 1]).std())


@pytest.fixture(scope="module")
def fitted():
    return LocalMaps.fit(sheet(8000, 0, thickness=0.5), sheet(8000, 1, thickness=0.1))


def test_rows_come_back_to_a_sheet(fitted):
    rows = sheet(4000, 2, thickness=0.5)
    moved = fitted(rows)
    assert off_sheet(moved) < 0.8 * off_sheet(rows)
    wanted = sheet(4000, 3, thickness=0.1)
    np.testing.assert_allclose(
        np.quantile(moved, [0.1, 0.5, 0.9], 0), np.quantile(wanted, [0.1, 0.5, 0.9], 0), atol=0.12
    )


def test_a_row_is_mapped_alike_in_any_company(fitted):
    rows = sheet(64, 4, thickness=0.5)
    np.testing.assert_allclose(fitted(rows)[:5], fitted(rows[:5]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1000, 3), (8000, 1), (8000, 33)])
def test_too_few_rows_or_other_widths_are_left_as_they_are(shape):
    rows = np.random.default_rng(0).standard_normal(shape)
    maps = LocalMaps.fit(rows, rows)
    assert len(maps) == 0
    assert maps(rows) is rows


def test_a_calibration_keeps_them(fitted):
    rows, knots = sheet(50, 5, thickness=0.5).astype(np.float32), np.tile([-9.0, 9.0], (1, 3, 1))
    calibration = Calibration(np.zeros((1, 3)), np.eye(3)[None], np.zeros((1, 3)), knots, knots, local=fitted)
    np.testing.assert_allclose(calibration(rows), fitted(rows.astype(np.float64)), rtol=1e-6, atol=1e-6)
    again = Calibration.from_arrays(calibration.to_arrays(), 3)
    np.testing.assert_array_equal(again(rows), calibration(rows))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parts", lambda array: array[:0]),
        ("width", lambda array: -array),
        ("maps", lambda array: array[:, :2]),
        ("knots", lambda array: array[:, ::-1]),
        ("values", lambda array: array * np.nan),
        ("shifts", lambda array: array.astype(np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fitted, name, change):
    arrays = fitted.to_arrays()
    assert LocalMaps.from_arrays(arrays, 3)(np.zeros((1, 3))) == pytest.approx(fitted(np.zeros((1, 3))))
    with pytest.raises(DocumentError):
        LocalMaps.from_arrays(arrays | {name: change(arrays[name])}, 3)
    with pytest.raises(DocumentError):
        LocalMaps.from_arrays({key: array for key, array in arrays.items() if key != name}, 3)
