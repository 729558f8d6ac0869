"""A whole run with output.dir on an S3 server: the same figures and the same bytes as on the local disk."""

import json

import numpy as np
import pytest
from commands import sfg
from told import snapshot

import sfg_dist
from sfg_dist.distributed.labels.events import Backup
from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.job.errors import StoreUnavailableError
from sfg_dist.job.object_stores import without_credentials
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location
from sfg_dist.store.event_log import EventLog

SECRET, KEY_ID = "wJalrXUtnFEMIK7MDENGbPxRfiCYsecret", "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture
def bucket(s3_url, monkeypatch):
    """An s3:// URL with nothing under it; its credentials look like real ones."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_url


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_the_disk(make_job, tmp_path, bucket, no_pictures):
    local = sfg_dist.run(make_job())
    remote = sfg_dist.run(make_job(output={"dir": f"{bucket}/runs/one"}))
    for name in ("floor", "labels", "samples", "label_error"):
        assert remote[name] == local[name]
    here, there = Location(tmp_path / "run"), Location(f"{bucket}/runs/one")
    keys = sorted(entry.key for entry in there.list())
    assert {key.split("/")[0] for key in keys} == {path.name for path in (tmp_path / "run").iterdir()}
    arrays = [
        key for key in keys if key.startswith(("pairs.zarr/la", "pairs.zarr/reference", "samples.zarr", "model/m"))
    ]
    assert len(arrays) > 20
    for key in arrays:
        assert there.read(key) == here.read(key), key
    assert there.read("metrics.json") == json.dumps(remote, indent=1).encode()
    assert b"</html>" in there.read("report.html")
    kinds = [json.loads(line)["event"] for line in EventLog(there).read().splitlines()]
    assert kinds.count("shard") == 8
    assert kinds[-1] == "report"
    generator = sfg_dist.Generator.load(f"{bucket}/runs/one/model")
    np.testing.assert_array_equal(
        generator.sample(20, seed=3), sfg_dist.Generator.load(tmp_path / "run").sample(20, seed=3)
    )
    assert sfg_dist.open_pairs(f"{bucket}/runs/one").is_complete


@pytest.mark.long
@pytest.mark.slow
def test_commands_take_urls(make_job, tmp_path, bucket, no_pictures):
    job = make_job(output={"dir": f"{bucket}/run"})
    (tmp_path / "job.toml").write_text(job.to_toml())
    for stage in ("label", "train", "sample", "evaluate"):
        said = sfg(tmp_path, stage, "job.toml").stdout
    assert f"report: {bucket}/run/report.html" in said
    assert "complete" in sfg(tmp_path, "status", f"{bucket}/run").stdout
    Location(f"{bucket}/run").delete("report.html")
    shown = sfg(tmp_path, "report", f"{bucket}/run", "--open", check=2)
    assert f"report: {bucket}/run/report.html" in shown.stdout
    assert "a browser cannot read" in shown.stderr
    assert b"</html>" in Location(f"{bucket}/run").read("report.html")
    sfg(tmp_path, "sample", f"{bucket}/run/model", "-n", "100", "--out", "rows.npy")
    sfg(tmp_path, "sample", f"{bucket}/run/model", "-n", "100", "--out", f"{bucket}/rows.zarr")
    from sfg_dist.data import open_table

    np.testing.assert_array_equal(open_table(f"{bucket}/rows.zarr").values, np.load(tmp_path / "rows.npy"))
    assert {path.name for path in tmp_path.iterdir()} == {"job.toml", "rows.npy"}


@pytest.mark.slow
def test_status_verify_and_repair_in_a_bucket(make_job, tmp_path, bucket):
    pairs = Pipeline(make_job(output={"dir": f"{bucket}/run"})).label()
    key = "labels/c/3/0"
    whole = pairs.location.read(key)
    pairs.location.write(key, whole[:-1])
    assert json.loads(sfg(tmp_path, "status", f"{bucket}/run", "--json").stdout)["shards_done"] == 7
    failed = sfg(tmp_path, "verify", f"{bucket}/run", check=1)
    assert "truncated_data: labels/c/3/0 (shard 3)" in failed.stdout
    assert "1 shard labelled again" in sfg(tmp_path, "repair", f"{bucket}/run").stdout
    assert pairs.location.read(key) == whole
    assert "nothing is wrong" in sfg(tmp_path, "verify", f"{bucket}/run").stdout


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_that_was_cut_off_goes_on_from_its_checkpoint_in_the_bucket(make_job, copy_labels, bucket, monkeypatch):
    from sfg_dist.distributed.fit.checkpoints import Checkpoints

    keys = {"num_epochs": 3, "checkpoint_interval_s": 0.0001}
    copy_labels()
    expected = Pipeline(make_job(train=keys)).train()
    pipeline = Pipeline(make_job(train=keys, output={"dir": f"{bucket}/run"}))
    pipeline.label()
    save = Checkpoints.save

    def save_and_stop(self, trainer, *more):
        save(self, trainer, *more)
        if trainer.progress.step == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train()
    resumed = Pipeline(make_job(train=keys, output={"dir": f"{bucket}/run"}))
    generator = resumed.train()
    np.testing.assert_array_equal(generator.sample(50), expected.sample(50))
    events = [json.loads(line) for line in EventLog(Location(f"{bucket}/run")).read().splitlines()]
    begun = [event["fresh"] for event in events if event["event"] == "stage_started" and event["stage"] == "train"]
    assert begun == [True, False]
    steps = {entry.key.split("/")[0] for entry in Location(f"{bucket}/run/checkpoints").list() if "step_" in entry.key}
    assert len(steps) == 2


def test_a_long_log_in_a_bucket_is_put_now_and_then(bucket):
    now = [0.0]
    log = EventLog(Location(bucket), clock=lambda: now[0])
    log.append({"event": "one"})
    assert Location(bucket).read("events.jsonl") is None
    now[0] = 11.0
    log.append({"event": "two"})
    assert len(Location(bucket).read("events.jsonl").splitlines()) == 2
    log.append({"event": "three"})
    log.flush()
    later = EventLog(Location(bucket))
    later.append({"event": "four"})
    later.flush()
    assert [json.loads(line)["event"] for line in later.read().splitlines()] == ["one", "two", "three", "four"]
    assert later.read().encode() == Location(bucket).read("events.jsonl")


def test_a_monitor_writes_bounded_parts_from_a_thread_of_its_own(bucket, monkeypatch):
    monkeypatch.setattr("sfg_dist.distributed.labels.monitor.PART_BYTES", 1000)
    monkeypatch.setattr("sfg_dist.distributed.labels.monitor.REMOTE_INTERVAL_S", 0.02)
    location = Location(bucket)
    with Monitor(location, "me") as monitor:
        for number in range(200):
            monitor.event(Backup(number, "gpu-1"))
            monitor._thread.join(0.001)
        monitor.snapshot(snapshot())
    parts = sorted(entry.key for entry in location.list("events"))
    assert len(parts) > 1
    assert parts[0] == "events/me-0000.jsonl"
    lines = [json.loads(line) for part in parts for line in location.read(part).splitlines()]
    assert [line["shard"] for line in lines] == list(range(200))
    assert json.loads(location.read("drivers/me.json"))["is_running"] is False


def test_a_store_that_takes_no_reports_is_labelled_all_the_same(make_job, monkeypatch):
    write = Location.write

    def failing(location, key, content):
        if key.startswith("drivers/"):
            raise StoreUnavailableError("cannot write drivers/x.json: 503 SlowDown")
        write(location, key, content)

    monkeypatch.setattr(Location, "write", failing)
    with pytest.warns(UserWarning, match="`sfg status` may lag behind: .*503 SlowDown; the labels go on"):
        pairs = Pipeline(make_job()).label()
    assert pairs.is_complete


@pytest.mark.slow
def test_secrets_reach_no_log_no_plan_and_no_snapshot(make_job, bucket, monkeypatch, capsys, no_pictures):
    """Even where a library puts them in the text of an error."""
    from sfg_dist.distributed.labels import labeler

    label = labeler.ShardLabeler.label
    failed = []

    def fail_once(self, shard, attempt=1):
        if not failed:
            failed.append(shard)
            raise StoreUnavailableError(f"PUT failed: AWS4-HMAC-SHA256 Credential={KEY_ID}/x, key {SECRET}, 503")
        return label(self, shard, attempt)

    monkeypatch.setattr(labeler.ShardLabeler, "label", fail_once)
    sfg_dist.run(make_job(output={"dir": f"{bucket}/run"}))
    assert failed
    location = Location(f"{bucket}/run")
    keys = [entry.key for entry in location.list()]
    assert any(key.startswith("pairs.zarr/drivers/") for key in keys)
    contents = {key: location.read(key) for key in keys}
    assert b"<AWS_SECRET_ACCESS_KEY>" in contents["events.jsonl"]
    assert b"&lt;AWS_SECRET_ACCESS_KEY&gt;" in contents["report.html"]
    for key, content in contents.items():
        assert SECRET.encode() not in content, key
        assert KEY_ID.encode() not in content, key
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "MY_PASSWORD", "SOME_API_KEY", "RAY_AUTH_TOKEN"])
def test_values_of_secret_variables_are_blotted_out(monkeypatch, name):
    monkeypatch.setenv(name, "s3cret-value")
    monkeypatch.setenv("PLAIN", "plain-value")
    assert without_credentials("a s3cret-value, a plain-value") == f"a <{name}>, a plain-value"
