"""Selection, records and figures: what is chosen, what is kept, and what the verdict says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfg_dist.data import prepare
from sfg_dist.evaluate import classifier_test, measure
from sfg_dist.evaluate.judgement import Figure
from sfg_dist.job.errors import DocumentError, TrainingError
from sfg_dist.store import Location
from sfg_dist.studies.compare.document import Method, mean_auc, verdict
from sfg_dist.studies.compare.judging import Cell, Point, auc, figures, finite_rows, us_per_row
from sfg_dist.studies.compare.peers.choice import Choice, choose
from sfg_dist.studies.compare.peers.kinds import LEARNING_RATES, TRANSFORMS, Configuration, PeerKind, RowSampler
from sfg_dist.studies.compare.run import kept_cells
from sfg_dist.studies.compare.tables import Tables
from sfg_dist.studies.records import Records, from_json, to_json


@pytest.fixture(scope="module")
def tables():
    return Tables({kind: prepare("moons", max_rows=4000, kind=kind) for kind in TRANSFORMS})


class Known(torch.nn.Module):
    """Knows the training rows by heart under one configuration, and adds noise under every other."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.weight = dim, torch.nn.Parameter(torch.zeros(1))

    def loss(self, rows):
        self.rows = rows
        return self.weight.square().sum() + 1

    def log_density(self, rows):
        return torch.zeros(len(rows))

    def sample(self, num_rows, generator):
        chosen = torch.randint(len(self.rows), (num_rows,), generator=generator)
        return self.rows[chosen] + self.noise * torch.randn(num_rows, self.dim, generator=generator)


def known_kind(monkeypatch, noise_of):
    """A peer whose samples are as good as ``noise_of`` says of a learning rate and a transform."""

    def fit(model, rows, validation, settings):
        model.rows = rows
        is_quantile = bool(abs(rows.std() - 1) < 1e-6 or rows.abs().max() > 3)  # a normal's tail
        model.noise = noise_of("quantile" if is_quantile else "standardize", settings.learning_rate)
        fits.append((settings.learning_rate, settings.max_time_s))

    fits = []
    monkeypatch.setattr("sfg_dist.studies.compare.peers.fitted.fit_peer", fit)
    return PeerKind("known", Known, {}, 64, {"known": RowSampler("sample", 1)}), fits


@pytest.mark.long
@pytest.mark.slow
def test_the_best_of_all_configurations_is_chosen(tables, monkeypatch):
    def noise_of(kind, rate):
        return 0.0 if (kind, rate) == ("standardize", LEARNING_RATES[1]) else 0.6

    kind, fits = known_kind(monkeypatch, noise_of)
    told = []
    chosen = choose(kind, tables, time_s=2.0, on_trial=told.append)
    assert chosen.chosen == Configuration("standardize", LEARNING_RATES[1])
    assert [seconds for _, seconds in fits] == [2.0] * 6 + [6.0] * 2
    assert tuple(told) == chosen.trials
    assert from_json(Choice, json.loads(json.dumps(to_json(chosen))), "it") == chosen


def test_a_selection_without_time_is_the_default(tables):
    assert choose(None, tables, time_s=0).chosen == Configuration("quantile", 1e-3)


def test_a_peer_that_fails_everywhere_is_refused(tables, monkeypatch):
    def fail(*_, **__):
        raise TrainingError("no")

    monkeypatch.setattr("sfg_dist.studies.compare.peers.fitted.fit_peer", fail)
    kind = PeerKind("known", Known, {}, 64, {"known": RowSampler("sample", 1)})
    with pytest.raises(TrainingError, match="known: every configuration failed in fits of 1 s"):
        choose(kind, tables, time_s=1)


def test_validation_rows_are_held_back_where_the_split_has_none():
    without = Tables({kind: prepare("moons", max_rows=1000, split=(0.9, 0.0, 0.1), kind=kind) for kind in TRANSFORMS})
    assert without.holds_back
    train, validation = without.rows("train"), without.rows("validation")
    assert (len(train), len(validation)) == (810, 90)
    np.testing.assert_array_equal(np.concatenate([train, validation]), without.any.train)
    assert len(without.flow_rows("quantile", "train")) == 810
    assert len(without.log_det_jacobian("quantile", "validation")) == 90
    np.testing.assert_allclose(
        without.transform("standardize").inverse(without.flow_rows("standardize", "validation").numpy()),
        validation,
        atol=1e-5,
    )


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_record_is_kept_under_its_keys_alone(place, tmp_path, request):
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3_url")
    records = Records(Location(url, create=True), "compare", {"found": dict})
    keys = {"seed": 0, "marks": (0.1, 0.2)}

    def load(**changed):
        return records.load("cells/a_0", keys | changed, lambda document: document["found"])

    assert load() is None
    records.save("cells/a_0", keys, {"found": {"a": 1.5}})
    assert load() == {"a": 1.5}
    assert load(seed=1) is None
    records.output.write("compare/cells/a_0.json", b'{"keys": ')
    assert load() is None


def test_a_cell_is_kept_as_it_was(tmp_path):
    kept = {
        "c2st_auc": 0.6, "c2st_auc_error": 0.01, "marginal_kl_mean": 0.02, "kl": None, "test_log_likelihood": -15.5,
        "test_log_likelihood_error": 0.1, "num_likelihood_rows": 150, "num_likelihood_not_finite": 0,
        "us_per_sample": 3.5, "us_per_sample_back": 1.0, "fit_s": 3.0, "label_s": 0.0, "num_steps": 12,
        "best_at_s": 2.5, "num_parameters": 100, "num_evaluations": 1, "num_not_finite": 0,
        "curve": [{"elapsed_s": 3.0, "c2st_auc": 0.6, "c2st_auc_error": 0.01}], "load_average": [0.5, 0.75],
        "figures": {
            "shape": {"name": "shape", "value": 0.98, "error": None, "floor": 0.99, "copy": 1.0, "independent": 0.99},
        },
    }  # fmt: skip
    cell = Cell.from_json(kept, "a cell")
    assert cell.metrics == {"marginal_kl_mean": 0.02, "kl": None}
    assert cell.figures == {"shape": Figure("shape", 0.98, None, 0.99, 1.0, 0.99)}
    assert cell.curve == [Point(3.0, 0.6, 0.01)]
    assert cell.to_json() == kept
    output, document = Location(tmp_path), {"found": {"sfg": kept}, "tables": ["sfg"]}
    with pytest.raises(DocumentError, match="samples are missing"):  # samples that are gone are drawn again
        kept_cells(output, "cells/sfg_0", document)
    output.write("compare/cells/sfg_0.sfg.npy", b"samples")
    assert kept_cells(output, "cells/sfg_0", document) == {"sfg": cell}
    del kept["fit_s"]
    with pytest.raises(DocumentError, match="cells/sfg_0: sfg: fit_s is missing"):
        kept_cells(output, "cells/sfg_0", document)


@pytest.mark.long
@pytest.mark.slow
def test_the_auc_is_that_of_measure_and_its_error_is_right():
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((2, 3000, 3))
    area, error = classifier_test(first, second, seed=4)
    assert measure(first, second, second, metrics=["c2st_auc"], seed=4)["c2st_auc"] == area
    # of equal laws, by the rank test over 3000 rows of each kind
    assert error == pytest.approx(np.sqrt((2 * 3000 + 1) / (12 * 3000**2)), rel=0.1)
    shifted, far_error = classifier_test(first + 1.5, second, seed=4)
    assert shifted > 0.9
    assert far_error < error / 2
    assert classifier_test(first[:5], second) is None


@pytest.mark.long
@pytest.mark.slow
def test_the_error_of_the_auc_is_the_spread_of_repeated_samples():
    found = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        found.append(classifier_test(generator.normal(0.4, 1, (600, 1)), generator.normal(0, 1, (600, 1)), seed=seed))
    areas, errors = np.transpose(found)
    assert errors.mean() == pytest.approx(areas.std(ddof=1), rel=0.5)


@pytest.mark.slow
def test_figures_come_from_the_test_rows(tables):
    prepared = tables.any
    found = figures(prepared.train[:400], prepared, metrics=["c2st_auc", "ks_mean", "kl"], seed=0)
    assert set(found) == {"c2st_auc", "c2st_auc_error", "ks_mean", "kl"}
    assert found["c2st_auc"] == auc(prepared.train[:400], prepared, seed=0)["c2st_auc"]
    assert found["ks_mean"] < 0.1
    elsewhere = replace(prepared, test=prepared.test + 9)
    far = figures(prepared.train[:400], elsewhere, metrics=["ks_mean"], seed=0)
    assert far["c2st_auc"] > 0.999
    assert far["ks_mean"] == 1.0


def test_rows_that_are_not_finite_are_left_out_and_counted():
    rows = np.ones((10, 2))
    rows[3, 1] = np.nan
    kept, num_bad = finite_rows(rows, "nsf")
    assert (len(kept), num_bad) == (9, 1)
    with pytest.raises(TrainingError, match="nsf: 10 of 10 samples"):
        finite_rows(np.full((10, 2), np.inf), "nsf")


def test_the_cost_of_a_row_is_that_of_the_whole_call(monkeypatch):
    import time

    now = [0.0]

    def draw(num_rows):
        now[0] += 1.0 + 0.001 * num_rows

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert us_per_row(draw, 1000) == pytest.approx(2000)


def entry(area, error=0.01, likelihood=None, cost=10.0):
    has_likelihood = likelihood is not None
    numbers = dict.fromkeys(
        ("fit_s", "label_s", "num_evaluations", "num_parameters", "num_steps", "num_likelihood_rows", "num_not_finite",
         "num_likelihood_not_finite", "load_average", "us_per_sample_back"), 1,
    )  # fmt: skip
    return Method(
        c2st_auc=[area], c2st_auc_error=[error], test_log_likelihood=[likelihood] if has_likelihood else None,
        test_log_likelihood_error=[0.1] if has_likelihood else None, us_per_sample=cost, metrics={}, figures={},
        configuration={}, curve=[], **numbers,
    )  # fmt: skip


def test_the_verdict_allows_one_standard_error_of_the_best_peer():
    peers = {"nsf": entry(0.59, 0.01, -16.0, 200.0), "realnvp": entry(0.64, 0.05, -17.0, 3.0)}
    published = {"published": entry(0.5)}  # no peer
    assert verdict({"sfg": entry(0.58), **peers, **published})[0].startswith("sfg is the best")
    assert verdict({"sfg": entry(0.599), **peers})[0].startswith("sfg stands beside the best peer, NSF")
    text = verdict({"sfg": entry(0.601, likelihood=-16.5), **peers})
    assert text[0].startswith("NSF is ahead")
    assert "is 0.601 ± 0.010 for sfg" in text[1]
    assert "is -16.50 for sfg; RealNVP -17.00, NSF -16.00" in text[2]
    assert "sfg takes 10.0 µs for a sampled row; NSF takes 20 times as long" in text[3]
    assert "needs sfg and a peer" in verdict({"sfg": entry(0.6), **published})[0]


def test_seeds_share_the_test_rows():
    mean, error = mean_auc(replace(entry(0.6), c2st_auc=[0.6, 0.62], c2st_auc_error=[0.01, 0.01]))
    assert mean == pytest.approx(0.61)
    assert error == pytest.approx(np.sqrt(0.01**2 + 0.0002 / 2))
