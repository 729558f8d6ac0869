"""Cells of a .csv that are no plain numbers: none is changed, lost, merged with another or guessed in silence."""

import numpy as np
import pyarrow as pa
import pytest

from sfg_dist.data import TextFormat, open_table
from sfg_dist.data.column_type import asked_categories
from sfg_dist.data.csv_columns import advice_on, looks_like_numbers, typed
from sfg_dist.data.csv_quotes import loose_quote
from sfg_dist.job.errors import ConfigError, DataError
from sfg_dist.store.table import write_table


def read(tmp_path, content, **keys):
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    return open_table(path, text=TextFormat(**keys) if keys else None)


def cells(table):
    return {
        name: type_.from_float(table.values[:, place]).to_pylist()
        for place, (name, type_) in enumerate(zip(table.columns, table.types, strict=True))
    }


@pytest.mark.parametrize("keys", [{}, {"decimal": ","}, {"null_values": ["n"]}])
def test_text_of_a_file_with_decimal_commas_keeps_its_commas(tmp_path, keys):
    table = read(tmp_path, "name;x\nBob, Jr;1,5\nAnn;2,5\n", **keys)
    assert cells(table) == {"name": ["Bob, Jr", "Ann"], "x": [1.5, 2.5]}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a\n1\n#N/A\n3\n", [1, None, 3]),
        ("a\n#N/A\n2\n3\n", [None, 2, 3]),
        ("a\n1\n# a comment\n3\n", [1, 3]),
        ('a\n1\n# "a comment\n3\n', [1, 3]),
    ],
)
def test_an_error_of_a_spreadsheet_is_no_comment(tmp_path, text, values):
    assert cells(read(tmp_path, text)) == {"a": values}


@pytest.mark.parametrize("word", ["#DIV/0!", "#VALUE!", "#ff0000"])
def test_what_only_looks_like_a_comment_is_named(tmp_path, word):
    with pytest.raises(DataError, match=rf"'{word}' in data row 2 .*line 3 of the file"):
        read(tmp_path, f"a\n1.5\n{word}\n3\n")


def test_colours_and_numbers_of_flats_are_categories(tmp_path):
    assert cells(read(tmp_path, "c,x\nred,1\n#00ff00,2\n"))["c"] == ["red", "#00ff00"]
    assert cells(read(tmp_path, 'c,x\n"#1, rear",1\n"2, front",2\n'))["c"] == ["#1, rear", "2, front"]
    assert cells(read(tmp_path, 'c,x\n#a,"x, y"\nb,c\n')) == {"c": ["#a", "b"], "x": ["x, y", "c"]}


@pytest.mark.parametrize("comment", ["#decade", "#202401", "  #decade "])
def test_a_comment_that_could_be_a_colour_is_no_row(tmp_path, comment):
    text = f"{comment}\na,b\n1,2\n{comment}\n3,5\n"
    assert cells(read(tmp_path, text)) == {"a": [1, 3], "b": [2, 5]}


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('a,b\n"5\\" pipe",1\n"6\\" pipe",2\n', r'"5\" pipe",1'),
        ('a,b\nz,0\n"x"y,1\n', '"x"y,1'),
        ('a\tb\nz\t0\n"x" y\t1\n', '"x" y\t1'),
        ('a,b\n"two\nlines",0\n"x"y,1\n', '"x"y,1'),
        ('a,b\n"24"",5\n"24"",5\nx,3\n', '"24"",5'),
        ('a,b\n"a, "b", c"\n', '"a, "b", c"'),
        ('a,b\n"a,"b",c"\n', '"a,"b",c"'),
        ('a,b\n"x",1\nq,"x', '"x'),
        ('a,b\n"4",1\n# "4\n3, "4', '"4'),
    ],
)
def test_a_quote_within_quotes_that_is_not_doubled_is_refused(tmp_path, text, cell):
    line = text[: text.rindex(cell) if cell in ('"x', '"4') else text.index(cell)].count("\n") + 1
    with pytest.raises(DataError, match="goes on behind the next one: write a quote within a cell twice") as caught:
        read(tmp_path, text)
    assert f"cannot be read as .csv: {cell!r} in line {line} begins with a quote" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('a,b\n5" pipe,1\n6" pipe,2\n', ['5" pipe', '6" pipe']),
        ('a,b\n"5"" pipe",1\n"6"" pipe, long",2\n', ['5" pipe', '6" pipe, long']),
        ('a,b\n"x" ,1\n"y",2\n', ["x", "y"]),
        ('a,b\n"x\n""y"" z",1\n"""",2\n', ['x\n"y" z', '"']),
        ('a,b\n"x,\n""\n",1\n"""a""",""\n"",3\n', ['x,\n"', '"a"', None]),
    ],
)
def test_other_quotes_are_read(tmp_path, text, values):
    assert cells(read(tmp_path, text))["a"] == values


def test_loose_quotes_are_found_in_much_text():
    text = b'"a ""b"", c",5" pipe\n' * 50_000
    assert loose_quote(text, 0, len(text), ",") is None
    assert loose_quote(text + b'1,"x"y\n', 0, len(text) + 7, ",") == len(text) + 2


def test_spaces_that_are_no_part_of_a_value_are_said(tmp_path):
    table = read(tmp_path, 'a,b,c\n"low",x,1\n" low",y,2\nlow ,x,3\n')
    assert cells(table)["a"] == ["low"] * 3
    assert "spaces around the cells of 'a' not kept" in table.read_as
    assert "spaces" not in read(tmp_path, "a,b\nlow, 1\nhigh, 2\n").read_as


@pytest.mark.parametrize(
    ("cell", "advice"),
    [
        ("9:15 AM", "times are read in the form 09:15:00"),
        ("24:00:00", "times are read in the form 09:15:00"),
        ("5-Jan-2024", "days are read in the form 2024-06-01"),
        ("5 January 2024", "days are read"),
        ("Jan 5, 2024", "days are read"),
        ("31.12.2024 10:00", "days are read"),
        ("-$5.00", "take out what is no part of the number"),
        ("US$5", "take out"),
        ("R$ 5,20", "take out"),
        ("5 Sept. 2024", "days are read"),
        ("5.00 EUR", "take out"),
        ("CHF 1'000.50", "take out"),
        ("(5.00)", "take out"),
        ("1\N{NARROW NO-BREAK SPACE}000", "separators of thousands are not read"),
    ],
)
def test_numbers_days_and_times_in_other_forms_are_refused(tmp_path, cell, advice):
    assert advice in advice_on(cell, ".")
    with pytest.raises(DataError, match=rf"column 'a' holds text: .*{advice}.*data\.types\.a"):
        read(tmp_path, f"a;b\n{cell};1\n{cell};2\n")


@pytest.mark.parametrize(
    "cells",
    [
        *(["10_100", "11_101"], ["1 Mary 20", "2 Decker 30", "3 Mayor 12"], ["A$1", "B$2"]),
        *(["10-19", "20-29"], ["<=50K", ">50K"], ["3 rooms", "4 rooms"], ["A1", "B2"], ["May", "June"], ["1st", "2nd"]),
    ],
)
def test_names_with_digits_are_categories(cells):
    assert not looks_like_numbers(pa.array(cells), ".")


def test_words_and_digits_are_no_truth_values_together(tmp_path):
    with pytest.raises(DataError, match="'0' in data row 2"):
        read(tmp_path, "a,b\ntrue,1\n0,2\n1,3\n")
    assert cells(read(tmp_path, "a,b\ntrue,1\nFALSE,2\n"))["a"] == [True, False]


@pytest.mark.parametrize(
    "text", ["t,x\n2024-01-01 00:00:00 UTC,1\n2024-01-02 00:00:00 UTC,2\n", "day,x\nMon Jan 1,1\nTue Jan 2,2\n"]
)
def test_spaces_within_cells_separate_none(tmp_path, text):
    """The line of names has one comma, as the others have."""
    assert read(tmp_path, text.replace("2024-01-0", "day ")).columns[1] == "x"


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("time stamp,v\n2020-01-01 10:00:00,0,\n2020-01-01 10:00:01,5,\n", ["time stamp", "v"]),
        ("time stamp,v\n1,2020-01-01 10:00:00,5\n2,2020-01-01 10:00:01,6\n", ["time stamp", "v"]),
        ("when ts,v,\n2020-01-01 10:00:00,5\n2020-01-01 10:00:01,6\n", ["when ts", "v"]),
        ("my day,v\nMon 5 6,1\nTue 7 8,2\n", ["my day", "v"]),
        ("a b\n1 1,5 3\n2 2,5 4\n", ["a", "b"]),
        ("x,m y,m\n1,5 2\n2,5 3\n", ["x,m", "y,m"]),
        ("year, id;name\n1, 2, x;Ann\n1, 3, y;Bob\n", ["year, id", "name"]),
    ],
)
def test_a_line_of_names_that_is_one_cell_off(tmp_path, text, columns):
    assert list(read(tmp_path, text).columns) == columns


def test_numbers_too_large_for_decimals_raise_no_warning(tmp_path):
    assert cells(read(tmp_path, "a,b\n1e300,1\n1e-300,2\n"))["a"] == [1e300, 1e-300]


def write(path, table):
    values, types = table.values, table.types
    write_table(str(path), table.columns, len(values), lambda ranges: (values[a:b] for a, b in ranges), source="s",
                types=types)  # fmt: skip
    return path


def table_of(tmp_path, columns):
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    return open_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "columns",
    [
        {"a": ["#a", "#b", "#a"]},
        {"a": ["#a, x", "#b", "#a, x"], "b": [1.5, 2.5, 3.5]},
        {"#id": [4, 2, 9], "a,b": [1, 5, 7], "n\nl": [3, 1, 2]},
        {"a": ['"', '""', 'x"y'], "b": [1.5, 2.5, 3.5]},
    ],
)
def test_the_tool_reads_what_it_wrote_of_marks(tmp_path, columns):
    table = table_of(tmp_path, columns)
    asked = asked_categories(table.columns, table.types)
    again = open_table(write(tmp_path / "s.csv", table), asked=asked, text=TextFormat.of_types(table.types))
    assert cells(again) == columns


@pytest.mark.parametrize("text", [" low", "x\ry"])
def test_categories_that_the_reader_would_change_are_said(tmp_path, text):
    table = table_of(tmp_path, {"a": [text, "low", "low"], "b": [1.5, 2.5, 3.5]})
    with pytest.warns(UserWarning, match="column 'a' has the category .* to keep them"):
        write(tmp_path / "s.csv", table)


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_zero_bytes_in_categories_are_refused(tmp_path, suffix):
    """Numpy drops those at the end of a text, so that two categories would be one."""
    table = table_of(tmp_path, {"a": ["a\0", "a", "b"], "b": [1.5, 2.5, 3.5]})
    with pytest.raises(ConfigError, match="column 'a' has a category with a zero byte; write to"):
        write(tmp_path / f"s{suffix}", table)


@pytest.mark.parametrize("digits", [39, 40, 60, 76])
def test_whole_numbers_of_many_digits_do_not_wrap_around(digits):
    """Arrow takes 40 digits for a decimal of 38."""
    numbers = ["1" * digits, "-" + "2" * digits]
    found = typed(pa.chunked_array([pa.array(numbers)]))
    assert [int(number) for number in found.to_pylist()] == list(map(int, numbers))


def test_whole_numbers_of_more_digits_than_any_type_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"column 'a' holds text: '111.*; expected numbers; leave the column out"):
        read(tmp_path, f"a,b\n{'1' * 80},1\n{'1' * 79}2,2\n")


@pytest.mark.parametrize("decimal", [".", ","])
def test_plain_numbers_have_nothing_to_take_out(decimal):
    assert [advice_on(cell, decimal) for cell in ("1", f"-1{decimal}5", "1" * 80)] == [""] * 3


@pytest.mark.parametrize(
    "text", ["a,b\n# c\n1,2\n3,5\n", 'a,b\n# c\n"1",2\n# say "x"\n3,5\n', "\ufeff\ufeffa,b\n1,2\n3,5\n"]
)
def test_comments_below_the_names_and_marks_before_them(tmp_path, text):
    assert cells(read(tmp_path, text)) == {"a": [1, 3], "b": [2, 5]}


def test_lines_of_a_cell_that_look_like_comments_are_kept(tmp_path):
    assert cells(read(tmp_path, 'a,b\n# c\n"x\n# y",1\nz,2\n# d\n')) == {"a": ["x\n# y", "z"], "b": [1, 2]}


def test_a_long_cell_that_is_not_wanted_is_no_damage(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"shape,b\n{'x, ' * 100_000}x;1\n".replace(";", ",").replace("x, ", "x ") + "y,2\n")
    assert open_table(path, columns=["b"]).values.tolist() == [[1], [2]]


def test_a_quote_that_the_end_of_the_file_leaves_open_is_refused(tmp_path):
    with pytest.raises(DataError, match="'\"4' in line 3 begins with a quote that is not closed"):
        read(tmp_path, 'a,b\n1,2\n3,"4')


def test_points_of_thousands_in_a_file_of_semicolons(tmp_path):
    text = "a;b\n1.234;5\n2;6\n"
    with pytest.raises(DataError, match=r'line 2 holds 1\.234, and other .*data\.decimal = "\."'):
        read(tmp_path, text)
    assert cells(read(tmp_path, text, decimal="."))["a"] == [1.234, 2]
    assert cells(read(tmp_path, text.replace("1.234", "0.234")))["a"] == [0.234, 2]
    assert cells(read(tmp_path, text, null_values=["2"]))["a"] == [1.234, None]


@pytest.mark.parametrize("text", ["id;lat;lon\n1;40.100;-3.700\n2;41.250;-4.125\n", "id;lat\n7;1.500\n8;NA\n9;2.250\n"])
def test_three_decimals_in_a_file_of_semicolons(tmp_path, text):
    table = read(tmp_path, text)
    first = text.split(";")[len(table.columns)].split("\n")[0]
    assert cells(table)["lat"][0] == float(first)
    note = f"points as in {first} read as decimal points, not as separators of thousands (data.decimal)"
    assert note in table.read_as
    assert note not in read(tmp_path, text, decimal=".").read_as
    with pytest.raises(DataError, match=r"'1\.234\.567' in data row .*separators of thousands are not read"):
        read(tmp_path, text + text.splitlines()[1].replace(first, "1.234.567") + "\n")


@pytest.mark.parametrize(
    ("numbers", "is_said"),
    [
        (["1234567890123456.78", "1234567890123456.79"], True),
        (["9007199254740993.0", "1.5"], True),
        (["0,1234567890123456789", "2,5"], True),
        (["0.30000000000000004", f"{48.1371079183914:.16f}"], False),
        ([f"{1 / 3:.18e}", "\N{MINUS SIGN}2.2250738585072014D-308"], False),
        ([f"{0.1:.25f}", f"{2.0**70 + 0.0:f}"], False),
    ],
)
def test_digits_that_doubles_do_not_hold_are_said(tmp_path, numbers, is_said):
    table = read(tmp_path, "a;b\n" + "".join(f"{number};1\n" for number in numbers), header=True)
    assert ("digits of 'a' beyond double precision not kept" in table.read_as) == is_said


@pytest.mark.parametrize(
    ("dtype", "values"), [("float32", [123456792.0, -16777218.0, 3.0]), ("float16", [65504.0, 2050.0])]
)
def test_whole_numbers_of_short_floats_have_all_digits(tmp_path, dtype, values):
    table = table_of(tmp_path, {"a": pa.array(np.array(values, dtype))})
    assert open_table(write(tmp_path / "s.csv", table)).values[:, 0].tolist() == values


@pytest.mark.parametrize("gap", [" ", "\t", "  "])
def test_a_space_before_a_quote_far_down_is_no_part_of_the_cell(tmp_path, gap):
    text = "x,a\n" + '1,"low"\n2,high\n' * 1500 + f'3,{gap}"low"\n'
    assert cells(read(tmp_path, text))["a"][-1] == "low"


def test_an_empty_cell_before_a_quote_in_a_file_of_tabs(tmp_path):
    text = 'a\tb\tc\n1\t\t"x"\n2\t3\t"y"\n4\t5\t "x"\n'
    assert cells(read(tmp_path, text)) == {"a": [1, 2, 4], "b": [None, 3, 5], "c": ["x", "y", "x"]}


def test_commas_of_numbers_and_names_separate_none_beside_bars(tmp_path):
    table = read(tmp_path, "a|p,q\n-0,0029|New York\n0,0011|Oslo\n0,0012|Oslo\n")
    assert cells(table) == {"a": [-0.0029, 0.0011, 0.0012], "p,q": ["New York", "Oslo", "Oslo"]}
    assert cells(read(tmp_path, "a,b\n1,x|y\n2,y|z\n"))["b"] == ["x|y", "y|z"]
