"""Everyday .csv files by kind: each is read as its writer meant it, or refused with its line and the key that helps."""

import bz2
import gzip

import numpy as np
import pyarrow as pa
import pytest
import tomli_w

from sfg_dist.cli.display import Display
from sfg_dist.data import TextFormat, open_table, prepare, read_queries
from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.csv_columns import decimal_places, typed
from sfg_dist.data.csv_read import read_csv
from sfg_dist.job.config import parse_job
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.pipeline.plan import identity_of_keys
from sfg_dist.pipeline.table import prepare_table

NAN = np.nan


def read(tmp_path, content, name="a.csv", columns=None, **keys):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(path, columns=columns, text=TextFormat(**keys) if keys else None)


def check(table, columns, values):
    assert table.columns == tuple(columns)
    np.testing.assert_array_equal(table.values, np.array(values, dtype=float))


def lines(rows, separator=","):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


FLOATS = [[0.25, 1.5, 12.75], [0.5, 2.5, 3.25], [1.25, 0.0, 4.5], [2.5, 7.25, 0.125], [3.5, 1.0, 9.5]]
INTS = [[5, 0, 3], [7, 2, 2], [1, 1, 9], [0, 4, 4], [6, 3, 1]]


class TestHeader:
    """C1 and C2."""

    def test_pandas_names_over_floats(self, tmp_path):
        check(read(tmp_path, "0,1,2\n" + lines(FLOATS)), "012", FLOATS)

    def test_pandas_names_beside_row_numbers(self, tmp_path):
        rows = [[number, *row] for number, row in enumerate(INTS)]
        table = read(tmp_path, ",0,1,2\n" + lines(rows))
        check(table, "012", INTS)
        assert "row numbers in an unnamed column left out" in table.read_as

    def test_names_that_alone_are_quoted(self, tmp_path):
        check(read(tmp_path, '"0","1","2"\n' + lines(INTS)), "012", INTS)
        check(read(tmp_path, '"","5","3"\n' + lines([[1, 7, 2], [2, 4, 4]])), "53", [[7, 2], [4, 4]])
        assert read(tmp_path, '"5","3"\n"7","2"\n"4","4"\n').columns == ("c0", "c1")

    def test_a_series(self, tmp_path):
        check(read(tmp_path, ",0\n0,0.5\n1,0.25\n2,1.5\n"), "0", [[0.5], [0.25], [1.5]])
        check(read(tmp_path, "0\n" + lines([[f"{row[0]:.2f}"] for row in FLOATS])), "0", [[row[0]] for row in FLOATS])

    def test_years_over_numbers_of_fixed_places(self, tmp_path):
        rows = lines([[f"{cell:.3f}" for cell in row] for row in FLOATS])
        check(read(tmp_path, "2019,2020,2021\n" + rows), ("2019", "2020", "2021"), FLOATS)

    @pytest.mark.parametrize(
        "text",
        [
            "0,1,2\n" + lines(INTS),
            "0\n" + lines([[row[0]] for row in INTS]),
            "2019,2020,2021\n" + lines(INTS),
            lines([[350.5, 351.0, 351.5, 352.0, 352.5], *[row + row[:2] for row in FLOATS]]),
            "NA\n1.5\n2.5\n",
            "x1,5,3\n" + lines(INTS),
            "ann,1,3\nbob,2,4\n",
            "7,5,9\n" + lines([[f"{cell:.2f}" for cell in row] for row in FLOATS]),
        ],
    )
    def test_ambiguous_files_are_refused_until_the_key_says(self, tmp_path, text):
        with pytest.raises(DataError, match=r"a\.csv: line 1 may hold names or values.*data\.header = true"):
            read(tmp_path, text)
        width, num_lines = text.split("\n")[0].count(","), text.count("\n")
        last = [f"c{width}"] if width else None
        names = text.split("\n")[0].split(",")
        assert len(read(tmp_path, text, header=False, columns=last).values) == num_lines
        table = read(tmp_path, text, header=True, columns=names[-1:])
        assert (table.columns, len(table.values)) == ((names[-1],), num_lines - 1)

    @pytest.mark.parametrize("first", [[0.5, "", 0.25], ["NA", 0.5, 0.75], ["", "", 2.5], ["?", 1, 0.5], [5, 0, ""]])
    def test_a_first_row_with_a_gap_is_a_row(self, tmp_path, first):
        values = [[NAN if isinstance(cell, str) else cell for cell in first], *FLOATS]
        check(read(tmp_path, lines([first, *FLOATS])), ("c0", "c1", "c2"), values)

    def test_rows_without_names(self, tmp_path):
        table = read(tmp_path, lines(INTS))
        check(table, ("c0", "c1", "c2"), INTS)
        assert "no names in the file" in table.read_as

    def test_names_over_numbers_and_a_column_of_text(self, tmp_path):
        check(read(tmp_path, "who,x\nann,1\nbob,2\n", columns=["x"]), "x", [[1], [2]])

    def test_one_row(self, tmp_path):
        check(read(tmp_path, "1.5,2,3\n"), ("c0", "c1", "c2"), [[1.5, 2, 3]])
        with pytest.raises(DataError, match=r"has 0 rows and 2 columns"):
            read(tmp_path, "a,b\n")

    def test_names_that_spaces_alone_tell_apart(self, tmp_path):
        check(read(tmp_path, " a , b\n1,2\n"), "ab", [[1, 2]])
        with pytest.raises(DataError, match=r"2 columns are named 'a'"):
            read(tmp_path, "a, a\n1,2\n")


class TestDecimals:
    """C3."""

    @pytest.mark.parametrize(
        ("text", "names", "values"),
        [
            ("x\n0,637\n1,25\n3,5\n", ["x"], [[0.637], [1.25], [3.5]]),
            ("0,637\n0,051\n1,250\n", ["c0"], [[0.637], [0.051], [1.25]]),
            ("a;b\n0,5;1,25\n3;4,5\n", "ab", [[0.5, 1.25], [3, 4.5]]),
            ("0,5;1,25\n3;4,5\n", ["c0", "c1"], [[0.5, 1.25], [3, 4.5]]),
            ("a\tb\n-0,5\t1,25e3\n3\t\n", "ab", [[-0.5, 1250], [3, NAN]]),
            ('"a","b"\n"1,2","5,75"\n"3,45","4,5"\n', "ab", [[1.2, 5.75], [3.45, 4.5]]),
            ("a b\n0,5 1,25\n3 4,5\n", "ab", [[0.5, 1.25], [3, 4.5]]),
        ],
    )
    def test_decimal_commas(self, tmp_path, text, names, values):
        table = read(tmp_path, text)
        check(table, names, values)
        assert "decimal comma" in table.read_as

    def test_pairs_of_whole_numbers(self, tmp_path):
        check(read(tmp_path, "a,b\n1,637\n2,512\n"), "ab", [[1, 637], [2, 512]])
        check(read(tmp_path, "1,2\n3,40\n5,6\n"), ("c0", "c1"), [[1, 2], [3, 40], [5, 6]])

    @pytest.mark.parametrize("text", ["1,637\n2,512\n7,250\n", "x\n1,637\n2,512\n7,250\n", "a;b\n1,234;5\n3,456;4\n"])
    def test_what_may_be_either_is_refused_until_the_key_says(self, tmp_path, text):
        with pytest.raises(DataError, match=r"a\.csv: .*data\.decimal = \",\""):
            read(tmp_path, text)
        found = read(tmp_path, text, decimal=",").values[0, 0]
        assert found in (1.637, 1.234)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                'a,b\n"1,234.5",5\n"3,456.25",4\n',
                "'1,234.5' in data row 1 .*line 2.*separators of thousands are not read",
            ),
            ("a;b\n1.234,5;1,25\n3;4,5\n", "'1.234,5' in data row 1 .*separators of thousands are not read"),
            ("a;b\n1,5;5.5\n3,45;4.5\n", "column 'a' holds text: '1,5' .*a decimal comma is read with data.decimal"),
            ("a;b\n1;5\n1 234;4\n", "'1 234' in data row 2 .*separators of thousands"),
            ("a,b\n0,5,1,25\n3,0,4,5\n", "line 1 holds 2 names, line 2 4 cells .*decimal comma must be quoted"),
        ],
    )
    def test_other_marks_are_refused_by_name(self, tmp_path, text, message):
        with pytest.raises(DataError, match=message):
            read(tmp_path, text)


class TestIndex:
    """C4."""

    @pytest.mark.parametrize("name", ["", '""', "Unnamed: 0"])
    @pytest.mark.parametrize("first", [0, 1, 100])
    def test_row_numbers_are_left_out_and_said(self, tmp_path, name, first):
        text = f"{name},a,b\n" + lines([[first + number, number / 2, 7] for number in range(5)])
        table = read(tmp_path, text)
        check(table, "ab", [[number / 2, 7] for number in range(5)])
        assert "row numbers" in table.read_as
        kept = read(tmp_path, text, index=False)
        assert (kept.columns[0], kept.values[:, 0].tolist()) == (name.strip('"') or "c0", [first + n for n in range(5)])

    def test_another_unnamed_column_is_refused_until_the_key_says(self, tmp_path):
        text = ",a,b\n5,1,2\n9,3,4\n7,5,6\n"
        for given in (text, "Unnamed: 0" + text):
            with pytest.raises(DataError, match=r"first column has no name of its own in line 1.*data\.index = true"):
                read(tmp_path, given)
        check(read(tmp_path, text, index=True), "ab", [[1, 2], [3, 4], [5, 6]])
        check(read(tmp_path, text, index=False), ("c0", "a", "b"), [[5, 1, 2], [9, 3, 4], [7, 5, 6]])
        check(read(tmp_path, text, columns=["b"]), "b", [[2], [4], [6]])

    def test_a_column_that_counts_is_said(self, tmp_path):
        assert "'id' counts the rows, and is kept" in read(tmp_path, "id,x\n1,5\n2,3\n").read_as
        assert "'c0' counts the rows" in read(tmp_path, "0,5.5,1\n1,3.5,7\n2,1.5,0\n").read_as
        check(read(tmp_path, "id,x\n1,5\n2,3\n", index=True), "x", [[5], [3]])

    def test_row_names_of_r(self, tmp_path):
        check(read(tmp_path, '"a","b"\n"1",5,2\n"2",3,4\n'), "ab", [[5, 2], [3, 4]])
        with pytest.raises(DataError, match=r"2 names, line 2 3 cells.*data\.index = true"):
            read(tmp_path, '"a","b"\n"Mazda",5,2\n"Fiat",3,4\n')
        check(read(tmp_path, '"a","b"\n"Mazda",5,2\n"Fiat",3,4\n', index=True), "ab", [[5, 2], [3, 4]])

    def test_a_gap_deep_in_the_file_is_no_row_number(self, tmp_path):
        rows = [[number + (number > 2500), number % 7] for number in range(3000)]
        with pytest.raises(DataError, match=r"does not count the rows"):
            read(tmp_path, ",a\n" + lines(rows))


class TestBlankLinesAndComments:
    """C5 and C6."""

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_a_blank_line_in_a_single_column_is_missing(self, tmp_path, end):
        check(read(tmp_path, end.join(["a", "1", "", "2", " ", "3", "", ""])), "a", [[1], [NAN], [2], [NAN], [3]])

    def test_blank_lines_elsewhere_are_said(self, tmp_path):
        table = read(tmp_path, "a,b\n\n1,2\n\n  \n3,4\n\n\n")
        check(table, "ab", [[1, 2], [3, 4]])
        assert "3 blank lines left out" in table.read_as

    @pytest.mark.parametrize(
        ("text", "names", "values"),
        [
            ('"a;b","c, d"\n1,2\n3,4\n', ("a;b", "c, d"), [[1, 2], [3, 4]]),
            ('"a\nx","c"\n1,2\n3,4\n', ("a\nx", "c"), [[1, 2], [3, 4]]),
            ('a,"b ""x"""\n1,2\n3,4\n', ("a", 'b "x"'), [[1, 2], [3, 4]]),
            ('# by x\n# y, z\na,b\n1,2\n# mid "\n3,4\n', "ab", [[1, 2], [3, 4]]),
            ("sep=;\na;b\n1;2\n3;4\n", "ab", [[1, 2], [3, 4]]),
            ("sep=|\n1|2\n3|4\n", ("c0", "c1"), [[1, 2], [3, 4]]),
            ("a,b,\n1,2,\n3,4,\n", "ab", [[1, 2], [3, 4]]),
            ("a,b\n1,2,\n3,4,\n", "ab", [[1, 2], [3, 4]]),
            ("1.5,2,\n3,4,\n", ("c0", "c1"), [[1.5, 2], [3, 4]]),
            ("# a b\n1.5 2.5\n3.0 4.0\n", "ab", [[1.5, 2.5], [3, 4]]),
            ("# a,b\n1.5,2.5\n3.0,4.0\n", "ab", [[1.5, 2.5], [3, 4]]),
            ("# a\n1.5\n2.5\n", "a", [[1.5], [2.5]]),
            ("#id,x\n1,2\n3,4\n", ("id", "x"), [[1, 2], [3, 4]]),
            ("# made in 2024\n1.5,2.5\n3.0,4.0\n", ("c0", "c1"), [[1.5, 2.5], [3, 4]]),
        ],
    )
    def test_good_files_are_not_called_damaged(self, tmp_path, text, names, values):
        check(read(tmp_path, text), names, values)

    def test_numpy_savetxt(self, tmp_path):
        np.savetxt(tmp_path / "a.txt", INTS, header="a b c", fmt="%.18e")
        check(open_table(tmp_path / "a.txt"), "abc", INTS)

    def test_cells_with_line_breaks_that_are_not_wanted(self, tmp_path):
        text = "a,note\n" + "".join(f'{number},"x, {number}\ny"\n' for number in range(20_000))
        table = read(tmp_path, text, columns=["a"])
        np.testing.assert_array_equal(table.values[:, 0], np.arange(20_000))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2\n3\n4,5\n", "line 3 has 1 cell, expected 2 cells"),
            ("a,b\n# x\n\n1,2\n3,4,5\n4,5\n", "line 5 has 3 cells, expected 2 cells"),
            ("Export of May\na,b,c\n1,2,3\n", "line 1 holds 1 name, line 2 3 cells"),
            ("a,a\n1,2\n", "2 columns are named 'a'"),
            ("# only\n# this\n", "comments only"),
        ],
    )
    def test_uneven_lines_are_named(self, tmp_path, text, message):
        with pytest.raises(DataError, match=rf"a\.csv.*{message}") as caught:
            read(tmp_path, text)
        assert "CSV parse error" not in str(caught.value)

    def test_an_uneven_line_far_down(self, tmp_path):
        text = "a,b\n" + "1,2\n" * 100_000 + "7\n" + "1,2\n" * 10
        with pytest.raises(DataError, match=r"line 100002 has 1 cell, expected 2 cells"):
            read(tmp_path, text)


class TestBytes:
    """C7."""

    TEXT = "a,b\n1,2\n3,4\n"

    @pytest.mark.parametrize(
        ("pack", "name", "words"),
        [
            (str.encode, "a.csv", ""),
            (lambda text: text.replace("\n", "\r").encode(), "a.csv", "lines ended by CR"),
            (lambda text: text.replace("\n", "\r\n").encode(), "a.CSV", ""),
            (lambda text: text.encode("utf-16"), "a.csv", "utf-16"),
            (lambda text: ("\ufeff" + text).encode("utf-16-be"), "a.csv", "utf-16-be"),
            (lambda text: text.encode("utf-8-sig"), "a.csv", ""),
            (lambda text: gzip.compress(text.encode()), "a.csv", "gzip"),
            (lambda text: gzip.compress(text.encode()), "a.csv.gz", "gzip"),
            (lambda text: bz2.compress(text.encode()), "a.csv.bz2", "bzip2"),
            (lambda text: pa.Codec("zstd").compress(text.encode()).to_pybytes(), "a.csv.zst", "zstd"),
            (lambda text: text.replace(",", "\t").encode(), "a.tsv", "tabs"),
            (lambda text: text.replace(",", " ").encode(), "a.txt", "spaces"),
        ],
    )
    def test_packed_and_encoded(self, tmp_path, pack, name, words):
        table = read(tmp_path, pack(self.TEXT), name)
        check(table, "ab", [[1, 2], [3, 4]])
        assert words in table.read_as

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "Größe,b\n1,2\n".encode("cp1252"),
                r"not UTF-8 \(byte 0xf6 in line 1\).*'Größe'.*data.encoding = \"cp1252\"",
            ),
            ("a,b\n1,2\n".encode("utf-16-le"), r"zero byte.*data.encoding = \"utf-16-le\""),
            (gzip.compress(b"a,b\n1,2\n" * 999, mtime=0)[:-9], "packed by gzip, and damaged or cut short"),
            # No deflate block begins with 7.
            (gzip.compress(b"a,b\n", mtime=0)[:10] + b"\x07" * 99, "packed by gzip, and damaged"),
            (bz2.compress(b"a,b\n1,2\n" * 999)[:-9], "packed by bzip2, and damaged"),
            (pa.Codec("zstd").compress(b"a,b\n1,2\n" * 999).to_pybytes()[:-5], "packed by zstd, and damaged"),
            (b"PK\x03\x04...", "Excel workbooks"),
            (b"PAR1...", "a parquet file"),
            (b"\n<!doctype html><html>", "an HTML page"),
            (b'"' + b"1,2\n" * 40_000, "is a quote not closed|expected"),
            (b'a,b\n1,2\n3,"4\n5,6\n7,8\n', "in line 3 begins with a quote that is not closed"),  # turicreate 1692
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_named_for_what_it_is(self, tmp_path, content, message):
        with pytest.raises(DataError, match=rf"a\.csv.*({message})"):
            read(tmp_path, content)

    def test_the_key_of_the_encoding(self, tmp_path):
        assert read(tmp_path, "Größe,b\n1,2\n".encode("cp1252"), encoding="cp1252").columns == ("Größe", "b")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a b c\n1 2 3\n4 5 6\n", "spaces"),
        ("  a    b  c\n 1.0  2.0 3\n-4.0 15.0 6\n", "spaces"),
        ("a|b|c\n1|2|3\n4|5|6\n", "bars"),
        ("a\tb\tc\n1\t2\t3\n4\t5\t6\n", "tabs"),
        ("a;b;c\n1;2;3\n4;5;6\n", "semicolons"),
        ("a, b, c\n1, 2, 3\n4, 5, 6\n", "commas"),
    ],
)
def test_separators(tmp_path, text, word):
    """C8."""
    table = read(tmp_path, text)
    assert table.values.shape == (2, 3)
    np.testing.assert_array_equal(np.abs(table.values[0]), [1, 2, 3])
    assert table.columns == ("a", "b", "c")
    assert word in table.read_as
    check(read(tmp_path, "a:b\n1:2\n", separator=":"), "ab", [[1, 2]])


class TestCells:
    def test_numbers_as_people_write_them(self, tmp_path):
        text = 'a,b,c,d\n+1.5, 2,1.5D+03,\u22123\n" 2.5",NULL,1d-2,4\n-,?,2.5,1e2\n'
        check(read(tmp_path, text), "abcd", [[1.5, 2, 1500, -3], [2.5, NAN, 0.01, 4], [NAN, NAN, 2.5, 100]])

    def test_missing_values_by_any_of_their_names(self, tmp_path):
        names = ["NA", "N/A", "NULL", "null", "None", "nan", "NaN", "?", "-", "#N/A", "<NA>", ".", " NA "]
        check(read(tmp_path, "a,b\n" + lines([[name, 1] for name in names])), "ab", [[NAN, 1]] * len(names))

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            (["5%", "6%"], "'5%' in data row 1 .*take out what is no part"),
            (["$5", "6"], r"'\$5' in data row 1"),
            (["5", "yes"], "'yes' in data row 2 .*line 3 of the file"),
            (["1_000", "3"], "'1_000'"),
        ],
    )
    def test_text_is_refused_by_name_and_line(self, tmp_path, cells, message):
        text = "x,y\n" + lines([[cell, 1] for cell in cells])
        with pytest.raises(DataError, match=rf"a\.csv: column 'x' .*{message}.*data\.columns"):
            read(tmp_path, text)
        check(read(tmp_path, text, columns=["y"]), "y", [[1]] * len(cells))

    @pytest.mark.parametrize("cells", [["02139", "94105"], ["0x1F", "3"], ["true", "maybe"]])
    def test_codes_and_words_are_categories(self, tmp_path, cells):
        table = read(tmp_path, "x,y\n" + lines([[cell, 1] for cell in cells]))
        assert table.types[0].from_float(table.values[:, 0]).to_pylist() == cells

    def test_two_digits_are_numbers(self, tmp_path):
        table = read(tmp_path, "month,x\n01,1\n12,2\n")
        check(table, ("month", "x"), [[1, 1], [12, 2]])
        assert "leading zeros in 'month' not kept" in table.read_as

    def test_lines_are_counted_through_comments_and_quotes(self, tmp_path):
        text = '# one\n"a\nb",c\n1,2\n\n# two\n3,x\n'
        with pytest.raises(DataError, match=r"'x' in data row 2 .*line 7 of the file"):
            read(tmp_path, text)

    @pytest.mark.slow
    def test_very_wide(self, tmp_path):
        names = [f"{number:060d}" for number in range(2500)]  # a line longer than a cell of Python's csv may be
        text = ",".join(f"x{name}" for name in names) + "\n" + (",".join(["1.25"] * 2500) + "\n") * 3
        assert read(tmp_path, text).values.shape == (3, 2500)


# What users of other readers reported, by project and number; what is right here.
@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ('"foo", "bar"\n"1", "2"\n"3", "4"\n', ("foo", "bar"), [[1, 2], [3, 4]]),  # readr 668
        ('x,y\n"0.1","5"\n".","."\n', "xy", [[0.1, 5], [NAN, NAN]]),  # readr 111
        ("s,t\n" + "0,0\n" * 5000 + "0.25,3\n", "st", [[0, 0]] * 5000 + [[0.25, 3]]),  # readr 716
        ("A,B,C,\n1,2,3,\n4,5,6,\n", "ABC", [[1, 2, 3], [4, 5, 6]]),  # polars 21094
        ("a,b\r\r\n1,2\r\r\n3,4\r\r\n", "ab", [[1, 2], [3, 4]]),  # text mode on Windows
        (  # readr 557: NOAA's table of CO2
            "# CO2\n#\n 1958   3  1958.208  315.71 \n 1958   4  1958.292  317.45   \n",
            ("c0", "c1", "c2", "c3"),
            [[1958, 3, 1958.208, 315.71], [1958, 4, 1958.292, 317.45]],
        ),
        (  # cpython 110128
            "\t".join(f"a long field, number {n}, (m/s)" for n in range(3)) + "\n1.5\t2\t3\n4\t5\t6\n",
            tuple(f"a long field, number {n}, (m/s)" for n in range(3)),
            [[1.5, 2, 3], [4, 5, 6]],
        ),
        ("Unnamed: 0.1,Unnamed: 0,a\n0,0,1.5\n1,1,2.5\n", "a", [[1.5], [2.5]]),  # pandas 10646, written twice
    ],
    ids=lambda value: repr(value)[:20],
)
def test_reported_elsewhere_and_read(tmp_path, text, names, values):
    check(read(tmp_path, text), names, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n" + "1,2\n" * 3000 + "1,2,3\n" * 9, "line 3002 has 3 cells, expected 2"),  # duckdb 25827
        ("c0\nv0\na;b\n", "column 'c0' holds text: 'v0' .*line 2"),  # duckdb 25827
        ("A\n1\n2,3\n4\n", r"line 3 holds 2,3, most others have no comma.*data\.separator"),  # polars 10585
        ("Report of 2025-01-06\nid;x\n1;2\n3;4\n", "line 1 holds 1 name, line 2 2 cells"),  # duckdb 15576
        ("a;b\n1;1,20\n2;22,3\n3;1.234,56\n", "'1.234,56' in data row 3 .*line 4"),  # pandas 59299
        ('a,b\n"10,000",5\n"20,500",7\n', "line 2 holds 10,000, .*separator of thousands"),  # CSV.jl 217
        ("a\tb\n1\t+\n2\t5\n", r"column 'b' holds text: '\+'"),  # readr 297
        ("a,b\n1,2\nTotal,3\n", "'Total' in data row 2 .*line 3"),  # a footer
        ("a;b\n" + "1;2\n" * 3000 + "1,5;2,5\n", r"'1,5' in data row 3001 .*data\.decimal"),  # decimals beyond a sample
        ("t,x\n10:00,1\n10:05,2\n", "column 't' holds text: '10:00'"),
        ("1::2::3\n4::5::6\n", r"separated by commas, semicolons, .*data\.separator"),  # MovieLens
    ],
    ids=lambda value: repr(value[:20]),
)
def test_reported_elsewhere_and_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"a\.csv: .*{message}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", ""], pa.int64()),
        (["9007199254740993", "5"], pa.int64()),
        (["18446744073709551615", "5"], pa.uint64()),
        (["99999999999999999999", "-5"], pa.decimal128(38, 0)),
        (["0.10", "12.345", ""], pa.decimal128(5, 3)),
        (["1e5", "2.5"], pa.decimal128(7, 1)),
        (["0.1234567890123456", "1"], pa.float64()),
        (["inf", "1.5"], pa.float64()),
        (["true", "FALSE"], pa.bool_()),
        (["2024-01-31"], pa.date32()),
        (["2024-01-31 10:00", "2024-01-31 11:30:15"], pa.timestamp("s")),
        (["x", "1"], pa.string()),
        (["", "NA"], pa.null()),
    ],
)
def test_types_of_columns(cells, kind):
    assert typed(pa.chunked_array([pa.array(cells)])).type == kind


def test_whole_numbers_are_exact(tmp_path):
    table, _ = read_csv("a.csv", b"id,x\n9007199254740993,1.5\n9007199254740995,2\n", None, TextFormat())
    assert table.column("id").to_pylist() == [9007199254740993, 9007199254740995]


def test_decimals_are_what_float_reads():
    rng = np.random.default_rng(0)
    for places in (1, 3, 6, 9):
        texts = [f"{value:.{places}f}" for value in rng.uniform(-99999, 99999, 2000)]
        column = typed(pa.chunked_array([pa.array([*texts, None])]))
        assert column.type.scale == places
        values = ColumnType("decimal", "float64", places=places).to_float(column)
        assert values[:-1].tolist() == [float(text) for text in texts]
        assert np.isnan(values[-1])
    assert decimal_places(np.array([1 / 3])) is None


def test_keys_of_a_job(tmp_path):
    def parse(text, overrides=()):
        return parse_job(text, overrides, origin="job.toml")

    keys = {"header": False, "separator": "tab", "decimal": ",", "encoding": "cp1252", "index": True}
    job = parse(tomli_w.dumps({"data": {"source": "a.csv", **keys}}))
    assert job.data.separator == "\t"
    assert parse(job.to_toml()) == job
    other = parse('[data]\nsource = "a.csv"')
    assert identity_of_keys(job) == identity_of_keys(other)  # the table's fingerprint says what was read
    for key, value in [("separator", "ab"), ("decimal", ";"), ("encoding", "klingon"), ("header", "yes"), ("index", 0)]:
        with pytest.raises(ConfigError, match=rf"data\.{key}"):
            parse(tomli_w.dumps({"data": {"source": "a.csv", key: value}}))
    (tmp_path / "a.csv").write_text("5\t0,5\t1,5\n" * 20 + "6\t0,25\t2,5\n" * 20)
    found = prepare_table(parse(job.to_toml(), [f"data.source={tmp_path / 'a.csv'}"]))
    assert found.columns == ("c1", "c2")


def test_the_keys_are_for_text_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    for source in (tmp_path / "a.npy", "wine"):
        with pytest.raises(DataError, match=r"data\.decimal is for \.csv files"):
            open_table(source, text=TextFormat(decimal=","))


def test_what_was_read_is_reported(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = lines([[f"{cell:.3f}".replace(".", ",") for cell in row] for row in rng.standard_normal((60, 3))], ";")
    (tmp_path / "a.csv").write_text("a;b;c\n" + rows)
    report = prepare(tmp_path / "a.csv").report
    assert report["read_as"] == "3 columns, names from line 1, semicolons, decimal comma"
    Display(False)({"event": "table", **report})
    assert "data: read as 3 columns, names from line 1, semicolons, decimal comma\n" in capsys.readouterr().out


def test_query_points_go_through_the_same_reader(tmp_path):
    prepared = prepare("moons", max_rows=100)
    (tmp_path / "latents.csv").write_text("x;y\n0,5;1,25\n-1,5;2,5\n")
    found = read_queries(str(tmp_path / "latents.csv"), prepared.transform, "decode")
    np.testing.assert_array_equal(found, np.array([[0.5, 1.25], [-1.5, 2.5]], np.float32))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["2016-12-31T23:59:58", "2016-12-31T23:59:60"], r"'2016-12-31T23:59:60' in data row 40 .*, line 41"),
        (["2024-02-28", "2024-02-30"], r"'2024-02-30' in data row 40 .*, line 41"),
        (["2024-01-05", "1"], r"'1' in data row 40 .*, line 41"),
        (["1/8/2024", "2/8/2024"], r"'1/8/2024' in data row 1 .* days are read in the form 2024-06-01"),
        (["31.12.2024", "30.12.2024"], r"'31.12.2024' in data row 1 .* days are read in the form 2024-06-01"),
    ],
)
def test_the_cell_that_is_no_such_value_is_named(tmp_path, cells, words):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + f"{cells[0]},0.5\n" * 39 + f"{cells[1]},0.25\n" + f"{cells[0]},0.5\n" * 3)
    with pytest.raises(DataError, match=words):
        open_table(path)


def test_whole_numbers_with_a_plus_are_whole_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "".join(f"+{k},{k}e2,{k}.0\n" for k in range(1, 30)))
    table = open_table(path)
    assert [type_.dtype for type_ in table.types] == ["int64", "float64", "float64"]
    assert table.values[:2].tolist() == [[1, 100, 1], [2, 200, 2]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"a": 1}]\n', "it is JSON"),
        (b'{"a": [1, 2]}\n', "it is JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "a pointer of Git LFS"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.csv cannot be read as \.csv: .*{words}"):
        open_table(tmp_path / "t.csv")


def test_the_end_that_dos_put_to_files(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\r\n1,2.5\r\n3,4.5\r\n\x1a")
    assert open_table(tmp_path / "t.csv").values.tolist() == [[1, 2.5], [3, 4.5]]
