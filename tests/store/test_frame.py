"""What is laid out before the plan: the same bytes from a table in memory and from one that comes in blocks."""

import numpy as np
import pytest

import sfg_dist.store.frame
from sfg_dist.job.errors import StoreError
from sfg_dist.job.fingerprint import fingerprint, fingerprint_of_blocks
from sfg_dist.store import Frame, Location, RowBlocks, create_store

ROWS = np.random.default_rng(5).standard_normal((1000, 2)).astype(np.float32)


def blocks_of(rows, *sizes):
    def read():
        start = 0
        for size in sizes:
            yield rows[start : start + size]
            start += size
        yield rows[start:]

    return RowBlocks(len(rows), rows.shape[1], read)


def contents(location):
    return {entry.key: location.read(entry.key) for entry in location.list()}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("sfg_dist.store.arrays.MAX_CHUNK_BYTES", 512)  # 64 rows of the reference an object


@pytest.mark.slow
def test_blocks_lay_out_the_same_store(new_store, place, monkeypatch):
    monkeypatch.setattr(sfg_dist.store.frame, "REFERENCE_BLOCK_ROWS", 1000)
    order = lambda rows: np.argsort(rows[:, 0], kind="stable")  # noqa: E731
    whole = new_store(reference=ROWS, make_order=order)
    for number, sizes in enumerate([(), (1, 63, 64, 200), (999,), (500, 0, 499)]):
        url = f"{place}-{number}"
        pairs = create_store(
            url,
            whole.plan,
            Frame(blocks_of(ROWS, *sizes), {"scale": np.arange(1.0, 4.0)}, {"kind": "standardize"}, make_order=order),
        )
        assert contents(Location(url)) == contents(whole.location)
        assert np.array_equal(pairs.reference, ROWS)


def test_a_reference_in_blocks_is_ordered_block_by_block(new_store, small_plan):
    seen = []

    def make_order(rows):
        seen.append(len(rows))
        return np.argsort(rows[:, 0], kind="stable")

    plan = small_plan(reference=ROWS)
    location = Location(new_store().location.url + "-blocks", create=True)
    pairs = create_store(location.url, plan, Frame(blocks_of(ROWS, 410), {}, {}, None, make_order, 300))
    assert seen == [300, 300, 300, 100]
    wanted = np.concatenate([np.argsort(ROWS[k : k + 300, 0], kind="stable") for k in range(0, 1000, 300)])
    assert np.array_equal(pairs.order_rows(0, 1000), wanted)
    assert np.array_equal(pairs.order_rows(290, 610), wanted[290:610])


def test_rows_of_the_reference_can_be_read_in_part(new_store):
    pairs = new_store(reference=ROWS)
    assert pairs.num_reference == 1000
    assert np.array_equal(pairs.reference_rows(60, 130), ROWS[60:130])
    assert pairs.order_rows(0, 10) is None
    with pytest.raises(StoreError, match="lacks some of rows 990 to 1010"):
        pairs.reference_rows(990, 1010)
    pairs.location.delete("reference/rows/c/3/0")
    with pytest.raises(StoreError, match="lacks some of rows 190 to 300"):
        pairs.reference_rows(190, 300)
    with pytest.raises(StoreError, match="lacks some of rows"):
        _ = pairs.reference


def test_a_changed_reference_is_seen_by_its_fingerprint(new_store):
    pairs = new_store(reference=ROWS)
    first, second = (pairs.location.read(f"reference/rows/c/{k}/0") for k in (0, 1))
    pairs.location.write("reference/rows/c/0/0", second)  # whole, with checksums that fit, and not what it was
    assert first != second
    with pytest.raises(StoreError, match="not the table that the plan was made for"):
        _ = pairs.reference


@pytest.mark.parametrize("rows", [ROWS[:-1], np.concatenate([ROWS, ROWS[:1]]), ROWS[:, :1], ROWS + 1])
def test_blocks_that_are_not_the_promised_table_are_refused(small_plan, place, rows):
    table = RowBlocks(1000, 2, lambda: [rows[:500], rows[500:]])
    with pytest.raises(StoreError, match="table"):
        create_store(place, small_plan(reference=ROWS), Frame(table, {}, {}))
    assert not Location(place).exists("plan.json")


def test_the_fingerprint_of_blocks_is_that_of_the_table():
    assert fingerprint_of_blocks([ROWS[:1], ROWS[1:700], ROWS[700:]], (1000, 2), "<f4") == fingerprint(ROWS)
    assert fingerprint_of_blocks([ROWS[:999]], (1000, 2), "<f4") != fingerprint(ROWS)


def test_the_frame_of_another_job_that_has_no_plan_is_cleared_away(new_store):
    pairs = new_store(transform_arrays={"scale": np.ones(3), "other": np.ones(5)}, reference=ROWS)
    for key in ("plan.json", "plan.copy.json"):
        pairs.location.delete(key)
    again = new_store(transform_arrays={"scale": np.ones(3)}, num_pairs=44, reference=ROWS[:70])
    assert set(again.transform[0]) == {"scale"}
    assert np.array_equal(again.reference, ROWS[:70])
    assert sorted(entry.key for entry in again.location.list("reference/rows/c")) == [
        "reference/rows/c/0/0",
        "reference/rows/c/1/0",
    ]
