"""A known normal law given a condition: the right width is told from wrong ones, and a useless law from a good one."""

import numpy as np
import pytest

from sfg_dist.evaluate.calibration import CALIBRATION_KINDS, Draws, calibration
from sfg_dist.evaluate.contest import NoFigureError
from sfg_dist.evaluate.judgement import JudgedColumn
from sfg_dist.evaluate.neighbours import nearest_rows
from sfg_dist.evaluate.verdict import verdicts

NUMBER = (JudgedColumn("u", "number"),)


def normal_draws(width=1.0, shift=0.0, *, num_rows=400, num_draws=32, seed=0):
    """u given c is N(3 c, 1); the draws have another width or mean."""
    rng = np.random.default_rng(seed)
    condition = rng.normal(size=(num_rows, 1))
    held_out = 3 * condition + rng.normal(size=(num_rows, 1))
    drawn = 3 * condition[:, None] + shift + width * rng.normal(size=(num_rows, num_draws, 1))
    train = 3 * rng.normal(size=(2000, 1)) + rng.normal(size=(2000, 1))
    return Draws(NUMBER, held_out, drawn, train, effective_rows=np.full(num_rows, 80.0))


def within(figure, wanted, errors=3.5):
    return abs(figure.value - wanted) <= errors * figure.error


def test_the_right_width_passes_in_every_figure():
    figures = calibration(normal_draws(), seed=0).figures
    assert list(figures) == list(CALIBRATION_KINDS)
    assert within(figures["rank_spread"], 1)
    assert within(figures["coverage_50"], 0.5)
    assert within(figures["coverage_90"], 0.9)
    assert within(figures["crps"], figures["crps"].floor)
    assert figures["rank_distance"].value < figures["rank_distance"].floor + 3.5 * figures["rank_distance"].error
    assert figures["effective_rows"].value == 80


@pytest.mark.parametrize(("width", "is_narrow"), [(0.6, True), (1.6, False)])
def test_wrong_widths_are_told_apart(width, is_narrow):
    figures = calibration(normal_draws(width), seed=0).figures
    assert not within(figures["rank_spread"], 1, 5)
    assert (figures["rank_spread"].value > 1) == is_narrow
    assert (figures["coverage_90"].value < 0.9) == is_narrow
    assert figures["crps"].value > calibration(normal_draws(), seed=0).figures["crps"].value


def test_a_wrong_mean_is_found_by_the_ranks():
    figures = calibration(normal_draws(shift=0.8), seed=0).figures
    assert figures["rank_distance"].value > figures["rank_distance"].floor + 10 * figures["rank_distance"].error


def test_the_score_is_the_closed_form_and_sees_a_law_without_its_condition():
    draws = normal_draws(num_rows=4000)
    found = calibration(draws, seed=0).figures["crps"]
    deviation = draws.train.std()
    assert abs(found.value - 1 / np.sqrt(np.pi) / deviation) <= 4 * found.error  # E CRPS of N(m, 1) in its own units
    assert abs(found.independent - np.sqrt(10 / np.pi) / deviation) <= 0.03
    assert found.independent > 2.5 * found.value


def verdict_of(slope, known, *, num_rows=600):
    """u given c is N(slope c, 1); the draws are of the slope ``known`` and as wide as what is left."""
    rng = np.random.default_rng(1)
    condition, conditions = rng.normal(size=(num_rows, 1)), rng.normal(size=(2000, 1))
    held_out = slope * condition + rng.normal(size=(num_rows, 1))
    train = slope * conditions + rng.normal(size=(2000, 1))
    width = np.sqrt(1 + (slope - known) ** 2)
    drawn = known * condition[:, None] + width * rng.normal(size=(num_rows, 32, 1))
    nearest = nearest_rows(condition, conditions, 16)[1]
    found = calibration(Draws(NUMBER, held_out, drawn, train, np.full(num_rows, 80.0), nearest), seed=0)
    return verdicts(found.figures, None)[-1]


def test_a_law_that_ignores_its_condition_falls_short():
    found = verdict_of(slope=3, known=0)
    assert found.grade == "poor"
    assert found.headline == "The law given a condition is no better than the law without it."
    assert found.sentences[-1] == "That is no better than without the condition."
    assert verdict_of(slope=3, known=3).grade == "good"


def test_a_condition_that_tells_nothing_is_named_instead():
    found = verdict_of(slope=0, known=0)
    assert found.grade == "good"
    assert found.sentences[-1].startswith("The condition tells nothing: ")


def test_the_errors_cover_the_truth():
    """Of 60 repetitions about three leave two standard errors."""
    outside = 0
    for seed in range(60):
        figures = calibration(normal_draws(num_rows=150, num_draws=16, seed=seed), seed=seed).figures
        outside += not within(figures["coverage_90"], 0.9, 2)
        outside += not within(figures["rank_spread"], 1, 2)
    assert 1 <= outside <= 16


def test_categories_and_missing_values_are_scored():
    rng = np.random.default_rng(0)
    columns = (JudgedColumn("u", "number"), JudgedColumn("town", "category", ("a", "b", "c")))
    held_out = np.stack([rng.normal(size=300), rng.integers(0, 3, 300).astype(float)], axis=1)
    drawn = np.stack([rng.normal(size=(300, 20)), rng.integers(0, 3, (300, 20)).astype(float)], axis=2)
    for table in (held_out, drawn):
        table[rng.random(table.shape) < 0.1] = np.nan
    found = calibration(Draws(columns, held_out, drawn, held_out, np.full(300, 9.0)), seed=0)
    assert within(found.figures["crps"], found.figures["crps"].floor)
    by_name = {column.column: column for column in found.columns}
    assert by_name["town"].rank_distance is None
    assert by_name["u"].rank_distance < 0.12
    drawn[:, :, 1] = 0.0
    worse = calibration(Draws(columns, held_out, drawn, held_out, np.full(300, 9.0)), seed=0)
    assert worse.columns[0].column == "town"
    assert worse.figures["coverage_90"].value < found.figures["coverage_90"].value


def test_too_few_rows_and_no_columns_have_no_calibration():
    with pytest.raises(NoFigureError, match="19 held-out rows with 32 draws"):
        calibration(normal_draws(num_rows=19), seed=0)
    nothing = Draws((), np.empty((40, 0)), np.empty((40, 32, 0)), np.empty((99, 0)), np.full(40, 9.0))
    with pytest.raises(NoFigureError, match="no column varies but those of the condition"):
        calibration(nothing, seed=0)
