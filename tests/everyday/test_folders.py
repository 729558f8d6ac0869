"""Folders and globs of files as one table, whole and by ranges, here and in a bucket."""

import itertools
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sfg_dist.data import TextFormat, open_rows, open_table, prepare, sources
from sfg_dist.data import folders as module
from sfg_dist.data.column_files import read_columns
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.store.table import write_table

VALUES = np.random.default_rng(0).standard_normal((300, 2))
CUTS = (0, 70, 71, 180, 300)


def write(folder, suffix=".parquet", order=("a", "b")):
    folder.mkdir(parents=True, exist_ok=True)
    for number, (start, stop) in enumerate(itertools.pairwise(CUTS)):
        path = folder / f"part-{number}{suffix}"
        names = order if number % 2 else order[::-1]
        table = pa.table({name: VALUES[start:stop, "ab".index(name)] for name in names})
        if suffix == ".parquet":
            parquet.write_table(table, path, row_group_size=50)
        else:
            table.to_pandas().to_csv(path, index=False)
    return folder


def parquet_file(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
@pytest.mark.parametrize("source", ["{}", "{}/", "{}/part-*", "{}/**/*.{}"])
def test_one_table(tmp_path, suffix, source):
    folder = write(tmp_path / "t", suffix)
    (folder / "_SUCCESS").touch()
    (folder / "_sample.json").write_text("{}")
    (folder / ".part-0.crc").write_bytes(b"x")
    (folder / "README.md").write_text("what this is")
    table = open_table(source.format(folder, suffix[1:]), columns=["a", "b"])
    np.testing.assert_array_equal(table.values, VALUES)
    assert table.read_as.startswith("4 files, ")


def test_a_folder_with_the_suffix_of_a_file(tmp_path):
    np.testing.assert_array_equal(open_table(write(tmp_path / "t.parquet"), columns=["a", "b"]).values, VALUES)
    np.testing.assert_array_equal(open_table(write(tmp_path / "t.csv", ".csv"), columns=["b"]).values, VALUES[:, 1:])


@pytest.mark.parametrize("source", ["{}", "{}/*.parquet"])
def test_by_ranges(tmp_path, source):
    source = source.format(write(tmp_path / "t"))
    whole = open_table(source)
    with open_rows(source) as rows:
        assert (rows.num_rows, rows.columns) == (300, whole.columns)
        for start, stop in [(0, 300), (0, 0), (69, 72), (100, 290), (299, 300), (70, 71)]:
            np.testing.assert_array_equal(rows.read(start, stop), whole.values[start:stop])
        np.testing.assert_array_equal(rows.read(10, 200, ["a"]), VALUES[10:200, :1])
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(37))), whole.values)
        assert rows.read_as == whole.read_as


def test_prepared_in_passes_as_whole(tmp_path):
    source = str(write(tmp_path / "t"))
    passes = prepare(source, memory_gib=1e-9, shuffle="none")
    whole = prepare(source, shuffle="none")
    assert not passes.is_whole
    assert passes.table_fingerprint() == whole.table_fingerprint()
    assert passes.report["read_as"] == whole.report["read_as"]
    csv = str(write(tmp_path / "c", ".csv"))
    assert prepare(csv, memory_gib=1e-9, shuffle="none").is_whole


class TestPartitions:
    def make(self, folder, years=(2019, 2020)):
        for year in years:
            parquet_file(folder / f"year={year}" / "part-0.parquet", x=[1.5, 2.5], id=[1, 2])
        return folder

    def test_numbers_are_columns(self, tmp_path):
        folder = self.make(tmp_path / "t")
        table = open_table(folder)
        assert table.columns == ("x", "id", "year")
        np.testing.assert_array_equal(table.values[:, 2], [2019, 2019, 2020, 2020])
        with open_rows(folder) as rows:
            np.testing.assert_array_equal(rows.read(1, 4), table.values[1:])
            np.testing.assert_array_equal(rows.read(1, 4, ["year"]), table.values[1:, 2:])
        assert open_table(folder, columns=["year", "x"]).values[3].tolist() == [2020, 2.5]
        assert "from the folders' names: 'year'" in table.read_as

    def test_text_is_a_category(self, tmp_path):
        folder = self.make(tmp_path / "t", ("north", "south"))
        table = open_table(folder)
        assert table.types[table.columns.index("year")].categories == ("north", "south")
        assert open_table(folder, columns=["x"]).values.shape == (4, 1)

    def test_missing_values(self, tmp_path):
        folder = self.make(tmp_path / "t", (2019, "__HIVE_DEFAULT_PARTITION__"))
        np.testing.assert_array_equal(open_table(folder, columns=["year"]).values[:, 0], [2019, 2019, np.nan, np.nan])

    def test_files_of_other_partitions(self, tmp_path):
        folder = self.make(tmp_path / "t")
        parquet_file(folder / "part-9.parquet", x=[1.0], id=[3])
        with pytest.raises(DataError, match=r"expected the same"):
            open_table(folder)


class TestRefusals:
    def test_other_columns(self, tmp_path):
        parquet_file(tmp_path / "t" / "a.parquet", x=[1.0], y=[2.0])
        parquet_file(tmp_path / "t" / "b.parquet", x=[1.0], z=[2.0])
        for read in (open_table, lambda source: open_rows(source).__enter__()):
            with pytest.raises(DataError, match=r"b\.parquet lacks 'y' and has 'z' more, beside .*a\.parquet"):
                read(tmp_path / "t")
        assert open_table(tmp_path / "t", columns=["x"]).values.shape == (2, 1)

    def test_other_types(self, tmp_path):
        parquet_file(tmp_path / "t" / "a.parquet", x=[1], y=[1])
        parquet_file(tmp_path / "t" / "b.parquet", x=[2.5], y=["text"])
        assert open_table(tmp_path / "t", columns=["x"]).values.tolist() == [[1], [2.5]]
        with pytest.raises(DataError, match=r"b\.parquet: column 'y' is string, in the files before int64"):
            open_table(tmp_path / "t")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "holds no file: expected .parquet or .csv"),
            (["a.xlsx", "b.xlsx", "c.json"], r"holds 2 with \.xlsx, 1 with \.json"),
            (["a.npy"], r"holds 1 with \.npy: .*name a file of another format itself"),
            (["zarr.json"], r"let its name end in \.zarr"),
            (["a.parquet", "_delta_log/0.json"], "is a Delta table"),
            (["data/a.parquet", "metadata/v1.metadata.json"], "is an Iceberg table"),
            (["a.csv", "b.parquet"], "holds 1 .parquet file and 1 .csv file: name one kind"),
        ],
    )
    def test_folders_that_are_no_table(self, tmp_path, names, message):
        folder = tmp_path / "t"
        folder.mkdir()
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
        with pytest.raises(DataError, match=message):
            open_table(folder)

    def test_the_file_is_named(self, tmp_path):
        folder = write(tmp_path / "t", ".csv")
        (folder / "part-1.csv").write_text("a,b\n1,2\n3\n")
        with pytest.raises(DataError, match=r"part-1\.csv: line 3 has 1 cell"):
            open_table(folder)
        (folder / "part-1.csv").write_text("a,b\n1,2\n3,x\n")
        with pytest.raises(DataError, match=r"part-1\.csv: column 'b' holds text: 'x'"):
            open_table(folder)
        broken = write(tmp_path / "p")
        (broken / "part-2.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(DataError, match=r"part-2\.parquet cannot be read"):
            open_table(broken)

    def test_a_glob_without_a_match(self, tmp_path):
        with pytest.raises(DataError, match=r"matches no file"):
            open_table(tmp_path / "*.parquet")


def test_parts_with_row_numbers_and_keys_of_text(tmp_path):
    for number in range(3):
        (tmp_path / f"p{number}.csv").write_text(f";a\n{2 * number};1,5\n{2 * number + 1};2,5\n")
    table = open_table(tmp_path, text=TextFormat(decimal=","))
    assert (table.columns, table.values.tolist()) == (("a",), [[1.5], [2.5]] * 3)
    assert "row numbers" in table.read_as


def test_types_of_parts_are_joined_exactly(tmp_path):
    parts = {"a": ["1", "2", ""], "b": ["0.1", "2.5", "3"], "c": ["", "NA", ""], "d": ["0.125", "7.3", "1e3"]}
    for name, cells in parts.items():
        (tmp_path / f"{name}.csv").write_text("x,y\n" + "".join(f"{cell},1\n" for cell in cells))
    table, _ = read_columns(str(tmp_path), None, TextFormat())
    assert table.column("x").type == pa.decimal128(15, 3)
    expected = [1, 2, np.nan, 0.1, 2.5, 3, *[np.nan] * 3, 0.125, 7.3, 1000]
    np.testing.assert_array_equal(open_table(tmp_path).values[:, 0], expected)
    (tmp_path / "e.csv").write_text("x,y\n0.12345678901234567,18446744073709551615\n1,2\n")
    table, _ = read_columns(str(tmp_path), None, TextFormat())
    assert (table.column("x").type, table.column("y").to_pylist()[-2]) == (pa.float64(), 18446744073709551615)


def test_texts_of_parts_with_other_places_keep_their_digits(tmp_path):
    for name, cells in {"a": ["0.1", "2.5", "3.0"], "b": ["0.1234", "1.0000", "7.2500"]}.items():
        (tmp_path / f"{name}.csv").write_text("x,y\n" + "".join(f"{cell},1\n" for cell in cells))
    table = open_table(tmp_path)
    assert (table.types[0].places, table.types[0].style) == (4, None)
    written = table.types[0].from_float(table.values[:, 0])
    assert written.to_pylist() == [0.1, 2.5, 3.0, 0.1234, 1.0, 7.25]


def test_integers_that_a_part_of_floats_would_round_are_refused(tmp_path):
    parquet_file(tmp_path / "a.parquet", x=[2**53 + 1, 2])
    parquet_file(tmp_path / "b.parquet", x=[0.5, 1.5])
    with pytest.raises(DataError, match=r"a\.parquet: column 'x' is int64, .* read as double together"):
        open_table(tmp_path)


def test_keys_beyond_2_to_53_whole_and_by_ranges(tmp_path):
    keys = [2**53 + 1, 2**53 + 2, 2**53 + 4]
    for key in keys:
        parquet_file(tmp_path / f"run={key}" / "a.parquet", x=[0.5, 1.5])
    table = open_table(tmp_path)
    with open_rows(str(tmp_path)) as reader:
        assert reader.types == table.types
        np.testing.assert_array_equal(reader.read(0, 6), table.values)
    assert table.types[1].from_float(table.values[::2, 1]).to_pylist() == keys


@pytest.mark.parametrize("source", ["./~/a.parquet", "./~", "./~/*.parquet"])
def test_a_folder_whose_name_is_a_tilde(tmp_path, monkeypatch, source):
    parquet_file(tmp_path / "~" / "a.parquet", x=[0.5, 1.5])
    monkeypatch.chdir(tmp_path)
    with open_rows(source) as reader:
        np.testing.assert_array_equal(reader.read(0, 2), open_table(source).values)


def test_the_home_of_an_unknown_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no user nobody-here"):
        open_table("~nobody-here/a.parquet")
    with pytest.raises(ConfigError, match="there is no user nobody-here"):
        write_table("~nobody-here/a.csv", ["x"], 0, lambda ranges: iter(()), source="none")
    assert not list(tmp_path.iterdir())


def test_a_file_whose_name_has_brackets(tmp_path):
    (tmp_path / "a[1].csv").write_text("a,b\n1,2\n")
    assert open_table(tmp_path / "a[1].csv").values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "source", ["s3://bucket/t/", "s3://bucket/t", "s3://bucket/t/part-*.parquet", "s3://bucket/*/part-?.parquet"]
)
def test_in_a_bucket(tmp_path, monkeypatch, source):
    from obstore.store import LocalStore

    from sfg_dist.data import table

    write(tmp_path / "t")
    (tmp_path / "t" / "_sample.json").write_text("{}")

    def bucket(url):
        return LocalStore(tmp_path), url.removeprefix("s3://bucket/")

    for each in (module, sources, table):
        monkeypatch.setattr(each, "open_bucket", bucket)
    np.testing.assert_array_equal(open_table(source, columns=["a", "b"]).values, VALUES)
    with open_rows(source, columns=["b", "a"]) as reader:
        np.testing.assert_array_equal(reader.read(60, 200), VALUES[60:200, ::-1])


def test_a_folder_with_the_suffix_of_a_file_in_a_bucket(tmp_path, monkeypatch):
    from obstore.store import LocalStore

    from sfg_dist.data import table

    write(tmp_path / "s.parquet")
    for each in (module, sources, table):
        monkeypatch.setattr(each, "open_bucket", lambda url: (LocalStore(tmp_path), url.removeprefix("s3://bucket/")))
    with pytest.raises(DataError, match=r"s3://bucket/none.parquet does not exist"):
        open_table("s3://bucket/none.parquet")
    np.testing.assert_array_equal(open_table("s3://bucket/s.parquet", columns=["a", "b"]).values, VALUES)


def test_parts_without_values_have_no_type(tmp_path):
    days = pa.array([19000, 19003], pa.int32()).cast(pa.date32())
    parquet_file(tmp_path / "t" / "0.parquet", day=pa.nulls(0), x=pa.nulls(0))
    parquet_file(tmp_path / "t" / "1.parquet", day=days, x=[1.5, 2.5])
    parquet_file(tmp_path / "t" / "2.parquet", day=pa.nulls(2), x=[3.5, None])
    parquet_file(tmp_path / "t" / "3.parquet", day=days, x=pa.nulls(2))
    parquet_file(tmp_path / "t" / "4.parquet", day=pa.nulls(0), x=pa.nulls(0))
    whole = open_table(tmp_path / "t")
    with open_rows(tmp_path / "t") as rows:
        np.testing.assert_array_equal(rows.read(0, 6), whole.values)
        assert (rows.types, rows.columns) == (whole.types, whole.columns)


@pytest.mark.parametrize(
    "parts",
    [
        ([pa.array([1, 2], pa.int32()), pa.array([3, 2**40])], pa.int64()),
        ([pa.array([1, 2], pa.int8()), pa.array([3, 4], pa.uint16())], pa.int64()),
        ([pa.array([1, 2]), pa.array([0.5, 4.0])], pa.float64()),
        ([pa.array([1.5, 2], pa.float32()), pa.array([0.1, None])], pa.float64()),
        ([pa.array([1, 2]), pa.array([2**63 + 1, 2**63 + 2], pa.uint64()).slice(0, 0)], pa.int64()),
        ([pa.array([2**62, 2**62 + 2]), pa.array([2**62 + 1], pa.int64()), pa.array([None, None])], pa.int64()),
        ([pa.array([1, 2]), pa.array([Decimal("1.50"), None])], pa.decimal128(15, 2)),
        ([pa.array([1, 2]).dictionary_encode(), pa.array([3, 4], pa.int32())], pa.int64()),
        ([pa.array([Decimal("1.50")], pa.decimal128(38, 2))] * 2, pa.decimal128(38, 2)),
    ],
)
def test_types_that_differ_are_one_whole_and_by_ranges(tmp_path, parts):
    columns, expected = parts
    for number, column in enumerate(columns):
        parquet_file(tmp_path / "t" / f"{number}.parquet", a=column)
    whole = open_table(tmp_path / "t")
    with open_rows(tmp_path / "t") as rows:
        assert rows.types == whole.types
        np.testing.assert_array_equal(rows.read(0, rows.num_rows), whole.values)
    assert whole.types[0].arrow == expected
    assert whole.types[0].from_float(whole.values[:, 0]).to_pylist() == [
        v for part in columns for v in part.to_pylist()
    ]


def test_types_that_no_type_holds_are_refused_whole_and_by_ranges(tmp_path):
    parquet_file(tmp_path / "t" / "0.parquet", a=pa.array([1, 2]))
    parquet_file(tmp_path / "t" / "1.parquet", a=pa.array([True, False]))
    words = r"1\.parquet: column 'a' is bool, in the files before int64: expected one type"
    with pytest.raises(DataError, match=words):
        open_table(tmp_path / "t")
    with pytest.raises(DataError, match=words), open_rows(tmp_path / "t"):
        pass


def test_a_folder_that_cannot_be_looked_at_is_said(tmp_path, monkeypatch):
    (tmp_path / "t" / "locked").mkdir(parents=True)

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self / "locked"))

    monkeypatch.setattr(Path, "rglob", refuse)
    with pytest.raises(DataError, match=r"t: .*locked in it cannot be looked at \(Permission denied\): name the files"):
        open_table(tmp_path / "t")
