"""The store of a mixed table by the commands: verified, repaired, extended, without its job, and in a bucket."""

import json
import shutil
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from commands import sfg
from pyarrow import parquet

import sfg_dist
from sfg_dist.data import open_table
from sfg_dist.store import Location, open_pairs

pytestmark = pytest.mark.slow

KEYS = """
[labels]
num_pairs = {num_pairs}
shard_rows = 256
batch_size = 256
num_evaluations = 4
[train]
width = 16
depth = 1
num_epochs = 2
[executor]
kind = "inline"
"""


def mixed_table(num_rows=400):
    """A town, which may be missing and decides its country; a day; and rain, which may be missing."""
    random = np.random.default_rng(0)
    place = random.integers(0, 3, num_rows)
    towns = pa.array(np.array(["Rome", "Oslo", "Bonn"])[place], mask=random.random(num_rows) < 0.1)
    countries = pa.array([{"Rome": "IT", "Oslo": "NO", "Bonn": "DE"}.get(town) for town in towns.to_pylist()])
    return pa.table(
        {
            "town": towns.dictionary_encode(),
            "country": countries,
            "day": [date(2024, 1, 1) + timedelta(int(row)) for row in random.integers(0, 300, num_rows)],
            "rain": pa.array(random.exponential(size=num_rows) + place, mask=random.random(num_rows) < 0.2),
        }
    )


def write_job(folder, num_pairs, source, output):
    text = f"[data]\nsource = '{source}'\n[output]\ndir = '{output}'\n" + KEYS.format(num_pairs=num_pairs)
    (folder / "job.toml").write_text(text)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    parquet.write_table(mixed_table(), folder / "t.parquet")
    write_job(folder, 1024, folder / "t.parquet", "run")
    sfg(folder, "label", "job.toml")
    return folder


@pytest.fixture
def place(labelled, tmp_path):
    """A copy of the labels and of their job."""
    shutil.copytree(labelled, tmp_path / "p")
    return tmp_path / "p"


def content(store):
    """All objects of a store's frame and labels."""
    files = [
        path for name in ("reference", "transform", "labels") for path in (store / name).rglob("*") if path.is_file()
    ]
    assert len(files) > 6
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def damage(store, whole, name):
    """Cut a byte off an object whose name begins so."""
    key = min(key for key in whole if key.startswith(name) and "/c/" in key)
    (store / key).write_bytes(whole[key][:-1])


@pytest.mark.parametrize("is_alone", [False, True], ids=["beside its job", "without its job"])
def test_labels_and_frame_are_made_again_as_they_were(place, is_alone):
    store, whole = place / "run" / "pairs.zarr", content(place / "run" / "pairs.zarr")
    if is_alone:
        store.rename(place / "moved.zarr")
        store = place / "moved.zarr"
    assert "nothing is wrong" in sfg(place, "verify", store).stdout
    for name in ("labels", "reference", "transform/code_places", "transform/missing", "transform/lookup_values"):
        damage(store, whole, name)
    assert "truncated_data: labels/c/0/0" in sfg(place, "verify", store, check=1).stdout
    assert "1 shard labelled again" in sfg(place, "repair", store).stdout
    assert "nothing is wrong" in sfg(place, "verify", store).stdout
    assert content(store) == whole


def test_an_extended_store_is_that_of_a_longer_run_and_is_trained_on(place, tmp_path):
    sfg(place, "extend", "job.toml", "--set", "labels.num_pairs=1536")
    assert "nothing is wrong" in sfg(place, "verify", "run").stdout
    write_job(tmp_path, 1536, place / "t.parquet", "run")
    sfg(tmp_path, "label", "job.toml")
    pairs, longer = open_pairs(str(place / "run")), open_pairs(str(tmp_path / "run"))
    assert pairs.labels.shape == (1536, 3)
    np.testing.assert_array_equal(pairs.labels.compute(), longer.labels.compute())
    np.testing.assert_array_equal(pairs.latents.compute(), longer.latents.compute())
    sfg(place, "train", "job.toml", "--set", "labels.num_pairs=1536")
    sfg(place, "sample", "run/model", "-n", "500", "--out", "rows.parquet")
    rows, table = parquet.read_table(place / "rows.parquet"), mixed_table()
    assert rows.schema.equals(table.schema)
    pairs_of = lambda some: {*zip(some["town"].to_pylist(), some["country"].to_pylist(), strict=True)}  # noqa: E731
    assert pairs_of(rows) == pairs_of(table)
    assert 0 < rows["rain"].null_count < 500


def test_another_table_is_refused_by_what_its_codes_mean(place):
    """The rows of codes are the same: towns alone have other names."""
    table = mixed_table()
    towns = pa.array([town and f"new {town}" for town in table["town"].to_pylist()]).dictionary_encode()
    parquet.write_table(table.set_column(0, "town", towns), place / "t.parquet")
    write_job(place, 1024, place / "t.parquet", "run")
    failed = sfg(place, "label", "job.toml", check=2)
    assert "types.town.categories: ['Bonn', 'Oslo', 'Rome'] -> ['new Bonn'," in failed.stderr


def test_a_mixed_table_from_a_bucket_to_a_bucket(labelled, tmp_path, s3_url):
    """The store is that of the disk, and samples come back with their types from .parquet, .zarr and a folder."""
    content_of = (labelled / "t.parquet").read_bytes()
    Location(s3_url, create=True).write("data/t.parquet", content_of)
    write_job(tmp_path, 1024, f"{s3_url}/data/t.parquet", f"{s3_url}/run")
    sfg(tmp_path, "label", "job.toml")
    there = Location(f"{s3_url}/run/pairs.zarr")
    for key, whole in content(labelled / "run" / "pairs.zarr").items():
        assert there.read(key) == whole, key
    there.write("labels/c/1/0", there.read("labels/c/1/0")[:-1])
    assert "truncated_data: labels/c/1/0" in sfg(tmp_path, "verify", f"{s3_url}/run", check=1).stdout
    assert "1 shard labelled again" in sfg(tmp_path, "repair", f"{s3_url}/run").stdout
    sfg(tmp_path, "extend", "job.toml", "--set", "labels.num_pairs=1280")
    sfg(tmp_path, "train", "job.toml", "--set", "labels.num_pairs=1280")
    generator = sfg_dist.Generator.load(f"{s3_url}/run/model")
    expected = generator.sample(300, seed=2, container="arrow")
    for name in ("rows.parquet", "rows.zarr"):
        sfg(tmp_path, "sample", f"{s3_url}/run/model", "-n", "300", "--seed", "2", "--out", f"{s3_url}/{name}")
        table = open_table(f"{s3_url}/{name}")
        found = [type_.from_float(values) for type_, values in zip(table.types, table.values.T, strict=True)]
        for column, wanted in zip(found, expected.columns, strict=True):
            assert column.to_pylist() == wanted.to_pylist()
    folder = open_table(f"{s3_url}/data/")
    np.testing.assert_array_equal(folder.values, open_table(labelled / "t.parquet").values)
    assert json.loads(sfg(tmp_path, "status", f"{s3_url}/run", "--json").stdout)["shards_done"] == 5
