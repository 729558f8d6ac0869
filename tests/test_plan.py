"""Randomness that belongs to rows, and the plan's identity."""

import json
import math

import numpy as np
import pytest

from sfg_dist.job.config import Job
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.plan import (
    DRAW_ROWS,
    Plan,
    Stream,
    check_shard_rows,
    integer_rows,
    normal_rows,
    random_generator,
    unseal,
)
from sfg_dist.pipeline.plan import identity_of_keys


def make_plan(**changed):
    labels = {"direction": "decode", "batch_size": 64, "seed": 0}
    fields = {
        "identity": {"data": {"seed": 0}, "labels": labels, "reference": "abc", "queries": None},
        "num_pairs": 1000,
        "dim": 2,
        "shard_rows": 128,
        "columns": ("x", "y"),
        "source": "moons",
        "versions": {"numpy": "2"},
    }
    return Plan(**(fields | changed))


@pytest.mark.parametrize(
    "draw",
    [lambda a, b: normal_rows(7, Stream.LATENTS, a, b, 3), lambda a, b: integer_rows(7, Stream.ENCODE, a, b, 50)],
)
def test_rows_do_not_depend_on_how_they_are_asked_for(draw):
    whole = draw(0, 3 * DRAW_ROWS + 5)
    for start, stop in [
        (0, 1),
        (1, 2),
        (DRAW_ROWS - 1, DRAW_ROWS + 1),
        (100, 3 * DRAW_ROWS),
        (2 * DRAW_ROWS + 7, len(whole)),
    ]:
        assert np.array_equal(draw(start, stop), whole[start:stop])


def test_normal_rows_are_standard_normal_and_differ_by_seed_and_stream():
    rows = normal_rows(0, Stream.LATENTS, 0, 20_000, 2)
    assert rows.dtype == np.float32
    assert np.abs(rows.mean(axis=0)).max() < 0.03
    assert np.abs(rows.std(axis=0) - 1).max() < 0.03
    assert not np.array_equal(rows, normal_rows(1, Stream.LATENTS, 0, 20_000, 2))
    assert not np.array_equal(rows, normal_rows(0, Stream.SAMPLE, 0, 20_000, 2))


def test_streams_never_share_a_key():
    first = {random_generator(0, stream, index).integers(2**62) for stream in Stream for index in (0, 1, 2**50)}
    assert len(first) == 3 * len(Stream)


def test_shards_cover_every_row_once():
    plan = make_plan()
    ranges = [plan.shard_range(shard) for shard in range(plan.num_shards)]
    assert plan.num_shards == 8
    assert ranges[0] == (0, 128)
    assert ranges[-1] == (896, 1000)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(1000))
    for shard, (start, stop) in enumerate(ranges):
        rows = [row for first, last in plan.batches(shard) for row in range(first, last)]
        assert rows == list(range(start, stop))


def test_both_directions_alternate():
    plan = make_plan(identity={"labels": {"direction": "both", "batch_size": 64}})
    assert [plan.shard_direction(shard) for shard in range(3)] == ["decode", "encode", "decode"]


def test_the_time_grid_is_the_jobs_word_or_the_points_that_were_fitted():
    labels = {"direction": "decode", "batch_size": 64, "time_grid": "graded"}
    assert make_plan(identity={"labels": labels}).time_grid("decode") == "graded"
    points = [0.0, -1.0, -6.9]
    fitted = make_plan(identity={"labels": labels | {"time_grid": "fitted"}, "time_grid": {"decode": points}})
    assert Plan.from_json(fitted.to_json()).time_grid("decode") == points
    elsewhere = make_plan(identity={**fitted.identity, "time_grid": {"decode": [0.0, -1.001, -6.9]}})
    assert fitted.difference(elsewhere) == []
    assert fitted.difference(make_plan(identity={"labels": labels})) == ["labels.time_grid: 'fitted' -> 'graded'"]


def test_json_round_trip_and_edits_are_seen():
    plan = make_plan()
    assert Plan.from_json(plan.to_json()) == plan
    for edited in ({"source": "circles"}, {"identity": {**plan.identity, "reference": "abd"}}):
        document = json.loads(plan.to_json()) | edited
        with pytest.raises(ValueError, match="edited"):
            Plan.from_json(json.dumps(document).encode())
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(b"{}")
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(b"torn")
    with pytest.raises(ValueError, match="format 99"):
        Plan.from_json(json.dumps(json.loads(plan.to_json()) | {"format_version": 99}).encode())


def test_difference_names_what_changed():
    changed = make_plan(num_pairs=2000, identity={**make_plan().identity, "data": {"seed": 3}})
    assert make_plan().difference(changed) == ["data.seed: 0 -> 3", "num_pairs: 1000 -> 2000"]
    assert make_plan().difference(make_plan(versions={"numpy": "3"})) == []


def test_fingerprint_tells_shapes_and_bytes_apart():
    rows = np.arange(6, dtype=np.float32)
    assert (
        len({fingerprint(rows.reshape(2, 3)), fingerprint(rows.reshape(3, 2)), fingerprint(rows.reshape(2, 3) + 1)})
        == 3
    )


def test_each_kind_of_device_has_its_own_batch():
    plain = make_plan()
    both = make_plan(identity={"labels": {"direction": "decode", "batch_size": 32, "gpu_batch_size": 128}})
    assert [plain.batch_rows(kind) for kind in ("cpu", "cuda")] == [64, 64]
    assert [both.batch_rows(kind) for kind in ("cpu", "cuda")] == [32, 128]
    assert list(both.batches(1, "cuda")) == [(128, 256)]
    assert list(both.batches(1)) == [(128, 160), (160, 192), (192, 224), (224, 256)]
    check_shard_rows(4096, 1024, 2048)
    with pytest.raises(ConfigError, match=r"labels\.gpu_batch_size = 3000: take labels\.shard_rows = 3000"):
        check_shard_rows(4096, 1024, 3000)


def test_shard_rows_must_be_whole_batches():
    check_shard_rows(4096, 1024)
    with pytest.raises(ConfigError, match=r"labels\.shard_rows = 5120"):
        check_shard_rows(5000, 1024)


def test_the_default_range_is_no_part_of_the_identity():
    """Plans of the first release did not know it, and their stores are to go on."""
    from sfg_dist.job.config import resolve_job
    from sfg_dist.pipeline.plan import identity_of_keys

    assert "bounds" not in identity_of_keys(resolve_job({"data": {"source": "moons"}}))["data"]
    for bounds in ("none", {"x": [0.0, 1.0]}):
        job = resolve_job({"data": {"source": "moons", "bounds": bounds}})
        assert identity_of_keys(job)["data"]["bounds"] == bounds


def test_open_ranges_are_plain_json():
    job = Job.model_validate({"data": {"source": "moons", "bounds": {"x": [-math.inf, 3.0]}}})
    assert json.loads(json.dumps(identity_of_keys(job), allow_nan=False))["data"]["bounds"] == {"x": ["-inf", 3.0]}


@pytest.mark.parametrize(
    ("document", "words"), [(b"", "no JSON document: it is empty"), (b"{\n x", "line 2"), (b"[]", "must be a table")]
)
def test_a_torn_plan_is_told_without_the_words_of_a_library(document, words):
    with pytest.raises(ValueError, match=words):
        unseal(document)
