"""References in blocks: in memory, streamed, and mapped from a file, all with the same bits."""

import os

import numpy as np
import pytest
import torch

from sfg_dist.flow import Reference, label_latents, log_density, posterior_moments, score
from sfg_dist.flow.posterior.block_file import BlockFile, block_bytes, reference_bytes, write_blocks
from sfg_dist.flow.posterior.clusters import build_order
from sfg_dist.flow.posterior.reference import ReferenceBlock, block_ranges, center_of, centred_keys
from sfg_dist.flow.posterior.streaming import StreamedReference

BLOCK_ROWS = 1500


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", BLOCK_ROWS)


def table(num_rows, dim):
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((num_rows, dim), dtype=np.float32) * np.geomspace(1, 0.2, dim, dtype=np.float32) + 3
    return rows[np.argsort(rows[:, 0])]  # blocks far from each other


def streamed(rows, dtype=torch.float32, num_kept=0):
    center = center_of(lambda start, stop: torch.from_numpy(rows[start:stop]), len(rows))
    loaded = []

    def load(number):
        loaded.append(number)
        start, stop = block_ranges(len(rows))[number]
        return ReferenceBlock(centred_keys(torch.from_numpy(rows[start:stop]), center, dtype))

    reference = StreamedReference(
        load, center=center, num_reference=len(rows), device=torch.device("cpu"), dtype=dtype, num_kept=num_kept
    )
    reference.loaded = loaded
    return reference


@pytest.fixture
def mapped(tmp_path):
    """A reference of a file of blocks."""
    handles = []

    def make(rows, has_clusters=True):
        whole = Reference(rows, sigma_data=1.0)
        handles.append(os.open(tmp_path / f"{len(handles)}.blocks", os.O_RDWR | os.O_CREAT))
        write_blocks(handles[-1], whole.blocks(), whole.center, has_clusters=has_clusters)
        file = BlockFile(handles[-1])
        return StreamedReference(
            file.block, center=file.center, num_reference=len(rows), device=torch.device("cpu"), num_kept=1
        )

    yield make
    for handle in handles:
        os.close(handle)


def moments(reference, dim, **keywords):
    rng = np.random.default_rng(1)
    results = []
    for t in (0.8, 0.1, 1e-3):
        z = torch.from_numpy(rng.standard_normal((70, dim), dtype=np.float32)).to(reference.dtype)
        given = {"alpha": 1 - t, "beta_sq": t, **keywords}
        found = posterior_moments(z, reference, **given)
        results += [found.mean, found.variance, found.log_kernel_sum]
        results += [value for value in (found.bound, found.pairs) if value is not None]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [700, 3000, 5003])
@pytest.mark.parametrize("dim", [pytest.param(1, marks=pytest.mark.long), 3, pytest.param(21, marks=pytest.mark.long)])
@pytest.mark.parametrize("keywords", [{"backend": "sparse", "tolerance": 1e-3}, {"backend": "dense"}])
def test_streamed_and_mapped_blocks_give_the_bits_of_those_in_memory(num_rows, dim, keywords, mapped):
    rows = table(num_rows, dim)
    expected = moments(Reference(rows, sigma_data=1.0), dim, **keywords)
    from_file = mapped(rows, has_clusters=keywords["backend"] == "sparse")
    for reference in (streamed(rows), streamed(rows, num_kept=2), from_file):
        found = moments(reference, dim, **keywords)
        assert len(found) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ["fused", "blocked"])
def test_streamed_blocks_in_float64(backend):
    rows = table(4000, 3)
    expected = moments(Reference(rows, dtype=torch.float64, sigma_data=1.0), 3, backend=backend)
    found = moments(streamed(rows, torch.float64), 3, backend=backend)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.long
@pytest.mark.slow
def test_all_that_takes_a_reference_takes_a_streamed_one():
    rows = table(5003, 2)
    whole, parts = Reference(rows, sigma_data=1.0), streamed(rows)
    latents = np.random.default_rng(2).standard_normal((40, 2))
    for direction in ("decode", "encode"):
        labels = label_latents(latents, whole, direction=direction, batch_size=64, sigma_data=1.0)
        assert np.array_equal(labels, label_latents(latents, parts, direction=direction, batch_size=64, sigma_data=1.0))
    fresh = Reference(rows, sigma_data=1.0)  # without clusters, whose order of rows moves the last bits of dense sums
    assert np.array_equal(score(latents, fresh, t=0.1, sigma_data=1.0), score(latents, parts, t=0.1, sigma_data=1.0))
    assert np.array_equal(log_density(latents, fresh, sigma_data=1.0), log_density(latents, parts, sigma_data=1.0))
    index = np.array([5002, 0, 1499, 1500, 3, 3])
    assert torch.equal(whole.take(index), parts.take(index))
    np.testing.assert_allclose(parts.take(index).numpy(), rows[index], atol=1e-6)
    assert torch.equal(whole.subset(index).keys, parts.subset(index).keys)
    fitted = label_latents(latents, whole, time_grid="fitted", num_evaluations=6, batch_size=64, sigma_data=1.0)
    assert np.array_equal(
        fitted, label_latents(latents, parts, time_grid="fitted", num_evaluations=6, batch_size=64, sigma_data=1.0)
    )


@pytest.mark.slow
def test_labels_over_blocks_are_those_of_one_block(monkeypatch):
    rows = table(5003, 2)
    latents = np.random.default_rng(3).standard_normal((64, 2))
    blocked = label_latents(latents, Reference(rows, sigma_data=1.0), batch_size=64, sigma_data=1.0)
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", len(rows))
    single = label_latents(latents, Reference(rows, sigma_data=1.0), batch_size=64, sigma_data=1.0)
    gap = np.linalg.norm(blocked - single, axis=1)
    assert gap.max() > 0
    assert np.median(gap) < 1e-3


@pytest.mark.slow
def test_an_order_made_earlier_is_taken_block_by_block():
    rows = table(4000, 3)
    orders = np.concatenate([build_order(rows[start:stop]) for start, stop in block_ranges(len(rows))])
    for (start, stop), block in zip(
        block_ranges(len(rows)), Reference(rows, order=orders, sigma_data=1.0).blocks(), strict=True
    ):
        assert np.array_equal(block.clusters.order, orders[start:stop])


def test_blocks_are_loaded_one_by_one_and_kept_as_told():
    reference = streamed(table(5003, 2), num_kept=2)
    for _ in range(2):
        assert [block.num_rows for block in reference.blocks()] == [1500, 1500, 1500, 503]
    assert reference.loaded == [0, 1, 2, 3, 2, 3]
    assert reference.num_streamed == 4


@pytest.mark.parametrize("dim", [1, 3, 9, 40])
@pytest.mark.parametrize("has_clusters", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_size_of_a_file_is_known_beforehand(dim, has_clusters, mapped, tmp_path):
    mapped(table(5003, dim), has_clusters)
    size = (tmp_path / "0.blocks").stat().st_size
    expected = reference_bytes(5003, dim, has_clusters=has_clusters)
    assert expected < size < expected + 10_000  # the contents lie behind
    assert expected == 3 * block_bytes(1500, dim, has_clusters=has_clusters) + block_bytes(
        503, dim, has_clusters=has_clusters
    )


def test_a_file_that_was_cut_off_is_refused(mapped, tmp_path):
    mapped(table(3000, 2), has_clusters=False)
    path = tmp_path / "0.blocks"
    os.truncate(path, path.stat().st_size - 1)
    with path.open("rb") as file, pytest.raises(ValueError, match="not a whole file"):
        BlockFile(file.fileno())


def test_a_row_that_is_not_finite_is_named_in_any_block():
    rows = table(4000, 2)
    rows[3700, 1] = np.inf
    with pytest.raises(ValueError, match="row 3700"):
        Reference(rows, sigma_data=1.0)
    with pytest.raises(ValueError, match="row 3700"):
        streamed(rows)
