"""A full disk under the logs: what happened may be lost, the labels and the driver's waiting may not."""

import json
import resource
from pathlib import Path

import pytest

from sfg_dist.distributed.workers import DriverId
from sfg_dist.errors import StoreError, StoreFullError
from sfg_dist.events import append_lines
from sfg_dist.pipeline import Pipeline
from sfg_dist.store import Location

FULL = Path("/dev/full")  # a device on which every write finds no space
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def undisturbed(small_labels, store_bytes):
    return store_bytes(small_labels(8))


@needs_full_device
def test_a_log_that_cannot_be_written_costs_one_warning(make_job, store_bytes, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(DriverId, "new", lambda: DriverId("me", 1, "0"))
    pipeline, heard = Pipeline(make_job(), lambda entry: heard.append(entry["event"])), []
    pairs = pipeline.open_store()
    (tmp_path / "run" / "events.jsonl").unlink()
    (pairs.location.root / "events").mkdir()
    for log in (tmp_path / "run" / "events.jsonl", pairs.location.root / "events" / "me-1-0-0000.jsonl"):
        log.symlink_to(FULL)
    with pytest.warns(UserWarning, match=r"the log lacks some events: .*events\.jsonl.*no space left") as caught:
        pipeline.label()
    assert len(caught) == 1
    assert heard.count("shard") == 8  # the display goes on
    assert store_bytes(tmp_path / "run") == undisturbed


@needs_full_device
def test_other_stages_say_at_once_that_the_disk_is_full(make_job, copy_labels, tmp_path):
    copy_labels()
    pipeline = Pipeline(make_job())
    (tmp_path / "run" / "events.jsonl").unlink()
    (tmp_path / "run" / "events.jsonl").symlink_to(FULL)
    with pytest.raises(StoreError, match=r"cannot write events\.jsonl .*no space left"):
        pipeline.train()


@pytest.mark.slow
def test_the_driver_waits_on_a_full_disk_and_the_log_goes_on_after(
    make_job, store_bytes, undisturbed, tmp_path, monkeypatch
):
    """Every write fails from the third commit on until the driver has said that a shard failed."""
    is_full = False

    def listen(entry):
        nonlocal is_full
        is_full = (is_full or (entry["event"] == "shard" and entry["done"] == 3)) and entry["event"] != "attempt_failed"

    def failing(write, error):
        def call(*arguments, **keywords):
            if is_full:
                raise error
            return write(*arguments, **keywords)

        return call

    no_space = OSError(28, "No space left on device")
    for name in ("create", "write", "replace"):
        monkeypatch.setattr(Location, name, failing(getattr(Location, name), StoreFullError("no space left")))
    for module in ("events", "monitor"):
        monkeypatch.setattr(f"sfg_dist.{module}.append_lines", failing(append_lines, no_space))
    with pytest.warns(UserWarning, match="the log lacks some events") as caught:
        Pipeline(make_job(), listen).label()
    assert len(caught) == 1
    assert store_bytes(tmp_path / "run") == undisturbed
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [entry["done"] for entry in events if entry["event"] == "shard"] == list(range(1, 9))
    assert "attempt_failed" not in {entry["event"] for entry in events}  # that was the moment


def test_lines_are_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log"
    append_lines(path, b"one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # as where space ends in the middle of a line
    try:
        with pytest.raises(OSError, match="too large"):
            append_lines(path, b"two, which is too long\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"one\n"
    append_lines(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"
