"""The verdict: real rows pass in everything, a copy fails in privacy, independent columns fail in fidelity."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sfg_dist.evaluate.calibration import CALIBRATION_KINDS, Calibration, ColumnCalibration
from sfg_dist.evaluate.document import JUDGEMENT_FIELDS, calibration_document, figures_of, judgement_document
from sfg_dist.evaluate.figure_kinds import FIGURE_KINDS
from sfg_dist.evaluate.judge import judge
from sfg_dist.evaluate.judged_figures import worst_rows
from sfg_dist.evaluate.judgement import Figure, JudgedColumn, JudgedTables
from sfg_dist.evaluate.verdict import summary, verdicts
from sfg_dist.job.reader import read_json

COLUMNS = (
    JudgedColumn("load", "number"),
    JudgedColumn("flow", "number"),
    JudgedColumn("heat", "number"),
    JudgedColumn("town", "category", ("a", "b", "c")),
)


def rows(num_rows, seed):
    """Columns that depend on each other."""
    rng = np.random.default_rng(seed)
    load = rng.normal(size=num_rows)
    flow = load**2 + 0.3 * rng.normal(size=num_rows)
    heat = np.sin(2 * load) + flow + 0.2 * rng.normal(size=num_rows)
    town = np.digitize(load + 0.3 * rng.normal(size=num_rows), [-0.5, 0.5]).astype(float)
    return np.stack([load, flow, heat, town], axis=1)


@pytest.fixture(scope="module")
def tables():
    return JudgedTables(COLUMNS, samples=rows(500, 2), held_out=rows(500, 1), train=rows(500, 0), target="town")


def independent(table):
    rng = np.random.default_rng(3)
    return np.stack([rng.permutation(column) for column in table.T], axis=1)


DECIDING = (
    "c2st_trees_held_out", "beta_recall", "broken_rules", "utility", "attack_auc", "attack_at_1_percent",
    "nearer_to_train", "identical_share", "nearest_ratio",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "grades"),
    [
        (lambda t: t.samples, {"Fidelity": "good", "Diversity": "good", "Privacy": "good", "Utility": "good"}),
        (lambda t: t.train, {"Fidelity": "good", "Privacy": "bad", "Utility": "good"}),
        (lambda t: independent(t.train), {"Fidelity": "bad", "Diversity": "bad", "Privacy": "good", "Utility": "bad"}),
    ],
    ids=["real", "copy", "independent"],
)
def test_the_three_tables_that_it_must_tell_apart(tables, made, grades):
    found = verdicts(judge(replace(tables, samples=made(tables)), figures=DECIDING).figures, "town")
    assert {each.aspect: each.grade for each in found} | grades == {each.aspect: each.grade for each in found}
    assert all(each.sentences for each in found)


PRIVACY = ("attack_auc", "attack_at_1_percent", "nearer_to_train", "identical_share", "nearest_ratio")


def test_few_noisy_copies_of_many_training_rows_are_found():
    train = rows(4000, 0)
    samples = train[:120] + 1e-4 * np.random.default_rng(4).normal(size=(120, 4)) * [1, 1, 1, 0]
    given = JudgedTables(COLUMNS, samples, held_out=rows(400, 1), train=train)
    copies = verdicts(judge(given, figures=PRIVACY).figures, None)[2]
    assert copies.grade == "bad"
    assert any("times as far from a sample" in sentence for sentence in copies.sentences)
    real = judge(replace(given, samples=rows(120, 2)), figures=PRIVACY).figures
    assert verdicts({"nearest_ratio": real["nearest_ratio"]}, None)[2].grade == "good"
    unsure = verdicts(real, None)[2]
    assert unsure.grade == "unknown"
    assert unsure.headline.endswith("About 1.3 times as many samples and held-out rows would be enough to tell.")
    more = judge(replace(given, samples=rows(160, 2), held_out=rows(520, 1)), figures=PRIVACY).figures
    assert verdicts(more, None)[2].grade == "good"


def figure(name, value, error=0.01, floor=0.5, copy=None, independent=None):
    return Figure(name, value, error, floor, copy, independent)


@pytest.mark.parametrize(
    ("value", "error", "independent_has", "grade"),
    [
        (0.5, 0.01, 0.99, "good"),
        (0.525, 0.01, 0.99, "good"),  # within the noise
        (0.55, 0.005, 0.99, "close"),
        (0.65, 0.01, 0.99, "poor"),
        (0.9, 0.01, 0.99, "bad"),
        (0.69, 0.01, 0.7, "bad"),  # as bad as independent columns, which are hard to tell here
        (0.51, 0.001, 0.52, "close"),  # independent columns are nearly right here
        (0.6, 0.15, 0.99, "unknown"),
        (0.5, 0.0, 0.99, "unknown"),  # trees that did not split
        (0.99, 0.05, None, "bad"),
    ],
)
def test_grades_of_fidelity(value, error, independent_has, grade):
    trees = figure("c2st_trees_held_out", value, error, independent=independent_has)
    (found, *_) = verdicts({trees.name: trees}, None)
    assert (found.aspect, found.grade) == ("Fidelity", grade)
    assert f"{value:.3f} \N{PLUS-MINUS SIGN} {error:.3f}" in found.sentences[0]


def test_the_worst_figure_decides_privacy_and_is_named():
    figures = {
        "attack_auc": figure("attack_auc", 0.505, copy=1.0),
        "identical_share": figure("identical_share", 0.3, floor=0.0, copy=1.0),
    }
    privacy = verdicts(figures, None)[2]
    assert privacy.grade == "bad"
    assert "A share of 0.300" in privacy.sentences[0]
    assert (
        "equal to a training row; real rows have 0.000, and a copy of the training rows has 1.000."
        in (privacy.sentences[0])
    )


@pytest.mark.parametrize(
    ("name", "value", "floor", "grade"),
    [
        ("identical_share", 0.005, 0.0, "close"),
        ("identical_share", 0.03, 0.0, "poor"),
        ("identical_share", 0.2, 0.0, "bad"),
        ("attack_auc", 0.502, 0.5, "good"),
        ("attack_auc", 0.515, 0.5, "close"),
    ],
)
def test_a_little_beyond_the_noise_is_not_as_real_rows_in_privacy(name, value, floor, grade):
    assert verdicts({name: figure(name, value, 0.001, floor, copy=1.0)}, None)[2].grade == grade


@pytest.mark.parametrize(
    ("error", "copy", "grade", "times"),
    [
        (0.028, 0.53, "good", ""),  # copies are hardly told, and the attack sees them
        (0.028, 0.6, "good", ""),
        (0.028, 0.9, "good", ""),
        (0.1, 0.6, "unknown", "About 2.3 times as many"),
        (2.0, 0.6, "unknown", "About 900 times as many"),
    ],
)
def test_few_rows_nearer_to_training_rows_say_how_many_would_do(error, copy, grade, times):
    figures = {
        "attack_auc": figure("attack_auc", 0.5, 0.02, copy=1.0),
        "nearer_to_train": figure("nearer_to_train", 0.51, error, copy=copy),
    }
    found = verdicts(figures, None)[2]
    assert found.grade == grade
    assert times in found.headline


def test_what_was_not_measured_is_said():
    found = verdicts({}, None, has_train=False)
    assert [each.grade for each in found] == ["unknown"] * 4
    assert "takes the training rows, which were not given" in found[2].headline
    assert "No target column was named" in found[3].headline
    assert summary(found[:1]) == "Fidelity: not known."


def test_rows_that_break_rules_are_bad_in_fidelity():
    figures = {
        "c2st_trees_held_out": figure("c2st_trees_held_out", 0.5, independent=0.9),
        "broken_rules": figure("broken_rules", 0.5, floor=0.0),
    }
    assert verdicts(figures, None)[0].headline == "Samples break rules that the data keep."


def test_a_target_that_nothing_predicts_says_nothing():
    useless = figure("utility", 0.49, 0.02, floor=0.51, independent=0.5)
    assert verdicts({"utility": useless}, "y")[3].grade == "unknown"


@pytest.mark.parametrize(
    ("spread", "coverage", "grade", "words"),
    [(1.01, 0.9, "good", "is calibrated"), (1.6, 0.7, "bad", "too narrow"), (0.7, 0.97, "poor", "too wide")],
)
def test_calibration_says_too_narrow_or_too_wide(spread, coverage, grade, words):
    figures = {
        "rank_spread": figure("rank_spread", spread, 0.02, 1.0),
        "coverage_90": figure("coverage_90", coverage, 0.01, 0.9),
        "crps": figure("crps", 0.3, 0.01, 0.29, independent=0.6),
    }
    found = verdicts(figures, None)[-1]
    assert (found.aspect, found.grade) == ("Calibration", grade)
    assert words in found.headline


@pytest.mark.slow
def test_a_judgement_is_the_same_after_json(tables):
    judgement = judge(tables, figures=("shape", "beta_recall"))
    document = json.dumps(judgement_document(judgement))
    assert figures_of(read_json(document, "metrics.json", JUDGEMENT_FIELDS)) == judgement.figures


def test_no_document_holds_nan():
    columns = (JudgedColumn("x", "number"), JudgedColumn("y", "number"), JudgedColumn("z", "number"))
    train = rows(60, 0)[:, :3]
    train[:, 1] = np.nan
    judgement = judge(JudgedTables(columns, rows(60, 1)[:, :3], rows(60, 2)[:, :3], train), figures=["shape", "trend"])
    assert any(np.isnan(trend.floor) for trend in judgement.trends)  # y is missing
    found = judgement_document(judgement)
    odd = ColumnCalibration("x", None, float("nan"), 0.5, float("inf"))
    found["calibration"] = calibration_document(Calibration({}, (odd,), 20, 8))
    document = json.dumps(found, allow_nan=False)
    read = read_json(document, "metrics.json", JUDGEMENT_FIELDS)
    assert None in [pair["floor"] for pair in read["pairs"]]
    assert worst_rows(read["pairs"], "columns", "score", "floor")


def test_a_figure_stands_where_the_guide_has_it(pytestconfig):
    """A copy detector is no figure of diversity, and neither is a figure that asks whether samples are typical."""
    guide = (pytestconfig.rootpath / "docs" / "report.md").read_text()
    sections = {part.split("\n")[0].lower(): part for part in guide.split("\n## ")}
    for name, kind in FIGURE_KINDS.items():
        assert f"| `{name}` |" in sections[kind.aspect], name
    aspects = [kind.aspect for kind in FIGURE_KINDS.values()]
    assert aspects == sorted(aspects, key=["fidelity", "diversity", "utility", "privacy"].index)
    assert FIGURE_KINDS["authenticity"].aspect == "privacy"
    assert FIGURE_KINDS["alpha_precision"].aspect == "fidelity"


def test_every_figure_has_a_sentence_in_the_guide(pytestconfig):
    guide = (pytestconfig.rootpath / "docs" / "report.md").read_text()
    for name, kind in {**FIGURE_KINDS, **CALIBRATION_KINDS}.items():
        assert f"`{name}`" in guide, name
        assert kind.meaning.endswith("."), name


def test_figures_without_values_are_not_known():
    nothing = {name: Figure(name, None, None, None, None, None) for name in [*FIGURE_KINDS, *CALIBRATION_KINDS]}
    assert {each.grade for each in verdicts(nothing, "y")} == {"unknown"}
    lone = {name: Figure(name, 0.7, None, None, None, None) for name in nothing}
    assert all(sentence.endswith(".") for each in verdicts(lone, "y") for sentence in each.sentences)
