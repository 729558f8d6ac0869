"""Values that repeat beside a continuum: found without false alarms, given their share, and back bit for bit."""

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from sfg_dist.data import Transform
from sfg_dist.data.atoms import MAX_ATOMS, find_atoms, find_sentinels
from sfg_dist.data.discreteness import find_discreteness
from sfg_dist.job.errors import DataError


def found(values):
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[find_atoms(distinct, counts)].tolist()


def fit(values, atoms, **arguments):
    return Transform.fit(values[:, None], ["a"], atoms={"a": np.array(atoms)}, **arguments)


def spiked(num_rows=2000, seed=0):
    """Two atoms that are close, one at the lower end, and a continuum on both sides of the upper one."""
    random = np.random.default_rng(seed)
    values = 3 + random.standard_normal(num_rows)
    values[random.random(num_rows) < 0.3] = 3.1
    values[random.random(num_rows) < 0.1] = -70.0
    values[random.random(num_rows) < 0.05] = -70.0 - 1e-9
    return values


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal(20),
        np.append(np.random.default_rng(0).standard_normal(17), [0.0] * 3),  # three of a kind may be chance
        np.random.default_rng(0).random(300_000, dtype=np.float32),  # about 3 rows for a hundred values
        1 + np.random.default_rng(0).random(300_000, dtype=np.float32) / 16,  # and here for each
        np.random.default_rng(0).standard_normal(100_000).astype(np.float16),
        np.random.default_rng(0).choice(np.random.default_rng(1).random(20_000), 20_000),  # drawn with replacement
        np.tile(np.random.default_rng(0).random(3000), 3),
        np.exp(np.random.default_rng(0).standard_normal(200_000) * 4).astype(np.float32),
        np.round(np.random.default_rng(0).standard_normal(50_000), 3) / 7,  # steps that are no decimals
    ],
    ids=["20 rows", "ties of 20", "float32", "coarse float32", "float16", "bootstrap", "copies", "binades", "sevenths"],
)
def test_no_false_alarms(values):
    assert found(values.astype(np.float64)) == []


@pytest.mark.parametrize(
    ("values", "atoms"),
    [
        (np.append(np.random.default_rng(0).standard_normal(15), [0.0] * 5), [0.0]),
        (np.append(np.random.default_rng(0).standard_normal(100_000), [0.25] * 8), [0.25]),
        (np.append(np.random.default_rng(0).random(300_000, dtype=np.float32), [0.5] * 30), [0.5]),
        (np.repeat([0.3, 0.7], 50), [0.3, 0.7]),
        (np.append(np.full(99, 0.3), 0.7), [0.3, 0.7]),
        (np.repeat(np.sqrt(np.arange(1.0, 41)), 30), np.sqrt(np.arange(1.0, 41)).tolist()),
        (
            np.append(np.random.default_rng(0).random(50), np.repeat([0.1, 0.1 + 1e-12, 0.2], 40)),
            [0.1, 0.1 + 1e-12, 0.2],
        ),
        (np.append(600 * np.random.default_rng(0).random(90), np.repeat(np.arange(600.0), 20)), list(range(600))),
    ],
    ids=["20 rows", "light", "float32", "two", "two, one once", "roots", "close", "steps and some between"],
)
def test_found(values, atoms):
    assert found(values) == atoms


def test_the_heaviest_are_kept_of_too_many():
    random = np.random.default_rng(0)
    heaped = np.repeat(random.random(MAX_ATOMS + 50), np.append(np.full(MAX_ATOMS, 30), np.full(50, 20)))
    values = np.concatenate([heaped, random.random(40_000)])
    atoms = found(values)
    assert len(atoms) == MAX_ATOMS
    assert min(np.sum(values == atom) for atom in atoms[::100]) == 30


@pytest.mark.parametrize(
    ("distinct", "counts", "expected"),
    [
        ([-999, 0, 1, 2, 3], [9] * 5, [0]),
        ([-999, 0, 1, 2, 3], [4, 9, 9, 9, 9], []),  # so few may be the tail of a law
        ([-999, 0, 1, 2, 3, 999], [9] * 6, [0, 5]),
        ([-1e6, 0, 1, 2, 3, 9999, 1e8], [9] * 7, [0, 5, 6]),
        ([2, 3, 4, 6, 8, 12], [9] * 6, []),
        ([0, 7], [9, 9], []),
    ],
)
def test_sentinels_of_a_grid(distinct, counts, expected):
    assert find_sentinels(np.array(distinct, dtype=float), np.array(counts)).tolist() == expected


def test_nothing_is_drawn_between_a_sentinel_and_a_grid():
    random = np.random.default_rng(0)
    values = np.where(random.random(5000) < 0.2, -999.0, random.integers(0, 200_000, 5000))
    noise = random.random((5000, 1))
    transform = fit(values, [-999.0], steps={"a": 1.0}, noise=noise)
    np.testing.assert_array_equal(transform.inverse(transform.forward(values[:, None], noise=noise))[:, 0], values)
    samples = transform.inverse(random.standard_normal((200_000, 1)))
    assert np.mean(samples == -999) == pytest.approx(np.mean(values == -999), abs=0.003)
    assert samples[samples > -999].min() >= 0


@pytest.mark.parametrize("num_rows", [20, 2000])
def test_they_come_back_bit_for_bit_and_have_their_share(num_rows):
    values = spiked(num_rows)
    atoms = [-70.0 - 1e-9, -70.0, 3.1]
    transform = fit(values, atoms)
    random = np.random.default_rng(1)
    noise = random.random((num_rows, 1))
    noise[:4] = [[0.0], [1e-12], [1 - 1e-16], [0.5]]
    flow = transform.forward(values[:, None], noise=noise)
    back = transform.inverse(flow)[:, 0]
    is_atom = np.isin(values, atoms)
    np.testing.assert_array_equal(back[is_atom], values[is_atom])
    assert not np.isin(back[~is_atom], atoms).any()
    np.testing.assert_allclose(back[~is_atom], values[~is_atom], atol=1e-5)
    assert stats.kstest(flow[:, 0], "norm").statistic < 2 / num_rows**0.5
    samples = transform.inverse(random.standard_normal((100_000, 1)))[:, 0]
    for atom in atoms:
        share = np.mean(values == atom)
        assert np.mean(samples == atom) == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 1e5) + 1e-9)
    assert not ((samples > -70) & (samples < -5)).any()


def test_without_noise_they_lie_in_the_middle():
    values = np.append(np.random.default_rng(0).random(60), np.zeros(40))
    (score,) = fit(values, [0.0]).forward(np.zeros((1, 1)))[0]
    assert stats.norm.cdf(score) == pytest.approx(0.2)


def test_every_float32_score_near_an_end_is_on_its_own_side():
    """Neither an atom nor its nearest neighbours change places by the rounding of their scores."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.random(200_000), np.full(500, 0.5), [np.nextafter(0.5, 0), np.nextafter(0.5, 1)]])
    transform = fit(values, [0.5])
    (atoms,) = (curve.atoms for curve in transform.curves)
    near = np.concatenate([np.full(200, 0.5), np.nextafter(0.5, 0, dtype=float) * np.ones(1), [np.nextafter(0.5, 1)]])
    noise = np.concatenate([np.linspace(0, 2e-6, 100), 1 - np.linspace(1e-16, 2e-6, 100), [0.5, 0.5]])
    back = transform.inverse(transform.forward(near[:, None], noise=noise[:, None]))[:, 0]
    assert (back[:200] == 0.5).all()
    assert back[200] < 0.5 < back[201]
    assert len(atoms) == 1
    assert atoms.shares() == pytest.approx(500 / len(values))


def test_rows_where_no_training_row_was():
    values = np.concatenate([np.full(30, -999.0), np.full(10, -998.0), np.random.default_rng(0).standard_normal(100)])
    transform = fit(values, [-999.0, -998.0])
    elsewhere = np.array([[-2000.0], [-998.5], [-500.0], [50.0]])
    flow = transform.forward(elsewhere)
    assert np.isfinite(flow).all()
    assert np.all(np.diff(flow[:, 0]) >= 0)
    assert np.isfinite(transform.log_det_jacobian(elsewhere)).all()
    back = transform.inverse(flow)[:, 0]
    assert back[0] == -999
    assert set(back[1:2]) <= {-999.0, -998.0}
    assert -5 < back[2] < -1
    assert back[3] == values.max()


def test_the_density_of_an_atom_is_its_share():
    values = spiked()
    transform = fit(values, [-70.0 - 1e-9, -70.0, 3.1])
    rows, noise = np.array([[-70.0 - 1e-9], [-70.0], [3.1]]), np.array([[0.3], [0.9], [0.01]])
    flow = transform.forward(rows, noise=noise)[:, 0].astype(float)
    density = stats.norm.logpdf(flow) + transform.log_det_jacobian(rows, noise=noise)
    np.testing.assert_allclose(np.exp(density), [np.mean(values == row) for row in rows[:, 0]], rtol=1e-4)


def test_a_saved_map_holds_them_and_a_damaged_one_is_refused():
    values = spiked()
    transform = fit(values, [-70.0 - 1e-9, -70.0, 3.1])
    arrays, metadata = transform.to_arrays(), transform.to_metadata()
    loaded = Transform.from_arrays(arrays, metadata)
    scores = np.random.default_rng(0).standard_normal((1000, 1))
    np.testing.assert_array_equal(loaded.inverse(scores), transform.inverse(scores))
    np.testing.assert_array_equal(loaded.forward(values[:, None]), transform.forward(values[:, None]))
    for name, damaged in {
        "knot_values": arrays["knot_values"][::-1],
        "knot_scores": arrays["knot_scores"][:-1],
        "knot_counts": arrays["knot_counts"] - 1,
        "bounds": np.array([[2.0, 1.0]]),
        "origins": np.zeros(3),
    }.items():
        with pytest.raises(DataError, match="the saved transform is damaged"):
            Transform.from_arrays(arrays | {name: damaged}, metadata)


def whole(values):
    return [float(value) for value in values]


# What a column may be made of; each part is exact or continuous.
pieces = st.one_of(
    st.lists(st.floats(-1e6, 1e6), min_size=10, max_size=40),
    st.builds(lambda value, count: [value] * count, st.floats(-1e6, 1e6), st.integers(1, 40)),
    st.builds(
        lambda value, count: [value] * count, st.sampled_from([0.0, -0.0, 5e-324, -999.0, 1e9]), st.integers(1, 40)
    ),
    st.lists(st.integers(-5, 5), min_size=5, max_size=40).map(whole),
    st.lists(st.integers(-(10**6), 10**6), min_size=5, max_size=40).map(whole),
    st.lists(st.integers(-500, 500), min_size=5, max_size=40).map(
        lambda cells: [round(cell / 10, 1) for cell in cells]
    ),
)
tables = st.tuples(
    st.lists(pieces, min_size=1, max_size=4).map(lambda parts: [value for part in parts for value in part]),
    st.sampled_from([1.0, 1e-3, 1e6]),
    st.sampled_from([0.0, 0.0, 1e9, 2451545.0]),
    st.booleans(),
).filter(lambda made: len(made[0]) >= 20)


@settings(max_examples=examples(150), deadline=None)
@given(tables, st.integers(0, 2**31))
@example(([952.6815920334775] * 12 + [0.0] * 12 + [1.0, -1.0, 2.0], 1.0, 1e9, False), 0)  # a step of 70 doubles
@example(([-450360.2305268941] * 14 + [0.0] * 9 + [1.0], 1e6, 0.0, False), 0)  # a step of less than two
@example(([549756.5287215114] * 11 + [0.0] * 4, 1e6, 0.0, False), 0)
def test_any_column_comes_back(made, seed):
    """Bit for bit where it is exact, else to what a float32 score tells apart; and no sample leaves the range."""
    numbers, scale, offset, is_float32 = made
    values = np.array(numbers) * scale + offset
    values = values.astype(np.float32).astype(np.float64) if is_float32 else values
    if values.min() == values.max():
        return
    try:
        found = find_discreteness("t", "a", values)
    except DataError:  # closer together than float64 tells apart
        assert np.ptp(values) < 1e-9 * np.abs(values).max() + 1e-90
        return
    grid, atoms = found.grid, list(found.atoms)
    values = grid.snap(values) if grid else values
    noise = np.random.default_rng(seed).random((len(values), 1))
    transform = fit(values, atoms, noise=noise, steps={"a": grid} if grid else {})
    flow = transform.forward(values[:, None], noise=noise)
    assert np.isfinite(flow).all()
    back = transform.inverse(flow)[:, 0]
    is_atom = np.isin(values, atoms)
    np.testing.assert_array_equal(back[is_atom], values[is_atom])
    reach = 3e-7 * (np.abs(flow.astype(np.float64)) + 1)
    lower, upper = (transform.inverse(flow + side * reach)[:, 0] for side in (-1, 1))
    if grid:
        np.testing.assert_array_equal(grid.snap(back), back)
        # a cell is exact where a float32 score tells it from its neighbours
        sure = lower == upper
        np.testing.assert_array_equal(back[sure], values[sure])
    slack = 1e-9 * np.abs(values) + 1e-100
    assert np.all((lower - slack <= values) & (values <= upper + slack))
    samples = transform.inverse(np.random.default_rng(seed).standard_normal((500, 1)))
    assert values.min() <= samples.min() <= samples.max() <= values.max()
    assert np.isfinite(transform.log_det_jacobian(values[:, None], noise=noise)).all()
