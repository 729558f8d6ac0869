"""Each figure against a value known from theory, or from an independent implementation."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import ks_2samp, norm, spearmanr

from sfg_dist.evaluate import METRIC_NAMES, floor, measure
from sfg_dist.evaluate import distances as distances_module
from sfg_dist.evaluate.compared_rows import scale_columns
from sfg_dist.job.errors import ConfigError, DataError


def normal(num_rows, dim, seed):
    return np.random.default_rng(seed).standard_normal((num_rows, dim))


def figure(name, rows, held_out, train=None, **kwargs):
    return measure(rows, held_out, held_out if train is None else train, metrics=[name], **kwargs)[name]


def standard_log_density(rows):
    return norm.logpdf(rows).sum(axis=1)


# ---- classifier ----


@pytest.mark.slow
def test_auc_of_equal_laws_is_one_half_within_noise():
    assert figure("c2st_auc", normal(1000, 3, 0), normal(1000, 3, 1)) == pytest.approx(0.5, abs=0.045)


@pytest.mark.slow
def test_auc_of_shifted_normals_nears_the_best_possible_from_below():
    shift = 1.5
    rows = normal(4000, 2, 2)
    rows[:, 0] += shift
    best = norm.cdf(shift / np.sqrt(2))
    found = figure("c2st_auc", rows, normal(4000, 2, 3))
    assert best - 0.03 < found < best + 0.015


@pytest.mark.slow
def test_auc_uses_equal_numbers_of_both_kinds(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        distances_module, "subset", lambda table, size, _: drawn.append((len(table), size)) or table[:size]
    )
    figure("c2st_auc", normal(500, 2, 4), normal(120, 2, 5))
    assert drawn == [(500, 120), (120, 120)]


def test_auc_of_rows_that_are_far_apart_is_one():
    assert figure("c2st_auc", normal(300, 2, 6) + 50, normal(300, 2, 7)) > 0.99


def test_auc_of_a_handful_of_rows_is_not_given():
    assert figure("c2st_auc", normal(9, 2, 6), normal(300, 2, 7)) is None


# ---- distances ----


@pytest.mark.slow
@pytest.mark.parametrize("num_held_out", [3000, 1777])
def test_sliced_wasserstein_of_a_shift(num_held_out):
    scale, dim = np.array([1.0, 20.0, 0.01]), 3
    train = normal(20_000, dim, 8) * scale
    rows = (normal(3000, dim, 9) + np.array([2.0, 0.0, 1.0])) * scale
    found = figure("sliced_wasserstein", rows, normal(num_held_out, dim, 10) * scale, train)
    assert found == pytest.approx(np.sqrt(5.0 / dim), rel=0.08)


def test_sliced_wasserstein_in_one_dimension_is_the_distance_of_sorted_rows():
    rows, held_out = normal(500, 1, 11) * 2, normal(500, 1, 12)
    _, (a, b) = scale_columns(held_out, rows, held_out)
    exact = np.sqrt(np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2))
    assert figure("sliced_wasserstein", rows, held_out) == pytest.approx(exact, rel=1e-9)


def test_energy_distance_of_a_shift_in_one_dimension():
    shift = 0.8

    def mean_distance(mean, deviation):  # E|N(mean, deviation^2)|
        ratio = mean / deviation
        return 2 * deviation * norm.pdf(ratio) + mean * (2 * norm.cdf(ratio) - 1)

    root = np.sqrt(2)
    exact = np.sqrt(2 * mean_distance(shift, root) - 2 * mean_distance(0.0, root))
    rows, held_out = normal(4000, 1, 13) + shift, normal(4000, 1, 14)
    assert figure("energy_distance", rows, held_out, normal(100_000, 1, 15)) == pytest.approx(exact, rel=0.05)


def test_energy_distance_is_the_u_statistic_and_blocks_do_not_change_it(monkeypatch):
    rows, held_out = normal(40, 2, 16) + 1, normal(30, 2, 17)
    _, (a, b) = scale_columns(held_out, rows, held_out)

    def mean(first, second, distinct):
        total = sum(np.linalg.norm(x - y) for x in first for y in second)
        return total / (len(first) * (len(second) - 1 if distinct else len(second)))

    exact = np.sqrt(2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True))
    monkeypatch.setattr(distances_module, "ENERGY_BLOCK_ROWS", 7)
    assert figure("energy_distance", rows, held_out) == pytest.approx(exact, rel=1e-9)


def test_an_energy_estimate_of_equal_laws_falls_on_both_sides_of_zero():
    found = [figure("energy_distance", normal(50, 2, seed), normal(50, 2, 100 + seed)) for seed in range(8)]
    assert min(found) < 0.0 < max(found)
    assert max(map(abs, found)) < 0.5


# ---- marginals ----


def test_ks_mean_agrees_with_scipy_ties_included():
    rows, held_out = normal(300, 3, 18), normal(200, 3, 19) * 1.3
    rows[:, 2], held_out[:, 2] = np.round(rows[:, 2]), np.round(held_out[:, 2])
    exact = np.mean([ks_2samp(a, b, method="asymp").statistic for a, b in zip(rows.T, held_out.T, strict=True)])
    assert figure("ks_mean", rows, held_out) == pytest.approx(exact, abs=1e-12)


def test_marginal_kl_of_two_normals_nears_the_closed_form():
    shift, deviation = 0.5, 1.4  # KL(N(0, 1) || N(shift, deviation^2)); the other column has equal laws
    exact = np.log(deviation) + (1 + shift**2) / (2 * deviation**2) - 0.5
    rows, held_out = normal(40_000, 2, 20), normal(40_000, 2, 21)
    rows[:, 0] = shift + deviation * rows[:, 0]
    assert figure("marginal_kl_mean", rows, held_out) == pytest.approx(exact / 2, rel=0.06)


def test_marginal_kl_counts_each_value_of_a_discrete_column():
    held_out = np.repeat([0.0, 1.0], [600, 400])[:, None]
    rows = np.repeat([0.0, 1.0], [300, 700])[:, None] + 1e-6 * normal(1000, 1, 22)
    exact = 0.6 * np.log(0.6 / 0.3) + 0.4 * np.log(0.4 / 0.7)
    assert figure("marginal_kl_mean", rows, held_out) == pytest.approx(exact, rel=0.01)


def test_marginal_kl_of_disjoint_columns_is_finite():
    assert 3 < figure("marginal_kl_mean", normal(500, 1, 23) + 1e9, normal(500, 1, 24)) < 20


def test_correlation_error_is_the_difference_of_rank_correlations():
    rows, held_out = normal(400, 4, 25), normal(500, 4, 26)
    held_out[:, 1] += np.exp(held_out[:, 0])
    pairs = np.triu_indices(4, k=1)
    exact = np.abs(spearmanr(rows).statistic - spearmanr(held_out).statistic)[pairs].mean()
    assert figure("correlation_error", rows, held_out) == pytest.approx(exact, rel=1e-9)


def test_correlation_error_of_lost_dependence():
    base = normal(5000, 1, 27)
    held_out = np.hstack([base, base**3])  # rank correlation 1
    assert figure("correlation_error", normal(5000, 2, 28), held_out) == pytest.approx(1.0, abs=0.05)


def test_one_column_has_no_correlation():
    assert figure("correlation_error", normal(50, 1, 29), normal(50, 1, 30)) is None


# ---- neighbours ----


@pytest.mark.parametrize("dim", [2, 20])  # a tree finds the neighbours of few columns, a scan those of many
def test_copies_of_training_rows_are_near_and_fresh_rows_are_not(dim):
    train, held_out = normal(4000, dim, 31) + 30, normal(800, dim, 32) + 30
    assert figure("nearest_train_distance", train[:500], held_out, train) == 0.0
    blurred = train[:500] + 1e-3 * normal(500, dim, 33)
    assert figure("nearest_train_distance", blurred, held_out, train) < 0.1
    fresh = normal(800, dim, 34) + 30
    assert figure("nearest_train_distance", fresh, held_out, train) == pytest.approx(1.0, abs=0.15)


def test_nearest_distance_says_nothing_on_a_discrete_table():
    rng = np.random.default_rng(35)
    rows, held_out, train = (rng.integers(0, 3, size=(300, 2)).astype(float) for _ in range(3))
    assert figure("nearest_train_distance", rows, held_out, train) is None


def test_kl_of_a_normal_of_other_variance_nears_the_closed_form():
    deviation, dim = 1.5, 2
    exact = dim * (np.log(deviation) + 1 / (2 * deviation**2) - 0.5)
    found = figure("kl", deviation * normal(20_000, dim, 36), normal(8000, dim, 37), log_density=standard_log_density)
    assert found == pytest.approx(exact, abs=0.03)


def test_kl_does_not_depend_on_the_units():
    units = np.array([1000.0, 0.001])

    def log_density(rows):
        return standard_log_density(rows / units) - np.log(units).sum()

    rows, held_out = 1.5 * normal(3000, 2, 38), normal(1000, 2, 39)
    plain = figure("kl", rows, held_out, log_density=standard_log_density)
    assert figure("kl", rows * units, held_out * units, log_density=log_density) == pytest.approx(plain, abs=1e-9)


def test_kl_outlives_repeated_rows_and_is_none_without_a_density():
    held_out = normal(500, 2, 40)
    rows = np.concatenate([np.repeat(held_out[:5], 10, axis=0), normal(500, 2, 41)])
    assert np.isfinite(figure("kl", rows, held_out, log_density=standard_log_density))
    assert figure("kl", rows, held_out) is None
    one_place = np.repeat(held_out[:1], 50, axis=0)
    assert figure("kl", one_place, one_place, held_out, log_density=standard_log_density) is None


def test_a_density_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="50 of 50 held-out rows"):
        figure("kl", normal(50, 2, 42), normal(50, 2, 43), log_density=lambda rows: np.full(len(rows), -np.inf))


# ---- all of them ----


@pytest.mark.slow
def test_same_seed_same_figures_and_each_without_the_others():
    rows, held_out, train = normal(400, 3, 44), normal(150, 3, 45), normal(500, 3, 46)
    first = measure(rows, held_out, train, seed=7, log_density=standard_log_density)
    assert tuple(first) == METRIC_NAMES
    assert first == measure(rows, held_out, train, seed=7, log_density=standard_log_density)
    for name in ("c2st_auc", "sliced_wasserstein", "kl"):
        assert figure(name, rows, held_out, train, seed=7, log_density=standard_log_density) == first[name]
    assert first["c2st_auc"] != figure("c2st_auc", rows, held_out, train, seed=8)


@pytest.mark.slow
def test_the_order_of_columns_does_not_matter():
    rows, held_out, train = normal(1500, 3, 47) * 1.3, normal(1500, 3, 48), normal(1500, 3, 49)
    order = [2, 0, 1]
    first = measure(rows, held_out, train)
    other = measure(rows[:, order], held_out[:, order], train[:, order])
    assert other.pop("c2st_auc") == pytest.approx(first.pop("c2st_auc"), abs=0.02)
    assert other.pop("sliced_wasserstein") == pytest.approx(first.pop("sliced_wasserstein"), rel=0.1)
    assert first.pop("kl") is None
    assert other.pop("kl") is None
    assert other == pytest.approx(first, rel=1e-9)


@pytest.mark.slow
def test_floor_is_what_perfect_samples_score():
    train, held_out = normal(4000, 2, 50), normal(1000, 2, 51)
    found = floor(held_out, train, log_density=standard_log_density)
    assert tuple(found) == METRIC_NAMES
    assert found["c2st_auc"] == pytest.approx(0.5, abs=0.045)
    assert found["nearest_train_distance"] == pytest.approx(1.0, abs=0.15)
    for name in ("energy_distance", "ks_mean", "marginal_kl_mean", "correlation_error"):
        assert abs(found[name]) < 0.08
    assert abs(found["kl"]) < 0.1
    assert found == floor(held_out, train, log_density=standard_log_density)


def test_ties_constant_columns_and_heavy_tails_give_finite_figures():
    rng = np.random.default_rng(52)

    def table(num_rows):
        columns = [
            np.full(num_rows, 3.25),
            rng.integers(0, 4, num_rows),
            rng.standard_cauchy(num_rows) ** 3,
            np.maximum(rng.standard_normal(num_rows), 0),
        ]
        return np.column_stack(columns).astype(float)

    found = measure(table(300), table(100), table(400))
    assert found.pop("kl") is None
    assert all(np.isfinite(value) for value in found.values())


def test_a_table_of_constants_has_no_standardised_figures():
    table = np.full((50, 2), 4.0)
    found = measure(table, table, table)
    for name in ("sliced_wasserstein", "energy_distance", "correlation_error", "nearest_train_distance"):
        assert found[name] is None
    assert found["ks_mean"] == found["marginal_kl_mean"] == 0.0
    assert found["c2st_auc"] == 0.5


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.array([[0.0, np.nan], [1.0, 1.0], [np.inf, 0.0]]), r"judged rows: 2 of 3 rows.*row 0, column 1"),
        (np.zeros((3, 5)), "expected 2 columns"),
        (np.zeros(3), r"expected a table of shape \(rows, columns\)"),
        (np.zeros((1, 2)), "expected at least 2 rows, found 1"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused(broken, message):
    with pytest.raises(DataError, match=message):
        measure(broken, normal(10, 2, 53), normal(10, 2, 54))


def test_an_unknown_metric_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"unknown metric 'fid'.*c2st_auc"):
        measure(normal(10, 2, 55), normal(10, 2, 56), normal(10, 2, 57), metrics=["fid"])


def test_importing_the_room_is_cheap():
    code = (
        "import sys, sfg_dist.evaluate; "
        "print({'scipy', 'sklearn', 'ot', 'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
