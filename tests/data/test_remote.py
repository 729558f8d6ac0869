"""Tables in S3: over HTTP from a loopback server, and every format from a bucket in memory."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from obstore.store import LocalStore

import sfg_dist.job.object_stores
from sfg_dist.data import open_table, sources
from sfg_dist.job.errors import DataError

CSV = b"a,b\n1,2\n3,4\n"


class Bucket(BaseHTTPRequestHandler):
    """Serves one object, path style, as S3 would."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = self.path == "/bucket/folder/table.csv"
        body = CSV if found else b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("endpoint")
def test_csv_over_http():
    table = open_table("s3://bucket/folder/table.csv")
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])
    assert table.columns == ("a", "b")


@pytest.mark.usefixtures("endpoint")
def test_missing_object():
    with pytest.raises(DataError, match=r"s3://bucket/other\.csv does not exist"):
        open_table("s3://bucket/other.csv")


@pytest.mark.slow
@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("suffix", [".csv", ".zarr"])
@pytest.mark.parametrize("has_half", [False, True])
def test_without_credentials_it_is_said_which_to_set(monkeypatch, suffix, has_half):
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    if has_half:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(sfg_dist.job.object_stores, "MAX_RETRIES", 1)
    with pytest.raises(DataError, match=rf"table\{suffix} cannot be (fetched|opened): found no credentials") as caught:
        open_table(f"s3://bucket/folder/table{suffix}")
    assert "127.0.0.1:9" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet", ".h5", ".zarr"])
def test_every_format(tmp_path, monkeypatch, suffix):
    import h5py
    import pyarrow as pa
    import zarr
    from pyarrow import csv, parquet

    values = np.arange(12.0).reshape(4, 3)
    path = tmp_path / f"t{suffix}"
    records = pa.table(list(values.T), names=["c0", "c1", "c2"])
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["X"] = values
    else:
        {
            ".npy": lambda: np.save(path, values),
            ".npz": lambda: np.savez(path, X=values),
            ".csv": lambda: csv.write_csv(records, path),
            ".parquet": lambda: parquet.write_table(records, path),
            ".zarr": lambda: zarr.create_group(str(path)).create_array("X", data=values),
        }[suffix]()

    def open_bucket(url):
        return LocalStore(tmp_path), url.removeprefix("s3://bucket/")

    monkeypatch.setattr(sources, "open_bucket", open_bucket)
    table = open_table(f"s3://bucket/t{suffix}")
    np.testing.assert_array_equal(table.values, values)
    assert table.columns == ("c0", "c1", "c2")
    with pytest.raises(DataError, match=rf"s3://bucket/none\{suffix} (does not exist|holds no Zarr)"):
        open_table(f"s3://bucket/none{suffix}")
