"""The comparison as a job: a whole small one, its document and page, and how it goes on after an interruption."""

import builtins
import html
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from patience import patience

from sfg_dist.data import prepare
from sfg_dist.evaluate.contest import Contests
from sfg_dist.evaluate.judgement import Judgement
from sfg_dist.job.config import load_job, resolve_job
from sfg_dist.job.errors import ConfigError, DataError, TrainingError
from sfg_dist.model import Calibration, Generator
from sfg_dist.model.expert_network import ExpertNetwork
from sfg_dist.pipeline.budget import next_target
from sfg_dist.pipeline.judged_tables import tables_of_run
from sfg_dist.store import Location
from sfg_dist.studies.compare import compare, judged, own
from sfg_dist.studies.compare.judging import Rules
from sfg_dist.studies.compare.own import (
    PUBLISHED_LABELS,
    PUBLISHED_TRAIN,
    fit_own,
    own_job,
    published_job,
)
from sfg_dist.studies.compare.run import ComparisonRun
from sfg_dist.studies.records import to_json


@pytest.fixture
def short_published(monkeypatch):
    """The published procedure's labels cost seconds as they are."""
    short = {"num_reference": 50, "num_evaluations": 20, "batch_size": 64, "shard_rows": 128}
    monkeypatch.setattr(own, "PUBLISHED_LABELS", {**PUBLISHED_LABELS, **short})


PEERS = ["nsf", "realnvp", "flow_matching", "score_sde", "score_ode", "gaussian_copula"]


def fitted(job):
    """Which cells a call of compare fits."""
    seen = []
    compare(job, listener=seen.append)
    return {(event["method"], event["seed"]) for event in seen if event["event"] == "cell_started"}


@pytest.mark.comparison
def test_peers_beside_each_other(make_compare_job, tmp_path, monkeypatch):
    permuted, of_independent = [], Contests.of_independent
    monkeypatch.setattr(Contests, "of_independent", lambda tables: permuted.append(tables) or of_independent(tables))
    job = make_compare_job(compare={"methods": PEERS, "max_time_s": 0.3})
    document = to_json(compare(job))
    assert len(permuted) == len(judged.SHOWN_FIGURES)  # once for all methods
    methods = document["methods"]
    assert list(methods) == PEERS
    for name, entry in methods.items():
        assert 0.3 < entry["c2st_auc"][0] <= 1, name
        assert entry["c2st_auc_error"][0] > 0, name
        assert np.isfinite(entry["test_log_likelihood"][0]), name
        assert entry["fit_s"] >= (0 if name == "gaussian_copula" else 0.3), name
        assert entry["label_s"] == 0, name
        assert entry["configuration"]["transform"] == "quantile", name
        times = [point["elapsed_s"] for point in entry["curve"]]
        assert times == sorted(times), name
        assert times[-1] == pytest.approx(entry["fit_s"]), name
        assert list(entry["figures"]) == ["shape", "c2st_trees_held_out", "attack_auc"], name
        (attack,) = entry["figures"]["attack_auc"]
        assert attack["copy"] > 0.9 > attack["value"], name
    assert methods["score_sde"]["num_steps"] == methods["score_ode"]["num_steps"]  # one fit
    assert methods["score_sde"]["us_per_sample"] > methods["realnvp"]["us_per_sample"]
    assert set(document["floor"]) == {"c2st_auc", "c2st_auc_error", "marginal_kl_mean"}
    folder = tmp_path / "run" / "compare"
    assert json.loads((folder / "compare.json").read_text()) == document
    page = html.unescape((folder / "compare.html").read_text())
    assert "<script" not in page
    for text in (document["verdict"][0], "score, reverse SDE", "Marginal KL", 'src="data:image/png'):
        assert text in page
    samples = np.load(folder / "cells" / "nsf_0.nsf.npy")
    assert samples.shape == (150, 2)

    # Again: nothing is fitted. A cell that is gone is, and so is one whose samples are.
    assert fitted(job) == set()
    (folder / "cells" / "realnvp_0.json").unlink()
    (folder / "cells" / "score_0.score_sde.npy").unlink()
    assert fitted(job) == {("realnvp", 0), ("score", 0)}


@pytest.mark.comparison
def test_ours_beside_the_published_procedure(make_compare_job, short_published, tmp_path):
    keys = {"methods": ["sfg", "published"], "sizes": ["8x1"], "max_time_s": 4.0}
    document = to_json(compare(make_compare_job(compare=keys)))
    for name, entry in document["methods"].items():
        assert 0 < entry["label_s"] < 4, name
        assert entry["fit_s"] > 0, name
        assert entry["curve"][-1]["elapsed_s"] == pytest.approx(entry["label_s"] + entry["fit_s"]), name
        assert entry["num_steps"] > 0, name
    assert document["methods"]["published"]["num_pairs"] <= 200_000
    assert document["methods"]["sfg"]["num_pairs"] == 256
    assert set(document["sizes"]) == {"16x1", "8x1"}
    assert "Other sizes" in (tmp_path / "run" / "compare" / "compare.html").read_text()
    # Keys of ours that change, change ours alone.
    assert fitted(make_compare_job(compare=keys, train={"learning_rate": 1e-2})) == {("sfg", 0), ("sfg_8x1", 0)}


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_comparison_goes_on_with_what_is_missing(make_compare_job, monkeypatch):
    from sfg_dist.studies.compare import run

    job = make_compare_job(
        compare={"methods": ["realnvp", "nsf"], "selection_time_s": 0.02, "num_seeds": 2, "max_time_s": 0.3}
    )

    def interrupt(event):
        if event["event"] == "cell_started" and (event["method"], event["seed"]) == ("nsf", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(job, listener=interrupt)
    monkeypatch.setattr(run, "choose", None)  # what was chosen is kept too
    seen = []
    document = to_json(compare(job, listener=seen.append))
    kept = [(e["method"], e["seed"]) for e in seen if e["event"] == "cell_kept"]
    assert kept == [("realnvp", 0), ("nsf", 0), ("realnvp", 1)]
    assert [(e["method"], e["seed"]) for e in seen if e["event"] == "cell_started"] == [("nsf", 1)]
    assert all(len(entry["c2st_auc"]) == 2 for entry in document["methods"].values())
    assert list(document["methods"]) == ["realnvp", "nsf"]
    assert len(document["selection"]["nsf"]["trials"]) == 8


@pytest.mark.long
@pytest.mark.slow
def test_a_comparison_lies_in_an_object_store(make_compare_job, s3_url):
    job = make_compare_job(
        output={"dir": f"{s3_url}/run"}, compare={"methods": ["sfg", "realnvp"], "max_time_s": patience(1.5)}
    )
    document = to_json(compare(job))
    output = Location(f"{s3_url}/run")
    assert json.loads(output.read("compare/compare.json")) == document
    seen = []
    compare(job, listener=seen.append)
    assert sorted(e["method"] for e in seen if e["event"] == "cell_kept") == ["realnvp", "sfg"]


@pytest.mark.slow
def test_ours_keeps_to_its_share_for_labels(make_compare_job):
    job = own_job(make_compare_job(labels={"num_pairs": 2_000_000}), num_threads=1, seed=3)
    assert (job.labels.seed, job.train.seed, job.executor.kind) == (3, 3, "inline")
    prepared = prepare("moons", max_rows=1500)
    fit = fit_own(job, prepared, Rules(patience(4), (0.5, 0.75), 0, [], 0), max_label_share=0.25)
    facts = fit.facts
    assert 128 <= facts.num_pairs < 2_000_000  # the share is for the labels, on whatever machine
    assert facts.num_pairs % 128 == 0
    assert facts.num_steps > 0
    assert fit.generator.job["labels"]["num_pairs"] == facts.num_pairs
    for seconds, generator in fit.snapshots:
        assert facts.label_s < seconds < facts.label_s + facts.fit_s
        assert np.abs(generator.sample(500) - fit.generator.sample(500)).max() > 1e-3
    short = make_compare_job("short", compare={"methods": ["sfg"], "max_time_s": 0.01})
    with pytest.raises(TrainingError, match=r"sfg, seed 0: .*raise compare\.max_time_s.*leave it out of"):
        compare(short)


@pytest.mark.slow
def test_a_method_that_fails_does_not_end_the_others(make_compare_job, monkeypatch, tmp_path):
    def fail(*others, **named):
        raise TrainingError("the labels took 9 s of the 1 s: raise compare.max_time_s")

    monkeypatch.setattr("sfg_dist.studies.compare.plans.fit_own", fail)
    told = []
    job = make_compare_job(compare={"methods": ["sfg", "realnvp"], "max_time_s": 0.5})
    with pytest.raises(TrainingError, match=r"sfg, seed 0: the labels took.*leave it out.*The rest is finished"):
        compare(job, listener=told.append)
    assert [event["method"] for event in told if event["event"] == "cell_failed"] == ["sfg"]
    document = json.loads((tmp_path / "run" / "compare" / "compare.json").read_text())
    assert list(document["methods"]) == ["realnvp"]


def test_a_comparison_judges_the_tables_of_a_run(tmp_path, monkeypatch):
    rng, day = np.random.default_rng(0), np.datetime64("2020-01-01")
    records = np.zeros(200, [("day", "M8[D]"), ("ok", "?"), ("x", "f8")])
    records["day"], records["ok"], records["x"] = day + rng.integers(0, 99, 200), rng.random(200) < 0.5, rng.random(200)
    np.save(tmp_path / "t.npy", records)
    table, taken = prepare(str(tmp_path / "t.npy")), []
    monkeypatch.setattr(judged, "judge", lambda tables, **keys: taken.append(tables) or Judgement({}, (), ()))
    judged.judged_figures(table.test, table, target="ok", seed=0)
    wanted = tables_of_run(table, table.test, table.transform.types, "ok")
    assert (taken[0].columns, taken[0].target) == (wanted.columns, "ok")
    for name in ("samples", "held_out", "train"):
        np.testing.assert_array_equal(getattr(taken[0], name), getattr(wanted, name))


def test_labels_grow_by_the_pace_within_the_time_left():
    def ask(made, pace, left_s):
        return next_target(made, 1000, pace=pace, left_s=left_s, shard_rows=10)

    assert ask(10, 1e9, 1.0) == 160  # not all at once, on the word of one shard
    assert ask(160, 1e9, 1.0) == 1000
    assert ask(160, 100.0, 2.0) == 350  # 190 more, within the margin of 5 %
    assert ask(160, 100.0, 0.05) == 160
    assert ask(160, 100.0, -3.0) == 160
    assert ask(1000, 1e9, 1e9) == 1000
    assert next_target(995, 1003, pace=1e9, left_s=1.0, shard_rows=10) == 1003  # a ragged last shard


@pytest.mark.slow
def test_experts_are_timed_and_shown_as_they_stood(make_compare_job):
    job = make_compare_job(train={"experts": 4, "width": 8, "depth": 1})
    assert job.train.experts == 4
    prepared = prepare("moons", max_rows=1500)
    assert own._calibration_time(job, prepared) > 0
    reference = prepared.reference()
    network = ExpertNetwork.of_reference(reference, 2, experts=4, width=8, depth=1)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = Generator(network, prepared.transform, Calibration.fit(network, reference, seed=0))
    earlier = own._as_it_stood(generator, weights, prepared, job)
    drawn = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(earlier.network.logits(drawn).argmax(1), minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert not bool(network.offsets.any())
    alone = own._as_it_stood(replace(generator, calibration=None), weights, prepared, job)
    assert torch.equal(alone.network.offsets, earlier.network.offsets)


def test_the_published_procedure_is_that_of_the_published_jobs(make_compare_job):
    job = published_job(make_compare_job(), 6, num_threads=2, seed=0)
    written = load_job("jobs/published_power.toml", ["data.source=moons"])
    assert job.transform == written.transform
    assert job.labels.model_dump(exclude={"num_threads"}) == written.labels.model_dump(exclude={"num_threads"})
    free = {"num_threads", "num_epochs", "batch_size", "shuffle_rows"}  # the clock's, and full batch
    assert job.train.model_dump(exclude=free) == written.train.model_dump(exclude=free)
    assert written.train.batch_size == written.labels.num_pairs
    widths = {2: 256, 8: 512, 11: 512, 31: 1400, 60: 1400}
    found = {dim: published_job(make_compare_job(), dim, num_threads=1, seed=0).train.width for dim in widths}
    assert found == widths
    assert PUBLISHED_LABELS["num_evaluations"] == 500
    assert PUBLISHED_TRAIN["activation"] == "tanh"


def test_what_cannot_be_compared_is_refused(make_compare_job, tmp_path):
    with pytest.raises(ConfigError, match=r"labels\.latents"):
        ComparisonRun(make_compare_job(labels={"direction": "encode"}))
    with pytest.raises(ConfigError, match=r"compare\.methods"):
        make_compare_job(compare={"methods": ["glow"]})
    with pytest.raises(ConfigError, match="methods has an entry twice"):
        make_compare_job(compare={"methods": ["nsf", "nsf"]})
    with pytest.raises(ConfigError, match='sizes are of the method "sfg"'):
        make_compare_job(compare={"methods": ["nsf"], "sizes": ["8x1"]})
    with pytest.raises(DataError):
        compare(make_compare_job(data={"source": str(tmp_path / "none.npy")}))


def test_a_missing_library_is_named_before_any_work(make_compare_job, monkeypatch, tmp_path):
    real = builtins.__import__

    def without_zuko(name, *arguments, **keywords):
        if name == "zuko":
            raise ImportError("No module named 'zuko'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_zuko)
    monkeypatch.delitem(sys.modules, "zuko", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'sfg_dist\[compare\]'.*compare\.methods"):
        compare(make_compare_job())
    assert not (tmp_path / "run").exists()
    ComparisonRun(make_compare_job(compare={"methods": ["sfg", "flow_matching"]}))  # these need none


def test_compare_is_no_part_of_a_store_s_identity(make_store, make_job):
    from sfg_dist.pipeline.plan import identity_of_keys

    assert identity_of_keys(make_job(compare={"max_time_s": 7.0})) == identity_of_keys(make_job())


@pytest.mark.slow
def test_the_command_prints_one_document(make_compare_job, tmp_path, capsys):
    from typer.testing import CliRunner

    import sfg_dist.cli.main  # noqa: F401  (makes the commands known)
    from sfg_dist.cli.command import app

    path = tmp_path / "job.toml"
    path.write_text(make_compare_job(compare={"methods": ["sfg", "realnvp"], "max_time_s": patience(1.5)}).to_toml())
    result = CliRunner().invoke(app, ["compare", str(path), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document["methods"]) == {"sfg", "realnvp"}
    assert {"c2st_auc", "test_log_likelihood", "us_per_sample", "fit_s"} <= set(document["methods"]["sfg"])
    assert document["methods"]["realnvp"]["test_log_likelihood"][0] is not None
    assert "realnvp: takes transform quantile" in result.stderr
    shown = CliRunner().invoke(app, ["compare", str(path)])
    assert shown.exit_code == 0
    assert "RealNVP" in shown.stdout
    assert "compare/compare.html" in shown.stdout
    assert "done already" in shown.stderr
    wrong = CliRunner().invoke(app, ["compare", str(path), "--json", "--set", "compare.max_time_s=-1"])
    assert wrong.exit_code == 2
    assert "compare.max_time_s" in json.loads(wrong.stdout)["error"]


def test_resolve_gives_compare_its_defaults():
    keys = resolve_job({"data": {"source": "moons"}}).compare
    assert (keys.max_time_s, keys.num_seeds, keys.sizes) == (300.0, 1, [])
