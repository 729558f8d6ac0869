"""One interface to a directory and to a bucket on a real S3 server."""

import errno
import os

import pytest

import sfg_dist.job.object_stores
from sfg_dist.job.errors import ConfigError, StoreError, StoreFullError, StoreUnavailableError
from sfg_dist.store import Location


def keys(location, prefix=""):
    return sorted(entry.key for entry in location.list(prefix))


def test_objects_come_back(location):
    assert location.read("a/b") is None
    assert location.size("a/b") is None
    assert not location.exists("a/b")
    location.write("a/b", b"one")
    location.write("a/b", b"three")
    location.write("c", b"")
    assert location.read("a/b") == b"three"
    assert location.size("a/b") == 5
    assert location.exists("c")
    assert {entry.key: entry.bytes for entry in location.list()} == {"a/b": 5, "c": 0}
    assert keys(location, "a") == ["a/b"]
    assert keys(location, "absent") == []
    assert abs(location.now() - location.look("c").modified) < 60
    location.move("a/b", "d/e")
    location.delete("c")
    location.delete("c")
    assert keys(location) == ["d/e"]
    if location.root is not None:
        assert sorted(path.name for path in location.root.rglob("*")) == ["d", "e"]


def test_of_two_creates_one_wins(location):
    assert location.create("x/y", b"first")
    assert not location.create("x/y", b"second")
    assert location.read("x/y") == b"first"


def test_a_large_object_is_created_once_and_not_in_parts(location):
    content = os.urandom(12 << 20)  # obstore sends more than 5 MiB in parts, which has no conditional form
    assert location.create("large", content)
    assert not location.create("large", content[::-1])
    assert location.read("large") == content


def test_a_replacement_needs_the_version_that_was_seen(location):
    location.write("x", b"one")
    seen = location.look("x")
    assert location.replace(seen, b"two")  # as long as the others: a size is no version
    assert not location.replace(seen, b"six")
    assert location.read("x") == b"two"
    seen = location.look("x")
    location.delete("x")
    assert not location.replace(seen, b"four")
    assert location.read("x") is None


@pytest.mark.slow
def test_many_objects_are_written_and_read_at_once(location):
    objects = {f"many/{k:03d}": bytes([k]) * k for k in range(150)}
    location.write_many(objects.items())
    wanted = [*objects, "many/absent"]
    assert list(location.read_many(wanted)) == [*objects.items(), ("many/absent", None)]


def test_staging_files_are_found_and_removed(tmp_path):
    location = Location(tmp_path)
    location.write("a/b/0", b"x")
    for name in ("a/b/0#1", "a/b/0#12", "plan.json#1"):
        (tmp_path / name).write_bytes(b"half")
    assert keys(location) == ["a/b/0"]
    assert {entry.key for entry in location.partials()} == {"a/b/0#1", "a/b/0#12", "plan.json#1"}
    location.remove_partials()
    assert list(location.partials()) == []
    assert location.read("a/b/0") == b"x"


def test_a_flush_reaches_the_object_and_every_directory_above_it(tmp_path, monkeypatch):
    location = Location(tmp_path / "store", create=True)
    location.create("a/b/c", b"x")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")))
    location.flush("a/b/c")
    root = str(tmp_path / "store")
    assert flushed == [f"{root}/a/b/c", f"{root}/a/b", f"{root}/a", root]
    flushed.clear()
    Location(tmp_path / "new" / "store", create=True)
    assert flushed == [f"{tmp_path}/new", str(tmp_path)]


def test_what_was_written_or_moved_has_reached_the_disk(tmp_path, monkeypatch):
    location = Location(tmp_path)
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")))
    for key, write in (
        ("a/x", lambda: location.write("a/x", b"1")),
        ("b/x", lambda: location.move("a/x", "b/x")),
        ("c/x", lambda: location.write_many([("c/x", b"1")])),
        ("d/x", lambda: location.write_many([("d/x", b"1")], is_settled=lambda: False)),
    ):
        flushed.clear()
        write()
        assert flushed == [f"{tmp_path}/{key}", f"{tmp_path}/{key[0]}", str(tmp_path)]


@pytest.mark.parametrize("url", ["https://host/x", "memory://", "s3://", "s3:///x", "file:///tmp/x"])
def test_other_schemes_are_refused(url):
    with pytest.raises(ConfigError, match="expected"):
        Location(url)


def test_an_endpoint_without_a_server_is_unavailable_and_no_secret_is_told(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sfg_dist.job.object_stores, "MAX_RETRIES", 1)
    with pytest.raises(
        StoreUnavailableError, match=r"cannot read s3://bucket/.*/a/b: .*run the same command"
    ) as caught:
        Location(s3_url).read("a/b")
    assert "the-secret" not in str(caught.value)


@pytest.mark.parametrize("names", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY",)])
def test_without_credentials_it_is_said_which_to_set(s3_url, monkeypatch, names):
    """Without any, the machine's own are asked for at an address that means nothing to the user."""
    for name in names:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(sfg_dist.job.object_stores, "MAX_RETRIES", 1)
    with pytest.raises(StoreError, match="found no credentials, or half of them: set AWS_ACCESS_KEY_ID and") as caught:
        Location(s3_url).read("a/b")
    assert "AWS_SKIP_SIGNATURE=true for a public bucket" in str(caught.value)
    assert "127.0.0.1:9" not in str(caught.value)
    assert "the-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.ESTALE, StoreUnavailableError),
        (errno.EACCES, StoreError),
    ],
)
def test_errors_of_the_system_say_what_kind_they_are(tmp_path, monkeypatch, number, kind):
    location = Location(tmp_path)
    location.create("x", b"1")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=r"cannot flush .*/x: ") as caught:
        location.flush("x")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("Generic S3 error: Server returned non-2xx status code: 503 Service Unavailable: SlowDown", "unavailable"),
        ("Generic S3 error: operation timed out", "unavailable"),
        ("Generic S3 error: HTTP error: error sending request", "unavailable"),
        ("Generic LocalFileSystem error: No space left on device (os error 28)", "full"),
        ("Server returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch", "other"),
    ],
)
def test_errors_of_obstore_are_told_apart_by_their_words(text, trouble):
    from obstore.exceptions import GenericError

    assert sfg_dist.job.object_stores.trouble_of(GenericError(text)) == trouble


def test_secrets_are_cut_from_urls():
    text = "PUT https://user:pass@host/a/b?sig=abc&x=1 failed"
    assert sfg_dist.job.object_stores.without_secrets(text) == "PUT https://host/a/b failed"


def test_a_bucket_that_is_not_there(s3_url):
    location = Location("s3://no-such-bucket/x")
    with pytest.raises(StoreError, match=r"cannot create s3://no-such-bucket/x/y"):
        location.create("y", b"1")


@pytest.mark.slow
def test_requests_that_go_wrong_are_sent_again(s3_url, faulty_s3):
    proxy = faulty_s3(0.3, seed=1)
    location = Location(s3_url)
    for k in range(20):
        location.create(f"k/{k}", b"x" * k)
        assert location.read(f"k/{k}") == b"x" * k
    assert {"503", "lost answer", "dropped", "slow"} == set(proxy.faults)
    assert len(keys(location)) == 20


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/proc/nowhere/below"])
def test_the_kernels_own_file_systems_are_refused(folder):
    """A write of obstore's there would try for ever."""
    with pytest.raises(StoreError, match="files cannot be made there"):
        Location(folder, create=True)


def test_a_bound_that_is_far_beyond_a_file_takes_no_memory(tmp_path):
    location = Location(tmp_path)
    location.write("a", b"x")
    assert location.read("a", 1 << 60) == b"x"
