"""A reference read from a table a block at a time is the reference in memory."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import zarr
from pyarrow import parquet

import sfg_dist
from sfg_dist.flow import Reference
from sfg_dist.flow.posterior import reference
from sfg_dist.job.errors import DataError

ROWS = np.random.default_rng(5).standard_normal((2500, 3)) * [1.0, 5.0, 0.2] + 3.0


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(reference, "REFERENCE_BLOCK_ROWS", 1000)


@pytest.fixture(params=["t.parquet", "t.zarr", "t.npy"])
def path(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(list(ROWS.T), names=["a", "b", "c"]), path, row_group_size=300)
    elif path.suffix == ".zarr":
        zarr.create_group(str(path)).create_array("X", data=ROWS, chunks=(256, 3))
    else:
        np.save(path, ROWS)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("memory_gib", [None, 1.0])
def test_labels_have_the_bits_of_the_table_in_memory(path, memory_gib):
    streamed = sfg_dist.open_reference(path, memory_gib=memory_gib)
    assert (streamed.num_reference, streamed.dim, streamed.num_blocks) == (2500, 3, 3)
    latents = np.random.default_rng(0).standard_normal((40, 3), dtype=np.float32)
    given = {"t_min": 1e-3, "num_evaluations": 8}
    expected = sfg_dist.label_latents(latents, Reference(ROWS), **given)
    assert np.array_equal(sfg_dist.label_latents(latents, streamed, **given), expected)
    assert np.array_equal(sfg_dist.score(latents, streamed, t=0.1), sfg_dist.score(latents, Reference(ROWS), t=0.1))
    assert (streamed.num_streamed == 0) == (memory_gib is not None)


def test_columns(path):
    with_two = sfg_dist.open_reference(path, columns=["c", "a"] if path.suffix == ".parquet" else ["c2", "c0"])
    assert torch.equal(with_two.center, Reference(ROWS[:, [2, 0]]).center)


def test_a_missing_value_names_its_row(tmp_path):
    rows = ROWS.copy()
    rows[1234, 1] = np.nan
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(DataError, match=r"t\.npy: the reference is not finite: row 1234"):
        sfg_dist.open_reference(tmp_path / "t.npy")


def test_a_table_without_rows(tmp_path):
    np.save(tmp_path / "t.npy", np.empty((0, 3)))
    with pytest.raises(DataError, match="has no rows"):
        sfg_dist.open_reference(tmp_path / "t.npy")
