"""The page renders for every kind of table, asks for nothing, and shows what it was given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sfg_dist.evaluate import METRIC_NAMES, ReportContent, render_report
from sfg_dist.evaluate.clouds import is_color_table, pair_columns, patch_shape
from sfg_dist.evaluate.judgement import JudgedColumn, JudgedTables
from sfg_dist.evaluate.pictures import bin_edges
from sfg_dist.evaluate.plain_figures import shown_number, verdict
from sfg_dist.evaluate.report_pictures import Flow
from sfg_dist.evaluate.shown_columns import robust_limits
from sfg_dist.job.errors import DataError


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def metrics(auc=0.6, **changed):
    figures = dict.fromkeys(METRIC_NAMES, 0.25)
    return {
        "floor": figures | {"c2st_auc": 0.51, "nearest_train_distance": 1.0},
        "labels": figures | {"c2st_auc": 0.53},
        "samples": figures | {"c2st_auc": auc, "nearest_train_distance": 0.9} | changed,
        "time_s": {"data": 0.02, "label": 12.0, "fit": 75.0, "total": 88.0},
    }


def history(num_epochs=12):
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 1 / epoch,
            "validation_loss": 0.2 + 1 / epoch,
            "learning_rate": 1e-3,
            "elapsed_s": 0.5 * epoch,
        }
        for epoch in range(1, num_epochs + 1)
    ]


def content(columns, *, num_rows=300, offset=0.0, scale=1.0, **changed):
    rng = np.random.default_rng(0)
    tables = {
        name: offset + scale * rng.standard_normal((num_rows, len(columns)))
        for name in ("held_out", "samples", "labels")
    }
    names = tuple(JudgedColumn(name, "number") for name in columns)
    given = JudgedTables(names, tables["samples"], tables["held_out"], train=None)
    fields = {"title": "A run", "metrics": metrics(), "history": history(), "labels": tables["labels"], "tables": given}
    return ReportContent(**(fields | changed))


def plane(**changed):
    rng = np.random.default_rng(1)
    log_beta_sq = np.linspace(0, -9, 9)
    return content(
        ["x", "y"],
        flow=Flow(rng.standard_normal((9, 40, 2)), log_beta_sq),
        log_density=lambda rows: -0.5 * (rows**2).sum(axis=1) - np.log(2 * np.pi),
        **changed,
    )


def check_page(html, num_images):
    """No script, no address, every image a PNG inside the page that says what it shows."""
    page = Page(html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "<script" not in html
    for attributes in page.images():
        assert attributes["alt"]
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert min(image.size) > 100
    assert len(page.images()) == num_images
    without_images = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", html)
    assert "http" not in without_images
    assert not re.search(r'(src|href|url\()\s*=?\s*"?(?!data:)[\w/.]', without_images)
    return page


@pytest.mark.slow
def test_one_column():
    check_page(render_report(content(["x"])), num_images=3)


@pytest.mark.slow
def test_a_plane_shows_densities_and_the_flow():
    page = check_page(render_report(plane()), num_images=6)
    alts = " ".join(attributes["alt"] for attributes in page.images())
    assert "truth" in alts
    assert "latents to labels" in alts


@pytest.mark.slow
def test_a_plane_without_labels_density_or_flow():
    check_page(render_report(content(["x", "y"], labels=None)), num_images=5)


@pytest.mark.slow
def test_colours():
    names = ["Red", "green", "BLUE"]
    named = content(names, offset=128.0, scale=25.0)
    assert is_color_table(names, named.tables.held_out)
    page = check_page(render_report(named), num_images=5)
    assert "own colour" in page.text
    assert not is_color_table(["x", "y", "z"], named.tables.held_out)
    assert not is_color_table(names, named.tables.held_out - 1000)


@pytest.mark.slow
def test_eleven_columns_pair_the_most_correlated():
    given = content([f"c{i}" for i in range(11)])
    for index in (1, 4, 6, 8, 10):
        given.tables.held_out[:, index] += 3 * given.tables.held_out[:, 1]
    assert pair_columns(given.tables.columns, given.tables.held_out) == [1, 4, 6, 8, 10]
    page = check_page(render_report(given), num_images=4)
    assert "Shown are the 5 of 11 that go together most" in page.text


@pytest.mark.slow
def test_patches_and_what_is_left_out():
    columns = [f"p{i}_{j}" for i in range(8) for j in range(8)]
    page = check_page(render_report(content(columns, num_rows=120)), num_images=5)
    assert "8 by 8 pixels" in page.text
    assert "Only the first 24 of 64 columns are shown" in page.text


def test_patch_columns():
    assert patch_shape([f"p{i}_{j}" for i in range(3) for j in range(4)]) == (3, 4)
    assert patch_shape([f"pixel_{i}_{j}" for i in range(5) for j in range(5)]) == (5, 5)
    assert patch_shape([f"x{i}" for i in range(64)]) == (8, 8)
    assert patch_shape(["p0_0", "p0_1", "p1_1", "p1_0"]) is None
    assert patch_shape(["a", "b"]) is None


@pytest.mark.slow
def test_what_the_user_wrote_is_escaped_and_never_read_as_mathematics():
    bad = "<script>alert(1)</script> & $\\frac{"
    given = content(
        [bad, "日本"],
        title=bad,
        job_toml=f'[data]\nsource = "{bad}"',
        facts={bad: bad},
        notes=[bad],
    )
    page = check_page(render_report(given), num_images=5)
    assert page.text.count(bad) == 6  # the head's title, the heading, a note, a fact's name and value, the job


def test_the_whole_job_is_in_a_closed_details_element():
    page = Page(render_report(content(["x"], job_toml="[labels]\nnum_pairs = 5")))
    assert ("details", {}) in page.tags
    assert "[labels]\nnum_pairs = 5" in page.text


def test_figures_without_a_value_are_a_dash():
    given = metrics(correlation_error=None, kl=float("nan"), sliced_wasserstein=float("inf"))
    html = render_report(content(["x"], metrics=given))
    assert html.count('<td class="number own">–</td>') == 3  # noqa: RUF001
    assert "nan" not in Page(html).text.lower()
    assert ">inf<" not in html


def test_an_almost_empty_run_still_has_a_page():
    page = check_page(render_report(content(["x"], metrics={}, history=[], labels=None)), num_images=1)
    assert "Samples were not judged by the classifier." in page.text


def test_a_loss_that_is_missing_or_not_positive_is_left_out():
    records = [{"epoch": 1, "train_loss": 0.5, "validation_loss": None}, {"epoch": 2, "train_loss": 0.0}]
    check_page(render_report(content(["x"], history=records)), num_images=3)


@pytest.mark.slow
def test_outliers_constants_and_few_values_do_not_break_the_pictures():
    given = content(["a", "b", "c"], num_rows=200)
    given.tables.samples[0] = 1e30
    given.tables.held_out[3, 0] = -1e12
    given.tables.held_out[:, 1] = 2.0
    given.tables.held_out[:, 2] = np.round(given.tables.held_out[:, 2])
    check_page(render_report(given), num_images=4)


@pytest.mark.slow
def test_the_page_is_the_same_twice():
    assert render_report(plane()) == render_report(plane())


@pytest.mark.slow
def test_long_tables_are_cut():
    check_page(render_report(content(["x", "y"], num_rows=60_000)), num_images=5)


def test_rows_that_cannot_be_drawn_are_refused():
    given = content(["x", "y"])
    given.tables.samples[4, 1] = np.inf
    with pytest.raises(DataError, match=r"samples: 1 of 300 rows.*row 4, column 1"):
        render_report(given)
    with pytest.raises(DataError, match="expected 3 columns"):
        render_report(content(["x", "y", "z"], labels=np.zeros((5, 2))))
    with pytest.raises(DataError, match=r"num_times, num_rows, 2"):
        render_report(content(["x", "y"], flow=Flow(np.zeros((4, 3, 2)), [0.0])))


@pytest.mark.parametrize(
    ("auc", "headline"),
    [(0.47, "pass for"), (0.52, "pass for"), (0.55, "are close"), (0.65, "resemble"), (0.9, "easily told")],
)
def test_verdict_in_words(auc, headline):
    sentences = verdict(metrics(auc))
    assert headline in sentences[0]
    assert f"{auc:.3f}" in sentences[1]
    assert "0.510" in sentences[1]


def test_verdict_says_where_the_gap_comes_from_and_whether_rows_are_repeated():
    assert "arises in the fit" in " ".join(verdict(metrics(0.7)))
    given = metrics(0.7, nearest_train_distance=0.1)
    given["labels"]["c2st_auc"] = 0.69
    assert "before the fit" in " ".join(verdict(given))
    assert "repeat the training rows" in " ".join(verdict(given))


def test_numbers_as_shown():
    shown = [shown_number(value) for value in (None, 0.0, 0.51234, -0.0279, 12.34, 1697.04, 2.5e-5, 3e9)]
    minus = "\N{MINUS SIGN}"
    assert shown == [
        "\N{EN DASH}",
        "0",
        "0.512",
        f"{minus}0.028",
        "12.3",
        "1,697",
        f"2.50e{minus}05",
        "3.00e+09",
    ]


def test_axis_limits_ignore_one_outlier():
    values = np.append(np.linspace(-1, 1, 999), 1e9)
    low, high = robust_limits(values)
    assert -1.3 < low < -1
    assert 1 - 0.02 < high < 1.3
    assert robust_limits(np.full(9, 2.0)) == (1.0, 3.0)
    assert bin_edges(np.array([0.0, 0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 2.0, 4.0]


@pytest.mark.slow
def test_the_labelling_run_has_a_section_where_there_is_something_to_say():
    assert "<h2>Labelling</h2>" not in render_report(content(["a", "b"]))
    facts = {"devices": "NVIDIA H100: 40 shards", "workers": "8 processes on node1"}
    page = render_report(content(["a", "b"], labelling=facts))
    assert "<h2>Labelling</h2>" in page
    assert "<dt>devices</dt><dd>NVIDIA H100: 40 shards</dd>" in page
    assert "Attempts that failed" not in page
    page = render_report(content(["a", "b"], labelling=facts, failures=["shard 3 failed: <b>503</b>; tried again"]))
    assert "<li>shard 3 failed: &lt;b&gt;503&lt;/b&gt;; tried again</li>" in page
