"""The page of a comparison, from a document made by hand."""

import html

import pytest

from sfg_dist.evaluate.judgement import Figure
from sfg_dist.studies.compare import pictures
from sfg_dist.studies.compare.document import ATTACK, FIDELITY, NAMES, Budget, Comparison, Method, verdict
from sfg_dist.studies.compare.judging import Point
from sfg_dist.studies.compare.page import (
    figure_table,
    main_table,
    render_page,
    shown_figures,
    size_table,
    with_error,
)


def entry(name, area=0.6, cost=10.0, **changed):
    is_own = name in ("sfg", "published")
    keys = {
        "c2st_auc": [area],
        "c2st_auc_error": [0.007],
        "test_log_likelihood": None if is_own else [-15.5],
        "test_log_likelihood_error": None if is_own else [0.125],
        "metrics": {"marginal_kl_mean": [0.0123], "kl": [None]},
        "figures": {
            FIDELITY: [Figure(FIDELITY, area, 0.006, 0.501, 0.493, 0.981)],
            ATTACK: [Figure(ATTACK, 0.5 + (area - 0.5) / 9, 0.01, 0.499, 0.972, 0.501)],
            "utility": [Figure("utility", None, None, None, None, None)],
        },
        "us_per_sample": cost,
        "us_per_sample_back": 2.0,
        "fit_s": 160.0,
        "label_s": 20.0 if is_own else 0.0,
        "num_evaluations": 1,
        "num_parameters": 400_000,
        "num_steps": 12_345,
        "num_likelihood_rows": 3673,
        "num_not_finite": 0,
        "num_likelihood_not_finite": 0,
        "load_average": 1.5,
        "configuration": {"transform": "quantile", "learning_rate": 0.001},
        "curve": [Point(90.0, area + 0.05), Point(180.0, area)],
        **({"num_pairs": 50_000, "num_pairs_wanted": 50_000} if is_own else {}),
    }
    return Method(**keys | changed)


def document(**changed):
    methods = {
        name: entry(name, 0.58 + 0.01 * place, 4.0**place, **changed.get(name, {})) for place, name in enumerate(NAMES)
    }
    return Comparison(
        methods=methods,
        floor={"c2st_auc": 0.501, "c2st_auc_error": 0.007, "marginal_kl_mean": 0.004, "kl": None},
        verdict=verdict(methods),
        budget=Budget(max_time_s=180.0, num_seeds=1, selection_time_s=15.0, max_label_share=0.5),
        selection={},
        sizes={"256x3": methods["sfg"], "64x2": entry("sfg", 0.7, 0.5)},
        facts={"source": "<table>.npz", "threads": "2"},
    )


def page(**changed):
    return render_page(document(**changed), title="Comparison: <table>", job_toml='[data]\nsource = "<table>"')


@pytest.mark.slow
def test_the_page_has_each_method_once_in_its_table():
    text = page()
    assert "<table>.npz" not in text  # what the user wrote is escaped
    assert "&lt;table&gt;" in text
    for name in NAMES.values():
        assert name in html.unescape(text)
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text
    rows = main_table(document())
    assert [row.name for row in rows] == ["real rows (floor)", *NAMES.values()]
    own = rows[1]
    assert (own.auc, own.time, own.cost, own.likelihood) == (
        "0.580 ± 0.007", "20 s + 2 min 40 s", "1.0", "\N{EN DASH}",
    )  # fmt: skip
    assert rows[3].likelihood == "\N{MINUS SIGN}15.50 ± 0.12"
    assert [row[0] for row in size_table(document().sizes)] == ["64x2", "256x3"]


@pytest.mark.parametrize("draw", [pictures.privacy, lambda methods: pictures.costs(methods, {})])
def test_names_cover_neither_names_nor_points(draw):
    """Twelve methods, eight of them within an AUC of 0.01 and costs of a factor of two."""
    crowd = {
        name: entry(name, 0.53 + 0.0012 * (7 * place % 11) + (0.3 if place > 7 else 0), 10 + place)
        for place, name in enumerate(NAMES)
    }
    figure = draw(crowd)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [text for text in axes.texts if text.get_text()]
    assert len(names) == len(NAMES) + 1  # and the floor
    boxes = [text.get_window_extent() for text in names]
    for place, box in enumerate(boxes):
        assert axes.bbox.contains(box.x0, box.y0), names[place]
        assert axes.bbox.contains(box.x1, box.y1), names[place]
        assert not any(box.overlaps(other) for other in boxes[place + 1 :]), names[place]
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    assert len(points) == len(NAMES)
    for x, y in axes.transData.transform(points):
        assert not any(box.contains(x, y) for box in boxes)


def test_the_figures_stand_below_their_floor_and_two_reference_models():
    rows = figure_table(document().methods, [FIDELITY, ATTACK])
    assert rows[:4] == [
        ["real rows (floor)", "0.501", "0.499"],
        ["copy of training rows", "0.493", "0.972"],
        ["independent columns", "0.981", "0.501"],
        ["sfg (ours)", "0.580\n± 0.006", "0.509\n± 0.010"],
    ]
    assert [row[0] for row in rows[3:]] == list(NAMES.values())
    assert shown_figures(document().methods) == [FIDELITY, ATTACK]


@pytest.mark.slow
def test_notes_say_what_was_cut_or_disturbed():
    assert 'class="notes"' not in page()
    text = html.unescape(
        page(
            published={"num_pairs": 35_000, "num_pairs_wanted": 200_000, "fit_s": 170.0},
            nsf={"num_not_finite": 3, "load_average": 9.0},
            sfg={"num_likelihood_not_finite": 2},
            tvae={"fit_s": 190.0},
        )
    )
    assert "as published: 35,000 of 200,000 pairs; more labels would take more than 50 % of the budget." in text
    assert "as published: 190 s instead of 180 s, since its last steps were long" in text
    assert "TVAE: 190 s instead of 180 s, since its timed runs were quicker" in text
    assert "NSF: 3 samples held NaN or infinity" in text
    assert "the log density of 2 test rows is not finite" in text
    assert "Other processes were at work on the machine during NSF:" in text


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [(None, None, "\N{EN DASH}"), (0.5, None, "0.500"), (-1.0, 0.1, "\N{MINUS SIGN}1.000 ± 0.100")],
)
def test_a_number_is_shown_with_its_error(value, error, shown):
    assert with_error(value, error) == shown
