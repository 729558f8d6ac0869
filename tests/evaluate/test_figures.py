"""Each figure of a judgement against sdmetrics, a slow direct implementation, or a value known from theory."""

from itertools import combinations

import numpy as np
import pytest
from judged import COLUMNS, rows, tables
from scipy.stats import norm

from sfg_dist.evaluate import contest as contest_room
from sfg_dist.evaluate import judge
from sfg_dist.evaluate import rules as rule_room
from sfg_dist.evaluate.contest import Contests, halved_error, mean_error, random_part, share_error
from sfg_dist.evaluate.embedding import Embedding
from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables
from sfg_dist.evaluate.neighbours import nearest_drawn, nearest_others, nearest_rows
from sfg_dist.evaluate.rules import find_rules
from sfg_dist.evaluate.shapes import column_shapes
from sfg_dist.evaluate.trends import _chosen, binned, column_pairs, pair_trends
from sfg_dist.evaluate.verdict import verdicts


def figure(name, given, **changed):
    return judge(given, figures=[name], **changed).figures[name]


# ---- shapes and trends ----


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of sdmetrics about constant columns
@pytest.mark.parametrize("gaps", [0.0, 0.15])
def test_shapes_and_trends_are_those_of_sdmetrics(gaps):
    pytest.importorskip("sdmetrics")
    pandas = pytest.importorskip("pandas")
    from sdmetrics.reports.single_table import QualityReport

    columns = (*COLUMNS, JudgedColumn("same", "number"))
    judged, held_out = (
        np.concatenate([rows(size, seed, gaps=gaps), np.full((size, 1), 3.0)], axis=1)
        for size, seed in ((700, 1), (500, 2))
    )
    judged[:, 0] *= 1.4
    judged[:20, 3] = 9.0  # a category that held-out rows do not have
    names = [column.name for column in columns]
    frames = [pandas.DataFrame(table, columns=names) for table in (held_out, judged)]
    for frame in frames:
        for column in columns:
            if column.is_discrete:
                frame[column.name] = frame[column.name].astype(object)
    kinds = {c.name: {"sdtype": "categorical" if c.is_discrete else "numerical"} for c in columns}
    report = QualityReport()
    report.real_correlation_threshold = report.real_association_threshold = 0  # every pair counts
    report.generate(*frames, {"columns": kinds}, verbose=False)

    theirs = report.get_details("Column Shapes").set_index("Column")["Score"]
    np.testing.assert_allclose(column_shapes(judged, held_out, columns), theirs[names], atol=1e-6)
    pairs = column_pairs(len(columns), np.random.default_rng(0))
    theirs = report.get_details("Column Pair Trends").set_index(["Column 1", "Column 2"])["Score"]
    ours = pair_trends(judged, held_out, columns, pairs)
    np.testing.assert_allclose(ours, [theirs[names[a], names[b]] for a, b in pairs], atol=1e-6)
    assert report.get_properties()["Score"].to_list() == pytest.approx(
        [np.nanmean(column_shapes(judged, held_out, columns)), np.nanmean(ours)], abs=1e-6
    )


def test_the_shape_of_a_shifted_normal_is_known():
    shift = 0.5
    given = [np.random.default_rng(seed).standard_normal((20_000, 1)) for seed in (1, 2, 3)]
    given[0] += shift
    found = figure("shape", JudgedTables(COLUMNS[:1], *given))
    expected = 1 - (2 * norm.cdf(shift / 2) - 1)
    assert found.value == pytest.approx(expected, abs=0.012)
    assert 0.003 < found.error < 0.008  # about (1/n + 1/n)^(1/2) (p (1 - p))^(1/2) with p = 0.6


def test_the_trend_of_shares_counts_every_cell():
    columns = (JudgedColumn("a", "category"), JudgedColumn("b", "category"))
    held_out = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float64)
    judged = np.array([[0, 0], [0, 0], [1, np.nan], [2, 1]])
    assert pair_trends(judged, held_out, columns, [(0, 1)])[0] == pytest.approx(0.25)


def test_a_column_that_is_huge_or_tiny_has_its_correlation():
    generator = np.random.default_rng(0)
    base = generator.standard_normal((500, 1))
    held_out = np.concatenate([base, base + generator.standard_normal((500, 1))], axis=1)
    columns = (JudgedColumn("a", "number"), JudgedColumn("b", "number"))
    judged = held_out[::-1] * [1, -1]
    plain = pair_trends(judged, held_out, columns, [(0, 1)])
    scale, offset = np.array([1e200, 1e-200]), np.array([1e203, 0.0])
    np.testing.assert_allclose(
        pair_trends(judged * scale + offset, held_out * scale + offset, columns, [(0, 1)]), plain, rtol=1e-6
    )
    assert plain[0] == pytest.approx(1 - np.abs(2 * np.corrcoef(held_out.T)[0, 1]) / 2)


def test_bins_hold_equal_shares_and_the_most_frequent_categories():
    columns = (JudgedColumn("number", "number"), JudgedColumn("code", "category"))
    generator = np.random.default_rng(1)
    held_out = np.stack([generator.permutation(1000.0 + np.arange(1000)), np.arange(1000) % 14 % 12], axis=1)
    codes = binned(np.array([[np.nan, np.nan], [0.0, 11.0], [1e9, 1.0]]), held_out, columns)
    np.testing.assert_array_equal(np.bincount(codes[3:, 0]), np.full(10, 100))
    assert codes[0].tolist() == [11, 11]
    assert codes[1].tolist() == [0, 10]  # less than any; a rare category
    assert codes[2].tolist() == [9, 1]


def test_the_error_of_mutual_information_of_equal_columns_that_are_permuted_is_one():
    columns = COLUMNS[:2]
    base = np.random.default_rng(2).standard_normal((4000, 1))
    held_out = np.concatenate([base, base], axis=1)
    judged = np.concatenate([base, np.random.default_rng(3).permutation(base)], axis=1)
    found = figure("mutual_information_error", JudgedTables(columns, judged, held_out, held_out))
    assert found.value == pytest.approx(1.0, abs=0.02)
    assert found.floor == 0.0


def test_tails_are_compared_in_spreads():
    held_out = np.linspace(0, 1, 1001)[:, None]
    found = figure("tail_error", JudgedTables(COLUMNS[:1], held_out + 0.1, held_out, held_out))
    assert found.value == pytest.approx(0.1 / 0.998)
    assert found.floor == 0.0


@pytest.mark.parametrize("size", [2, 3])
def test_choices_of_columns_are_drawn_among_all_of_them(size):
    every = list(combinations(range(13), size))
    assert _chosen(13, size, len(every), np.random.default_rng(0)) == every
    places = np.sort(np.random.default_rng(0).choice(len(every), size=50, replace=False))
    assert _chosen(13, size, 50, np.random.default_rng(0)) == [every[place] for place in places]


def test_triples_of_many_columns_are_not_listed():
    found = _chosen(100_000, 3, 4, np.random.default_rng(0))  # of 1.7e14
    assert len(set(found)) == 4
    assert all(0 <= first < second < third < 100_000 for first, second, third in found)


def test_the_accuracy_of_triples_counts_cells_of_three_columns():
    columns = tuple(JudgedColumn(name, "category") for name in "abc")
    cells = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64)
    even = np.repeat(cells[cells.sum(axis=1) % 2 == 0], 10, axis=0)
    every = np.repeat(cells, 10, axis=0)[: 2 * len(even)]
    found = figure("three_way_accuracy", JudgedTables(columns, np.concatenate([even, even]), every, every))
    assert found.value == pytest.approx(0.5)
    pairs = pair_trends(np.concatenate([even, even]), every, columns, list(combinations(range(3), 2)))
    np.testing.assert_allclose(pairs, 1.0)  # no pair of columns shows it


# ---- support ----


def slow_alpha_and_beta(held_out, judged):
    """As in the paper's definitions, row by row."""
    levels = np.linspace(0, 1, 30)
    center, own_center = held_out.mean(axis=0), judged.mean(axis=0)
    radii = np.quantile([np.linalg.norm(row - center) for row in held_out], levels)
    alpha = [np.mean([np.linalg.norm(row - center) <= radius for row in judged]) for radius in radii]
    covered, distances = [], []
    for number, row in enumerate(held_out):
        to_judged = [np.linalg.norm(row - other) for other in judged]
        to_held_out = min(np.linalg.norm(row - other) for k, other in enumerate(held_out) if k != number)
        covered.append(min(to_judged) <= to_held_out)
        distances.append(np.linalg.norm(judged[np.argmin(to_judged)] - own_center))
    radii = np.quantile(distances, levels)
    beta = [np.mean([c and d <= radius for c, d in zip(covered, distances, strict=True)]) for radius in radii]
    return tuple(1 - np.abs(levels - np.array(shares)).sum() / levels.sum() for shares in (alpha, beta))


def test_alpha_and_beta_are_those_of_a_slow_implementation():
    given = tables(80)
    embed = Embedding(COLUMNS, given.train, given.samples, given.held_out)
    alpha, beta = slow_alpha_and_beta(embed(given.held_out), embed(given.samples))
    assert figure("alpha_precision", given).value == pytest.approx(alpha, abs=1e-12)
    assert figure("beta_recall", given).value == pytest.approx(beta, abs=1e-12)


def test_authenticity_and_the_nearest_ratio_are_those_of_a_slow_implementation():
    given = tables(120)
    embed = Embedding(COLUMNS, given.train, given.samples, given.held_out)
    samples, train = embed(given.samples), embed(given.train)
    authentic, ratios = [], []
    for row in samples:
        distances = np.linalg.norm(train - row, axis=1)
        nearest = int(np.argmin(distances))
        others = np.delete(np.linalg.norm(train - train[nearest], axis=1), nearest)
        authentic.append(distances[nearest] > others.min())
        first, second = np.sort(distances)[:2]
        ratios.append(first / second)
    assert figure("authenticity", given).value == pytest.approx(np.mean(authentic))
    assert figure("nearest_ratio", given).value == pytest.approx(np.mean(ratios))


def test_two_categories_are_as_far_apart_as_two_numbers_a_deviation_apart():
    columns = (JudgedColumn("n", "number"), JudgedColumn("c", "category"), JudgedColumn("many", "category"))
    real = np.stack([np.tile([0.0, 2.0], 50), np.tile([0, 1], 50), np.arange(100)], axis=1)
    points = Embedding(columns, real)(np.array([[0.0, 0, 5], [1.0, 0, 5], [0.0, 1, 5], [0.0, 0, 6]]))
    distances = np.linalg.norm(points[1:] - points[0], axis=1)
    np.testing.assert_allclose(distances[:2], 1.0)
    assert distances[2] == pytest.approx(1.0, abs=0.4)


def test_a_row_among_equal_rows_has_another_at_no_distance():
    table = np.zeros((30, 2))
    distances, numbers = nearest_others(table, 8)
    assert distances.shape == numbers.shape == (30, 8)
    assert (distances == 0).all()


def test_the_nearest_of_drawn_rows_is_found():
    table = np.random.default_rng(4).standard_normal((40, 2))
    found = nearest_rows(table[:5] + 0.01, table, 8)
    distances, numbers = nearest_drawn(*found, np.setdiff1d(np.arange(40), np.arange(5)))
    assert (numbers >= 5).all()
    assert (distances > found[0][:, 0]).all()


# ---- privacy ----


def test_an_attack_on_independent_rows_finds_nothing_and_on_copies_all():
    found = figure("attack_auc", tables(2000))
    assert abs(found.value - 0.5) < 3 * found.error
    assert found.copy > 0.99


def test_an_attack_on_a_table_of_few_cells_finds_little():
    """All that a copy shows of rows in ten cells is how often each was drawn."""
    given = [np.random.default_rng(seed).integers(0, 10, (400, 1)).astype(float) for seed in (1, 2, 3)]
    found = figure("attack_auc", JudgedTables((JudgedColumn("c", "category"),), *given))
    assert abs(found.copy - 0.5) < 0.1
    assert abs(found.value - 0.5) < 4 * found.error


def test_identical_rows_are_counted_with_their_gaps_and_zeros():
    train = np.array([[0.0, np.nan], [1.0, 2.0]] * 20)
    samples = np.array([[-0.0, np.nan], [1.0, 2.5]] * 20)
    given = JudgedTables(COLUMNS[:2], samples, train + 0.5, train)
    assert figure("identical_share", given).value == 0.5


def test_of_long_tables_random_rows_are_looked_at_and_identical_rows_in_all(monkeypatch):
    monkeypatch.setattr(contest_room, "MAX_TABLE_ROWS", 150)
    given = tables(400)
    contests = Contests(given, np.random.default_rng(0))
    sizes = [len(table) for table in (contests.samples, contests.held_out, contests.train, contests.permuted)]
    assert sizes == [150] * 4
    assert {row.tobytes() for row in contests.train} < {row.tobytes() for row in given.train}
    found = judge(tables(samples=given.train), figures=["identical_share"])
    assert found.figures["identical_share"].value == 1.0
    assert found.notes[-1] == "Of 400 training rows 150 random ones are looked at."


def test_a_few_verbatim_rows_of_a_short_table_are_beyond_the_noise():
    samples, given = rows(400, 1), tables(400)
    samples[:16] = given.train[:16]
    found = figure("identical_share", tables(samples=samples))
    assert found.value == 0.04
    assert found.value > 3 * found.error
    assert verdicts({"identical_share": found}, None)[2].grade == "poor"


def test_copies_of_all_compared_rows_are_nearer_to_them():
    found = figure("nearer_to_train", tables(1000))
    assert found.copy > 0.9
    assert abs(found.value - 0.5) < 3 * found.error


# ---- utility ----


@pytest.mark.slow
def test_the_utility_of_numbers_is_r2():
    found = judge(tables(600, target="weight"), figures=["utility", "utility_calibration"])
    assert found.figures["utility"].value > 0.9
    assert found.figures["utility"].independent < 0.1
    assert found.figures["utility_calibration"].value is None
    assert "the target is a number, which has no probabilities" in found.notes[0]


@pytest.mark.slow
def test_samples_with_one_category_of_the_target_are_of_no_use():
    samples = rows(400, 1)
    samples[:, 4] = 1.0
    found = figure("utility", tables(samples=samples))
    assert found.value == 0.5
    assert found.floor > 0.85


# ---- rules ----


def rule_rows(num_rows, seed):
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 50, (2, num_rows))
    town = generator.integers(0, 20, num_rows)
    return np.stack([a, b, a + b, town, town // 4, generator.random(num_rows)], axis=1).astype(float)


RULE_COLUMNS = (
    JudgedColumn("a", "integer"),
    JudgedColumn("b", "integer"),
    JudgedColumn("total", "integer"),
    JudgedColumn("town", "category"),
    JudgedColumn("land", "category"),
    JudgedColumn("noise", "number"),
)


def test_rules_are_found_and_no_others():
    rules = {rule.words: rule for rule in find_rules(rule_rows(2000, 0), RULE_COLUMNS)}
    assert {words for words in rules if " lies " not in words and " one of " not in words} == {
        "a + b = total",
        "town decides land",
    }
    fresh = rule_rows(500, 1)
    for rule in rules.values():
        assert rule.broken(fresh).mean() < 0.02, rule.words
    fresh[:50, 2] += 1
    fresh[50:100, 4] = (fresh[50:100, 4] + 1) % 5
    assert rules["a + b = total"].broken(fresh).sum() == 50
    assert rules["town decides land"].broken(fresh).sum() == 50


def sum_rows(kind):
    """Rows of a + b = c with terms of many sizes, and c often far smaller than both."""
    generator = np.random.default_rng(0)
    a = generator.normal(size=400) * 10.0 ** generator.integers(0, 6, 400)
    b = -a + generator.normal(size=400)
    if kind == "integer":
        a, b = np.round(a * 100), np.round(b * 100)
    return np.stack([a, b, a + b], axis=1), tuple(JudgedColumn(name, kind) for name in "abc")


def broken_sums(train, columns, rows):
    return next(rule for rule in find_rules(train, columns) if rule.words == "a + b = c").broken(rows)


def test_a_sum_is_not_broken_by_rounding_to_float32():
    table, columns = sum_rows("number")
    assert not broken_sums(table, columns, table.astype(np.float32).astype(np.float64)).any()
    assert broken_sums(table, columns, table * [1, 1.001, 1]).mean() > 0.9


def test_a_sum_of_whole_numbers_is_exact():
    table, columns = sum_rows("integer")
    assert broken_sums(table, columns, table + np.array([0, 0, 1])).all()


def test_a_value_may_be_missing_where_training_rows_have_gaps():
    train = rule_rows(200, 0)
    train[3, 0] = np.nan
    rules = {rule.words.split(" lies")[0]: rule for rule in find_rules(train, RULE_COLUMNS) if " lies" in rule.words}
    gap = np.full((1, 6), np.nan)
    assert not rules["a"].broken(gap)[0]
    assert rules["b"].broken(gap)[0]


def test_rules_of_many_columns_are_looked_for_in_the_first_and_that_is_said():
    generator = np.random.default_rng(0)
    table = generator.integers(0, 3, (200, 60)).astype(float)
    columns = tuple(JudgedColumn(f"c{k}", "integer" if k % 2 else "category") for k in range(60))
    table = np.concatenate([table, generator.normal(size=(200, 41))], axis=1)
    columns += tuple(JudgedColumn(f"n{k}", "number") for k in range(41))
    table[:, 40] = table[:, 59] = table[:, 0]
    said = []
    words = [rule.words for rule in find_rules(table, columns, said.append)]
    assert "c0 decides c40" not in words  # the 41st whose values repeat
    assert said == [
        "Sums were looked for in the first 40 of 71 columns of numbers.",
        "Columns that decide others were looked for in the first 40 of 60 columns whose values repeat.",
    ]
    said.clear()
    alone = find_rules(table[:, [0, 40]], (columns[0], columns[40]), said.append)
    assert "c0 decides c40" in [rule.words for rule in alone]
    assert said == []


def test_a_decision_that_the_first_look_refutes_is_not_tried_on_all_rows(monkeypatch):
    tried = []
    found = rule_room._decided
    monkeypatch.setattr(rule_room, "_decided", lambda *given: tried.append(len(given[1])) or found(*given))
    find_rules(rule_rows(2000, 0), RULE_COLUMNS)
    assert tried.count(2000) < tried.count(50) / 2


def test_few_rows_have_ranges_alone():
    assert all(" lies " in r.words or " one of " in r.words for r in find_rules(rule_rows(50, 0), RULE_COLUMNS))


# ---- errors ----


def test_closed_forms_are_the_spread_of_a_difference():
    generator = np.random.default_rng(5)
    draws = generator.exponential(size=(4000, 2, 50))
    spread = np.std(draws[:, 0].mean(axis=1) - draws[:, 1].mean(axis=1))
    assert np.mean([mean_error(values) for values in draws[:, 0]]) == pytest.approx(spread, rel=0.05)
    shares = generator.binomial(200, 0.3, size=(4000, 2)) / 200
    assert share_error(0.3, 200) == pytest.approx(np.std(shares[:, 0] - shares[:, 1]), rel=0.05)
    assert share_error(0.0, 200) > 0


def test_halves_of_two_tables_give_the_error_of_a_difference_of_means():
    generator = np.random.default_rng(6)
    first, second = generator.standard_normal((2, 1001))
    errors = [
        halved_error(lambda a, b: float(a.mean() - b.mean()), first, second, generator=generator) for _ in range(20)
    ]
    assert np.mean(errors) == pytest.approx(np.sqrt(2 / 1001), rel=0.1)


def test_a_random_part_holds_no_row_twice():
    rows_of_part = random_part(11, 0.5, np.random.default_rng(7))
    assert len(rows_of_part) == len(set(rows_of_part)) == 6


def test_all_tables_are_compared_by_equally_many_rows():
    given = tables(held_out=rows(90, 2))
    contests = Contests(given, np.random.default_rng(0))
    sizes = [
        tuple(len(table) for table in contest.level(contest.held_out, np.random.default_rng(0)))
        for contest in (contests.of_samples(), contests.of_real(), contests.of_copies(), contests.of_independent())
    ]
    assert sizes == [(90, 90)] * 4
    drawn = [c.level(given.train, np.random.default_rng(0))[1] for c in (contests.of_samples(), contests.of_held_out())]
    np.testing.assert_array_equal(*drawn)
