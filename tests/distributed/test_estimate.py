"""What a job will take: exact bytes, refusals of another store, and figures that hang together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machines import MACHINE, PACE, expected_bytes

from sfg_dist.cli.plan import estimate_rows
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.machine import peak_memory
from sfg_dist.job.errors import ConfigError, LabelingError, PlanMismatchError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import open_pairs
from sfg_dist.studies.estimate.calibration import Calibration, CalibrationSettings, calibrate
from sfg_dist.studies.estimate.estimate import estimate_job


@pytest.fixture
def paces(monkeypatch):
    """An estimate without the processes of a calibration."""

    def fake(plan, reference, settings, **_):
        return Calibration(dict.fromkeys({device.partition(":")[0] for device in settings.devices}, PACE), 0.0)

    monkeypatch.setattr("sfg_dist.studies.estimate.estimate.calibrate", fake)


def sizes_on_disk(store: Path) -> dict[str, int]:
    """Bytes of the parts of a store, metadata told apart."""
    found: dict[str, int] = {}
    for path in store.rglob("*"):
        if path.is_file():
            parts = path.relative_to(store).parts
            texts = ("zarr.json", "plan.json", "plan.copy.json", "frame.json")
            name = "metadata" if path.name in texts else parts[0]
            name = "order" if parts[:2] == ("reference", "order") and name == "reference" else name
            found[name] = found.get(name, 0) + path.stat().st_size
    return found


def check_bytes(job):
    expected, found = expected_bytes(job), sizes_on_disk(Path(job.output.dir) / "pairs.zarr")
    for name in ("latents", "labels", "reference", "order", "transform", "queries", "metadata"):
        assert getattr(expected, name) == found.get(name, 0), name
    assert expected.commits == pytest.approx(found["commits"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tables",
    [
        {},  # a ragged last shard
        {"labels": {"num_pairs": 50}},  # one shard, larger than the table
        {"labels": {"direction": "both"}, "transform": {"kind": "standardize"}},
        {"transform": {"kind": "none"}, "data": {"source": "8gaussians"}},
        {"data": {"max_rows": 6000}},  # with clusters
    ],
)
def test_bytes_are_exact(make_job, tables):
    job = make_job(**tables)
    Pipeline(job).label()
    check_bytes(job)


def test_bytes_are_exact_where_shards_and_the_reference_are_cut_into_chunks(make_job, monkeypatch):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", 300)
    job = make_job(labels={"num_pairs": 900})  # the last shard holds 4 of 128 rows: its last chunks are left out
    Pipeline(job).label()
    pairs = open_pairs(job.output.dir)
    assert pairs.group["labels"].shards is not None
    assert pairs.group["reference/rows"].nchunks > 1
    check_bytes(job)


def test_bytes_are_exact_with_the_users_own_queries(make_job, tmp_path):
    np.save(tmp_path / "queries.npy", np.random.default_rng(0).standard_normal((333, 2)))
    job = make_job(labels={"latents": str(tmp_path / "queries.npy")})
    Pipeline(job).label()
    check_bytes(job)


@pytest.mark.slow
def test_an_estimate_writes_nothing_and_its_parts_add_up(make_job, tmp_path):
    """With a calibration for real, by two processes as the run would have two actors."""
    machine = replace(MACHINE, num_cpus=2)
    job = make_job(executor={"kind": "ray", "num_actors": 2, "price_per_hour": 3.0})
    before = sorted(tmp_path.rglob("*"))
    estimate = estimate_job(job, machine=machine, seconds=0.2)
    assert sorted(tmp_path.rglob("*")) == before
    work, time = estimate.work, estimate.time
    assert (work.num_shards, work.num_pairs, work.dim, work.num_reference) == (8, 1000, 2, 480)
    assert work.score_evaluations == 1000 * 8
    # The first of the evaluations, at pure noise, is the mean of the data and sums nothing.
    assert work.pairs_summed == 1000 * 7 * 480
    assert time.waves == 4
    assert time.label_s == pytest.approx(time.start_s + time.integration_s + time.writing_s)
    assert min(time.data_s, time.start_s, time.integration_s, time.writing_s) > 0
    pace = estimate.paces["cpu"]
    assert pace.num_workers == 2
    assert pace.num_rows >= 6 * 64
    assert time.integration_s == pytest.approx(4 * 128 * pace.seconds_per_row)
    assert estimate.cost.total == pytest.approx(3.0 * 2 * time.label_s / 3600)
    assert json.loads(json.dumps(estimate.to_dict()))["written"]["arrays"] == estimate.written.arrays


@pytest.mark.long
@pytest.mark.slow
def test_a_calibration_with_queries_fewer_than_a_batch_tells_a_peak_of_its_own(make_job, tmp_path):
    """A child process inherits the peak that `getrusage` tells from whoever started it."""
    ballast = bytearray(1_500_000_000)
    np.save(tmp_path / "queries.npy", np.random.default_rng(0).standard_normal((20, 2)))
    job = make_job(labels={"latents": str(tmp_path / "queries.npy"), "solver_tolerance": 1e-2})
    estimate = estimate_job(job, machine=MACHINE, seconds=0.1)
    assert not estimate.work.is_counted
    assert estimate.work.score_evaluations == round(20 * estimate.paces["cpu"].evaluations_per_row)
    assert peak_memory() > len(ballast)
    assert estimate.paces["cpu"].host_bytes < 1_000_000_000


@pytest.mark.slow
def test_an_error_in_a_calibration_comes_out_with_its_reason(make_store):
    pairs = make_store()
    damaged = pairs.reference.copy()
    damaged[5, 1] = np.nan
    with pytest.raises(LabelingError, match="lacks some of rows 0 to"):
        calibrate(pairs.plan, damaged, CalibrationSettings(["cpu"], seconds=0.1))


def test_no_room_for_a_calibration(make_store, monkeypatch):
    pairs = make_store()
    monkeypatch.setattr("sfg_dist.studies.estimate.calibration.free_disk", lambda _: 1)
    with pytest.raises(ConfigError, match="TMPDIR"):
        calibrate(pairs.plan, pairs.reference, CalibrationSettings(["cpu"]))


@pytest.mark.slow
def test_a_store_that_is_begun_counts_what_is_left(make_job, paces):
    job = make_job()
    pairs = Pipeline(job).open_store()
    assert estimate_job(job, machine=MACHINE).work.shards_left == 8
    label_inline(pairs.location.url)
    for shard in (2, 7):  # the last one has 104 rows
        pairs.location.delete(f"commits/{shard:08d}.json")
    estimate = estimate_job(job, machine=MACHINE)
    assert (estimate.work.shards_left, estimate.work.pairs_left) == (2, 128 + 104)
    assert estimate.left.arrays == 2 * 2 * (128 * 2 * 4 + 4)
    assert estimate.written.arrays > estimate.left.arrays
    assert ("left to do", "2 shards, 232 pairs") in estimate_rows(estimate)
    label_inline(pairs.location.url)
    done = estimate_job(job, machine=MACHINE)
    assert done.paces == {}
    assert done.time.label_s == 0
    assert ("left to do", "nothing") in estimate_rows(done)


def test_a_store_of_another_plan_is_refused(make_job, paces):
    Pipeline(make_job()).open_store()
    with pytest.raises(PlanMismatchError, match=r"labels\.seed: 0 -> 5"):
        estimate_job(make_job(labels={"seed": 5}), machine=MACHINE)


def test_a_fitted_grid_is_not_fitted_to_plan(make_job, paces, monkeypatch):
    monkeypatch.setattr("sfg_dist.pipeline.plan.fit_grids", lambda *_: pytest.fail("fitted"))
    plain = estimate_job(make_job(), machine=MACHINE)
    fitted = estimate_job(make_job(labels={"time_grid": "fitted"}), machine=MACHINE)
    assert fitted.time.data_s - plain.time.data_s > 4600 * PACE.seconds_per_row - 5
    assert any("time grid is fitted first" in note for note in fitted.notes)
    assert fitted.work == plain.work


def test_a_busy_machine_is_told_apart(make_job, monkeypatch):
    monkeypatch.setattr(
        "sfg_dist.studies.estimate.estimate.calibrate", lambda *_, **__: Calibration({"cpu": PACE}, 3.5)
    )
    busy, idle = (estimate_job(make_job(), machine=replace(MACHINE, num_cpus=cpus)) for cpus in (4, 16))
    alone = f"about {busy.time.label_s / 2:.0f} s"
    assert any("kept 3.5 CPUs busy" in note and alone in note for note in busy.notes)
    assert not idle.notes
