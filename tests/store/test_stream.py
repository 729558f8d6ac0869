"""The order of training: each pair once an epoch, equal batches for any number of ranks, bounded memory and reads."""

import threading
import time

import numpy as np
import pytest
from patience import patience

from sfg_dist.job.errors import StoreError
from sfg_dist.store import Frame, PairStream, create_store, open_pairs, read_ranges
from sfg_dist.store.rows import dask_array

NUM_ROWS, SHARD_ROWS, DIM = 1000, 64, 3
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
EDGES = np.append(np.arange(0, NUM_ROWS, SHARD_ROWS), NUM_ROWS)


class Blocks:
    """A table that notes which rows were read; its values name their row."""

    shape = (NUM_ROWS, DIM)

    def __init__(self, offset):
        self.offset, self.read = offset, []

    def __getitem__(self, rows):
        numbers = np.arange(NUM_ROWS)[rows]
        self.read.append((int(numbers[0]), int(numbers[-1]) + 1))
        return np.repeat((numbers + self.offset)[:, None], DIM, axis=1).astype(np.float32)


def make_stream(**changed):
    sources = (Blocks(0), Blocks(10_000))
    settings = {"edges": EDGES, "num_rows": 950, "batch_size": 70, "seed": 5, "shuffle_rows": 200} | changed
    return PairStream(sources, **settings), sources


def global_batches(world_size, epoch, start_step=0, **changed):
    """The rows of each global batch, ascending, put together from all ranks."""
    ranks = [make_stream(rank=rank, world_size=world_size, **changed)[0] for rank in range(world_size)]
    return [
        np.sort(np.concatenate([part.rows for part in parts]))
        for parts in zip(*(stream.epoch(epoch, start_step) for stream in ranks), strict=True)
    ]


def same(batches, others):
    return len(batches) == len(others) and all(map(np.array_equal, batches, others))


def test_every_row_once_an_epoch_and_every_row_from_its_source():
    stream, sources = make_stream()
    for epoch in range(3):
        batches = list(stream.epoch(epoch))
        rows = np.concatenate([batch.rows for batch in batches])
        assert sorted(rows) == list(range(950))
        assert [batch.step for batch in batches] == list(range(14)) == list(range(stream.num_batches))
        assert [batch.global_rows for batch in batches] == [70] * 13 + [40]
        for batch in batches:
            assert np.array_equal(batch.latents[:, 0], batch.rows)
            assert np.array_equal(batch.labels[:, 2], batch.rows + 10_000)
    read = {row for start, stop in sources[0].read for row in range(start, stop)}
    assert read >= set(range(950))


def test_whole_shards_are_read_and_nothing_held_out():
    stream, sources = make_stream()
    list(stream.epoch(0))
    for source in sources:
        assert sorted(source.read) == [(start, min(start + SHARD_ROWS, 950)) for start in range(0, 950, SHARD_ROWS)]


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed, epoch):
        stream, _ = make_stream(seed=seed)
        return tuple(np.concatenate([batch.rows for batch in stream.epoch(epoch)]))

    assert order(5, 0) == order(5, 0)
    assert len({order(5, 0), order(5, 1), order(6, 0)}) == 3


def test_every_block_of_a_window_is_spread_evenly_over_its_batches():
    stream, _ = make_stream(shuffle_rows=NUM_ROWS, num_rows=960)
    for batch in list(stream.epoch(0))[:-1]:
        counts = np.bincount(batch.rows // SHARD_ROWS, minlength=15)
        assert counts.min() >= 70 // 15 - 2
        assert counts.max() <= 70 // 15 + 3
    # Within a block the rows come in an order of chance.
    rows = np.concatenate([batch.rows for batch in stream.epoch(0)])
    block = rows[rows < SHARD_ROWS]
    assert abs(np.corrcoef(block, np.arange(len(block)))[0, 1]) < 0.4
    assert sorted(block) == list(range(SHARD_ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8, 40])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size, seed):
    assert same(global_batches(world_size, epoch=2, seed=seed), global_batches(1, epoch=2, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("world_size", [1, 4])
def test_stopped_with_two_ranks_and_resumed_with_others_the_rest_is_the_same(world_size, seed):
    whole = global_batches(2, epoch=1, seed=seed)
    stop_at = int(np.random.default_rng(seed).integers(1, 13))
    assert same(whole[:stop_at] + global_batches(world_size, 1, stop_at, seed=seed), global_batches(1, 1, seed=seed))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_have_about_equal_parts_of_every_batch(world_size):
    ranks = [make_stream(rank=rank, world_size=world_size)[0] for rank in range(world_size)]
    for parts in list(zip(*(stream.epoch(0) for stream in ranks), strict=True))[:-1]:
        assert {part.global_rows for part in parts} == {70}
        # 4 shards in a window, so a cut goes through one of them from 8 ranks on, and rows there fall by chance.
        spare = 5 if world_size < 8 else 9
        assert max(abs(len(part.rows) - 70 / world_size) for part in parts) <= spare


@pytest.mark.parametrize("start", [0, 1, 5, 13, 14])
def test_an_epoch_can_be_entered_at_any_batch(start):
    stream, _ = make_stream()
    whole = list(stream.epoch(1))
    other, sources = make_stream()
    rest = list(other.epoch(1, start_step=start))
    assert [batch.step for batch in rest] == [batch.step for batch in whole[start:]]
    for mine, theirs in zip(rest, whole[start:], strict=True):
        assert np.array_equal(mine.rows, theirs.rows)
        assert np.array_equal(mine.labels, theirs.labels)
    if start >= 5:  # windows before it were not read
        assert len(sources[0].read) < 15


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_rows_held_never_pass_two_windows_shared_by_the_ranks(world_size):
    for rank in range(world_size):
        stream, _ = make_stream(rank=rank, world_size=world_size)
        assert stream.window_blocks == 4  # 200 rows are 3.1 blocks of 64
        bound = 2 * -(-4 * SHARD_ROWS // world_size)
        for epoch in range(2):
            for _ in stream.epoch(epoch, more=True):
                assert sum(len(tables[0]) for tables in stream._held.values()) <= bound
        assert 0 < stream.max_rows_held <= bound


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "shuffle_rows"), [(1, 200), (2, 200), (4, 200), (8, 200), (3, 512), (8, 1)])
def test_what_all_ranks_read_is_within_the_stated_bound(world_size, shuffle_rows):
    fetched = 0
    for rank in range(world_size):
        stream, sources = make_stream(rank=rank, world_size=world_size, shuffle_rows=shuffle_rows)
        list(stream.epoch(0))
        # A store gives whole units: here a shard, of which the last of the rows to train on is cut.
        for start, stop in sources[0].read:
            fetched += sum(int(EDGES[b + 1] - EDGES[b]) for b in range(start // SHARD_ROWS, -(-stop // SHARD_ROWS)))
        assert stream.rows_read == sum(stop - start for start, stop in sources[0].read)
    num_cuts = stream.num_windows * (world_size - 1) + 1  # of windows between ranks, and before the held-out rows
    assert 950 <= fetched <= 950 + num_cuts * SHARD_ROWS
    if world_size in (2, 4) and shuffle_rows == 200:
        # The number of ranks divides that of shards in a window: cuts go through a shard only in the window with the
        # shard that the held-out rows cut, and in the last one, which is shorter.
        assert fetched <= 960 + 2 * (world_size - 1) * SHARD_ROWS


def test_a_store_of_one_window_is_read_once():
    stream, sources = make_stream(shuffle_rows=NUM_ROWS)
    for epoch in range(4):
        assert sum(len(batch.rows) for batch in stream.epoch(epoch, more=True)) == 950
    assert len(sources[0].read) == 15
    assert stream.rows_read == 950


class Gate(Blocks):
    """A table that says how many reads are under way, and lets none end before several are."""

    def __init__(self, offset, wanted):
        super().__init__(offset)
        self.inside, self.most, self.wanted = 0, 0, wanted
        self.change = threading.Condition()

    def __getitem__(self, rows):
        with self.change:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.change.notify_all()
            self.change.wait_for(lambda: self.most >= self.wanted, timeout=patience(30))
            self.inside -= 1
        return super().__getitem__(rows)


def test_shards_of_a_window_are_read_at_once():
    source = Gate(0, wanted=3)
    stream = PairStream([source], edges=EDGES, num_rows=950, batch_size=70, seed=5, shuffle_rows=200)
    next(iter(stream.epoch(0)))
    assert source.most >= 3
    stream.close()


def wait_for(condition):
    deadline = time.monotonic() + patience(30)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_next_window_is_read_while_one_is_in_use_and_the_next_epochs_first_too():
    stream, sources = make_stream()
    batches = stream.epoch(0, more=True)
    next(batches)
    wait_for(lambda: len(sources[0].read) == 8)  # two windows of four
    list(batches)
    wait_for(lambda: len(sources[0].read) == 19)  # the epoch's 15, and the first window of the next
    rows = [batch.rows for batch in stream.epoch(1)]
    fresh = [batch.rows for batch in make_stream()[0].epoch(1)]
    assert same(rows, fresh)
    assert len(sources[0].read) == 30
    stream.close()


def test_an_epoch_left_half_way_disturbs_no_other():
    stream, _ = make_stream()
    batches = stream.epoch(0)
    next(batches)
    del batches
    assert same([batch.rows for batch in stream.epoch(3)], [batch.rows for batch in make_stream()[0].epoch(3)])


def test_some_blocks_alone():
    stream, _ = make_stream(blocks=[0, 3, 14, 15, 3])  # 15 is held out whole, 14 in part
    assert stream.num_rows == 64 + 64 + 54
    rows = np.concatenate([batch.rows for batch in stream.epoch(0)])
    assert sorted(rows) == [*range(64), *range(192, 256), *range(896, 950)]
    with pytest.raises(ValueError, match="none of the blocks"):
        make_stream(blocks=[15])


def test_a_failed_read_is_raised_and_can_be_tried_again():
    stream, sources = make_stream()
    real = Blocks.__getitem__
    failures = [OSError("the disk is away")]

    class Flaky(Blocks):
        def __getitem__(self, key):
            if failures:
                raise failures.pop()
            return real(self, key)

    sources[0].__class__ = Flaky
    with pytest.raises(
        StoreError, match=r"rows \d+ to \d+ of the pairs cannot be read: the disk is away.*sfg verify.*sfg repair"
    ):
        list(stream.epoch(0))
    assert sorted(np.concatenate([batch.rows for batch in stream.epoch(0)])) == list(range(950))
    for batch in stream.epoch(0):
        assert np.array_equal(batch.latents[:, 0], batch.rows)


@pytest.mark.slow
def test_batches_larger_than_the_store_and_single_rows():
    stream, _ = make_stream(batch_size=5000)
    assert [len(batch.rows) for batch in stream.epoch(0)] == [950]
    stream, _ = make_stream(batch_size=1, num_rows=3)
    assert sorted(int(batch.rows[0]) for batch in stream.epoch(0)) == [0, 1, 2]


def test_refuses():
    with pytest.raises(ValueError, match="num_rows"):
        make_stream(num_rows=0)
    with pytest.raises(ValueError, match="num_rows"):
        make_stream(num_rows=1001)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        make_stream(rank=2, world_size=2)
    with pytest.raises(ValueError, match="differ in their rows"):
        make_stream(edges=np.array([0, 500]))


def test_the_stream_of_a_store_in_a_directory_and_in_a_bucket(new_store, fill, place):
    """Two ranks over a store of 5 shards, from the very objects."""
    fill(new_store())
    pairs = open_pairs(place)
    latents, labels = pairs.latents.compute(), pairs.labels.compute()
    found = []
    for rank in range(2):
        with PairStream.of(
            pairs, num_rows=34, batch_size=9, seed=0, shuffle_rows=16, rank=rank, world_size=2
        ) as stream:
            for batch in stream.epoch(0):
                assert np.array_equal(batch.latents, latents[batch.rows])
                assert np.array_equal(batch.labels, labels[batch.rows])
                found.extend(batch.rows)
    assert sorted(found) == list(range(34))


def test_a_damaged_shard_says_what_to_do(new_store, fill, location, place):
    fill(new_store())
    location.write("labels/c/2/0", b"x" * location.size("labels/c/2/0"))
    with (
        PairStream.of(open_pairs(place), num_rows=36, batch_size=9, seed=0, shuffle_rows=16) as stream,
        pytest.raises(StoreError, match=r"rows 16 to 24 of the pairs cannot be read.*sfg verify.*sfg repair"),
    ):
        list(stream.epoch(0))


def test_the_work_of_a_read_does_not_grow_with_the_store(small_plan, tmp_path):
    """A store of a million shards, of which two are there, opens and reads without walking over the others."""
    plan = small_plan(num_pairs=8_000_000)
    pairs = create_store(
        tmp_path / "pairs.zarr",
        plan,
        Frame(
            np.random.default_rng(3).standard_normal((50, 2)).astype(np.float32),
            {"scale": np.arange(1.0, 4.0)},
            {"kind": "standardize"},
        ),
    )
    rows = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    for shard in (0, 999_999):
        pairs.write_shard(shard, rows, rows)
    ranges = [(0, 8), (7_999_992, 8_000_000)]
    sources = [pairs.rows("latents"), pairs.rows("labels")]
    assert all(np.array_equal(table, np.concatenate([rows, rows])) for table in read_ranges(sources, ranges))
    graph = dask_array(sources[0], ranges)
    assert graph.numblocks == (2, 1)
    assert len(dict(graph.__dask_graph__())) <= 4
    assert len(plan.shard_edges) == 1_000_001


@pytest.mark.parametrize("extended", [False, True])
def test_edges_of_shards_are_those_of_the_plan(small_plan, extended):
    plan = small_plan(num_pairs=37)
    plan = plan.extended(61).extended(70) if extended else plan
    expected = [plan.shard_range(shard)[0] for shard in range(plan.num_shards)] + [plan.num_pairs]
    assert plan.shard_edges.tolist() == expected
