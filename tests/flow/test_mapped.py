"""A reference of one block that is built in passes over files, with the bits of one that is built in memory."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sfg_dist.flow import Reference, posterior_moments
from sfg_dist.flow.posterior import mapped
from sfg_dist.flow.posterior.block_file import BlockFile, write_blocks
from sfg_dist.flow.posterior.clusters import build_order
from sfg_dist.flow.posterior.reference import center_of
from sfg_dist.flow.posterior.streaming import StreamedReference
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.file_room import take_room

NUM_ROWS = 9001


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """All that is done a part at a time has several parts, the last of them short."""
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", 4000)
    monkeypatch.setattr("sfg_dist.flow.posterior.clusters.PARALLEL_ROWS", 2048)
    monkeypatch.setattr("sfg_dist.flow.posterior.clusters._NODE_ROWS", 2048)
    monkeypatch.setattr("sfg_dist.flow.posterior.normals._GROUPS", 5)
    monkeypatch.setattr(mapped, "SORTED_ROWS", 3000)
    monkeypatch.setattr(mapped, "_CHUNK_ROWS", 1024)


@pytest.fixture
def rows():
    """Rows in three columns of different spread, a third of them with equal values in one."""
    rows = np.random.default_rng(0).standard_normal((NUM_ROWS, 3), dtype=np.float32) * np.float32([1, 0.5, 2]) + 3
    rows[::3, 0] = np.round(rows[::3, 0])
    return rows


@pytest.fixture
def handles(tmp_path):
    """Descriptors of two empty files."""
    numbers = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("memory", "passes")]
    yield numbers
    for number in numbers:
        os.close(number)


def test_the_order_is_that_of_rows_in_memory(rows):
    order = build_order(rows)
    assert np.array_equal(mapped.order_in_passes(rows), order)
    with ThreadPoolExecutor(2) as pool:
        assert np.array_equal(mapped.order_in_passes(rows, mapper=pool.map), order)


@pytest.fixture
def both(rows, handles):
    """A reference of one block in memory; and one in a file that was made in passes, with what it may hold."""
    whole = Reference(rows, sigma_data=1.5, whole=True)
    center = center_of(lambda start, stop: torch.from_numpy(rows[start:stop]), NUM_ROWS)
    order = build_order(whole.keys[:, :-1].numpy())
    mapped.write_whole(handles[1], lambda start, stop: rows[start:stop], order, center, 1.5)
    in_file = StreamedReference(
        BlockFile(handles[1]).block, center=center, num_reference=NUM_ROWS, device=torch.device("cpu"), num_kept=1,
        scale=1.5, whole=True, is_over=lambda: True,
    )  # fmt: skip
    return whole, in_file


def test_the_file_is_that_of_a_reference_in_memory(both, handles):
    whole, _ = both
    write_blocks(handles[0], whole.blocks(), whole.center, has_clusters=True)
    first, second = (os.pread(handle, os.fstat(handle).st_size, 0) for handle in handles)
    assert first == second


@pytest.mark.slow
def test_evaluations_have_the_same_bits_though_its_pages_are_given_up(both, monkeypatch):
    whole, in_file = both
    z = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    (block,) = in_file.blocks()
    released = []
    monkeypatch.setattr(block, "release", lambda give_up=block.release: released.append(give_up()))
    for threshold in (0.0, 1e-2, 1e-4):
        found, expected = (
            posterior_moments(
                z, reference, alpha=0.8, beta_sq=0.2, variance=False, backend="sparse", tolerance=1e-3,
                threshold=threshold,
            )
            for reference in (in_file, whole)
        )  # fmt: skip
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.pairs, expected.pairs)
    assert len(released) >= 3
    index = np.random.default_rng(2).integers(NUM_ROWS, size=50)
    assert torch.equal(in_file.take(index), whole.take(index))


def test_scratch_without_room_is_an_error_before_anything_is_written(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"no room for 80 bytes .*No space left.*: set TMPDIR"):
        mapped.Scratch().array((10, 2))


def test_room_is_taken_where_the_system_has_no_call_for_it(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "posix_fallocate")
    rows = mapped.Scratch().array((100, 3))
    rows[:] = 7
    assert np.array_equal(rows, np.full((100, 3), 7))
    with pytest.raises(ConfigError, match=r"no room for .*No space left.*: set TMPDIR"):
        mapped.Scratch().array((1 << 58, 3))
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"some")
        file.flush()
        take_room(file.fileno(), 2)
        assert os.fstat(file.fileno()).st_size == 4
        take_room(file.fileno(), 4096)
        assert os.fstat(file.fileno()).st_size == 4096
    assert (tmp_path / "file").read_bytes() == b"some" + bytes(4092)


def test_pages_of_scratch_are_given_up_and_those_of_other_arrays_are_left(monkeypatch):
    released = []
    monkeypatch.setattr(mapped, "release", released.append)
    rows = mapped.Scratch().array((100, 3))
    rows[:] = 7
    mapped.give_up(rows[10:20])
    assert len(released) == 1
    monkeypatch.undo()
    mapped.give_up(rows)
    assert np.array_equal(rows, np.full((100, 3), 7))
    mapped.give_up(np.zeros((3, 3)))
