"""The order of training: every pair once an epoch, the same batches for any number of ranks, bounded memory."""

import dask.array as da
import numpy as np
import pytest

from sfg_dist.errors import StoreError
from sfg_dist.store import PairStream

NUM_ROWS, SHARD_ROWS, DIM = 1000, 64, 3


class Blocks:
    """A table behind Dask that notes which rows were read."""

    shape, dtype, ndim = (NUM_ROWS, DIM), np.dtype(np.float32), 2

    def __init__(self, offset):
        self.offset, self.read = offset, []

    def __getitem__(self, key):
        rows = np.arange(NUM_ROWS)[key[0]]
        self.read.append((int(rows[0]), int(rows[-1]) + 1))
        return np.repeat((rows + self.offset)[:, None], DIM, axis=1).astype(np.float32)


def make_stream(**changed):
    sources = (Blocks(0), Blocks(10_000))
    arrays = [
        da.from_array(s, chunks=(SHARD_ROWS, DIM), asarray=False, meta=np.empty((0, 0), np.float32)) for s in sources
    ]
    settings = {"num_rows": 950, "batch_size": 70, "seed": 5, "shuffle_rows": 200} | changed
    return PairStream(*arrays, **settings), sources


def test_every_row_once_an_epoch_and_every_row_from_dask():
    stream, sources = make_stream()
    for epoch in range(3):
        batches = list(stream.epoch(epoch))
        rows = np.concatenate([batch.rows for batch in batches])
        assert sorted(rows) == list(range(950))
        assert [batch.step for batch in batches] == list(range(14)) == list(range(stream.num_batches))
        assert [batch.global_rows for batch in batches] == [70] * 13 + [40]
        for batch in batches:
            # The values name their row, so each row of a batch is the one that Dask read.
            assert np.array_equal(batch.latents[:, 0], batch.rows)
            assert np.array_equal(batch.labels[:, 2], batch.rows + 10_000)
    read = {row for start, stop in sources[0].read for row in range(start, stop)}
    assert read >= set(range(950))


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed, epoch):
        stream, _ = make_stream(seed=seed)
        return tuple(np.concatenate([batch.rows for batch in stream.epoch(epoch)]))

    assert order(5, 0) == order(5, 0)
    assert len({order(5, 0), order(5, 1), order(6, 0)}) == 3


def test_the_order_is_well_mixed():
    stream, _ = make_stream(shuffle_rows=NUM_ROWS)
    first = next(iter(stream.epoch(0))).rows
    assert len({row // SHARD_ROWS for row in first}) > 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size):
    alone, _ = make_stream()
    ranks = [make_stream(rank=rank, world_size=world_size)[0] for rank in range(world_size)]
    for whole, *parts in zip(alone.epoch(2), *(stream.epoch(2) for stream in ranks), strict=True):
        assert {part.step for part in parts} == {whole.step}
        assert {part.global_rows for part in parts} == {len(whole.rows)}
        together = np.empty_like(whole.rows)
        for rank, part in enumerate(parts):
            together[rank::world_size] = part.rows
        assert np.array_equal(together, whole.rows)


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
        assert len(sources[0].read) < 16


def test_blocks_held_never_pass_the_prefetch_window():
    stream, _ = make_stream()
    assert stream.window_blocks == 4  # 200 rows are 3.1 blocks of 64
    for epoch in range(2):
        for _ in stream.epoch(epoch):
            assert sum(map(len, stream._held)) <= 2 * stream.window_blocks
    assert 0 < stream.max_blocks_held <= 2 * stream.window_blocks


def test_a_store_of_one_window_is_read_once():
    stream, sources = make_stream(shuffle_rows=NUM_ROWS)
    for epoch in range(4):
        assert sum(len(batch.rows) for batch in stream.epoch(epoch)) == 950
    assert len(sources[0].read) == 15


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
        StoreError, match=r"shard \d+ of the pairs cannot be read: the disk is away.*sfg verify.*sfg repair"
    ):
        list(stream.epoch(0))
    assert sorted(np.concatenate([batch.rows for batch in stream.epoch(0)])) == list(range(950))
    for batch in stream.epoch(0):
        assert np.array_equal(batch.latents[:, 0], batch.rows)


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
