"""Rows by number: the same bits however a drawing is cut, wherever it starts and whoever makes it."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from sfg_dist.data import Transform
from sfg_dist.model import MLP, Calibration, Generator, sampling
from sfg_dist.model.sampling import SAMPLE_ROWS, draw_ranges, unit_ranges, unit_rows


@pytest.fixture(scope="module")
def generator():
    table = np.exp(np.random.default_rng(0).standard_normal((600, 3)))
    transform = Transform.fit(table, ("a", "b", "c"), steps={"c": 0.01})
    torch.manual_seed(0)
    network = MLP(3, width=32, depth=2, num_noise=2)
    torch.nn.init.normal_(network.out.weight, std=0.1)
    reference = transform.forward(table)

    class Drawn(MLP):
        """The calibration's draws have no columns of noise."""

        def forward(self, inputs):
            return inputs

    return Generator(network.eval(), transform, Calibration.fit(Drawn(3), reference, seed=0))


def test_row_i_has_the_same_bits_for_every_length_and_start(generator):
    whole = generator.sample(10_000, seed=1)
    assert whole.shape == (10_000, 3)
    for start, n in ((0, 1), (0, 4097), (3, 1), (4095, 2), (4096, 4096), (8191, 1809), (9999, 1), (10_000, 0)):
        np.testing.assert_array_equal(generator.sample(n, seed=1, start=start), whole[start : start + n])
    assert not np.array_equal(generator.sample(100, seed=2), whole[:100])
    far = generator.sample(5, seed=1, start=10**12)
    assert np.isfinite(far).all()
    with pytest.raises(ValueError, match="0 or more"):
        generator.sample(-1)
    with pytest.raises(ValueError, match="0 or more"):
        generator.sample(1, start=-1)


def test_any_number_of_threads_makes_the_same_bits_and_leaves_torchs_own_alone(generator):
    before = torch.get_num_threads()
    block_rows = functools.partial(generator._block_rows, 3, None, 0)
    tables = [
        np.concatenate(list(draw_ranges(block_rows, unit_ranges(0, 9000, 3), 3, num_threads=threads)))
        for threads in (1, 2, 5)
    ]
    assert all(np.array_equal(tables[0], table) for table in tables)
    assert torch.get_num_threads() == before


def test_ranges_come_in_order_and_no_further_ahead_than_one_more_than_threads():
    asked, made = [], []

    def ranges():
        for k in range(50):
            asked.append(k)
            yield k * SAMPLE_ROWS, (k + 1) * SAMPLE_ROWS

    def block_rows(block):
        made.append(block)
        return np.full((SAMPLE_ROWS, 1), float(block))

    drawing = draw_ranges(block_rows, ranges(), 1, num_threads=3)
    for k in range(20):
        rows = next(drawing)
        assert (rows == k).all()
        assert len(asked) <= k + 1 + 3
    drawing.close()
    assert len(made) <= 25


def test_an_error_in_a_thread_is_raised_and_ends_the_rest():
    def block_rows(block):
        if block == 2:
            raise RuntimeError("bad block")
        return np.zeros((SAMPLE_ROWS, 1))

    with pytest.raises(RuntimeError, match="bad block"):
        list(draw_ranges(block_rows, unit_ranges(0, 100 * SAMPLE_ROWS, 1000), 1, num_threads=2))


def test_units_lie_on_a_grid_and_are_bounded(monkeypatch):
    monkeypatch.setattr(sampling, "usable_cpus", lambda: 1)
    assert unit_rows(2) == 65_536
    assert unit_rows(10_000) == SAMPLE_ROWS
    assert list(unit_ranges(65_530, 131_073, 2)) == [(65_530, 65_536), (65_536, 131_072), (131_072, 131_073)]
    assert list(unit_ranges(5, 5, 2)) == []
    monkeypatch.setattr(sampling, "usable_cpus", lambda: 4)  # none is left without work
    assert list(unit_ranges(0, 40_000, 2)) == [
        (0, 8192),
        (8192, 16_384),
        (16_384, 24_576),
        (24_576, 32_768),
        (32_768, 40_000),
    ]
    assert list(unit_ranges(0, 100, 2)) == [(0, 100)]


def test_noise_moves_a_row_and_is_seeded_by_row_too(generator):
    latents = np.zeros((SAMPLE_ROWS, 5), np.float32)
    latents[:, 3:] = np.random.default_rng(0).standard_normal((SAMPLE_ROWS, 2))
    assert len(np.unique(generator.predict_labels(latents), axis=0)) > 1000


BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Refuse())
import numpy as np
from sfg_dist import Generator
generator = Generator.load({path!r})
np.save({out!r}, generator.sample(100, seed=4))
assert not {names!r} & set(sys.modules)
"""


@pytest.mark.slow
def test_a_saved_generator_needs_neither_ray_nor_zarr_nor_dask(generator, tmp_path):
    """Nor the package's other heavy needs: a model is loaded where it is used."""
    generator.save(tmp_path / "model")
    names = {"ray", "zarr", "dask", "onnx", "onnxruntime", "matplotlib", "ot", "sklearn", "pyarrow"}
    code = BLOCKED.format(names=names, path=str(tmp_path / "model"), out=str(tmp_path / "rows.npy"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), generator.sample(100, seed=4))
