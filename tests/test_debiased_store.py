"""Stores of a debiased reference: what lies in them, who reads which rows, and how they go on and are mended."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sfg_dist
from sfg_dist.distributed.fit.encoder import _tables
from sfg_dist.distributed.labels.labeler import ShardLabeler, label_error
from sfg_dist.distributed.labels.references import StoredReference
from sfg_dist.distributed.labels.sharded_reference import ReferenceMember
from sfg_dist.flow import Effort, build_order, choose_t_min, debias
from sfg_dist.job.errors import PlanMismatchError, StoreError
from sfg_dist.job.plan import Stream, normal_rows
from sfg_dist.pipeline.choices import debiased_frame
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.repair import job_beside, mend
from sfg_dist.store.verify import verify
from sfg_dist.studies.estimate.estimate import estimate_job

LABELS = {"num_pairs": 256, "t_min": 1e-2, "debias": True}
MANY = {"source": "moons", "max_rows": 6000}  # 4800 of them for training: enough for clusters


def labels_of(pairs):
    return pairs.labels.compute()


def test_labels_are_made_from_the_moved_rows(make_job):
    pairs = Pipeline(make_job(labels=LABELS)).label()
    moved = debias(pairs.reference, t_min=1e-2, sigma_data=1.0)
    assert np.array_equal(pairs.score_reference, moved)
    assert not np.array_equal(pairs.reference, moved)
    expected = sfg_dist.label_latents(
        pairs.latents.compute(), moved, t_min=1e-2, sigma_data=1.0, num_evaluations=8, batch_size=64
    )
    assert labels_of(pairs) == pytest.approx(expected, abs=1e-5)
    assert label_error(pairs)["median"] < 0.1
    assert verify(pairs).is_clean


def test_others_still_read_the_rows_of_the_table(make_job):
    plain = Pipeline(make_job("plain", labels=LABELS | {"debias": False})).label()
    pairs = Pipeline(make_job(labels=LABELS)).label()
    assert not plain.plan.is_debiased
    assert "debias" not in plain.plan.labels
    assert plain.plan.format_version < pairs.plan.format_version
    assert pairs.plan.identity["reference"] == plain.plan.identity["reference"]
    assert np.array_equal(pairs.reference, plain.reference)
    assert np.array_equal(_tables(pairs, pairs.reference[:0]).reference, plain.reference[: len(plain.reference) - 24])


@pytest.mark.parametrize("keys", [{"estimator": "minibatch", "num_reference": 100}, {"direction": "encode"}])
def test_mini_batches_and_encoded_pairs_are_of_the_moved_rows(make_job, keys):
    pairs = Pipeline(make_job(labels=LABELS | keys)).label()
    reference = ShardLabeler(pairs.location.url).reference
    assert reference.take(np.arange(480)).numpy() == pytest.approx(pairs.score_reference, abs=1e-5)
    assert np.isfinite(labels_of(pairs)).all()


def test_a_begun_store_goes_on_without_debiasing_again(make_job, monkeypatch):
    job = make_job(labels=LABELS)
    begun = Pipeline(job).open_store()
    monkeypatch.setattr("sfg_dist.pipeline.plan.debiased_frame", pytest.fail)
    monkeypatch.setattr("sfg_dist.pipeline.plan.choose_blur", pytest.fail)
    pairs = Pipeline(job).label()
    assert pairs.plan.run_id == begun.plan.run_id
    assert estimate_job(job).written.reference == 2 * 8 * len(pairs.reference) + 8
    extended = Pipeline(make_job(labels=LABELS | {"num_pairs": 384})).extend()
    assert extended.is_complete
    monkeypatch.undo()
    with pytest.raises(PlanMismatchError, match=r"labels\.debias: True -> 'absent'"):
        Pipeline(make_job(labels=LABELS | {"debias": False})).label()


def test_auto_is_decided_once_and_kept(make_job):
    told = []
    stores = {
        t_min: Pipeline(make_job(f"run-{t_min}", labels=LABELS | {"debias": "auto", "t_min": t_min}), told.append)
        for t_min in (1e-4, 0.5, "auto")
    }
    plans = {t_min: pipeline.open_store().plan for t_min, pipeline in stores.items()}
    assert not plans[1e-4].is_debiased
    assert [event["debias"] for event in told if event["event"] == "blur"] == [
        plan.is_debiased for plan in plans.values()
    ]
    for t_min, plan in plans.items():
        assert plan.identity["blur"]["debias"] == plan.is_debiased
        assert stores[t_min].open_store().plan.run_id == plan.run_id


def test_the_blur_is_chosen_for_the_debiased_density(make_store, tmp_path):
    np.save(tmp_path / "table.npy", np.random.default_rng(0).standard_normal((600, 2)))
    table = {"source": str(tmp_path / "table.npy")}
    plain, debiased = (
        make_store(str(debias), data=table, labels=LABELS | {"t_min": "auto", "debias": debias})
        for debias in (False, True)
    )
    assert debiased.plan.t_min > plain.plan.t_min
    chosen = choose_t_min(plain.reference, sigma_data=1.0, debias=True)
    assert debiased.plan.t_min == pytest.approx(chosen.t_min, rel=1e-2)


def debiased_elsewhere(frame, *arguments, **keywords):
    """The frame as a CPU makes it whose last bits are others."""
    made = debiased_frame(frame, *arguments, **keywords)
    return replace(made, debiased=np.nextafter(made.debiased, np.float32(np.inf)))


def test_other_moved_rows_are_called_by_the_name_of_their_array(make_job):
    pairs = Pipeline(make_job(labels=LABELS)).open_store()
    moved = pairs.group["reference/debiased"]
    moved[0, 0] = moved[0, 0] + 1
    pairs = sfg_dist.open_pairs(pairs.location.url)
    for read in (StoredReference(pairs).center, lambda: pairs.score_reference):
        with pytest.raises(StoreError, match=r"pairs\.zarr/reference/debiased is not the table"):
            read()


def test_damaged_moved_rows_are_found_and_made_again(make_job, tmp_path, store_bytes, monkeypatch):
    np.save(tmp_path / "table.npy", np.random.default_rng(0).standard_normal((300, 2)))
    job = make_job(data={"source": str(tmp_path / "table.npy"), "max_rows": 300}, labels=LABELS | {"t_min": "auto"})
    pairs = Pipeline(job).label()
    before = store_bytes(tmp_path / "run")
    place = pairs.location.root / "reference" / "debiased" / "c" / "0" / "0"
    content = bytearray(place.read_bytes())
    content[40] ^= 1
    place.write_bytes(content)
    assert [finding.key for finding in verify(pairs).findings] == ["reference/debiased/c/0/0"]
    with pytest.raises(StoreError, match="reference/debiased cannot be read"):
        ShardLabeler(pairs.location.url)
    with monkeypatch.context() as patch:
        patch.setattr("sfg_dist.pipeline.repair.debiased_frame", debiased_elsewhere)
        with pytest.raises(StoreError, match="the debiased reference has other bytes on this kind of CPU"):
            mend(pairs, job, emit=lambda *_, **__: None)
    np.save(tmp_path / "other.npy", np.random.default_rng(1).standard_normal((300, 2)))
    other = job.changed(data={"source": str(tmp_path / "other.npy")})
    with monkeypatch.context() as patch:
        patch.setattr("sfg_dist.pipeline.repair.debiased_frame", pytest.fail)
        with pytest.raises(StoreError, match="the reference is not the table that the plan was made for"):
            mend(pairs, other, emit=lambda *_, **__: None)
    mended = mend(pairs, job_beside(pairs), emit=lambda *_, **__: None)
    assert mended.frame == ("reference/debiased/c/0/0",)
    assert store_bytes(tmp_path / "run") == before


@pytest.mark.slow
def test_clusters_are_those_of_the_moved_rows_for_any_executor(make_job, monkeypatch):
    def label(name, **tables):
        return Pipeline(make_job(name, data=MANY, labels=LABELS | tables.pop("labels", {}), **tables)).label()

    here = label("here", executor={"num_actors": 1})
    assert np.array_equal(here.order_rows(0, 4800), build_order(here.score_reference))
    assert here.score_reference == pytest.approx(debias(here.reference, t_min=1e-2, sigma_data=1.0))
    processes = label("processes", executor={"num_actors": 2})
    assert np.array_equal(processes.score_reference, here.score_reference)
    assert np.array_equal(labels_of(processes), labels_of(here))
    fitted = label("fitted", labels={"time_grid": "fitted"})
    assert np.isfinite(labels_of(fitted)).all()
    # sharded over a group
    url, rows = here.location.url, normal_rows(0, Stream.LATENTS, 0, 64, 2)
    members = [ReferenceMember(url, part, 2) for part in range(2)]
    ends = ShardLabeler(url, members=members)._integrate(0, 0, rows, Effort())
    assert np.median(np.abs(ends - labels_of(here)[:64])) < 1e-3


@pytest.mark.slow
def test_a_mixed_table_and_an_encoder_go_with_it(make_job, tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{x:.3f},{'abc'[int(k)]}" for x, k in zip(rng.standard_normal(400), rng.integers(0, 3, 400), strict=True)]
    (tmp_path / "mixed.csv").write_text("\n".join(["x,kind", *lines]) + "\n")
    pipeline = Pipeline(
        make_job(
            data={"source": str(tmp_path / "mixed.csv")}, labels=LABELS, train={"encoder": True, "encoder_steps": 20}
        )
    )
    pairs = pipeline.label()
    generator = pipeline.train()
    assert set(generator.sample(50, container="pandas")["kind"]) <= set("abc")
    assert generator.encoder is not None
    assert torch.from_numpy(pairs.score_reference).isfinite().all()
