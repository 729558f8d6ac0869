"""A whole run with output.dir on an S3 server: the same figures and the same bytes as on the local disk."""

import json
import subprocess
import sys

import numpy as np
import pytest

import sfg_dist
from sfg_dist.events import EventLog
from sfg_dist.store import Location

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYsecret"
KEY_ID = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, request):
    """URL of an empty bucket, with the environment that reaches it."""
    import urllib.request

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    name = f"bucket{abs(hash(request.node.nodeid)) % 10**8}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")).close()
    return f"s3://{name}"


def test_a_run_in_a_bucket_is_the_run_on_the_disk(make_job, tmp_path, bucket):
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


def sfg(directory, *words):
    done = subprocess.run(
        [sys.executable, "-m", "sfg_dist.cli", *map(str, words)], cwd=directory, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands_take_urls(make_job, tmp_path, bucket):
    job = make_job(output={"dir": f"{bucket}/run"})
    (tmp_path / "job.toml").write_text(job.to_toml())
    for stage in ("label", "train", "sample", "evaluate"):
        said = sfg(tmp_path, stage, "job.toml")
    assert f"report: {bucket}/run/report.html" in said
    assert "complete" in sfg(tmp_path, "status", f"{bucket}/run")
    sfg(tmp_path, "sample", f"{bucket}/run/model", "-n", "100", "--out", "rows.npy")
    sfg(tmp_path, "sample", f"{bucket}/run/model", "-n", "100", "--out", f"{bucket}/rows.zarr")
    from sfg_dist.data import open_table

    np.testing.assert_array_equal(open_table(f"{bucket}/rows.zarr").values, np.load(tmp_path / "rows.npy"))
    assert {path.name for path in tmp_path.iterdir()} == {"job.toml", "rows.npy"}
