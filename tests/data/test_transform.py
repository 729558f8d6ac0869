"""The transform inverts, gives near normal marginals, and keeps columns on their grids."""

import json

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sfg_dist.data import Transform
from sfg_dist.data.quantile import fit_curve
from sfg_dist.job.errors import DataError

RANDOM = np.random.default_rng(0)


def column(name, num_rows=2000):
    """A nasty column by name."""
    random = np.random.default_rng(1)
    normal = random.standard_normal(num_rows)
    return {
        "normal": normal,
        "lognormal": np.exp(3 * normal),
        "cauchy": random.standard_cauchy(num_rows),
        "uniform": random.random(num_rows),
        "offset": 1e6 + normal,
        "tiny": 1e-30 * normal,
        "half_zero": np.where(normal < 0, 0.0, normal),
        "middle_atom": np.where(np.abs(normal) < 0.6, 0.0, normal),
        "two_values": (normal > 0.5).astype(float),
        "integers": np.floor(10 * random.random(num_rows) ** 2),
        "outlier": np.append(normal[:-1], 1e9),
        "bimodal": np.where(random.random(num_rows) < 0.5, normal - 20, normal + 20),
    }[name]


CONTINUOUS = ("normal", "lognormal", "cauchy", "uniform", "offset", "tiny", "outlier", "bimodal")
NASTY = (*CONTINUOUS, "half_zero", "middle_atom", "two_values", "integers")


def fit(values, kind="quantile", **arguments):
    return Transform.fit(values[:, None], ["a"], kind=kind, **arguments)


@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
@pytest.mark.parametrize("num_rows", [20, 2000])
@pytest.mark.parametrize("name", NASTY)
def test_forward_then_inverse(name, num_rows, kind):
    values = column(name, num_rows)
    transform = fit(values, kind, bounds="none")  # a reflection at the ends would turn the slack around
    flow = transform.forward(values[:, None])
    assert flow.dtype == np.float32
    assert flow.shape == (num_rows, 1)
    back = transform.inverse(flow)[:, 0]
    assert back.dtype == np.float64
    # float32 keeps seven digits of the flow's coordinate, whose unit is at least the steepest slope nearby
    lower, upper = (transform.inverse(flow + side * (np.abs(flow) + 1) * 3e-7)[:, 0] for side in (-1, 1))
    slack = 1e-9 * np.abs(values)
    assert np.all((lower - slack <= values) & (values <= upper + slack))
    np.testing.assert_array_equal(back, transform.inverse(flow)[:, 0])


@pytest.mark.parametrize("num_rows", [20, 2000])
@pytest.mark.parametrize("name", NASTY)
def test_inverse_then_forward_beyond_both_ends(name, num_rows):
    curve = fit_curve(column(name, num_rows), None)
    scores = np.linspace(-12, 12, 4001)
    values = curve.to_values(scores)
    assert np.isfinite(values).all()
    assert np.all(np.diff(values) > 0)
    np.testing.assert_allclose(curve.to_scores(values), scores, atol=1e-4)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_marginals_are_near_normal(name):
    values = column(name, 20_000)
    flow = fit(values).forward(values[:, None])[:, 0]
    assert stats.kstest(flow, "norm").statistic < 0.005
    assert abs(flow.std() - 1) < 0.01
    held_out = fit(values[::2]).forward(values[1::2, None])[:, 0]
    assert stats.kstest(held_out, "norm").pvalue > 1e-4


@pytest.mark.parametrize("name", ["integers", "two_values"])
def test_marginals_are_near_normal_once_spread(name):
    values = column(name, 20_000)[:, None]
    noise = RANDOM.random(values.shape)
    transform = Transform.fit(values, ["a"], steps={"a": 1.0}, noise=noise)
    assert stats.kstest(transform.forward(values, noise=noise)[:, 0], "norm").statistic < 0.01
    # the curve of cells with many rows does not depend on the noise
    other = Transform.fit(values, ["a"], steps={"a": 1.0}, noise=RANDOM.random(values.shape))
    np.testing.assert_allclose(other.forward(values), transform.forward(values), atol=1e-6)


def test_number_of_knots_is_bounded():
    values = np.concatenate([RANDOM.standard_normal(60_000), np.repeat(np.arange(300.0), 200)])
    assert len(fit_curve(values, None).values) < 2300
    assert len(fit_curve(RANDOM.standard_normal(300), None).values) < 40


@pytest.mark.parametrize(("name", "least", "most"), [("normal", 10, 160), ("steps", 200, 900)])
def test_the_knots_are_as_many_as_the_rows_bear_out(name, least, most):
    """Of a smooth law a few, which follow no noise; of 40 narrow heaps enough to tell them apart."""
    random = np.random.default_rng(0)
    values = random.standard_normal(10_000)
    if name == "steps":
        values = random.integers(0, 40, 10_000) + 0.02 * values
    assert least < len(fit_curve(values, None).values) < most


def test_a_curve_of_few_rows_gives_held_out_rows_their_likelihood():
    """With 20 rows to a knot they lose 0.03 nats a column to the noise that the curve follows."""
    random = np.random.default_rng(0)
    known, held_out = random.standard_normal(10_000), random.standard_normal(50_000)
    curve = fit_curve(known, None)
    inside = held_out[np.abs(held_out) < 3]
    found = curve.log_slope(inside) - curve.to_scores(inside) ** 2 / 2
    assert (found + inside**2 / 2).mean() > -0.01


def test_outlier_does_not_throw_samples_beyond_itself():
    values = column("outlier")
    curve = fit_curve(values, None)
    assert curve.to_values(np.array([curve.scores[-2] + 3]))[0] < 1e9 + 10
    assert curve.to_values(np.array([curve.scores[1] - 3]))[0] > values.min() - 4


@pytest.mark.parametrize("sign", [-1, 1])
def test_each_end_goes_on_with_a_slope_of_its_own(sign):
    """An exponential column has a steep end, held at the slope of the middle, and a flat one, held at a tenth of it."""
    curve = fit_curve(sign * np.random.default_rng(2).standard_exponential(5000), None)
    middle = np.diff(curve.to_values(np.array([-1.28, 1.28])))[0] / 2.56
    slopes = (np.diff(curve.values) / np.diff(curve.scores))[[0, -1]]
    np.testing.assert_allclose(slopes[::sign], [0.1 * middle, middle], rtol=1e-6)


def test_ties_share_their_mid_rank():
    values = column("middle_atom")
    share_below, share = np.mean(values < 0), np.mean(values == 0)
    score = fit_curve(values, None).to_scores(np.zeros(1))[0]
    assert stats.norm.cdf(score) == pytest.approx(share_below + share / 2, abs=1e-6)


columns_of_floats = st.lists(
    st.one_of(
        st.floats(-1e60, 1e60),
        st.sampled_from([0.0, 1.0, 1.0 + 2**-52, 5e-324, -5e-324, 0.1, 1e-300]),
        st.integers(-3, 3).map(float),
    ),
    min_size=20,
    max_size=120,
).filter(lambda values: min(values) < max(values) and max(values) - min(values) > 1e-90)


@settings(max_examples=examples(150), deadline=None)
@given(columns_of_floats, st.lists(st.floats(-1e61, 1e61), min_size=2, max_size=20))
def test_any_column_is_monotone_and_invertible(column_values, places):
    curve = fit_curve(np.array(column_values), None)
    assert np.all(np.diff(curve.values) > 0)
    assert np.all(np.diff(curve.scores) > 0)
    places = np.sort(np.array([*places, *column_values]))
    scores = curve.to_scores(places)
    assert not np.isnan(scores).any()
    assert np.all(np.diff(scores) >= 0)
    assert np.isfinite(curve.log_slope(places)).all()
    values = curve.to_values(np.linspace(-9, 9, 200))
    assert np.isfinite(values).all()
    assert np.all(np.diff(values) > 0)
    np.testing.assert_allclose(curve.to_scores(values), np.linspace(-9, 9, 200), atol=1e-3)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=20, max_size=80).filter(lambda cells: len(set(cells)) > 1),
    st.sampled_from([0.1, 0.01, 1.0, 2.5, 100.0, 1 / 3]),
    st.sampled_from(["quantile", "standardize", "none"]),
    st.floats(0, 1, exclude_max=True),
)
def test_dequantized_values_come_back_exactly(cells, step, kind, noise):
    values = np.array([cell * step if step == 1 / 3 else round(cell * step, 2) for cell in cells])[:, None]
    noise_rows = np.full(values.shape, noise)
    transform = Transform.fit(values, ["a"], kind=kind, steps={"a": step}, noise=noise_rows)
    back = transform.inverse(transform.forward(values, noise=noise_rows))
    np.testing.assert_allclose(back, values, rtol=1e-14, atol=1e-14 if step == 1 / 3 else 0)


@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_every_cell_and_noise_comes_back_exactly(kind):
    values = np.round(RANDOM.integers(0, 1000, (50_000, 1)) * 0.1 - 20, 1)
    noise = RANDOM.random(values.shape)
    noise[:3] = [[0.0], [1e-12], [1 - 1e-16]]
    transform = Transform.fit(values, ["a"], kind=kind, steps={"a": 0.1}, noise=noise)
    np.testing.assert_array_equal(transform.inverse(transform.forward(values, noise=noise)), values)
    np.testing.assert_array_equal(transform.inverse(transform.forward(values)), values)
    # float32 input is the same table
    fuzzy = values.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(transform.inverse(transform.forward(fuzzy)), values)


def test_cells_are_filled_uniformly():
    values = RANDOM.integers(0, 4, (20_000, 1)).astype(float)
    noise = RANDOM.random(values.shape)
    transform = Transform.fit(values, ["a"], kind="none", steps={"a": 1.0}, noise=noise)
    inside = transform.forward(values, noise=noise) - values
    assert stats.kstest(inside[:, 0], "uniform").pvalue > 0.01


def test_normal_draws_give_the_shares_of_the_cells():
    values = column("integers", 20_000)[:, None]
    transform = Transform.fit(values, ["a"], steps={"a": 1.0}, noise=RANDOM.random(values.shape))
    samples = transform.inverse(RANDOM.standard_normal((20_000, 1)))
    assert set(np.unique(samples)) <= set(range(10))
    for cell in range(10):
        assert np.mean(samples == cell) == pytest.approx(np.mean(values == cell), abs=0.015)


def test_empty_cells_between_full_ones_stay_nearly_empty():
    values = RANDOM.choice([0.0, 5.0, 100.0], (5000, 1))
    transform = Transform.fit(values, ["a"], steps={"a": 1.0}, noise=RANDOM.random(values.shape))
    samples = transform.inverse(RANDOM.standard_normal((50_000, 1)))
    assert np.mean(~np.isin(samples, [0, 5, 100])) < 5e-4
    between = np.arange(101.0)[:, None]
    np.testing.assert_array_equal(transform.inverse(transform.forward(between)), between)


def test_samples_stay_within_the_limits():
    values = RANDOM.integers(3, 9, (500, 1)).astype(float)
    far = np.array([[-9.0], [9.0]], dtype=np.float32)
    inside = Transform.fit(values, ["a"], steps={"a": 1.0}).inverse(far)
    np.testing.assert_array_equal(inside, [[3], [8]])
    wider = Transform.fit(values, ["a"], steps={"a": 1.0}, bounds={"a": (0, 10)})
    np.testing.assert_array_equal(wider.inverse(wider.forward(np.array([[0.0], [10.0]]))), [[0], [10]])


def test_constants_are_left_out_and_put_back():
    rows = np.stack([np.full(30, 7.0), np.arange(30.0), np.full(30, -1.0)], axis=1)
    transform = Transform.fit(rows, ["a", "b", "c"], constants={"a": 7.0, "c": -1.0})
    assert transform.dim == 1
    assert transform.flow_columns == ("b",)
    np.testing.assert_allclose(transform.inverse(transform.forward(rows)), rows, atol=1e-4)


def mixed(kind):
    rows = np.stack([column("lognormal"), column("integers"), np.full(2000, 2.0), column("half_zero")], axis=1)
    noise = np.random.default_rng(2).random((2000, 3))
    arguments = {"kind": kind, "constants": {"c": 2.0}, "steps": {"b": 1.0}, "noise": noise}
    return Transform.fit(rows, ["a", "b", "c", "d"], **arguments), rows, noise


@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_saved_and_loaded_is_the_same(tmp_path, kind):
    from safetensors.numpy import load_file, save_file

    transform, rows, noise = mixed(kind)
    save_file(transform.to_arrays(), tmp_path / "t.safetensors")
    metadata = json.loads(json.dumps(transform.to_metadata()))
    loaded = Transform.from_arrays(load_file(tmp_path / "t.safetensors"), metadata)
    assert loaded.to_metadata() == transform.to_metadata()
    for name, array in transform.to_arrays().items():
        assert array.dtype.kind in "fi"
        np.testing.assert_array_equal(loaded.to_arrays()[name], array)
    flow = transform.forward(rows, noise=noise)
    np.testing.assert_array_equal(loaded.forward(rows, noise=noise), flow)
    np.testing.assert_array_equal(loaded.inverse(flow), transform.inverse(flow))


def test_damaged_save():
    transform, _, _ = mixed("quantile")
    arrays, metadata = transform.to_arrays(), transform.to_metadata()
    with pytest.raises(DataError, match="has no 'knot_values'"):
        Transform.from_arrays({k: v for k, v in arrays.items() if k != "knot_values"}, metadata)
    with pytest.raises(DataError, match=r"steps has shape \(1,\), expected \(3,\)"):
        Transform.from_arrays(arrays | {"steps": np.zeros(1)}, metadata)
    with pytest.raises(DataError, match=r"kind must be one of .*, got 'other'"):
        Transform.from_arrays(arrays, metadata | {"kind": "other"})


@pytest.mark.parametrize("kind", ["quantile", "standardize", "none"])
def test_log_det_jacobian_is_the_slope(kind):
    transform, rows, noise = mixed(kind)
    rows, noise = rows[:50], noise[:50] * 0.9
    rows[:, 3] += 0.3  # away from the atom
    found = transform.log_det_jacobian(rows, noise=noise)
    expected = np.zeros(50)
    for index, source in enumerate([0, 1, 3]):
        values = rows[:, source] + (noise[:, 1] if source == 1 else 0)
        move = 1e-7 * np.abs(values)
        if kind == "quantile":
            curve = transform.curves[index]
            slope = (curve.to_scores(values + move) - curve.to_scores(values)) / move
        else:
            slope = np.full(50, 1 / transform.scale[index])
        expected += np.log(slope)
    assert np.median(np.abs(found - expected)) < 1e-5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(20, 3.0), "column 'a' is constant"),
        (np.append(np.zeros(20), np.nan), "column 'a' holds nan: expected finite numbers"),
        (np.append(np.zeros(20), 1e200), r"column 'a' holds 1e\+200 in row 20"),
    ],
)
def test_columns_refused(values, message):
    with pytest.raises(DataError, match=message):
        fit(values)


def test_mapped_as_it_stands_float32_would_make_one_value_of_it():
    dates = 2451545 + np.linspace(0, 1e-4, 50)
    with pytest.raises(DataError, match=r"column 'a' lies between 2451545.0 and .* would lose it"):
        fit(dates, "none")
    for kind in ("quantile", "standardize"):
        transform = fit(dates, kind)
        np.testing.assert_allclose(transform.inverse(transform.forward(dates[:, None]))[:, 0], dates, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        2451545 + RANDOM.random(5000) * 10 / 86400,
        1e9 + 1e-3 * RANDOM.standard_normal(5000),
        500000.123 + 0.01 * RANDOM.standard_normal(5000),
        np.append(2451545 + RANDOM.random(5000) * 10 / 86400, 0.0),
    ],
    ids=["seconds", "nanometres", "coordinates", "with an outlier"],
)
def test_a_small_spread_far_from_zero(values):
    transform = fit(values)
    flow = transform.forward(values[:, None])
    assert stats.kstest(flow[:, 0], "norm").statistic < 0.01
    back = transform.inverse(flow)[:, 0]
    # between the outlier and the rows a score says little
    error = np.quantile(np.abs(back - values), 0.999)
    assert error <= max(4 * np.spacing(values.max()), 1e-5 * values[:-1].std())
    samples = transform.inverse(RANDOM.standard_normal((5000, 1)))[:, 0]
    assert stats.ks_2samp(samples, values).statistic < 0.05


@pytest.mark.parametrize("low", [2.0**49, 2.0**52, 1.7e9, -(2.0**50)])
def test_cells_far_from_zero(low):
    values = low + RANDOM.integers(0, 3000, (2000, 1))
    noise = RANDOM.random(values.shape)
    for kind in ("quantile", "standardize", "none"):
        transform = Transform.fit(values, ["a"], kind=kind, steps={"a": 1.0}, noise=noise)
        np.testing.assert_array_equal(transform.inverse(transform.forward(values, noise=noise)), values)
        samples = transform.inverse(transform.forward(values) + 0.01 * RANDOM.standard_normal(values.shape))
        np.testing.assert_array_equal(samples, np.rint(samples))
        assert low <= samples.min() <= samples.max() < low + 3000


def test_too_large_for_float32():
    rows = np.array([[0.0], [1e50]])
    with pytest.raises(DataError, match=r"column 'a': 1e\+50 in row 1 .* too large for float32"):
        Transform.fit(rows, ["a"], kind="none").forward(rows)


def test_wrong_shapes():
    transform, rows, _ = mixed("quantile")
    with pytest.raises(DataError, match=r"rows have shape \(2000, 3\): expected \(num_rows, 4\)"):
        transform.forward(rows[:, :3])
    with pytest.raises(DataError, match=r"flow rows have shape \(5, 4\): expected \(num_rows, 3\)"):
        transform.inverse(np.zeros((5, 4)))
    with pytest.raises(DataError, match="noise has shape"):
        transform.forward(rows, noise=np.zeros((2000, 4)))
    with pytest.raises(ValueError, match="unknown kind 'normal'"):
        Transform.fit(rows, ["a", "b", "c", "d"], kind="normal")


# What 0.1.0 made of every 13th row of ``plain_rows``, as the bits of float32: a store's reference is compared with it.
FORWARD_OF_0_1_0 = {
    "quantile": """
        c028d935 c028d935 bd3b973a 3cc3a382 3cc3a37f bf731d9a 3cfcc582 bf94c5a8
        bfe1c537 bfdc4692 3edbd1d6 bee7f27c bee7f27c beff68c7 bef582eb bf2f438c
        bfbbe55a bfbbd5aa 3f867adf bf8df0d9 bf8df0d9 bfa1131d bf9514dc be2ca507
        bfa2a89f bf9e3ba5 bfcec01d 3fce8d05 3fce8d05 bf2e8634 3fdd11e0 c00c0d0f
        bf897933 bf884095 bf331b10 3f3255c4 3f3255c3 bfd81b82 3f2f53db bfbc8b40
        bf6f505f bf6e54b4 be6827c0 3e60599b 3e60599b bf657472 3e57d755 bf69c006
        bf4fa56c bf4e75a1 3e837d87 be885d1b be885d1b beeb60a1 be9410e4 bee42694
        bf305caa bf300980 3f58bd2a bf5c11af bf5c11b0 bf97ac7b bf5447f7 3d560165
        bf165d21 bf14b2f0 4028d935 c028d935 c028d935 bf243e5e c0175bcd 3f11b617
        befa2564 bef6dd4f bf802b07 3f7fc940 3f7fc940 bfc787c2 3f72cc09 bf986ce6
    """,
    "standardize": """
        bfdc39d8 c06f955c be2ddc4c 3d0b537f 3d0b5380 bf7547d1 3d2929ae bdbbbd68
        bfccfee8 bfe387ec be2cd01a bf1d727d bf1d727d bf4dbd96 bf200372 bdbbbd67
        bfbdc3f8 bfb193f8 be1ba57f bfa1cd19 bfa1cd19 bf8390b0 bfa54cbf bdbbbd67
        bfae8909 bf92f6b3 be2e29e8 3fc85c95 3fc85c96 bf5f9726 3fcae69f bdbbbd68
        bf9f4e19 bf789cd9 be2e1cc0 3f6a9176 3f6a9175 bf8c7d78 3f6b3731 bdbbbd68
        bf901329 bf53f4f6 be2df8b9 3e88d383 3e88d384 bf7170b6 3e814249 bdbbbd68
        bf80d839 bf34b1e2 be2d6b88 bec37be6 bec37be6 bf49e67b bed3e9d0 bdbbbd67
        bf633a93 bf191113 be289aeb bf83f2d4 bf83f2d4 bf81a523 bf81611e bdbbbd67
        bf44c4b4 bf0001eb 410d649c bfd706ae bfd706ae bf5bc00b bfd6ac24 bdbbbd67
        bf264ed5 bed1a242 be2e22da 3f932300 3f932300 bf8a91eb 3f90a2dd bdbbbd68
    """,
}


def plain_rows(num_rows=120):
    """Columns without values that repeat, by arithmetic alone; two are on a grid."""
    index = np.arange(num_rows)
    u, v = (index * 0.6180339887498949) % 1.0, (index * 0.7548776662466927 + 0.5) % 1.0
    columns = [
        u,
        np.log(u + 1e-3) - np.log1p(-u + 1e-3),
        1 / (v + 1e-2) ** 3,
        1e6 + 10 * v,
        np.float32(v * 3 - 1).astype(float),
        np.floor(9 * u * u),
        np.round(5 * v, 1) - 2,
        np.where(index == 7, 1e9, u - v),
    ]
    noise = (index[:, None] * 0.5698402909980532 + np.arange(8) * 0.1) % 1.0
    return np.stack(columns, axis=1), noise


@pytest.mark.parametrize("bounds", ["observed", "none"])
@pytest.mark.parametrize("kind", ["quantile", "standardize"])
def test_forward_is_bit_for_bit_that_of_the_first_release(kind, bounds):
    rows, noise = plain_rows()
    transform = Transform.fit(rows, list("abcdefgh"), kind=kind, steps={"f": 1.0, "g": 0.1}, noise=noise, bounds=bounds)
    found = transform.forward(rows, noise=noise)[::13]
    expected = [int(word, 16) for word in FORWARD_OF_0_1_0[kind].split()]
    np.testing.assert_array_equal(found.view(np.uint32).ravel(), expected)


def test_a_map_saved_by_the_first_release_is_read():
    """It knows neither bounds, origins nor tails, and goes on beyond its training rows."""
    transform = Transform.fit(plain_rows()[0][:, :1], ["a"], bounds="none")
    arrays = {
        name: array for name, array in transform.to_arrays().items() if name not in ("bounds", "origins", "tails")
    }
    old = Transform.from_arrays(arrays, {"kind": "quantile", "columns": ["a"]})
    expected = [-0.04214952034571041, 0.154335865991533, 0.6152907931317263, 1.0649715327475993]
    np.testing.assert_allclose(old.inverse(np.array([[-4.0], [-1.0], [0.3], [5.0]]))[:, 0], expected, rtol=1e-14)
