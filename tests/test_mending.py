"""verify, repair and extend as a user meets them; what each finding is, is tested with the store."""

import json
import shutil

import numpy as np
import pytest
from commands import sfg

import sfg_dist
from sfg_dist.job.errors import ConfigError, PlanMismatchError, StoreError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.pipeline.repair import job_beside, mend
from sfg_dist.store.status import StatusReader


@pytest.fixture
def labelled(copy_labels):
    """A finished store of 8 shards in the output directory ``run``."""
    return copy_labels()


def flip(path):
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def quiet(event, **details):
    pass


def object_path(pairs, name, shard):
    return pairs.location.root / name / "c" / str(shard) / "0"


def test_verify_of_a_clean_store(labelled, tmp_path):
    assert "nothing is wrong" in sfg(tmp_path, "verify", "run").stdout
    document = json.loads(sfg(tmp_path, "verify", "run/pairs.zarr", "--json").stdout)
    assert document["is_clean"]
    assert document["findings"] == []


def test_verify_names_what_is_bad_and_repair_does_that_again(labelled, tmp_path, store_bytes):
    before = store_bytes(tmp_path / "run")
    flip(object_path(labelled, "labels", 2))
    object_path(labelled, "latents", 5).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "pairs.zarr" / "labels").rglob("0")}
    found = json.loads(sfg(tmp_path, "verify", "run", "--json", check=1).stdout)
    assert found["bad_shards"] == [2, 5]
    words = sfg(tmp_path, "verify", "run", check=1).stdout
    assert "labels/c/2/0 (shard 2)" in words
    assert "`sfg repair" in words
    planned = json.loads(sfg(tmp_path, "repair", "run", "--dry-run", "--json").stdout)
    assert planned["shards"] == [2, 5]
    assert not object_path(labelled, "latents", 5).exists()
    done = sfg(tmp_path, "repair", "run")
    assert "repaired, 2 shards labelled again" in done.stdout
    assert "nothing is wrong" in sfg(tmp_path, "verify", "run").stdout
    assert store_bytes(tmp_path / "run") == before
    changed = {path.parent.name for path, at in kept.items() if path.stat().st_mtime_ns != at}
    assert changed <= {"2", "5"}
    assert "nothing was done" in sfg(tmp_path, "repair", "run").stdout


def test_repair_leaves_pending_shards_pending(copy_labels):
    pairs = copy_labels(3)
    assert pairs.pending() == [3, 4, 5, 6, 7]
    object_path(pairs, "labels", 1).unlink()
    events = []
    mended = mend(pairs, job_beside(pairs), emit=lambda event, **details: events.append((event, details)))
    assert mended.shards == (1,)
    assert pairs.pending() == [3, 4, 5, 6, 7]
    shards = [details for event, details in events if event == "shard"]
    assert [(entry["shard"], entry["done"], entry["total"]) for entry in shards] == [(1, 3, 3)]


@pytest.mark.slow
def test_a_damaged_reference_is_made_again_from_the_table(make_job, tmp_path, store_bytes):
    rows = np.random.default_rng(0).standard_normal((300, 2))
    np.save(tmp_path / "table.npy", rows)
    job = make_job(data={"source": str(tmp_path / "table.npy"), "max_rows": 300})
    pairs = Pipeline(job).label()
    before = store_bytes(tmp_path / "run")
    flip(pairs.location.root / "reference" / "rows" / "c" / "0" / "0")
    (tmp_path / "table.npy").rename(tmp_path / "moved.npy")
    with pytest.raises(StoreError, match=r"only be made again from the table .*table\.npy, which cannot be read"):
        mend(pairs, job_beside(pairs), emit=quiet)
    np.save(tmp_path / "table.npy", rows + 1e-3)
    with pytest.raises(StoreError, match=r"transform come out with other bytes|not the table"):
        mend(pairs, job_beside(pairs), emit=quiet)
    (tmp_path / "moved.npy").rename(tmp_path / "table.npy")
    mended = mend(pairs, job_beside(pairs), emit=quiet)
    assert mended.frame == ("reference/rows/c/0/0",)
    assert mended.shards == ()
    assert store_bytes(tmp_path / "run") == before


def test_a_store_without_its_output_directory_is_repaired_too(labelled, tmp_path):
    shutil.copytree(labelled.location.root, tmp_path / "elsewhere.zarr")
    moved = sfg_dist.open_pairs(tmp_path / "elsewhere.zarr")
    object_path(moved, "labels", 4).unlink()
    job = job_beside(moved, ["executor.kind=inline"])
    assert job.executor.kind == "inline"
    assert mend(moved, job, emit=quiet).shards == (4,)
    assert moved.is_complete


def test_the_cluster_that_a_stores_job_file_names_is_not_gone_to(make_job, labelled, tmp_path):
    job = make_job(executor={"kind": "ray", "address": "stranger:6379", "num_actors": 3})
    (tmp_path / "run" / "job.toml").write_text(job.to_toml())
    with pytest.warns(UserWarning, match=r"'stranger:6379' of .*run/job\.toml is not used.*--set executor\.address="):
        found = job_beside(labelled)
    assert (found.executor.kind, found.executor.address, found.executor.num_actors) == ("ray", None, 3)
    assert job_beside(labelled, ["executor.address=own:6379"]).executor.address == "own:6379"


def test_repair_inside_the_store_finds_the_job_file_above(labelled, tmp_path):
    assert job_beside(labelled).executor.kind == "inline"
    object_path(labelled, "labels", 2).unlink()
    done = sfg(tmp_path / "run" / "pairs.zarr", "repair", ".")
    assert "repaired, 1 shard labelled again" in done.stdout
    assert labelled.is_complete
    object_path(labelled, "labels", 2).unlink()
    assert "1 shard labelled again" in sfg(tmp_path / "run" / "pairs.zarr" / "commits", "repair", "..").stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["quantile", "standardize"])
def test_the_frame_of_a_copied_store_is_made_again_from_its_own_plan(make_job, tmp_path, kind):
    rows = np.random.default_rng(0).standard_normal((300, 3))
    np.save(tmp_path / "table.npy", rows)
    np.save(tmp_path / "queries.npy", rows[:200, :2])
    keys = {"source": str(tmp_path / "table.npy"), "max_rows": 300, "columns": ["c2", "c0"], "seed": 3}
    job = make_job(data=keys, transform={"kind": kind}, labels={"latents": str(tmp_path / "queries.npy")})
    source = Pipeline(job).label().location.root
    (tmp_path / "queries.npy").unlink()  # the store holds them
    shutil.copytree(source, tmp_path / "copy" / "pairs.zarr")
    copied = sfg_dist.open_pairs(tmp_path / "copy")
    flip(copied.location.root / "reference" / "rows" / "c" / "0" / "0")
    assert mend(copied, job_beside(copied), emit=quiet).frame == ("reference/rows/c/0/0",)
    assert not (tmp_path / "copy" / "events.jsonl").exists()
    for name in ("reference", "queries"):
        key = f"{name}/rows/c/0/0"
        assert copied.location.read(key) == (source / key).read_bytes()
    flip(copied.location.root / "queries" / "rows" / "c" / "0" / "0")
    with pytest.raises(StoreError, match=r"query points are damaged, and only the run's job\.toml"):
        mend(copied, job_beside(copied), emit=quiet)


@pytest.mark.parametrize("key", ["labels.seed=3", "output.dir=x", "labels.num_threads_=2"])
def test_only_keys_of_the_executor_can_be_set(labelled, key):
    with pytest.raises(ConfigError, match=rf"--set {key}: .*only keys of executor"):
        job_beside(labelled, [key])


@pytest.mark.slow
def test_extend_gives_what_a_longer_run_would_have_given(make_job, labelled, tmp_path):
    longer = make_job("longer", labels={"num_pairs": 1500})
    expected = Pipeline(longer).label()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "pairs.zarr" / "labels").rglob("0")}
    (tmp_path / "job.toml").write_text(make_job(labels={"num_pairs": 1500}).to_toml())
    refused = sfg(tmp_path, "label", "job.toml", check=2)
    assert "sfg extend" in refused.stderr
    done = sfg(tmp_path, "extend", "job.toml")
    assert "extend: from 1,000 to 1,500 pairs" in done.stdout
    extended = sfg_dist.open_pairs(tmp_path / "run")
    assert extended.is_complete
    for name in ("latents", "labels"):
        np.testing.assert_array_equal(getattr(extended, name).compute(), getattr(expected, name).compute())
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    state = StatusReader(extended).read(0.0)
    assert state.extended_at == (1000,)
    assert (state.rows, state.rows_done, state.is_complete) == (1500, 1500, True)
    assert "extended at 1,000 pairs" in sfg(tmp_path, "status", "run").stdout
    sfg(tmp_path, "label", "job.toml")
    assert "nothing is wrong" in sfg(tmp_path, "verify", "run").stdout


def test_extend_refuses_another_plan_and_a_smaller_number(make_job, labelled):
    with pytest.raises(PlanMismatchError, match=r"labels\.seed: 0 -> 4"):
        Pipeline(make_job(labels={"num_pairs": 1500, "seed": 4})).extend()
    with pytest.raises(ConfigError, match="adds nothing"):
        Pipeline(make_job(labels={"num_pairs": 900})).extend()
