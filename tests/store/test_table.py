"""Tables of samples: one file, or parts that a killed writer finds again and several share."""

import io
import json

import numpy as np
import pytest
import zarr
from pyarrow import parquet

from sfg_dist.data.column_type import FLOAT
from sfg_dist.job.errors import ConfigError, StoreError
from sfg_dist.store import Location, parts
from sfg_dist.store.table import read_table, write_table

ROWS = np.random.default_rng(0).standard_normal((1000, 3)).round(1)
COLUMNS = ("a", "b", "c d")


class Drawing:
    """Gives rows of a table, a few at a time, and remembers which; ``fails_at`` is a row that cannot be made."""

    def __init__(self, rows=ROWS, fails_at=None):
        self.rows, self.fails_at, self.drawn = rows, fails_at, []

    def __call__(self, ranges):
        for first, end in ranges:
            for start in range(first, end, 70):
                stop = min(start + 70, end)
                if self.fails_at is not None and stop > self.fails_at:
                    raise RuntimeError("killed")
                self.drawn += range(start, stop)
                yield self.rows[start:stop]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 128 rows."""
    monkeypatch.setattr(parts, "MAX_PART_ROWS", 128)


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    if request.param == "disk":
        return f"{tmp_path}/rows"
    pytest.importorskip("moto")
    return f"{request.getfixturevalue('s3_url')}/rows"


def folder(place, suffix):
    return f"{place}{suffix}/"


def read_folder(place, suffix):
    location = Location(folder(place, suffix))
    if suffix == ".zarr":
        return zarr.open_group(location.zarr_store(read_only=True), mode="r")["X"][...]
    names = sorted(entry.key for entry in location.list() if entry.key.endswith(".parquet"))
    tables = [parquet.read_table(io.BytesIO(location.read(name))) for name in names]
    assert tuple(tables[0].column_names) == COLUMNS
    return np.concatenate([np.column_stack([column.to_numpy() for column in table.columns]) for table in tables])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_a_killed_writer_goes_on_at_the_part_that_is_missing(small_parts, place, suffix):
    path = folder(place, suffix)
    with pytest.raises(RuntimeError, match="killed"):
        write_table(path, COLUMNS, 1000, Drawing(fails_at=600), source="one")
    if suffix == ".zarr":
        with pytest.raises(StoreError, match="another model or with other keys"):
            read_table(path, source="one")
    again, told = Drawing(), []
    assert write_table(path, COLUMNS, 1000, again, source="one", on_progress=told.append) == 1000
    assert again.drawn == list(range(512, 1000))  # parts 0 to 3 were there
    assert told[0] == 512
    assert sum(told) == 1000
    np.testing.assert_array_equal(read_folder(place, suffix), ROWS)
    idle = Drawing()
    assert write_table(path, COLUMNS, 1000, idle, source="one") == 1000
    assert idle.drawn == []


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_shares_make_one_table_in_any_order(small_parts, place, suffix):
    path, drawings = folder(place, suffix), [Drawing() for _ in range(3)]
    there = [write_table(path, COLUMNS, 1000, drawings[k], source="one", share=(k, 3)) for k in (2, 0, 1)]
    assert there == [256, 640, 1000]  # parts 2 5; then 0 3 6; then 1 4 7, the last of 104 rows
    assert sorted(row for drawing in drawings for row in drawing.drawn) == list(range(1000))
    np.testing.assert_array_equal(read_folder(place, suffix), ROWS)


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_a_table_of_another_source_is_replaced_but_never_by_a_share(small_parts, place, suffix):
    path = folder(place, suffix)
    write_table(path, COLUMNS, 1000, Drawing(), source="one")
    with pytest.raises(ConfigError, match=r"another table \(one\): remove it"):
        write_table(path, COLUMNS, 300, Drawing(-ROWS), source="two", share=(0, 2))
    write_table(path, COLUMNS, 300, Drawing(-ROWS), source="two")
    np.testing.assert_array_equal(read_folder(place, suffix), -ROWS[:300])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_a_killed_removal_is_gone_on_with(small_parts, place, suffix, monkeypatch):
    path, delete, deleted = folder(place, suffix), Location.delete, []
    write_table(path, COLUMNS, 1000, Drawing(), source="one")

    def dying(location, key):
        if len(deleted) == 3:
            raise StoreError("killed")
        deleted.append(key)
        delete(location, key)

    monkeypatch.setattr(Location, "delete", dying)
    with pytest.raises(StoreError, match="killed"):
        write_table(path, COLUMNS, 1000, Drawing(-ROWS), source="two")
    monkeypatch.setattr(Location, "delete", delete)
    again = Drawing(-ROWS)
    write_table(path, COLUMNS, 1000, again, source="two")
    assert len(again.drawn) == 1000  # none of the old parts was taken for a new one
    np.testing.assert_array_equal(read_folder(place, suffix), -ROWS)


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_what_is_no_table_of_samples_is_left_alone(place, suffix):
    location = Location(folder(place, suffix), create=True)
    location.write("precious.txt", b"mine")
    with pytest.raises(ConfigError, match="something else than a table of samples"):
        write_table(folder(place, suffix), COLUMNS, 10, Drawing(), source="one")
    assert [entry.key for entry in location.list()] == ["precious.txt"]


def test_a_users_own_group_is_no_table_of_samples_for_naming_its_columns(tmp_path):
    group = zarr.open_group(f"{tmp_path}/mine.zarr", mode="w")
    group.create_array("precious", data=np.arange(5))
    group.attrs["columns"] = ["a", "b", "c d"]
    with pytest.raises(ConfigError, match="something else than a table of samples"):
        write_table(f"{tmp_path}/mine.zarr", COLUMNS, 10, Drawing(), source="one")
    assert zarr.open_group(f"{tmp_path}/mine.zarr", mode="r")["precious"][...].tolist() == [0, 1, 2, 3, 4]


def test_what_a_killed_writer_left_half_written_is_no_part_of_a_finished_folder(small_parts, tmp_path):
    path = f"{tmp_path}/rows.parquet/"
    with pytest.raises(RuntimeError, match="killed"):
        write_table(path, COLUMNS, 1000, Drawing(fails_at=600), source="one")
    (tmp_path / "rows.parquet" / "part-000004.parquet#1").write_bytes(b"junk")
    write_table(path, COLUMNS, 1000, Drawing(), source="one")
    assert parquet.read_table(path).num_rows == 1000
    assert not list((tmp_path / "rows.parquet").glob("*#*"))


def test_a_torn_chunk_is_made_again(small_parts, tmp_path):
    path = tmp_path / "rows.zarr"
    with pytest.raises(RuntimeError, match="killed"):
        write_table(path, COLUMNS, 1000, Drawing(fails_at=600), source="one")
    torn = path / "X" / "c" / "1" / "0"
    torn.write_bytes(torn.read_bytes()[:-9])
    again = Drawing()
    write_table(path, COLUMNS, 1000, again, source="one")
    assert again.drawn == [*range(128, 256), *range(512, 1000)]
    np.testing.assert_array_equal(read_table(path, source="one"), ROWS)


def test_no_rows(tmp_path):
    for name in ("a.zarr", "a.parquet", "a.parquet.d/b.parquet/", "a.csv", "a.npy"):
        assert write_table(f"{tmp_path}/{name}", COLUMNS, 0, Drawing(), source="one") == 0
    assert read_table(tmp_path / "a.zarr", source="one").shape == (0, 3)
    assert np.load(tmp_path / "a.npy").shape == (0, 3)
    assert parquet.read_table(tmp_path / "a.parquet").shape == (0, 3)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npy"])
def test_a_file_replaces_an_older_one_once_it_is_whole(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    write_table(path, COLUMNS, 1000, Drawing(), source="one")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="killed"):
        write_table(path, COLUMNS, 1000, Drawing(-ROWS, fails_at=600), source="two")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    write_table(path, COLUMNS, 1000, Drawing(-ROWS), source="two")
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_repeated_values_get_a_dictionary_and_noise_none(tmp_path):
    rows = np.column_stack([ROWS[:, 0].round(), np.random.default_rng(1).standard_normal(1000)])
    write_table(tmp_path / "rows.parquet", ("grid", "noise"), 1000, Drawing(rows), source="one")
    group = parquet.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0)
    assert [group.column(i).has_dictionary_page for i in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("path", "share", "message"),
    [
        ("rows.txt", (0, 1), r"unknown format '.txt'; write to one of .zarr"),
        ("s3://bucket/rows.csv", (0, 1), "only .zarr and .parquet can be written to a URL"),
        ("rows.csv", (1, 2), "only a table in parts is shared"),
    ],
)
def test_places_that_cannot_be_written(path, share, message):
    with pytest.raises(ConfigError, match=message):
        write_table(path, COLUMNS, 10, Drawing(), source="one", share=share)


def test_parts_are_bounded_in_rows_and_bytes(tmp_path):
    def part_rows(num_columns, num_rows=10**9):
        return parts.ParquetTable(tmp_path, ["x"] * num_columns, num_rows, "one", [FLOAT] * num_columns).part_rows

    assert part_rows(2) == 2**20
    assert part_rows(8) == 2**18
    assert part_rows(5000) == 4096
    assert part_rows(2, num_rows=10) == 10
    write_table(f"{tmp_path}/x.parquet/", COLUMNS, 10, Drawing(), source="one")
    assert [file.name for file in (tmp_path / "x.parquet").iterdir()] == ["part-000000.parquet"]
    assert json.loads((tmp_path / "x.parquet.sample.json").read_text()) == {
        "columns": list(COLUMNS), "rows": 10, "part_rows": 10, "source": "one",
    }  # fmt: skip


KILLED = """
import sys
from sfg_dist.cli.model import SampleOptions, sample_model
from sfg_dist.store import parts

parts.MAX_PART_ROWS = parts.MIN_PART_ROWS = 4096
sample_model(sys.argv[1], SampleOptions(num=200_000, seed=3, out=sys.argv[2]), as_json=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_whole_parts(tmp_path):
    """For real: SIGKILL while parts are written, then the same command."""
    import subprocess
    import sys
    import time

    import torch

    from sfg_dist.data import Transform
    from sfg_dist.model import MLP, Generator

    table = np.random.default_rng(0).standard_normal((500, 2))
    torch.manual_seed(0)
    generator = Generator(MLP(2, width=64, depth=2).eval(), Transform.fit(table, ("a", "b")))
    generator.save(tmp_path / "model")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(tmp_path / "rows.zarr")]
    chunks = tmp_path / "rows.zarr" / "X" / "c"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not chunks.is_dir() or len(list(chunks.iterdir())) < 5):
            time.sleep(0.005)
        process.kill()
    left = len(list(chunks.iterdir()))
    assert 5 <= left < 49, "the process ended before it was killed"
    kept = {path: path.stat().st_mtime_ns for path in chunks.glob("[0-3]/0")}
    done = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"samples": str(tmp_path / "rows.zarr"), "rows": 200_000, "is_whole": True}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not made again
    rows = zarr.open_group(str(tmp_path / "rows.zarr"), mode="r")["X"][...]
    np.testing.assert_array_equal(rows, generator.sample(200_000, seed=3))


@pytest.mark.parametrize(
    ("there", "path", "words"),
    [
        (
            "rows.parquet",
            "rows.parquet/",
            r"rows\.parquet is a file, .*: leave out the slash at the end to",
        ),
        ("rows.zarr", "rows.zarr", r"rows\.zarr is a file, and a table in parts is a folder: choose another name"),
        ("rows.parquet/", "rows.parquet", r"is a folder, .*: write .*rows\.parquet/ for a table in parts, or choose"),
        ("rows.csv/", "rows.csv", r"rows\.csv is a folder, and this table is one file: choose another name"),
        ("rows", "rows/a.csv", r"rows is a file, so nothing can lie in it: choose another place"),
    ],
)
def test_a_place_that_something_else_has_taken_is_refused_before_the_first_row(tmp_path, there, path, words):
    place = tmp_path / there
    place.mkdir() if there.endswith("/") else place.write_bytes(b"mine")
    draw = Drawing()
    with pytest.raises(ConfigError, match=words):
        write_table(f"{tmp_path}/{path}", COLUMNS, 1000, draw, source="one")
    assert draw.drawn == []
    assert place.is_dir() or place.read_bytes() == b"mine"
