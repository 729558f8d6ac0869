"""A full disk under the logs: what happened may be lost, the labels and the driver's waiting may not."""

import json
import resource

import pytest

from sfg_dist.job.errors import StoreError, StoreFullError
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location


@pytest.fixture
def fill_disk(monkeypatch):
    """A function after which lines can be added to no log, as on a disk without space."""

    def fail(self, key, content, *, is_lines=False):
        raise StoreFullError(f"cannot write {self.url}/{key}: no space left on the device")

    return lambda: monkeypatch.setattr(Location, "append", fail)


@pytest.fixture
def undisturbed(small_labels, store_bytes):
    return store_bytes(small_labels(8))


def test_a_log_that_cannot_be_written_costs_one_warning(make_job, store_bytes, undisturbed, tmp_path, fill_disk):
    heard = []
    pipeline = Pipeline(make_job(), lambda entry: heard.append(entry["event"]))
    pipeline.open_store()
    fill_disk()
    with pytest.warns(
        UserWarning, match=r"some events are missing in the log: .*events\.jsonl.*no space left"
    ) as caught:
        pipeline.label()
    assert len(caught) == 1
    assert heard.count("shard") == 8  # the display goes on
    assert store_bytes(tmp_path / "run") == undisturbed


def test_other_stages_say_at_once_that_the_disk_is_full(make_job, copy_labels, fill_disk):
    copy_labels()
    pipeline = Pipeline(make_job())
    fill_disk()
    with pytest.raises(StoreError, match=r"cannot write .*/events\.jsonl: no space left"):
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

    for name in ("create", "write", "replace", "append"):
        monkeypatch.setattr(Location, name, failing(getattr(Location, name), StoreFullError("no space left")))
    with pytest.warns(UserWarning, match="some events are missing in the log") as caught:
        Pipeline(make_job(), listen).label()
    assert len(caught) == 1
    assert store_bytes(tmp_path / "run") == undisturbed
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [entry["done"] for entry in events if entry["event"] == "shard"] == list(range(1, 9))
    assert "attempt_failed" not in {entry["event"] for entry in events}  # that was the moment


def test_lines_are_added_whole_or_not_at_all(tmp_path):
    location = Location(tmp_path)
    location.append("log", b"one\n", is_lines=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # as where space ends in the middle of a line
    try:
        with pytest.raises(StoreError, match="too large"):
            location.append("log", b"two, which is too long\n", is_lines=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert location.read("log") == b"one\n"
    location.append("log", b"torn", is_lines=True)
    location.append("log", b"three\n", is_lines=True)
    assert location.read("log") == b"one\ntorn\nthree\n"
