"""Maps of parts of the space."""

import json

import numpy as np
import pytest

from sfg_dist.data import Transform
from sfg_dist.job.errors import DocumentError
from sfg_dist.model import MLP, Generator
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.local_maps import MOST_GAIN, LocalMaps


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
    np.testing.assert_array_equal(fitted(rows)[:5], fitted(rows[:5]))


@pytest.mark.parametrize("shape", [(1000, 3), (8000, 1), (2000, 33)])
def test_too_few_rows_or_other_widths_are_left_as_they_are(monkeypatch, shape):
    if shape[1] > 3:
        monkeypatch.setattr("sfg_dist.model.local_maps.NUM_PARTS", 2)  # so that its rows are enough
    rows = np.random.default_rng(0).standard_normal(shape)
    maps = LocalMaps.fit(rows, rows)
    assert len(maps) == 0
    assert maps(rows) is rows


def calibration_of(local):
    """A calibration that does nothing but what local maps do."""
    knots = np.tile([-9.0, 9.0], (1, 3, 1))
    return Calibration(np.zeros((1, 3)), np.eye(3)[None], np.zeros((1, 3)), knots, knots, local=local)


def test_samples_that_are_too_thin_are_not_stretched_without_limit():
    fitted = LocalMaps.fit(sheet(8000, 0, thickness=0.001), sheet(8000, 1, thickness=0.5))
    gains = np.linalg.eigvalsh(fitted.maps) + 1
    assert MOST_GAIN * 0.99 < gains.max() < MOST_GAIN * 1.01


def test_a_generator_is_saved_with_them(fitted, tmp_path):
    transform = Transform.fit(sheet(200, 0, thickness=0.5), tuple("xyz"), kind="none")
    for name, local, format_ in (("with", fitted, 2), ("without", LocalMaps.none(), 1)):
        generator = Generator(MLP(3, width=8, depth=1).eval(), transform, calibration_of(local))
        generator.save(tmp_path / name)
        assert json.loads((tmp_path / name / "generator.json").read_text())["format"] == format_
        np.testing.assert_array_equal(Generator.load(tmp_path / name).sample(10), generator.sample(10))


def test_a_calibration_keeps_them(fitted):
    rows, calibration = sheet(50, 5, thickness=0.5).astype(np.float32), calibration_of(fitted)
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


def test_maps_of_no_part_or_of_one_knot_are_refused(fitted):
    arrays = fitted.to_arrays()
    no_part = {name: arrays[name][:0] for name in ("parts", "maps", "shifts")}
    one_knot = {name: arrays[name][:, :1] for name in ("knots", "values")}
    for wrong in (no_part, one_knot):
        with pytest.raises(DocumentError, match="without a part"):
            LocalMaps.from_arrays(arrays | wrong, 3)
