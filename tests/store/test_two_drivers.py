"""Two drivers that lay out or extend one store at once: the one whose record came first has its store whole."""

import numpy as np
import pytest

from sfg_dist.job.errors import ConfigError, PlanMismatchError, StoreError
from sfg_dist.store import Frame, create, create_store, extend_store, open_pairs, verify


def interrupted(monkeypatch, then):
    """Once: just before a driver begins to write, the other one does all that it has to do."""
    real, calls = create.write_frame, []

    def write_frame(*args, **kwargs):
        if not calls:
            calls.append(None)
            then()
        return real(*args, **kwargs)

    monkeypatch.setattr(create, "write_frame", write_frame)


def test_a_frame_of_another_plan_is_left_alone(new_store, small_plan, fill, place, monkeypatch):
    theirs = {}

    def other():
        theirs["pairs"] = fill(new_store(num_pairs=40))
        theirs["bytes"] = {
            entry.key: theirs["pairs"].location.read(entry.key) for entry in theirs["pairs"].location.list()
        }

    interrupted(monkeypatch, other)
    rows = np.random.default_rng(9).standard_normal((70, 2)).astype(np.float32)
    with pytest.raises(PlanMismatchError, match="was made by another plan"):
        create_store(place, small_plan(reference=rows), Frame(rows, {}, {"kind": "none"}))
    pairs = open_pairs(place)
    assert {entry.key: pairs.location.read(entry.key) for entry in pairs.location.list()} == theirs["bytes"]
    assert verify(pairs).is_clean


def test_of_two_extensions_the_first_stays_whole(new_store, fill, place, monkeypatch):
    fill(new_store(num_pairs=36))
    real, calls = create.extension_objects, []

    def extension_objects(plan, record):
        if not calls:
            calls.append(None)
            extend_store(place, 45)
        return real(plan, record)

    monkeypatch.setattr(create, "extension_objects", extension_objects)
    with pytest.raises(ConfigError, match="extended to 45 pairs by another driver, not to 61"):
        extend_store(place, 61)
    pairs = fill(open_pairs(place))
    assert pairs.labels.shape == (45, 2)
    assert np.isfinite(pairs.labels.compute()).all()
    assert verify(pairs).is_clean


@pytest.mark.parametrize("key", ["frame.json", "labels/zarr.json", "transform/scale/c/0"])
def test_no_labels_are_made_from_a_frame_that_is_not_the_plans(new_store, place, key):
    pairs = new_store()
    pairs.check_frame()
    content = pairs.location.read(key)
    pairs.location.write(key, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"sfg verify.*sfg repair"):
        open_pairs(place).check_frame()
    pairs.location.delete(key)
    with pytest.raises(StoreError, match="is missing"):
        open_pairs(place).check_frame()


def test_an_array_of_another_length_is_not_read(new_store, place):
    pairs = new_store(num_pairs=36)
    metadata = pairs.location.read("labels/zarr.json").replace(b"36", b"96", 1)
    pairs.location.write("labels/zarr.json", metadata)
    with pytest.raises(
        StoreError, match=r"labels is float32 of shape \(96, 2\), the plan says float32 of shape \(36, 2\)"
    ):
        _ = open_pairs(place).labels
