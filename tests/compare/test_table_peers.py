"""Peers that take whole tables: what they draw of a small mixed one, and what is said where a package is missing."""

import sys
import types
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from scipy.stats import multivariate_normal

from sfg_dist.data import prepare
from sfg_dist.job.errors import ConfigError, DataError, TrainingError
from sfg_dist.studies.compare import compare
from sfg_dist.studies.compare.judging import Rules
from sfg_dist.studies.compare.peers import gan_and_vae, tabddpm, table_peer
from sfg_dist.studies.compare.peers.fitting import fit_peer
from sfg_dist.studies.compare.peers.gan_and_vae import transform_fitted_once
from sfg_dist.studies.compare.peers.plain_columns import PlainColumns
from sfg_dist.studies.compare.peers.tabddpm import NUM_STEPS, TabularDiffusion
from sfg_dist.studies.compare.peers.table_kinds import TABLE_PEERS
from sfg_dist.studies.compare.peers.table_peer import TableFit, seconds_of
from sfg_dist.studies.compare.plans import Planner
from sfg_dist.studies.compare.run import ComparisonRun
from sfg_dist.studies.compare.tables import Tables

PEERS = {peer.name: peer for peer in TABLE_PEERS}
NUM_EPOCHS = 20
OWN, PACKAGED = ["gaussian_copula", "tabddpm"], ["ctgan", "tvae", "forest_diffusion"]


@pytest.fixture(scope="module")
def mixed_path(tmp_path_factory):
    """Weights with gaps that go with lengths, whole numbers, a category with gaps, its code, and a boolean."""
    rng = np.random.default_rng(0)
    count = 900
    town = rng.integers(0, 3, count)
    length = rng.normal(size=count) + 3 * town
    weight = length + 0.3 * rng.normal(size=count)
    table = {
        "length": length,
        "weight": pa.array(weight, mask=rng.random(count) < 0.2),
        "rooms": rng.integers(1, 6, count),
        "town": pa.array(np.array(["Oslo", "Rome", "Bern"])[town], mask=rng.random(count) < 0.1),
        "kind": np.where((town == 1) | (rng.random(count) < 0.1), "a", "b").tolist(),
        "sold": length > 2,
        "unit": ["m"] * count,
    }
    path = tmp_path_factory.mktemp("mixed") / "mixed.parquet"
    pyarrow.parquet.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def mixed(mixed_path):
    return Tables({"quantile": prepare(str(mixed_path), constant="keep")})


def fitted(tables, name, seconds):
    return PEERS[name].fit(TableFit(tables, seconds, (), 0, 1))


def check_rows(tables, rows, *, has_gaps=True):
    """Rows are such as the table may have; ``has_gaps`` says whether values are missing wherever they may be."""
    train = tables.rows("train")
    names = tables.any.columns
    for name, drawn, known in zip(names, rows.T, train.T, strict=True):
        is_missing, may_miss = np.isnan(drawn).any(), np.isnan(known).any()
        assert is_missing == may_miss if has_gaps else is_missing <= may_miss, name
        drawn = drawn[~np.isnan(drawn)]
        assert np.nanmin(known) <= drawn.min() <= drawn.max() <= np.nanmax(known), name
        if name not in ("length", "weight"):
            assert set(drawn.tolist()) <= set(known.tolist()), name


@pytest.mark.comparison
@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_an_own_peer_draws_rows_of_the_table(mixed, monkeypatch, clock, name):
    monkeypatch.setattr(tabddpm, "fit_peer", partial(fit_peer, clock=clock))
    found = fitted(mixed, name, 240.0)  # looks at the clock, two a step
    rows = found.draw(800)
    assert rows.shape == (800, 7)
    check_rows(mixed, rows)
    np.testing.assert_array_equal(rows, found.draw(800))
    columns = dict(zip(mixed.any.columns, rows.T, strict=True))
    assert 0.1 < np.isnan(columns["weight"]).mean() < 0.3
    both = ~np.isnan(columns["weight"])
    assert np.corrcoef(columns["length"][both], columns["weight"][both])[0, 1] > 0.4  # 0 for independent columns
    assert len(found.draw_flow_rows(10)) == 10


@pytest.mark.comparison
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PACKAGED)
def test_a_peer_by_its_package_draws_rows_of_the_table(mixed, monkeypatch, name):
    pytest.importorskip(PEERS[name].package)
    monkeypatch.setattr(gan_and_vae, "seconds_of", lambda run, *sizes: (0.0, 0.9 / NUM_EPOCHS))  # on any machine
    found = fitted(mixed, name, 1.0)
    rows = found.draw(800)
    check_rows(mixed, rows, has_gaps=name != "tvae")  # which takes hundreds of epochs to draw the rarer of two values
    np.testing.assert_array_equal(rows, found.draw(800))
    assert found.facts.configuration["gaps in numbers"]


class CountedTransform:
    """Counts the fits of a transform that doubles rows."""

    output_dimensions = 3

    def __init__(self):
        self.fits = []

    def fit(self, rows, discrete):
        self.fits.append((len(rows), discrete))

    def transform(self, rows):
        return 2 * rows + len(self.fits)


def test_fits_of_a_package_share_one_transform(monkeypatch):
    module = types.SimpleNamespace(DataTransformer=CountedTransform)
    monkeypatch.setitem(sys.modules, "made_up_package", module)
    rows = np.arange(4.0)
    with transform_fitted_once("made_up_package"):
        for _ in range(3):
            transform = module.DataTransformer()
            transform.fit(rows, ["1"])
            np.testing.assert_array_equal(transform.transform(rows), 2 * rows + 1)
        assert (transform.fits, transform.output_dimensions) == ([(4, ["1"])], 3)
    assert module.DataTransformer is CountedTransform


def test_a_plain_matrix_goes_back_to_the_rows(mixed):
    rows = mixed.rows("train")
    plain = PlainColumns(mixed.any.transform)
    matrix = plain.encode(rows)
    assert matrix.shape[1] == len(plain.sizes)
    assert np.isfinite(matrix).all()
    assert sorted(size for size in plain.sizes if size) == [2, 2, 4]  # kind, the flag of weight, town with its gap
    np.testing.assert_allclose(plain.decode(matrix), rows, rtol=1e-4, atol=1e-4)


def test_the_density_of_the_copula_is_that_of_its_scores(mixed):
    found = fitted(mixed, "gaussian_copula", 1.0)
    scores = mixed.flow_rows("quantile", "test").numpy()
    law = multivariate_normal(np.zeros(mixed.dim), np.corrcoef(mixed.flow_rows("quantile", "train").numpy().T))
    wanted = law.logpdf(scores) + mixed.log_det_jacobian("quantile", "test")
    np.testing.assert_allclose(found.test_log_density, wanted, atol=1e-2)


def test_a_step_back_of_a_category_is_what_bayes_says():
    model = TabularDiffusion(0, [4], width=8, depth=1)
    step = NUM_STEPS // 2
    kept, before = model.kept[step].item(), model.kept[step - 1].item()
    clean, now = 1, 3
    prior = np.full(4, (1 - before) / 4) + before * np.eye(4)[clean]
    share = kept / before
    likelihood = np.full(4, (1 - share) / 4) + share * np.eye(4)[now]
    wanted = prior * likelihood / (prior * likelihood).sum()
    one_hot = torch.eye(4)
    found = model._posterior(one_hot[[now]], one_hot[[clean]], torch.tensor([step]))
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-4)


def test_two_timed_runs_tell_the_seconds_of_a_unit(monkeypatch):
    passed = [0.0]
    monkeypatch.setattr(table_peer.time, "perf_counter", lambda: passed[0])

    def run(size):
        passed[0] += 10 + 2 * size

    assert seconds_of(run, 1, 4) == (10, 2)
    assert seconds_of(lambda size: None, 1, 4) == (0, 0)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_missing_package_is_named_with_its_extra(make_compare_job, monkeypatch, tmp_path, name):
    package = PEERS[name].package
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"package {package}.*pip install 'sfg_dist\[{package.lower()}\]'"):
        compare(make_compare_job(compare={"methods": ["sfg", name]}))
    assert not (tmp_path / "run").exists()


def test_the_methods_that_auto_stands_for(make_compare_job, mixed_path):
    def settled(**data):
        run = ComparisonRun(make_compare_job(data=data))
        run.settle_methods()
        return run.job.compare.methods

    pytest.importorskip("zuko")
    assert settled()[:3] == ["sfg", "published", "nsf"]
    assert settled(source=str(mixed_path), constant="keep") == ["sfg", "gaussian_copula", "tabddpm"]


def test_a_target_that_is_no_column_is_refused_before_any_fit(make_compare_job):
    job = make_compare_job(evaluate={"target": "income"}, compare={"methods": ["gaussian_copula"]})
    with pytest.raises(DataError, match=r"evaluate\.target: moons has no column 'income'; it has"):
        compare(job)


def test_a_package_that_fails_is_a_method_that_fails(mixed, make_compare_job):
    def fail(given):
        raise ValueError("expected 2 columns")

    planner = Planner(make_compare_job(), mixed, Rules(1.0, (), 0, [], 0), 1, {})
    plan = planner.table_peer(replace(PEERS["ctgan"], fit=fail), 0)
    with pytest.raises(TrainingError, match="the package ctgan failed: expected 2 columns"):
        list(plan.fit(lambda done, following: None))
