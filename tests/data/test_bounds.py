"""Samples keep to the range of their column, without a pile at its ends; what lies beyond still has a score."""

import numpy as np
import pytest
from scipy import stats

from sfg_dist.data import Transform, prepare
from sfg_dist.data.bounds import reflect
from sfg_dist.job.errors import DataError

KINDS = ("quantile", "standardize", "none")
LAWS = {
    "uniform": lambda random, num_rows: random.random(num_rows),
    "beta": lambda random, num_rows: random.beta(0.5, 0.5, num_rows),
    "exponential": lambda random, num_rows: random.standard_exponential(num_rows),
}


def draw(name, num_rows=5000, seed=0):
    return LAWS[name](np.random.default_rng(seed), num_rows)


def fit(values, kind="quantile", bounds="observed", **arguments):
    return Transform.fit(values[:, None], ["a"], kind=kind, bounds=bounds, **arguments)


def scores(num_rows=100_000, spread=1.02):
    """Of a generator, whose scores are a little wider than those of the training rows."""
    return spread * np.random.default_rng(9).standard_normal((num_rows, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAWS)
def test_no_sample_leaves_the_observed_range(name, kind):
    values = draw(name)
    transform = fit(values, kind)
    far = np.concatenate([scores(), [[-1e6], [-40.0], [40.0], [1e6]]])
    samples = transform.inverse(far)
    assert values.min() <= samples.min() <= samples.max() <= values.max()
    flow = transform.forward(values[:, None])
    np.testing.assert_allclose(transform.inverse(flow)[:, 0], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_none_goes_on(kind):
    transform = fit(draw("uniform"), kind, "none")
    assert transform.inverse(np.array([[-9.0]])) < 0
    assert transform.inverse(np.array([[9.0]])) > 1


@pytest.mark.parametrize("name", LAWS)
def test_the_quantile_curve_has_no_pile_at_its_ends(name):
    """As many samples are the outermost row itself as half a row has a share, no more."""
    values = draw(name)
    samples = fit(values).inverse(stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None])[:, 0]
    for end in (values.min(), values.max()):
        assert np.sum(samples == end) <= 100_000 * 0.5 / len(values) + 1
    # and with all rows known the last hundredth looks like theirs
    values = draw(name, 200_000)
    samples = fit(values).inverse(stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None])[:, 0]
    for side in (-1, 1):
        of_samples, of_rows = np.sort(side * samples)[-1000:], np.sort(side * values)[-2000:]
        assert stats.ks_2samp(of_samples, of_rows).statistic < 0.03


@pytest.mark.parametrize("kind", ["standardize", "none"])
def test_reflected_ends_look_like_the_rows(kind):
    """Blurred rows of a uniform column: a clip would put a hundredth of them at one number."""
    random = np.random.default_rng(1)
    values = draw("uniform", 50_000)
    transform = fit(values, kind)
    blurred = transform.forward(draw("uniform", 100_000, 2)[:, None].clip(values.min(), values.max()))
    samples = transform.inverse(blurred + 0.02 * random.standard_normal(blurred.shape))[:, 0]
    assert len(np.unique(samples)) > 99_990
    for side in (-1, 1):
        of_samples, of_rows = np.sort(side * samples)[-1000:], np.sort(side * values)[-500:]
        assert stats.ks_2samp(of_samples, of_rows).statistic < 0.1


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-0.5, 40.0), (-np.inf, 1.0), (0.0, np.inf)])
@pytest.mark.parametrize("name", ["uniform", "beta"])
def test_a_wider_range_is_filled_smoothly(name, ends):
    values = draw(name, 1000)
    transform = fit(values, bounds={"a": ends})
    line = np.linspace(-12, 12, 20_001)[:, None]
    samples = transform.inverse(line)[:, 0]
    assert ends[0] <= samples.min() <= samples.max() <= ends[1]
    assert np.all(np.diff(samples) >= -1e-15)  # rounding
    inside = np.abs(line[:, 0]) < 5
    # up to where doubles near the end are no finer
    assert np.all(np.diff(samples[inside]) > 0) or ends == (0.0, 1.0)
    # forward is its inverse: in the range, up to the very end
    places = np.linspace(max(ends[0], -1), min(ends[1], 2), 500)[:, None]
    flow = transform.forward(places)
    assert np.isfinite(flow).all()
    assert np.all(np.diff(flow[:, 0].astype(float)) >= 0)
    np.testing.assert_allclose(transform.inverse(flow), places, atol=1e-5)
    # the law beyond the last row has no pile: half a row's share of samples, spread over the room
    beyond = transform.inverse(np.linspace(stats.norm.ppf(1 - 0.5 / 1000), 6, 2000)[1:, None])[:, 0]
    assert len(np.unique(beyond)) > 1900 or ends[1] == 1.0
    assert np.median(beyond) > values.max()


def test_a_tight_range_is_filled_evenly():
    values = draw("uniform", 1000)
    transform = fit(values, bounds={"a": (0.0, 1.0)})
    tail = stats.norm.isf(np.random.default_rng(0).random(4000) * 0.5 / 1000)  # beyond the last row
    beyond = transform.inverse(tail[:, None])[:, 0]
    assert stats.kstest((beyond - values.max()) / (1 - values.max()), "uniform").statistic < 0.1


@pytest.mark.parametrize("bounds", ["observed", {"a": (-1.0, 3.0)}])
def test_the_log_slope_is_that_of_the_ends_too(bounds):
    values = draw("uniform", 500)
    transform = fit(values, bounds=bounds)
    places = np.array([-0.4, -0.01, 0.3, 0.77, 1.01, 1.7])[:, None]
    move = 1e-7
    slopes = [
        (curve_scores(transform, places + move) - curve_scores(transform, places - move)) / (2 * move),
    ]
    np.testing.assert_allclose(transform.log_det_jacobian(places), np.log(slopes[0])[:, 0], rtol=1e-5, atol=1e-5)


def curve_scores(transform, places):
    """Forward, before it is rounded to float32."""
    from sfg_dist.data.tails import tails

    (curve,) = transform.curves
    found = curve.to_scores(places[:, 0])
    for tail in tails(curve, transform.bounds[0], transform.tails[0]):
        found = tail.to_scores(places[:, 0], found)
    return found[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_beyond_the_range_has_a_score_and_comes_back_inside(kind):
    values = draw("uniform", 300)
    transform = fit(values, kind)
    flow = transform.forward(np.array([[-3.0], [1.5]]))
    assert np.isfinite(flow).all()
    inside = transform.forward(values[:, None])
    assert flow[0] < inside.min()
    assert flow[1] > inside.max()
    back = transform.inverse(flow)[:, 0]
    if kind == "quantile":
        np.testing.assert_array_equal(back, [values.min(), values.max()])
    assert values.min() <= back.min() <= back.max() <= values.max()


def test_an_atom_at_an_end_is_the_end():
    values = np.clip(np.random.default_rng(0).standard_normal(2000), -1, None)
    for bounds in ("observed", "none", {"a": (-5.0, 9.0)}):
        transform = fit(values, bounds=bounds, atoms={"a": np.array([-1.0])})
        samples = transform.inverse(np.linspace(-9, 9, 999)[:, None])
        assert samples.min() == -1
        assert (samples.max() > values.max()) == (bounds != "observed")


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [("observed", (2, 7)), ("none", (2, 7)), ({"a": (0, 9)}, (0, 9)), ({"a": (1.5, 8.5)}, (2, 8))],
)
def test_cells_of_a_grid_keep_to_a_range_too(bounds, expected):
    values = np.random.default_rng(0).integers(2, 8, 500).astype(float)
    transform = fit(values, bounds=bounds, steps={"a": 1.0})
    np.testing.assert_array_equal(transform.inverse(np.array([[-30.0], [30.0]]))[:, 0], expected)


def test_reflection_is_continuous_and_stays_inside():
    line = np.linspace(-5, 6, 10_001)
    inside = reflect(line, (0.0, 1.0))
    assert 0 <= inside.min() <= inside.max() <= 1
    assert np.abs(np.diff(inside)).max() < 0.0012
    np.testing.assert_array_equal(reflect(line, (-np.inf, np.inf)), line)


class TestPrepared:
    @pytest.fixture
    def path(self, tmp_path):
        random = np.random.default_rng(0)
        rows = np.stack([random.random(200), random.integers(0, 9, 200), random.standard_normal(200)], axis=1)
        np.savez(tmp_path / "t.npz", X=rows, columns=np.array(["share", "count", "load"]))
        return tmp_path / "t.npz"

    def test_the_range_of_the_training_rows(self, path):
        prepared = prepare(path)
        np.testing.assert_array_equal(
            prepared.transform.bounds[0], [prepared.train[:, 0].min(), prepared.train[:, 0].max()]
        )
        np.testing.assert_array_equal(prepared.transform.bounds[1], [-np.inf, np.inf])
        assert np.isinf(prepare(path, bounds="none").transform.bounds).all()
        given = prepare(path, bounds={"share": [0, 1]}).transform
        np.testing.assert_array_equal(given.bounds[0], [0, 1])
        assert np.isfinite(given.bounds[2]).all()

    @pytest.mark.parametrize(
        ("bounds", "message"),
        [
            ("some", "data.bounds = 'some'"),
            ({"shar": [0, 1]}, r"no column 'shar' \(data.bounds\); did you mean 'share'"),
            ({"share": [1, 0]}, r"data.bounds: 'share' is \[1, 0\]"),
            ({"share": [0, 1, 2]}, "data.bounds: 'share' is"),
            ({"share": [0.1, np.inf]}, r"\d+ of 200 rows of column 'share' lie outside data.bounds = \[0.1, inf\]"),
            ({"count": [0, 5]}, r"\d+ of 200 rows of column 'count' lie outside data.bounds = \[0, 5\]"),
        ],
    )
    def test_refused(self, path, bounds, message):
        with pytest.raises(DataError, match=message):
            prepare(path, bounds=bounds)


@pytest.mark.parametrize("bounds", ["Observed", "free", {"b": (0.0, 9.0)}], ids=["case", "word", "column"])
@pytest.mark.parametrize("steps", [{}, {"a": 1.0}], ids=["free", "grid"])
def test_a_transform_refuses_bounds_that_it_would_not_follow(bounds, steps):
    with pytest.raises(DataError, match=r"data\.bounds"):
        Transform.fit(np.arange(9.0)[:, None], ["a"], bounds=bounds, steps=steps)
