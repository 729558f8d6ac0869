"""A table in memory is fitted in one call: what comes back, what is left behind, and what is refused at once."""

import os
import time

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from frames.kinds import is_same, is_same_schema

import sfg_dist
from sfg_dist.job.errors import ConfigError, DataError, TrainingError
from sfg_dist.pipeline.budget import MOST_PAIRS

TINY = {
    "labels": {"num_pairs": 512, "num_evaluations": 6},
    "train": {"num_epochs": 1, "width": 8, "depth": 1, "num_threads": 1},
}
ENCODER = {"encoder": True, "encoder_steps": 20, "encoder_width": 8, "encoder_depth": 1}


def visits(num_rows=200):
    """Numbers, categories, gaps, stamps with a zone and a constant."""
    draws = np.random.default_rng(0)
    clinic = draws.choice(["north", "south", "west"], num_rows, p=[0.5, 0.3, 0.2])
    days = np.datetime64("2024-01-01") + draws.integers(0, 999, num_rows)
    age = pd.array(draws.integers(18, 90, num_rows), "Int64")
    age[::9] = pd.NA
    return pd.DataFrame(
        {
            "clinic": pd.Categorical(clinic, categories=["west", "north", "south", "closed"]),
            "age": age,
            "score": draws.normal(size=num_rows),
            "seen": pd.DatetimeIndex(days, tz="Europe/Berlin"),
            "unit": "mg",
        }
    )


@pytest.fixture(scope="module")
def frame():
    return visits()


@pytest.fixture(scope="module")
def generator(frame):
    return sfg_dist.fit(frame, max_time_s=None, labels=TINY["labels"], train=TINY["train"] | ENCODER)


@pytest.mark.slow
def test_a_frame_comes_back_from_the_fit_and_from_its_file(generator, frame, tmp_path):
    rows = generator.sample(300, seed=1)
    assert is_same_schema(rows, frame)
    assert set(rows.unit) == {"mg"}
    assert set(rows.clinic) <= {"west", "north", "south"}
    assert rows.age.isna().any()
    assert rows.age.dropna().between(18, 89).all()
    generator.save(tmp_path)
    assert is_same(sfg_dist.Generator.load(tmp_path).sample(300, seed=1), rows)


@pytest.mark.slow
def test_frames_have_densities_and_latents(generator, frame):
    density = generator.log_prob(frame)
    assert density.shape == (200,)
    assert np.isfinite(density).all()
    shuffled = pl.from_pandas(frame.astype({"clinic": "str"})).select(frame.columns[::-1])
    np.testing.assert_array_equal(generator.log_prob(shuffled), density)
    assert generator.encode(frame).shape == (200, generator.network.dim)
    with pytest.raises(DataError, match="the pandas frame has no column 'age'"):
        generator.log_prob(frame.drop(columns="age"))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["polars", "arrow", "records", "float64", "float32"])
def test_other_tables_come_back_too(library, frame):
    tables = {
        "polars": lambda: pl.from_pandas(frame),
        "arrow": lambda: pa.Table.from_pandas(frame),
        "records": lambda: frame[["age", "score"]].fillna(40).astype({"age": "int32"}).to_records(index=False).view(
            np.ndarray
        ),
        "float64": lambda: frame[["score", "score"]].to_numpy() * [1, 2] + [0, 1],
        "float32": lambda: np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32),
    }  # fmt: skip
    table = tables[library]()
    generator = sfg_dist.fit(table, max_time_s=None, **TINY)
    assert is_same_schema(generator.sample(20), table)
    assert (generator.container is None) == (library == "float64")


def test_nothing_is_left_behind(frame, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = set(os.listdir("."))
    seen = []
    generator = sfg_dist.fit(frame[["score", "age"]], max_time_s=None, listener=seen.append, **TINY)
    assert os.listdir(tmp_path) == []
    assert set(os.listdir(".")) == before
    assert capfd.readouterr() == ("", "")
    stages = [event["stage"] for event in seen if event["event"] == "stage_finished"]
    assert stages == ["label", "train"]
    assert str(tmp_path) not in str(generator.job)


@pytest.mark.slow
def test_an_output_directory_is_kept_and_gone_on_with(frame, tmp_path):
    out = tmp_path / "run"
    keys = TINY | {"labels": TINY["labels"] | {"num_pairs": 8192}}
    first = sfg_dist.fit(frame, output=out, max_time_s=5.0, **keys)
    assert {"pairs.zarr", "model", "checkpoints", "job.toml"} <= set(os.listdir(out))
    assert is_same(sfg_dist.Generator.load(out).sample(10), first.sample(10))
    events = []
    again = sfg_dist.fit(frame, output={"dir": str(out)}, max_time_s=5.0, listener=events.append, **keys)
    assert not [event for event in events if event["event"] == "shard"]
    assert again.job["labels"]["num_pairs"] == first.job["labels"]["num_pairs"] == 8192


@pytest.mark.slow
def test_the_time_ends_labels_and_the_fit(frame):
    started = time.perf_counter()
    with pytest.warns(UserWarning, match=r"there was time for .* of the 9,000,000 pairs of labels.num_pairs"):
        generator = sfg_dist.fit(
            frame[["score", "age"]], max_time_s=1.0, labels={"num_pairs": 9_000_000}, train={"width": 8, "depth": 1}
        )
    assert 4096 <= generator.job["labels"]["num_pairs"] < MOST_PAIRS
    assert generator.job["train"]["max_time_s"] < 1.0
    assert time.perf_counter() - started < 600
    with pytest.raises(TrainingError, match=r"labels took .* of max_time_s = 0.0001: raise it"):
        sfg_dist.fit(frame[["score"]], max_time_s=1e-4)


@pytest.mark.slow
def test_the_seed_decides_where_there_is_no_limit(frame):
    one, two = (sfg_dist.fit(frame, max_time_s=None, **TINY) for _ in range(2))
    assert one.digest == two.digest
    three = sfg_dist.fit(frame, max_time_s=None, **TINY, **{"data.seed": 3})
    assert three.digest != one.digest


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_pairs": 10}, r"num_pairs is a key of labels: write labels=\{'num_pairs': 10\}"),
        ({"labels": 10}, r"labels = 10: expected a mapping of its keys, as in labels=\{\.\.\.\}"),
        ({"labls": {"num_pairs": 10}}, "labls"),
        ({"labels": {"num_pair": 10}}, r"num_pair.*did you mean.*num_pairs"),
        ({"labels": {"num_pairs": 10}, "labels.num_pairs": 20}, "labels.num_pairs is given twice"),
        ({"data": {"source": "moons"}}, "data.source is for tables in files: the frame is the table"),
        ({"data.header": True}, "data.header is for tables in files"),
        ({"max_time_s": 0}, "max_time_s must be a number above 0 or None, got 0"),
        ({"max_time_s": "long"}, "max_time_s must be a number above 0 or None"),
        ({"data": {"condition": ["age"]}, "train": {"encoder": True}}, "train.encoder = True does not go with"),
    ],
)
def test_keys_that_are_wrong_are_refused_before_the_table_is_read(frame, keys, said):
    with pytest.raises(ConfigError, match=said):
        sfg_dist.fit(frame, **keys)


def test_a_column_with_categories_is_not_read_otherwise(frame):
    with pytest.raises(ConfigError, match=r"data.types.stage = 'number': the column of the frame has categories"):
        sfg_dist.fit(frame.assign(stage=pd.Categorical(np.arange(200) % 3)), data={"types": {"stage": "number"}})


def test_columns_are_named_in_errors(frame):
    with pytest.raises(DataError, match="the pandas frame: column 'name' holds text"):
        sfg_dist.fit(frame.assign(name=[f"person {row}" for row in range(len(frame))]))
    with pytest.raises(DataError, match=r"the pandas frame has no column 'agee' \(data.columns\); did you mean 'age'"):
        sfg_dist.fit(frame, **{"data.columns": ["agee"]})
    with pytest.raises(DataError, match="the pandas frame: 5 rows are left"):
        sfg_dist.fit(frame[:5])


@pytest.mark.slow
def test_a_condition_is_given_by_its_text(frame):
    generator = sfg_dist.fit(frame, max_time_s=None, data={"condition": ["clinic"]}, **TINY)
    rows = generator.sample(6, given={"clinic": "north"})
    assert is_same_schema(rows, frame)
    assert set(rows.clinic) == {"north"}
