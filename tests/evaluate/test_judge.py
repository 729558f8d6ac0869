"""A judgement as a whole: its references, hard tables, and what its figures depend on."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from judged import COLUMNS, rows, tables

from sfg_dist.evaluate import FIGURE_KINDS, judge
from sfg_dist.evaluate.contest import Contests, Estimate, NoFigureError
from sfg_dist.evaluate.judge import Group
from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables
from sfg_dist.job.errors import ConfigError, DataError

judge_room = import_module("sfg_dist.evaluate.judge")  # the room has a function of that name

FAST = [name for name in FIGURE_KINDS if not name.startswith(("c2st", "utility"))]


@pytest.fixture(scope="module")
def judgement():
    return judge(tables(800))


@pytest.mark.slow
def test_copies_are_flagged_by_privacy_and_independent_columns_by_fidelity(judgement):
    figures = judgement.figures
    assert figures["attack_auc"].copy > 0.95
    assert figures["attack_at_1_percent"].copy > 0.9
    assert figures["identical_share"].copy == 1.0
    assert figures["nearest_ratio"].copy < 0.05
    assert figures["authenticity"].copy < 0.05
    assert figures["c2st_trees_train"].copy < 0.4
    assert figures["c2st_trees_held_out"].independent > 0.95
    assert figures["mutual_information_error"].independent > 5 * figures["mutual_information_error"].floor
    assert figures["beta_recall"].independent < 0.3
    assert figures["utility"].independent < 0.65


@pytest.mark.slow
def test_samples_of_the_law_are_as_real_rows_are(judgement):
    for figure in judgement.figures.values():
        assert abs(figure.value - figure.floor) < 4 * figure.error, figure
    assert judgement.notes == ()


@pytest.mark.slow
def test_every_figure_has_all_its_numbers(judgement):
    assert list(judgement.figures) == list(FIGURE_KINDS)
    for figure in judgement.figures.values():
        numbers = (figure.value, figure.error, figure.floor, figure.copy, figure.independent)
        assert all(np.isfinite(number) for number in numbers), figure


def test_columns_and_pairs_are_listed_with_the_worst_first():
    samples = rows(400, 1)
    samples[:, 1] += 3.0
    found = judge(tables(samples=samples), figures=["shape", "trend"])
    assert found.shapes[0].column == "weight"
    assert found.shapes[0].score < 0.4 < found.shapes[0].floor
    assert [shape.score for shape in found.shapes] == sorted(shape.score for shape in found.shapes)
    assert len(found.trends) == 10
    assert [trend.score for trend in found.trends] == sorted(trend.score for trend in found.trends)
    assert np.mean([shape.score for shape in found.shapes]) == pytest.approx(found.figures["shape"].value, abs=1e-12)
    assert np.mean([trend.score for trend in found.trends]) == pytest.approx(found.figures["trend"].value, abs=1e-12)
    assert np.mean([trend.floor for trend in found.trends]) == pytest.approx(found.figures["trend"].floor, abs=1e-12)


def test_columns_pairs_and_rules_are_not_looked_at_where_nobody_asks(monkeypatch):
    for name in ("_column_shapes", "_pair_trends", "_broken_rules"):
        monkeypatch.setattr(judge_room, name, None)
    found = judge(tables(60), figures=["tail_error"])
    assert found.shapes == found.trends == found.rules == ()


@pytest.mark.slow
def test_the_floor_lies_within_two_errors_about_19_times_in_20():
    names = ("shape", "c2st_linear_held_out", "alpha_precision", "beta_recall", "nearest_ratio", "attack_auc")
    apart, errors = np.empty((2, 40, len(names)))
    for draw in range(40):
        samples, held_out, train = (rows(200, 1000 + 3 * draw + table) for table in range(3))
        given = tables(samples=samples, held_out=held_out, train=train)
        contests = Contests(given, np.random.default_rng(draw))
        for place, name in enumerate(names):
            group = next(group for group in judge_room.GROUPS if name in group.names)
            value, floor = (
                group.measure(contest, judge_room.figure_generator(draw, name))[name]
                for contest in (contests.of_samples(), group.floor(contests))
            )
            apart[draw, place], errors[draw, place] = value.value - floor.value, value.error
    assert 0.88 <= np.mean(np.abs(apart) <= 2 * errors) <= 0.99
    spread = np.sqrt(np.mean(apart**2, axis=0) / np.mean(errors**2, axis=0))
    assert ((spread > 0.7) & (spread < 1.4)).all(), dict(zip(names, spread, strict=True))


SHARED = ["shape", "broken_rules", "beta_recall", "identical_share"]


@pytest.mark.parametrize(
    ("changed", "is_anew"),
    [
        ({"samples": rows(120, 5)}, False),
        ({"samples": rows(90, 5)}, True),
        ({"samples": rows(120, 5, gaps=0.1)}, True),
        ({"held_out": rows(120, 6)}, True),
        ({"train": rows(120, 6)}, True),
        ({"target": None}, True),
    ],
    ids=["other samples", "fewer samples", "gaps", "other held-out rows", "other training rows", "no target"],
)
def test_references_are_measured_once_for_samples_of_one_table(monkeypatch, changed, is_anew):
    references, made = judge_room.References(), []
    first = judge(tables(120), figures=SHARED, references=references)
    assert first == judge(tables(120), figures=SHARED)
    of_independent = Contests.of_independent
    monkeypatch.setattr(Contests, "of_independent", lambda contests: made.append(contests) or of_independent(contests))
    again = judge(tables(120, **changed), figures=SHARED, references=references)
    assert bool(made) == is_anew
    assert again == judge(tables(120, **changed), figures=SHARED)


def test_nothing_is_told_apart_by_its_bytes_where_nothing_is_kept(monkeypatch):
    monkeypatch.setattr("sfg_dist.evaluate.contest.fingerprint", lambda _: pytest.fail("not asked for"))
    assert judge(tables(60), figures=["shape"]).figures["shape"].floor is not None


def test_what_is_measured_next_is_told():
    told = []
    judge(tables(60), figures=["nearest_ratio", "shape"], on_step=told.append)
    assert told == ["evaluate: Shape of columns", "evaluate: Authenticity, Nearest-neighbour distance ratio"]


def test_broken_rules_are_listed():
    samples = rows(400, 1)
    samples[:40, 0] = 100.0
    found = judge(tables(samples=samples), figures=["broken_rules"])
    assert found.rules[0].rule.startswith("size lies between")
    assert found.rules[0].share >= 0.1 > found.rules[0].floor
    assert found.figures["broken_rules"].value >= 0.1


def test_a_figure_depends_on_the_seed_and_not_on_what_else_is_asked_for():
    given = tables(120)
    together = judge(given, figures=FAST).figures
    for name in FAST:
        assert judge(given, figures=[name]).figures[name] == together[name]
    other = judge(given, seed=1, figures=FAST).figures
    assert other["attack_auc"] != together["attack_auc"]


@pytest.mark.slow
def test_classifiers_and_utility_depend_on_the_seed_alone():
    given = tables(100)
    names = ["c2st_trees_train", "c2st_linear_held_out", "utility"]
    first, again = (judge(given, figures=names).figures for _ in range(2))
    assert first == again
    assert (
        judge(given, figures=["c2st_linear_held_out"]).figures["c2st_linear_held_out"] == first["c2st_linear_held_out"]
    )


def hard_tables():
    """Gaps, a constant column, one that is missing throughout, and categories that the training rows do not have."""
    columns = (
        *COLUMNS,
        JudgedColumn("same", "number"),
        JudgedColumn("void", "number"),
        JudgedColumn("only", "category"),
    )
    given = []
    for seed in (1, 2, 3):
        table = rows(200, seed, gaps=0.1)
        constant, missing = np.full((200, 1), 7.0), np.full((200, 1), np.nan)
        given.append(np.concatenate([table, constant, missing, np.zeros((200, 1))], axis=1))
    given[0][:5, 3] = 17.0  # a code that has no name
    given[0][:3, 5] = 8.0
    return JudgedTables(columns, *given, target="color")


def test_gaps_constants_and_unseen_categories_are_judged():
    found = judge(hard_tables(), figures=FAST)
    for name in FAST:
        assert found.figures[name].value is not None, name
        assert np.isfinite(found.figures[name].value), name
        assert found.figures[name].error >= 0, name
    assert "void" not in [shape.column for shape in found.shapes]
    broken = {rule.rule for rule in found.rules}
    assert "color is one of its 4 categories" in broken
    assert "same lies between 7 and 7" in broken


@pytest.mark.slow
def test_gaps_constants_and_unseen_categories_are_told_apart_and_predicted():
    names = [name for name in FIGURE_KINDS if name not in FAST]
    found = judge(hard_tables(), figures=names)
    for name in names:
        assert np.isfinite(found.figures[name].value), name


def test_a_table_that_is_missing_throughout_is_judged_without_a_crash():
    found = judge(tables(60, samples=np.full((60, 5), np.nan), target=None), figures=FAST)
    assert found.figures["shape"].value == 0.0
    assert found.figures["tail_error"].value == 1.0
    assert found.figures["broken_rules"].value == 1.0
    assert {shape.score for shape in found.shapes} == {0.0}


def test_nothing_is_compared_where_held_out_rows_are_missing_throughout():
    found = judge(tables(60, held_out=np.full((60, 5), np.nan)), figures=["shape"])
    assert found.figures["shape"].value is None
    assert found.notes == ("Not measured, because every column is missing throughout: Shape of columns.",)


def test_a_column_that_samples_alone_leave_missing_counts_as_the_worst():
    samples = rows(400, 1)
    samples[:, 1] = np.nan
    whole = judge(tables(), figures=["shape", "tail_error"]).figures
    found = judge(tables(samples=samples), figures=["shape", "tail_error"])
    assert found.shapes[0].column == "weight"
    assert found.shapes[0].score == 0.0
    assert found.figures["shape"].value < whole["shape"].value - 0.15
    assert found.figures["tail_error"].value > 1 / 3


@pytest.mark.slow
@pytest.mark.parametrize(("target", "chance"), [("sold", 0.5), ("weight", 0.0)])
def test_samples_without_a_target_predict_by_chance(target, chance):
    samples = rows(200, 1)
    samples[:, [column.name for column in COLUMNS].index(target)] = np.nan
    found = judge(tables(200, samples=samples, target=target), figures=["utility"]).figures["utility"]
    assert found.value == chance
    assert found.floor > 0.6


@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_too_few_rows_give_no_figures_and_a_note(num_rows):
    found = judge(tables(200, samples=rows(num_rows, 1)))
    assert list(found.figures) == list(FIGURE_KINDS)
    assert all(figure.value is None for figure in found.figures.values())
    assert f"there are {num_rows} rows to compare, and at least 10 are needed" in found.notes[0]


@pytest.mark.slow
def test_ten_rows_are_judged():
    found = judge(tables(10, samples=rows(10, 1)))
    assert found.figures["shape"].value is not None


@pytest.mark.parametrize(("num_rows", "has_value"), [(24, False), (25, True)])
def test_trees_are_not_asked_of_rows_that_they_would_not_split(num_rows, has_value):
    found = judge(tables(400, samples=rows(num_rows, 1) + 100), figures=["c2st_trees_held_out"])
    assert (found.figures["c2st_trees_held_out"].value is not None) == has_value
    said = [note for note in found.notes if f"there are {num_rows} rows to compare, and trees need at least 25" in note]
    assert bool(said) != has_value


def test_one_column_leaves_out_what_needs_more():
    given = [rows(100, seed)[:, :1] for seed in (1, 2, 3)]
    found = judge(JudgedTables(COLUMNS[:1], *given, target="size"), figures=[*FAST, "utility"])
    for name in ("trend", "mutual_information_error", "three_way_accuracy", "utility"):
        assert found.figures[name].value is None
        assert any(FIGURE_KINDS[name].title in note for note in found.notes)
    assert found.figures["shape"].value is not None


def test_without_training_rows_half_of_the_held_out_rows_are_the_floor():
    found = judge(replace(tables(400), train=None), figures=FAST)
    assert found.figures["shape"].floor is not None
    assert found.figures["shape"].independent is not None
    assert found.figures["shape"].copy is None
    for name in ("attack_auc", "nearer_to_train", "identical_share", "authenticity", "broken_rules"):
        assert found.figures[name].value is None
    assert any("the training rows were not given" in note for note in found.notes)
    assert found.rules == ()


def test_a_figure_of_a_group_that_has_no_value_says_why(monkeypatch):
    def measured(contest, generator):
        return {"authenticity": Estimate(0.5, 0.1), "nearest_ratio": NoFigureError("every row is equal")}

    names = ("authenticity", "nearest_ratio")
    groups = [group for group in judge_room.GROUPS if group.names != names]
    monkeypatch.setattr(judge_room, "GROUPS", (*groups, Group(names, measured, Contests.of_held_out)))
    found = judge(tables(60), figures=names)
    assert found.notes == ("Not measured, because every row is equal: Nearest-neighbour distance ratio.",)
    assert found.figures["authenticity"].floor == 0.5
    assert found.figures["nearest_ratio"].value is None


def test_without_a_target_there_is_no_utility():
    found = judge(tables(60, target=None), figures=["utility", "utility_calibration"])
    assert [figure.value for figure in found.figures.values()] == [None, None]
    assert found.notes == (
        "Not measured, because no target column is named: Utility for the target, Brier score of the target.",
    )


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ConfigError, match="unknown figure 'color'"):
        judge(tables(), figures=["color"])
    with pytest.raises(DataError, match="target 'price': no such column"):
        judge(tables(target="price"))
    with pytest.raises(DataError, match="samples: expected a table of 5 columns"):
        judge(tables(samples=rows(50, 1)[:, :4]))
    infinite = rows(50, 1)
    infinite[3, 1] = np.inf
    with pytest.raises(DataError, match="samples: row 3, column 1 is infinite"):
        judge(tables(samples=infinite))
