"""Commands on a saved model: tables that processes share."""

import json

import numpy as np
import pytest
import torch
from commands import sfg
from pyarrow import parquet

from sfg_dist.cli.model import SampleOptions, sample_model
from sfg_dist.data import Transform, open_table
from sfg_dist.job.errors import ConfigError
from sfg_dist.model import MLP, Generator


@pytest.fixture
def model(tmp_path):
    """A saved generator of three columns."""
    table = np.random.default_rng(0).standard_normal((500, 3))
    torch.manual_seed(0)
    generator = Generator(MLP(3, width=16, depth=1).eval(), Transform.fit(table, ("a", "b", "c")))
    generator.save(tmp_path / "model")
    return generator


@pytest.mark.parametrize("name", ["rows.zarr", "rows.parquet/"])
def test_shares_of_a_table_and_a_start(model, tmp_path, name):
    out = f"{tmp_path}/{name}"
    words = ["sample", "model", "-n", "5000", "--start", "200", "--out", out, "--json"]

    def run(*more):
        done = sfg(tmp_path, *words, *more)
        return json.loads(done.stdout), done.stderr

    assert run("--share", "2/2")[0] == {"samples": out, "rows": 0, "is_whole": False}  # one part, and the other's
    result, said = run("--share", "1/2")
    assert result == {"samples": out, "rows": 5000, "is_whole": True}
    assert "draw: 5,000 of 5,000 rows" in said
    if name.endswith("/"):
        table = parquet.read_table(out)
        rows = np.column_stack([column.to_numpy() for column in table.columns])
    else:
        rows = open_table(out).values
    np.testing.assert_array_equal(rows, model.sample(5000, start=200))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num": -1}, "--num: expected a whole number of rows"),
        ({"start": -1}, "--start: expected a whole number of rows"),
        ({"start": 10**19}, "--start: expected a whole number of rows"),
        ({"seed": -1}, "--seed: expected a whole number of 0 or more"),
        ({"given": ["a=1", "a=2"]}, "'a' is given twice"),
        ({"given": ["a="]}, "--given 'a=': expected column=value"),
        ({"share": "5/4"}, "--share '5/4': expected K/M"),
        ({"share": "half"}, "--share 'half': expected K/M"),
        ({"given": ["a=1"]}, "trained without data.condition"),
        ({"given_table": "t.csv"}, "trained without data.condition"),
        ({"out": "rows.xls"}, "unknown format"),
    ],
)
def test_wrong_words(model, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        sample_model(str(tmp_path / "model"), SampleOptions(**words), as_json=False)
