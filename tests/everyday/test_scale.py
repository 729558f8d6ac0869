"""Rows in any unit: labels, scores and densities of X * s are those of X in other units, or refused by name."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import sfg_dist
from sfg_dist.distributed.fit import encoder
from sfg_dist.distributed.fit.generator import encoder_settings, fit_settings
from sfg_dist.distributed.fit.training import make_trainer
from sfg_dist.distributed.labels import references
from sfg_dist.distributed.labels.labeler import ShardLabeler, label_error
from sfg_dist.distributed.labels.sharded_reference import ReferenceMember
from sfg_dist.flow import (
    ConditionalReference,
    Effort,
    Flow,
    Reference,
    Schedule,
    choose_t_min,
    fit_time_grid,
    label_given,
    label_latents,
    label_paths,
    log_density,
    posterior_mean,
    score,
)
from sfg_dist.flow.posterior.reference import ReferenceBlock, block_ranges, center_of, centred_keys
from sfg_dist.flow.posterior.streaming import StreamedReference
from sfg_dist.flow.spread import ColumnSpread, root_mean_square, spreads_of
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.pipeline.likelihood import _flow_density, _normal_log_density
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.plan import plan_of

UNITS = [1e-6, *(pytest.param(unit, marks=pytest.mark.slow) for unit in (1e-3, 1e3)), 1e6]
FAR_UNITS = [pytest.param(1e-30, marks=pytest.mark.slow), 1e30]
DTYPES = [torch.float32, torch.float64]


def table(num_rows=300, seed=0):
    """Correlated columns with one curved, of spreads 0.5, 1 and 2.5, about other places than 0."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_rows, 3)) * [0.5, 1, 2]
    rows[:, 2] += 2 * rows[:, 0] ** 2 + rows[:, 1]
    return rows + np.array([1, -2, 0.5])


def latents(num_rows=20, seed=1):
    return np.random.default_rng(seed).standard_normal((num_rows, 3))


def deviation(found, expected):
    return np.abs(np.asarray(found) - np.asarray(expected)).max()


# Labels.


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS + FAR_UNITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_scale_with_the_rows(unit, dtype, device):
    kind = np.float32 if dtype == torch.float32 else np.float64

    def given(values):
        return torch.from_numpy(values.astype(kind)).to(device)

    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    x, y = table(), latents()
    labels = label_latents(given(y), given(x), dtype=dtype).cpu().numpy()
    scaled = label_latents(given(y), given(x * unit), dtype=dtype).cpu().numpy()
    assert scaled.dtype == kind
    assert deviation(scaled.astype(float) / unit, labels) < tolerance
    back = label_latents(given(labels), given(x), direction="encode", dtype=dtype).cpu()
    again = label_latents(given(labels.astype(float) * unit), given(x * unit), direction="encode", dtype=dtype).cpu()
    assert deviation(again, back) < 30 * tolerance  # latents feel the rounding of labels about 1 / sqrt(t_min) times


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "linear_floor", "t_min": 0.01},
        {"solver": "euler", "time_grid": "uniform", "num_evaluations": 20},
        {"solver": "dopri5", "solver_tolerance": 1e-3},
        {"solver_tolerance": 1e-3},
        {"solver_tolerance": 1e-3, "direction": "encode"},
        {"time_grid": "fitted", "num_evaluations": 8},
        {"backend": "blocked"},
        {"backend": "fused"},
        {"backend": "native"},
    ],
    ids=str,
)
def test_every_solver_and_engine(unit, settings):
    x, y = table() - [1, -2, 0.5], latents()
    encodes = settings.get("direction") == "encode"
    if encodes:
        y = x[:20] + 0.01 * y
    expected = label_latents(y, x, **settings)
    found = label_latents(y * unit if encodes else y, x * unit, **settings)
    assert deviation(found if encodes else found / unit, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("settings", [{}, {"solver_tolerance": 1e-2}], ids=str)
def test_clusters(unit, direction, settings):
    x, y = table(4500)[:, [0, 2]], latents()[:, :2]  # columns as many as elsewhere: kernels are compiled for them
    starts = y if direction == "decode" else x[:20] + 0.01 * y
    plain, scaled = Effort(), Effort()
    expected = label_latents(starts, x, direction=direction, effort=plain, **settings)
    factor = 1 if direction == "decode" else unit
    found = label_latents(starts * factor, x * unit, direction=direction, effort=scaled, **settings)
    assert deviation(found / (unit / factor), expected) < 1e-5
    assert 0 < plain.pairs < 4500 * plain.evaluations  # clusters were left out
    assert scaled.pairs == pytest.approx(plain.pairs, rel=1e-3)
    assert scaled.bound == pytest.approx(plain.bound * unit, rel=1e-3)
    assert 0 < plain.bound <= 1e-3 * Reference(x).scale * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-6, 1, 1e6])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_rows_far_from_0(unit, direction):
    """Offsets of 10^6 and 10^9 spreads leave float64 rows 9 and 6 digits."""
    x, y = table(), latents()
    decodes = direction == "decode"
    expected = label_latents(y, x, direction=direction)
    for offset in (1e6, 1e9):
        starts = y if decodes else unit * (y + offset)
        found = label_latents(starts, unit * (x + offset), direction=direction)
        assert deviation(found / unit - offset if decodes else found, expected) < offset * 1e-13 * 1e2


def test_the_spread_of_labels_is_the_rows():
    for unit in (1.0, 30.0, 1e4):
        labels = label_latents(latents(400), table() * unit)
        assert labels.std(axis=0) / unit == pytest.approx(table().std(axis=0), rel=0.15)


def test_a_given_sigma_data_is_the_plain_process():
    x, y = table(), latents()
    scale = Reference(x).scale
    assert deviation(label_latents(y, x, sigma_data=1.0) * scale, label_latents(y, x * scale, sigma_data=scale)) < 1e-5
    assert deviation(label_latents(y, x / scale, sigma_data=1.0), label_latents(y, x) / scale) < 1e-5
    with pytest.warns(UserWarning, match=r"spread \d\S+, far from sigma_data = 1, so labels are inaccurate"):
        label_latents(y, x * 100, sigma_data=1.0)
    with pytest.raises(ValueError, match='"linear_floor" then does not start from a normal law: take sigma_data'):
        label_latents(y, x * 100, schedule="linear_floor", sigma_data=1.0)
    for wrong in (0, -1.0, math.nan, math.inf, "one"):
        with pytest.raises(ValueError, match='sigma_data must be a positive number or "auto"'):
            label_latents(y, x, sigma_data=wrong)
    with pytest.raises(ValueError, match="sigma_data = 2 is not that of the prepared reference"):
        label_latents(y, Reference(x), sigma_data=2)


def test_linear_floor_away_from_0_is_refused():
    with pytest.raises(ValueError, match=r'column 1 has mean 98, .*"linear_floor" would start .* take the means off'):
        label_latents(latents(), table() + np.array([0, 100, 0]), schedule="linear_floor", t_min=0.01)


def test_a_reference_without_spread_has_unit_1():
    for rows in (np.full((7, 3), 0.1), np.full((1, 3), 5.0)):
        assert Reference(rows).scale == 1
        assert deviation(label_latents(latents(), rows, t_min=1e-6).mean(axis=0), rows[0]) < 1e-2


def test_paths_are_in_the_rows_units():
    x, y = table().astype(np.float32), torch.from_numpy(latents()).float()
    schedule = Schedule("linear", 1e-3)
    _, plain = label_paths(y, Reference(x), schedule=schedule)
    _, scaled = label_paths(y, Reference(x * np.float32(1e4)), schedule=schedule)
    assert deviation(scaled / 1e4, plain) < 1e-4
    labels = label_latents(y, x, t_min=1e-3, solver="rk4", num_evaluations=32)
    assert deviation(plain[-1] / (1 - 1e-3), labels) < 1e-4


@pytest.mark.slow
def test_a_fitted_grid_does_not_know_the_unit():
    grids = [fit_time_grid(Reference(table() * unit), Flow(Schedule(), num_evaluations=8)) for unit in (1, 1e6)]
    assert grids[0].points == pytest.approx(grids[1].points, rel=2e-3)
    assert not grids[0].is_graded


# Scores, densities, means and the bandwidth.


@pytest.mark.parametrize("unit", UNITS + FAR_UNITS)
@pytest.mark.parametrize("schedule", ["linear", "linear_floor"])
def test_scores(unit, schedule, device):
    x, z = (torch.from_numpy(rows).to(device) for rows in (table(), latents()))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        expected = score(z, x, t=0.1, schedule=schedule, dtype=dtype)
        found = score(z * unit, x * unit, t=0.1, schedule=schedule, dtype=dtype)
        assert float((found * unit - expected).abs().max()) < tolerance * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS + FAR_UNITS)
@pytest.mark.parametrize("method", ["kernel", "ode"])
@pytest.mark.parametrize("schedule", ["linear", "linear_floor"])
def test_log_densities(unit, method, schedule, device):
    x, places = (torch.from_numpy(rows).to(device) for rows in (table(), table(20, seed=5)))
    settings = {"t_min": 0.05, "method": method, "schedule": schedule}
    expected = log_density(places, x, **settings)
    found = log_density(places * unit, x * unit, **settings)
    assert float((found + 3 * math.log(unit) - expected).abs().max()) < 1e-9


def test_the_score_is_the_gradient_of_the_noised_density():
    """Closed form: rows noised at t are a mixture of equal Gaussians of standard deviation beta s."""
    x, z, t, unit = table() * 1e3, latents() * 1e3, 0.3, Reference(table() * 1e3).scale
    differences = (z[:, None] - (1 - t) * x[None]) / (t * unit**2)
    logits = -0.5 * np.square(differences).sum(axis=2) * t * unit**2
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = -(weights[:, :, None] * differences).sum(axis=1) / weights.sum(axis=1)[:, None]
    assert deviation(score(z, x, t=t, dtype=torch.float64), expected) < 1e-12


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_posterior_means_and_the_bandwidth(unit):
    x, z = (torch.from_numpy(rows) for rows in (table(), latents()))
    mean = posterior_mean(z, x, alpha=0.8, beta=0.5)
    assert deviation(posterior_mean(z * unit, x * unit, alpha=0.8, beta=0.5 * unit) / unit, mean) < 1e-12
    plain, scaled = choose_t_min(x), choose_t_min(x * unit)
    assert scaled.t_min == pytest.approx(plain.t_min, rel=1e-4)
    assert scaled.log_likelihood + 3 * math.log(unit) == pytest.approx(plain.log_likelihood, abs=1e-5)
    assert not plain.is_ceiling


# The spread itself.


def test_the_spread_of_blocks_is_the_spread_of_the_table(monkeypatch):
    monkeypatch.setattr("sfg_dist.flow.spread._CHUNK_ROWS", 64)
    x = table(1000) * [1, 1e-3, 1e3] + [1e6, 0, 1e9]
    tally = ColumnSpread()
    for start, stop in ((0, 128), (128, 131), (131, 1000)):
        tally.add(torch.from_numpy(x[start:stop]))
    assert tally.result().numpy() == pytest.approx(x.std(axis=0), rel=1e-6)
    assert tally.center.numpy() == pytest.approx(x.mean(axis=0), rel=1e-12)
    assert root_mean_square(spreads_of(torch.from_numpy(x))) == pytest.approx(math.sqrt(x.var(axis=0).mean()), rel=1e-6)
    with pytest.raises(ValueError, match=r"has spread 2.*e-150, and float64 serves from 1e-140"):
        Reference(table() * 1e-150)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_blocks_give_the_bits_of_the_whole(unit, monkeypatch):
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", 150)
    x, y = torch.from_numpy(table() * unit), latents()
    ranges, tally = [(0, 150), (150, 300)], ColumnSpread()
    center = center_of(lambda start, stop: tally.add(x[start:stop]), 300)
    scale = root_mean_square(tally.result())
    streamed = StreamedReference(
        lambda number: ReferenceBlock(centred_keys(x[slice(*ranges[number])], center, torch.float32, scale)),
        center=center, num_reference=300, device=torch.device("cpu"), scale=scale, spreads=tally.result(),
    )  # fmt: skip
    assert streamed.num_blocks == 2
    assert np.array_equal(label_latents(y, streamed), label_latents(y, Reference(x)))
    assert deviation(streamed.take(np.array([0, 299])), x[[0, 299]]) < 1e-6 * unit


def test_a_table_on_disk_is_the_table_in_memory(tmp_path):
    x = (table() * 1e4).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    streamed = sfg_dist.open_reference(tmp_path / "x.npy")
    assert streamed.scale == Reference(x).scale
    assert np.array_equal(label_latents(latents(), streamed), label_latents(latents(), Reference(x)))
    assert sfg_dist.open_reference(tmp_path / "x.npy", sigma_data=2).scale == 2
    assert block_ranges(300) == [(0, 300)]


# Conditional labels.


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("given_unit", [1e-8, 1, 1e5])
def test_conditional_labels(unit, given_unit):
    rows = table(500).astype(np.float32)
    start = torch.from_numpy(np.c_[latents(20)[:, :2], table(20, seed=7)[:, 2]])
    schedule = Schedule("linear", 1e-3)
    plain = ConditionalReference(rows, 1, neighbors=60, dtype=torch.float64)
    expected = label_given(start, plain, Flow(schedule))
    units = np.array([unit, unit, given_unit])
    scaled = ConditionalReference((rows * units).astype(np.float32), 1, neighbors=60, dtype=torch.float64)
    found = label_given(start * torch.tensor([1, 1, given_unit]), scaled, Flow(schedule))
    assert scaled.scale == pytest.approx(plain.scale * unit, rel=1e-6)
    assert deviation(found[:, :2] / unit, expected[:, :2]) < 1e-4  # the rows were rounded to float32


# Columns of different spread.


@pytest.mark.slow
def test_uneven_columns_are_said_and_right():
    rng = np.random.default_rng(0)
    small = np.where(rng.random(1000) < 0.5, -1.0, 1.0) + 0.2 * rng.standard_normal(1000)
    x, y = np.c_[1000 * rng.standard_normal(1000), small], rng.standard_normal((40, 2))
    with pytest.warns(UserWarning, match="columns 0 .* and 1 .* differ .*-fold in spread") as said:
        labels = label_latents(y, x, t_min=1e-8)
    assert "\n" not in str(said[0].message)
    assert 'transform.kind = "standardize" or "quantile"' in str(said[0].message)
    with pytest.warns(UserWarning, match="differ"):
        exact = label_latents(y, x, t_min=1e-8, dtype=torch.float64, num_evaluations=200)
    assert np.median(np.abs(labels - exact) / x.std(axis=0), axis=0).max() < 0.05
    assert labels[:, 1].std() == pytest.approx(x[:, 1].std(), rel=0.2)
    with pytest.raises(ValueError, match=r"would hide the smaller: standardise .* or take a t_min of \d.*e-07 or less"):
        label_latents(y, x, t_min=1e-4)
    with pytest.warns(UserWarning, match="differ"):
        score(y, x, t=0.5)
    with pytest.warns(UserWarning, match="differ"):
        log_density(y, x, t_min=1e-8)


@pytest.mark.parametrize("unit", [1e-170, 1e-300])
def test_a_spread_whose_square_is_0_is_no_constant(unit):
    with pytest.raises(ValueError, match="float64 serves from 1e-140"):
        label_latents(latents(), table() * unit)


def test_even_and_constant_columns_are_not_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_latents(latents(), table() * [1, 10, 1])
        label_latents(latents(), table() * [1, 0, 1])


# What is given.


@pytest.mark.parametrize("name", ["latents", "the reference", "z", "x", "rows"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.array([["a", "b", "c"]]), "expected a table of numbers, got an array of <U1"),
        (np.zeros((2, 3), complex), "expected a table of numbers, got an array of complex128"),
        (np.zeros((2, 3), np.longdouble), "expected a table of numbers, got an array of .*128"),
        ([[1.0, 2.0, 3.0], [1.0]], "expected a table of numbers"),
        (np.ma.masked_greater(np.arange(6.0).reshape(2, 3), 3), "masked values"),
        (np.full((2, 3), 2**60), "integers beyond 2.53"),
        (np.array([[2**60, 0.5, 1.0]], object), "integers beyond 2.53"),
        (np.array([[1, None, 2.0]], object), "missing values"),
        (torch.zeros(2, 3, dtype=torch.complex64), "got a tensor of torch.complex64"),
    ],
    ids=["text", "complex", "longdouble", "ragged", "masked", "integers", "objects", "missing", "tensor"],
)
def test_other_tables_are_refused_by_name(name, wrong, words):
    calls = {
        "latents": lambda: label_latents(wrong, table()),
        "the reference": lambda: label_latents(latents(), wrong),
        "z": lambda: score(wrong, table(), t=0.5),
        "x": lambda: log_density(wrong, table()),
        "rows": lambda: choose_t_min(wrong),
    }
    with pytest.raises(ValueError, match=f"^{name}: .*{words}"):
        calls[name]()


@pytest.mark.parametrize(
    "kind", [">f4", ">f8", ">i4", ">i8", np.int8, np.uint8, np.uint16, np.uint32, np.uint64, np.int64, np.float16, bool]
)
def test_arrays_of_any_kind(kind):
    x = np.rint(2 * table() + 40).astype(kind)
    y = np.rint(5 + latents()).astype(kind)
    plain = np.float32 if np.dtype(kind).kind != "f" else np.dtype(kind).newbyteorder("=")
    expected = label_latents(y.astype(plain), x.astype(np.float64), num_evaluations=8)
    found = label_latents(y, x, num_evaluations=8)
    assert found.dtype == plain
    assert deviation(found, expected) == 0
    assert np.isfinite(log_density(y, x, t_min=0.1)).all()
    assert np.isfinite(score(y, x, t=0.5)).all()


def test_lists_views_and_large_integers():
    x, y = table(), latents()
    expected = label_latents(y, x)
    assert deviation(label_latents(y.tolist(), x.tolist()), expected) == 0
    assert deviation(label_latents(np.asfortranarray(y)[::-1], np.repeat(x, 2, axis=0)[::2])[::-1], expected) == 0
    assert deviation(label_latents(y.astype(object), x.astype(object)), expected) == 0  # nullable columns of a frame
    seconds = 1_700_000_000 + np.rint(5 * x).astype(np.int64)  # float32 tells them apart by 128
    assert deviation(label_latents(y, seconds) - 1_700_000_000, label_latents(y, np.rint(5 * x))) < 1e-4


@pytest.mark.parametrize(
    ("kind", "unit", "offset", "words"),
    [
        (np.float16, 1e6, 0, "whose range does not hold labels of spread 1.*e\\+06"),
        (np.float16, 1e-6, 0, "whose range does not hold"),
        (np.float32, 1e-40, 0, "whose range does not hold"),
        (np.float32, 1e38, 0, "whose range does not hold"),
        (np.float32, 1, 1e9, "whose grid about 1e\\+09 is too coarse for labels of column 0"),
        (np.float16, 1, 1e4, "whose grid about 1e\\+04 is too coarse"),
    ],
)
def test_labels_that_the_dtype_cannot_hold_are_refused(kind, unit, offset, words):
    with pytest.raises(ValueError, match=f"latents are torch.float.*{words}.*: give them in float64"):
        label_latents(latents().astype(kind), table() * unit + offset)
    assert np.isfinite(label_latents(latents(), table() * unit + offset)).all()


def test_scores_that_the_dtype_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"z is torch\.float16, whose range does not hold scores"):
        score(np.zeros((2, 3), np.float16), table() * 1e-8, t=0.1)


# Stores.

NONE = {"transform": {"kind": "none"}}
LABELS = {"num_pairs": 128, "shard_rows": 64, "batch_size": 64, "num_evaluations": 20, "t_min": 1e-3, "tolerance": 1e-3}


@pytest.fixture
def store_of(tmp_path, make_job):
    """The store of a job over a table, labelled in this process."""

    def make(rows, directory="run", **tables):
        np.save(tmp_path / f"{directory}.npy", rows)
        given = {"data": {"source": str(tmp_path / f"{directory}.npy"), "max_rows": len(rows), "dequantize": "none"}}
        given |= NONE | {"labels": LABELS}
        for name, keys in tables.items():
            given[name] = given.get(name, {}) | keys
        return Pipeline(make_job(directory, **given)).label()

    return make


@pytest.mark.parametrize("unit", [1e-4, 1e4])
@pytest.mark.parametrize("num_rows", [400, pytest.param(6000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_store_without_transform_scales_with_its_rows(store_of, unit, num_rows):
    x = table(num_rows)
    settings = {"labels": {"direction": "both"}}
    plain, scaled = store_of(x, "plain", **settings), store_of(x * unit, "scaled", **settings)
    measured = root_mean_square(spreads_of(torch.from_numpy(scaled.reference)))
    assert scaled.plan.sigma_data == float(f"{measured:.6g}")
    assert deviation(scaled.labels.compute() / unit, plain.labels.compute()) < 1e-3
    assert deviation(scaled.latents.compute(), plain.latents.compute()) < 1e-2  # encoded from rounded rows
    assert np.median(np.abs(scaled.latents.compute() - plain.latents.compute())) < 1e-5
    decoded = label_latents(
        scaled.latents.compute()[:64],
        scaled.reference,
        t_min=1e-3,
        num_evaluations=20,
        sigma_data=scaled.plan.sigma_data,
    )
    assert deviation(scaled.labels.compute()[:64] / unit, decoded / unit) < 1e-4
    errors = [label_error(pairs) for pairs in (plain, scaled)]
    assert errors[1]["median"] == pytest.approx(errors[0]["median"], rel=0.1)
    assert errors[1]["tolerance_reached"] == pytest.approx(errors[0]["tolerance_reached"], rel=0.1)


def test_quantile_and_standardized_stores_have_no_entry(store_of):
    for kind in ("quantile", "standardize"):
        pairs = store_of(table(200), kind, transform={"kind": kind})
        assert "sigma_data" not in pairs.plan.identity
        assert pairs.plan.sigma_data == 1


@pytest.mark.slow
def test_choices_for_the_table_do_not_know_the_unit(store_of):
    settings = {"labels": {"t_min": "auto", "time_grid": "fitted", "num_evaluations": 8}}
    plans = [store_of(table(200) * unit, f"run-{unit:g}", **settings).plan for unit in (1, 1e4)]
    assert plans[0].identity["blur"] == plans[1].identity["blur"]
    for mine, other in zip(*(plan.time_grid("decode") for plan in plans), strict=True):
        assert mine == pytest.approx(other, rel=5e-3)


@pytest.mark.slow
def test_conditional_stores(store_of):
    settings = {"data": {"condition": ["c2"]}, "labels": {"condition_neighbors": 50}}
    x = table(400)
    plain, scaled = store_of(x, "plain", **settings), store_of(x * [1e4, 1e4, 1e-3], "scaled", **settings)
    assert scaled.plan.sigma_data == pytest.approx(1e4 * plain.plan.sigma_data, rel=1e-5)
    assert deviation(scaled.labels.compute()[:, :2] / 1e4, plain.labels.compute()[:, :2]) < 1e-2
    assert label_error(scaled)["median"] == pytest.approx(label_error(plain)["median"], rel=0.2)


@pytest.mark.slow
def test_any_way_to_hold_the_reference(store_of, monkeypatch):
    """Mapped from the node's file, built anew for each evaluation, or sharded over a group."""
    pairs = store_of(table(6000) * 1e4)
    expected = pairs.labels.compute()[:64]
    url, rows = pairs.location.url, normal_rows(0, Stream.LATENTS, 0, 64, 3)

    def labels(**ways):
        labeler = ShardLabeler(url, **ways)
        ends = labeler._integrate(0, 0, rows, Effort())
        labeler.close()
        return ends

    assert np.array_equal(labels(), expected)
    monkeypatch.setattr(references, "SHARED_BYTES", 0)
    assert np.array_equal(labels(), expected)
    members = [ReferenceMember(url, part, 2) for part in range(2)]
    assert np.median(np.abs(labels(members=members) - expected)) < 1e-3 * pairs.plan.sigma_data
    assert members[0].reference.take(np.array([0]))[0] == pytest.approx(pairs.reference[0], rel=1e-4)


@pytest.mark.slow
def test_minibatches_have_the_unit_of_the_whole(store_of):
    settings = {"labels": {"estimator": "minibatch", "num_reference": 50}}
    plain, scaled = store_of(table(), "plain", **settings), store_of(table() * 1e4, "scaled", **settings)
    assert deviation(scaled.labels.compute() / 1e4, plain.labels.compute()) < 1e-3


@pytest.mark.slow
def test_a_store_of_the_first_version_goes_on_as_it_was_begun(tmp_path, make_job, monkeypatch):
    np.save(tmp_path / "x.npy", table(200) * 3)
    given = NONE | {"data": {"source": str(tmp_path / "x.npy"), "max_rows": 200}, "labels": LABELS}

    def early_plan(*arguments, **keywords):
        plan, frame = plan_of(*arguments, **keywords)
        identity = {key: value for key, value in plan.identity.items() if key != "sigma_data"}
        return replace(plan, identity=identity), frame

    monkeypatch.setattr("sfg_dist.pipeline.pipeline.plan_of", early_plan)
    begun = Pipeline(make_job(**given)).open_store()
    monkeypatch.undo()
    assert "sigma_data" not in begun.plan.identity
    with pytest.warns(UserWarning, match=r"begun by version 0\.1\.0 .* goes on with sigma_data = 1") as said:
        pairs = Pipeline(make_job(**given)).label()
    assert len(said) == 1
    with pytest.warns(UserWarning, match="goes on with sigma_data = 1"):
        pairs = Pipeline(make_job(**given | {"labels": LABELS | {"num_pairs": 192}})).extend()
    assert "sigma_data" not in pairs.plan.identity
    latents, settings = pairs.latents.compute(), {"t_min": 1e-3, "num_evaluations": 20, "batch_size": 64}
    assert np.array_equal(pairs.labels.compute(), label_latents(latents, pairs.reference, sigma_data=1.0, **settings))


@pytest.mark.slow
def test_columns_that_one_blur_does_not_suit_are_refused_before_any_work(store_of):
    with pytest.raises(
        ConfigError, match=r'transform\.kind = "none": columns \'c2\' .* and \'c0\' .* hide the smaller'
    ):
        store_of(table() * [1, 1, 1000])
    with pytest.warns(UserWarning, match=r"columns \'c2\' .* and \'c0\' .* differ .*-fold"):
        store_of(table() * [1, 1, 10], labels={"t_min": 1e-5})
    with pytest.raises(ConfigError, match=r"column \'c1\' has mean .* take the means off the columns"):
        store_of(table() + np.array([0, 1000, 0]), "floor", labels={"schedule": "linear_floor", "t_min": 1e-2})
    with pytest.raises(ConfigError, match=r"column 'c0' has mean 1e\+06 and spread .* too little for float32"):
        store_of(table() + np.array([1e6, 0, 0]), "far")
    with pytest.raises(DataError, match=r"column 'c0' lies between .* where float32 has steps"):
        store_of(table() * 1e-50, "tiny")
    with pytest.warns(UserWarning, match="count alike in the distance of two conditions"):
        store_of(table() * [1, 1, 1000], "given", data={"condition": ["c1", "c2"]}, labels={"condition_neighbors": 20})


@pytest.mark.slow
def test_likelihoods_know_the_unit(store_of):
    figures = []
    for unit in (1, 1e4):
        pairs = store_of(table(200) * unit, f"run-{unit:g}")
        rows = table(50, seed=4) * unit
        found = [_flow_density(rows, pairs.reference.astype(float), pairs, method) for method in ("kernel", "ode")]
        figures.append([values.mean() + 3 * math.log(unit) for values in (*found, _normal_log_density(rows, pairs))])
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)


TRAIN = {"num_epochs": 2, "batch_size": 64, "width": 16, "depth": 1}


@pytest.mark.parametrize("condition", [None, ["c2"]])
@pytest.mark.slow
def test_networks_are_fitted_in_the_flows_units(store_of, condition):
    """The same steps for any unit: losses and weights agree, though labels differ 10^4-fold."""
    settings = {"labels": {"condition_neighbors": 20}, "data": {"condition": condition}} if condition else {}
    losses = []
    for unit, offset in ((1, 0), (1e4, 100)):
        pairs = store_of((table() + offset) * unit, f"run-{unit:g}", **settings)
        trainer = make_trainer(pairs, fit_settings(resolve_job({"data": {"source": "moons"}, "train": TRAIN})))
        starts, ends = pairs.latents.compute(), pairs.labels.compute()
        for step in range(5):
            trainer.step(starts, ends, len(starts), 0.1 * step)
        losses.append(trainer.validation_loss(starts, ends))
    assert 0.01 < losses[0] < 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.slow
def test_the_encoder_is_fitted_in_the_flows_units(store_of, tmp_path, monkeypatch):
    given = {}

    def trainer(_, tables, **__):
        given.update(vars(tables))
        raise InterruptedError

    monkeypatch.setattr(encoder, "EncoderTrainer", trainer)
    rows = (table() + 20) * 1e4
    pairs = store_of(rows)
    settings = encoder_settings(resolve_job({"data": {"source": "moons"}, "train": {"encoder": True}}))
    with pytest.raises(InterruptedError):
        encoder.fit_encoder(pairs.location.url, tmp_path, settings, rows[:40].astype(np.float32))
    for name in ("reference", "labels", "validation"):
        assert given[name].dtype == np.float32
        assert given[name].std() == pytest.approx(1, rel=0.4)
        assert np.abs(given[name].mean(axis=0)).max() < 0.7
    assert np.array_equal(given["latents"], pairs.latents.compute())


@pytest.mark.slow
def test_a_run_without_transform_in_other_units(store_of, make_job, monkeypatch):
    monkeypatch.setattr("sfg_dist.model.calibration.NUM_FIT_ROWS", 2000)
    monkeypatch.setattr("sfg_dist.model.calibration.NUM_HELD_OUT_ROWS", 2000)
    samples = []
    for unit, offset in ((1, 0), (1e4, 20)):
        pairs = store_of((table() + offset) * unit, f"run-{unit:g}")
        data = {"source": pairs.plan.source, "max_rows": 300, "dequantize": "none"}
        train = TRAIN | {"num_threads": 1}
        generator = Pipeline(make_job(f"run-{unit:g}", data=data, labels=LABELS, train=train, **NONE)).train()
        samples.append(generator.sample(500) / unit - offset)
    assert np.median(np.abs(samples[0] - samples[1])) < 0.02
    assert samples[1].std(axis=0) == pytest.approx(table().std(axis=0), rel=0.2)
