"""Text, dictionaries, missing values and columns that determine each other go in and come out as what they were."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from scipy import stats

from sfg_dist.data import TableSettings, Transform, open_rows, open_table, prepare, read_queries
from sfg_dist.data.association import find_orders
from sfg_dist.data.column_type import ColumnType, UnfitValueError
from sfg_dist.data.conditions import ColumnSplit, read_given
from sfg_dist.data.discrete_curves import atoms_curve, with_missing
from sfg_dist.data.grid import Grid
from sfg_dist.data.quantile import fit_curve
from sfg_dist.data.row_reader import RowReader
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job.errors import ConfigError, DataError, DocumentError

ROWS = 400


def town_table(num_rows=ROWS, seed=0, *, gaps=True):
    """A town decides country and zone; income goes with the country and is missing where the job is."""
    random = np.random.default_rng(seed)
    towns = np.array(["Rome", "Oslo", "Bonn", "Bern", "Graz"])
    place = random.choice(5, num_rows, p=[0.4, 0.3, 0.2, 0.06, 0.04])
    income = np.round(random.normal(30 + 8 * place, 2), 1)
    is_gap = (random.random(num_rows) < 0.2) & gaps
    jobs = np.array(["clerk", "cook", "nurse"])[(place + (random.random(num_rows) < 0.3)) % 3]
    return pa.table(
        {
            "town": towns[place],
            "country": np.array(["IT", "NO", "DE", "CH", "AT"])[place],
            "zone": np.array([0, 1, 1, 0, 1], np.int16)[place],
            "job": pa.array(jobs, mask=is_gap),
            "income": pa.array(income, mask=is_gap),
            "age": random.integers(18, 80, num_rows),
            "rain": np.where(random.random(num_rows) < 0.5, 0.0, random.gamma(2.0, size=num_rows)),
        }
    )


@pytest.fixture
def write(tmp_path):
    def write(table, name="t.parquet"):
        parquet.write_table(table, tmp_path / name, row_group_size=130)
        return tmp_path / name

    return write


def back(prepared, rows):
    """Rows of value - offset as the Arrow columns that samples are written as."""
    return {
        name: type_.from_float(column) for (name, type_), column in zip(prepared.types.items(), rows.T, strict=True)
    }


def test_a_table_of_all_kinds_comes_back(write):
    table = town_table()
    prepared = prepare(write(table), shuffle="none")
    rows = prepared.transform.inverse(prepared.reference())
    found = back(prepared, rows)
    first = table.slice(0, prepared.num_train)
    for name in ("town", "country", "zone", "job", "income", "age"):
        assert found[name].to_pylist() == first[name].to_pylist(), name
        assert found[name].type == table.schema.field(name).type
    np.testing.assert_array_equal(rows[:, 6] == 0, prepared.train[:, 6] == 0)
    assert prepared.report["determined"] == {"country": "town", "zone": "town"}
    assert prepared.report["missing"].keys() == {"job", "income"}
    assert prepared.transform.flow_columns == ("town", "job", "income", "age", "rain")


VALUES = {
    "text": st.sampled_from(["a", "b", "", "Zürich", "ä\nb", "NA", "1"]),
    "number": st.floats(-1e6, 1e6, width=32),
    "integer": st.integers(-50, 50),
    "boolean": st.booleans(),
}


@st.composite
def tables(draw):
    """Small tables of random types with random gaps."""
    num_rows = draw(st.integers(30, 60))
    columns = {}
    for place, kind in enumerate(draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))):
        value = st.one_of(st.none(), VALUES[kind]) if draw(st.booleans()) else VALUES[kind]
        values = draw(st.lists(value, min_size=num_rows, max_size=num_rows))
        types = {"number": pa.float64(), "integer": pa.int16(), "boolean": pa.bool_()}
        column = pa.array(values, types.get(kind, pa.string()))
        if kind == "text" and draw(st.booleans()):
            column = column.dictionary_encode()
        columns[f"c{place}"] = column
    return pa.table(columns)


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(["quantile", "standardize"]), st.sampled_from(["auto", "ignore"]))
def test_random_tables_come_back(tmp_path_factory, table, kind, dependencies):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    parquet.write_table(table, path)
    keys = {"shuffle": "none", "constant": "keep", "kind": kind, "dependencies": dependencies}
    try:
        prepared = prepare(path, **keys)
    except DataError as error:
        words = ("there is nothing to learn", "without a finite value", "has no value in the training rows")
        assume(not any(word in str(error) for word in words))
        raise
    transform = prepared.transform
    again = Transform.from_arrays(transform.to_arrays(), transform.to_metadata())
    rows = again.inverse(prepared.reference())
    expected = table.slice(0, prepared.num_train)
    for name, column in back(prepared, rows).items():
        wanted = expected[name].combine_chunks()
        assert column.type == wanted.type
        assert column.is_null().equals(wanted.is_null()), name
        if pa.types.is_floating(column.type):
            np.testing.assert_allclose(column.drop_null(), wanted.drop_null(), rtol=1e-5, atol=1.0)
        else:
            assert column.to_pylist() == wanted.to_pylist()
    passes = prepare(path, memory_gib=1e-9, **keys)
    assert passes.reference_fingerprint() == prepared.reference_fingerprint()
    assert passes.table_fingerprint() == prepared.table_fingerprint()


def test_samples_have_the_shares_of_categories_and_gaps(write):
    prepared = prepare(write(town_table(2000)))
    draws = np.random.default_rng(1).standard_normal((100_000, prepared.transform.dim))
    rows, train = prepared.transform.inverse(draws), prepared.train
    for column in (0, 3):
        for value in (*np.unique(train[~np.isnan(train[:, column]), column]), np.nan):
            shares = [
                np.mean(np.isnan(x) if np.isnan(value) else x == value) for x in (rows[:, column], train[:, column])
            ]
            assert shares[0] == pytest.approx(shares[1], abs=0.01)
    assert np.isnan(rows[:, 4]).mean() == pytest.approx(np.isnan(train[:, 4]).mean(), abs=0.01)
    present = [x[~np.isnan(x)] for x in (rows[:, 4], train[:, 4])]
    assert stats.ks_2samp(*present).statistic < 0.02
    assert not prepared.transform.lookups[0].differs(rows).any()


def test_the_order_of_few_categories_is_the_same_each_time():
    """Here the search for the axis ends early, and goes on from a vector that must not be a new one each time."""
    rows = np.stack([np.arange(45) % 3, np.arange(45) // 3 % 3, np.arange(45) // 3 % 3], axis=1).astype(float)
    type_ = ColumnType("category", "string", categories=("a", "b", "c"))
    reader = RowReader.over(rows, "t", ("x", "y", "z"), (type_,) * 3)
    orders = {str(find_orders(reader, ["x", "y", "z"], np.zeros(3, bool)).codes) for _ in range(20)}
    assert len(orders) == 1


def test_like_categories_are_neighbours():
    """Categories that go with rising numbers get their order, whatever their names."""
    random = np.random.default_rng(0)
    level = random.integers(0, 9, 3000)
    names = np.array(list("gbhaicfde"))
    table = pa.table(
        {
            "name": names[level],
            "x": level + random.normal(0, 0.5, 3000),
            "y": random.normal(0, 1, 3000) - level,
        }
    )
    codes = np.array([sorted(names).index(name) for name in table["name"].to_pylist()], dtype=float)
    rows = np.stack([codes, table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    type_ = ColumnType("category", "string", categories=tuple(sorted(names)))
    reader = RowReader.over(rows, "t", ("name", "x", "y"), (type_, ColumnType(), ColumnType()))
    order = find_orders(reader, ["name", "x", "y"], np.zeros(3, bool)).codes["name"]
    line = "".join(sorted(names)[int(code)] for code in order)
    assert line in ("gbhaicfde", "gbhaicfde"[::-1])
    gaps = rows.copy()
    gaps[level == 8, 1] = np.nan  # missing where it is high
    found = find_orders(
        RowReader.over(gaps, "t", reader.columns, reader.types), ["name", "x", "y"], np.array([0, 1, 0]) > 0
    )
    assert found.sides == {"x": 1}


def test_missing_values_count_as_their_share(write):
    prepared = prepare(write(town_table(1000)), columns=["job", "income", "age"])
    rows, transform = prepared.train, prepared.transform
    normal = stats.norm.logpdf(transform.forward(rows).astype(float)).sum(axis=1)
    density = normal + transform.log_det_jacobian(rows)
    is_gap = np.isnan(rows[:, 0]) & np.isnan(rows[:, 1])
    ages = transform.forward(rows)[:, 2].astype(float)
    of_age = stats.norm.logpdf(ages) + transform.curves[2].log_slope(rows[:, 2] + 0.5)
    shares = [np.isnan(rows[:, column]).mean() for column in (0, 1)]
    np.testing.assert_allclose((density - of_age)[is_gap], np.log(shares).sum(), atol=1e-4)


def test_a_dependency_needs_more_than_chance(write):
    random = np.random.default_rng(0)
    number = random.integers(0, 15, 300)
    odd = np.where(number == 3, "x", "y")
    rare = np.where(np.arange(300) == 7, "u", "v")
    columns = {"n": number, "odd": odd, "rare": rare, "z": random.normal(size=300)}
    in_order = {"shuffle": "none"}
    assert prepare(write(pa.table(columns)), **in_order).report["determined"] == {"odd": "n"}
    assert prepare(write(pa.table(columns)), dependencies="ignore", **in_order).report["determined"] == {}
    odd[np.flatnonzero(number == 3)[0]] = "y"
    assert prepare(write(pa.table(columns | {"odd": odd})), **in_order).report["determined"] == {}
    repeated = {"n": np.repeat(np.arange(12), 30), "z": np.repeat(random.normal(size=12), 30), "w": np.tile([1.5], 360)}
    assert prepare(write(pa.table(repeated)), constant="keep").report["determined"] == {}  # the same rows again


def test_pairs_that_no_row_has_are_named(write):
    prepared = prepare(write(town_table()))
    rows = prepared.train[:3].copy()
    prepared.transform.check_lookups(rows)
    rows[1, 1] = (rows[1, 1] + 1) % 5
    with pytest.raises(DataError, match=r"column 'country' is '?\w\w'? and column 'town' is .* in row 1 .*determines"):
        prepared.transform.check_lookups(rows)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_decimals_that_are_rounded_are_the_tables_own(write, kind):
    """Columns computed as 0.1 * k and as float32 miss their decimals, and so do the rows that a user brings."""
    random = np.random.default_rng(0)
    number = random.integers(0, 8, 600)
    level, price = (number * 0.1 * 3).astype(kind), (number * 0.7 + 0.1).astype(kind)
    columns = {"level": level, "price": price, "name": np.array(list("abcdefgh"))[number], "x": random.normal(size=600)}
    path = write(pa.table(columns))
    transform = prepare(path).transform
    assert len(transform.lookups) == 2
    rows = open_table(path).values
    transform.check_lookups(rows)
    rows[5, 1] += 0.7
    with pytest.raises(DataError, match=r"column 'price' is .* in row 5 "):
        transform.check_lookups(rows)
    rows[5, 1] -= 0.7 - 0.001
    with pytest.raises(DataError, match=r"column 'price' is .* in row 5 "):
        transform.check_lookups(rows)


def test_query_points_may_have_many_different_categories(write):
    """Each row another category looks like free text, but the table knows the column."""
    random = np.random.default_rng(0)
    towns = [f"town {place}" for place in range(60)]
    table = {"town": np.array(towns)[random.integers(0, 60, 2000)], "x": random.normal(size=2000)}
    transform = prepare(write(pa.table(table))).transform
    queries = write(pa.table({"x": np.linspace(-1, 1, 60), "town": towns}), "q.parquet")
    rows = read_queries(str(queries), transform, "encode")
    back = transform.inverse(rows)
    assert transform.types[0].from_float(back[:, 0]).to_pylist() == towns
    np.testing.assert_allclose(back[:, 1], np.linspace(-1, 1, 60), atol=1e-3)
    unknown = write(pa.table({"x": np.linspace(-1, 1, 60), "town": [*towns[1:], "Ulm"]}), "u.parquet")
    with pytest.raises(DataError, match="column 'town' holds 'Ulm', which is none of its categories"):
        read_queries(str(unknown), transform, "encode")


def test_conditions_are_given_by_their_text(write):
    prepared = prepare(write(town_table()), condition=["country", "job"])
    transform = prepared.transform
    assert prepared.report["determined"] == {"town": "country", "zone": "country"}  # what is given stays
    split = ColumnSplit.of(transform, ("country", "job"))
    types = [prepared.types[name] for name in split.names]
    given = read_given({"country": ["NO", "CH"], "job": ["cook", None]}, split.names, 2, types, [False, True])
    flow = split.flow_conditions(transform, given)
    rows = split.join(transform, np.zeros((2, len(split.targets))), given)
    found = back(prepared, rows)
    assert found["town"].to_pylist() == ["Oslo", "Bern"]
    assert found["job"].to_pylist() == ["cook", None]
    again = transform.inverse(np.insert(np.zeros((2, transform.dim - 2)), [transform.dim - 2] * 2, flow, axis=1))
    np.testing.assert_array_equal(again[:, split.places], given)
    with pytest.raises(ConfigError, match=r"given: 'job': holds 'baker', which is none of its categories: 'clerk'"):
        read_given({"country": "NO", "job": "baker"}, split.names, 1, types)
    with pytest.raises(ConfigError, match="given: 'country' is nan in row 0"):
        read_given({"country": None, "job": "cook"}, split.names, 1, types, [False, True])


@pytest.mark.parametrize(
    ("values", "asked", "kind", "categories"),
    [
        ([3, 1, 2] * 10, "category", "category", ("1", "2", "3")),
        ([10, 9, 2] * 10, "ordinal", "ordinal", ("2", "9", "10")),
        ([True, False] * 15, "category", "category", ("false", "true")),
        (["mid", "low", "high"] * 10, ["low", "mid", "high"], "ordinal", ("low", "mid", "high")),
        ([2, 7] * 15, [7, 5, 2], "ordinal", ("7", "2")),
        (["1", "2", None] * 10, "integer", "integer", ()),
        (["1.5", "2", None] * 10, "number", "float", ()),
        (["true", "false"] * 15, "boolean", "boolean", ()),
        (["2024-02-29", "2024-03-01T12:00:00"] * 15, "datetime", "timestamp", ()),
        ([1.0, 2.0] * 15, "integer", "integer", ()),
    ],
)
def test_types_as_asked(write, values, asked, kind, categories):
    path = write(pa.table({"c": values, "x": np.arange(30.0)}))
    table = open_table(path, asked={"c": asked})
    type_ = table.types[0]
    assert (type_.kind, type_.categories) == (kind, categories)
    with open_rows(path, asked={"c": asked}) as reader:
        assert reader.types == table.types
        np.testing.assert_array_equal(reader.read(3, 20), table.values[3:20])
    if kind in ("category", "ordinal"):
        assert type_.from_float(table.values[:, 0]).to_pylist() == values


@pytest.mark.parametrize(
    ("values", "asked", "message"),
    [
        (["low", "huge"] * 15, ["low", "high"], "column 'c' holds 'huge', which its order in data.types does not have"),
        (["low", "high"] * 15, "ordinal", "column 'c' holds text without an order: give it in data.types"),
        (["1", "two"] * 15, "integer", "column 'c' holds text that is none of whole numbers"),
        ([1.5, 2.0] * 15, "integer", "column 'c' holds 1.5: expected whole numbers"),
        ([1.5, 2.0] * 15, "datetime", "column 'c' holds numbers: data.types cannot make datetime of it"),
        ([f"{number}" for number in range(1200)], "category", "column 'c' holds text, more than 1,000 different"),
    ],
)
def test_types_that_cannot_be(write, values, asked, message):
    with pytest.raises(DataError, match=message):
        open_table(write(pa.table({"c": values, "x": np.arange(float(len(values)))})), asked={"c": asked})


def test_identifiers_and_free_text_are_named_or_left_out(write):
    columns = {"x": np.arange(3000.0), "kind": ["a", "b", "c"] * 1000}
    many = columns | {"id": [f"n{number}" for number in range(3000)]}
    path = write(pa.table(many))
    with pytest.raises(
        UnfitColumnsError, match=r"column 'id' holds text, more than 1,000 .*data.identifiers = \"drop\""
    ):
        open_table(path)
    with pytest.warns(UserWarning, match="left out as identifiers: column 'id'"):
        assert open_table(path, identifiers="drop").columns == ("x", "kind")
    few = pa.table({"x": np.arange(30.0), "name": [f"n{number}" for number in range(29)] + [None]})
    with pytest.raises(UnfitColumnsError, match="column 'name' holds text, 29 different values in 29 rows"):
        open_table(write(few))
    assert open_table(write(few), asked={"name": "category"}).types[1].kind == "category"


@pytest.mark.parametrize("step", [1, 40])
def test_days_that_are_text_are_no_categories_unless_asked(write, step):
    days = [str(np.datetime64("2024-01-01") + row // step) for row in range(400)]
    path = write(pa.table({"x": np.arange(400.0), "day": days}))
    with pytest.raises(UnfitColumnsError, match="column 'day' holds days or stamps as text, such as '2024-01-01'"):
        open_table(path)
    assert open_table(path, asked={"day": "category"}).types[1].kind == "category"
    assert open_table(path, asked={"day": "datetime"}).types[1].kind == "timestamp"


def test_an_ordered_dictionary_is_ordinal_by_its_order(write):
    order = pa.array(["low", "mid", "high", "never"])
    column = pa.DictionaryArray.from_arrays(pa.array([2, 0, 1, None] * 10, pa.int8()), order, ordered=True)
    path = write(pa.table({"grade": column, "x": np.arange(40.0)}))
    prepared = prepare(path)
    type_ = prepared.types["grade"]
    assert (type_.kind, type_.categories) == ("ordinal", ("low", "mid", "high"))
    assert type_.from_float(np.array([1.0, np.nan])).type == column.type
    places = prepared.transform.codings[0].places
    assert (np.diff(places) == 1).all()


def test_parts_of_a_folder_share_their_categories(tmp_path):
    (tmp_path / "kind=x").mkdir()
    (tmp_path / "kind=y").mkdir()
    for part, names in (("x", ["b", "a"]), ("y", ["c", "a"])):
        table = pa.table({"name": names * 30, "v": np.random.default_rng(0).normal(size=60)})
        parquet.write_table(table, tmp_path / f"kind={part}" / "p.parquet")
    whole = open_table(tmp_path)
    assert [type_.categories for type_ in whole.types] == [("a", "b", "c"), (), ("x", "y")]
    assert whole.types[0].dtype == "string"
    with open_rows(tmp_path) as reader:
        assert reader.types == whole.types
        np.testing.assert_array_equal(reader.read(0, 120), whole.values)


def test_text_of_a_csv(tmp_path):
    (tmp_path / "t.csv").write_text("name,code,x\n" + "Rome,007,1.5\n Oslo ,010,\n,007,2.5\n" * 10)
    table = open_table(tmp_path / "t.csv")
    assert [type_.categories for type_ in table.types] == [("Oslo", "Rome"), ("007", "010"), ()]
    np.testing.assert_array_equal(table.values[:3], [[1, 0, 1.5], [0, 1, np.nan], [np.nan, 0, 2.5]])
    (tmp_path / "t.csv").write_text("n,x\n" + "1,1.5\nmany,2.5\n" * 10)
    with pytest.raises(DataError, match=r"'many' in data row 2 .*or set data\.types\.n = \"category\""):
        open_table(tmp_path / "t.csv")
    assert open_table(tmp_path / "t.csv", asked={"n": "category"}).types[0].categories == ("1", "many")


@pytest.mark.parametrize(
    "words",
    [
        {"kind": "category", "dtype": "string"},
        {"kind": "category", "dtype": "string", "categories": ["a", "a"]},
        {"kind": "category", "dtype": "int8", "categories": ["a"]},
        {"kind": "category", "dtype": "list<item: string>", "categories": ["a"]},
        {"kind": "category", "dtype": "dictionary<values=string, indices=int8, ordered=2>", "categories": ["a"]},
        {"kind": "float", "dtype": "float64", "categories": ["a"]},
        {"kind": "category", "dtype": "string", "categories": ["a"] * 1001},
        {"kind": "category", "dtype": "string", "categories": [1]},
        {"kind": "category", "dtype": "string", "categories": ["a" * 1001]},
    ],
)
def test_damaged_types_are_refused(words):
    with pytest.raises(DocumentError):
        ColumnType.from_dict(words)


def test_damaged_codings_and_lookups_are_refused(write):
    transform = prepare(write(town_table())).transform
    arrays, words = transform.to_arrays(), transform.to_metadata()
    for name, change in {
        "code_places": lambda array: array * 0,
        "code_counts": lambda array: array + 1,
        "missing": lambda array: array * np.inf,
        "lookup_columns": lambda array: array + 5,
        "lookup_keys": lambda array: array[::-1],
        "lookup_values": lambda array: array[:-1],
    }.items():
        with pytest.raises(DataError, match="the saved transform is damaged"):
            Transform.from_arrays(arrays | {name: change(arrays[name])}, words)


def test_a_missing_value_where_the_table_has_none_is_named(write):
    prepared = prepare(write(town_table(gaps=False)))
    assert prepared.report["missing"] == {}
    for column, name in ((3, "job"), (4, "income"), (5, "age")):
        rows = prepared.train[:3].copy()
        rows[2, column] = np.nan
        with pytest.raises(DataError, match=f"column '{name}' has no value in row 2"):
            prepared.transform.forward(rows)


def test_refused_and_dropped_as_before(write):
    path = write(town_table())
    with pytest.raises(DataError, match=r"column 'job' has \d+ missing or infinite values"):
        prepare(path, missing="refuse")
    prepared = prepare(path, missing="drop")
    assert prepared.report["num_rows_dropped"] > 0
    assert prepared.report["missing"] == {}
    table = town_table().set_column(4, "income", pa.array(np.append(np.inf, np.arange(ROWS - 1.0))))
    with pytest.raises(DataError, match="column 'income' has 1 missing or infinite values"):
        prepare(write(table))


def test_keys_that_do_not_suit_categories(write):
    path = write(town_table())
    for keys, message in (
        ({"dequantize": {"town": 1.0}}, "data.dequantize names column 'town', which holds categories"),
        ({"bounds": {"town": [0, 1]}}, "data.bounds names column 'town', which holds categories"),
        ({"types": {"twn": "category"}}, r"no column 'twn' \(data.types\); did you mean 'town'"),
        ({"dependencies": "maybe"}, "data.dependencies = 'maybe'"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(path, TableSettings(), **keys)


def test_figures_read_finite_numbers(write):
    prepared = prepare(write(town_table()))
    coded = prepared.coded(prepared.test)
    assert np.isfinite(coded).all()
    assert coded[:, 4].max() <= np.nanmax(prepared.train[:, 4]) * 2
    plain = prepare("moons", max_rows=100)
    assert plain.coded(plain.test) is plain.test


def test_values_that_no_category_has():
    type_ = ColumnType("category", "string", categories=("a", "b"))
    with pytest.raises(UnfitValueError, match="holds 'c', which is none of its categories: 'a', 'b'"):
        type_.to_float(pa.array(["a", "c"]))
    assert type_.to_float(pa.array(["b", None]).dictionary_encode()).tolist()[0] == 1.0
    assert ColumnType.from_dict(type_.to_dict()) == type_
    other = ColumnType("category", "string", categories=("b", "c"))
    assert type_.take_over(np.array([0.0]), other).tolist() == [1.0]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=30).filter(lambda counts: sum(counts) > 1))
def test_each_category_has_its_share(counts):
    """Those of no training row share half a row; each interval gives its own value back, at both ends too."""
    counts = np.array(counts)
    curve = atoms_curve(counts)
    weights = np.where(counts == 0, 0.5 / max((counts == 0).sum(), 1), counts)
    np.testing.assert_allclose(curve.atoms.shares(), weights / weights.sum(), rtol=1e-9)
    assert (np.diff(curve.scores) >= 0).all()
    for noise in (0.0, 0.5, 1.0):
        scores = curve.atoms.scores(np.arange(len(counts)), np.full(len(counts), noise))
        held = curve.atoms.hold(np.arange(float(len(counts))), scores.astype(np.float32))
        found = curve.to_values(held.astype(np.float64)).clip(0, len(counts) - 1)  # the range of the column
        np.testing.assert_array_equal(found, np.arange(len(counts)))


@given(st.integers(0, 400), st.booleans(), st.sampled_from(["continuum", "zeros", "grid"]))
def test_missing_values_leave_the_others_their_order_and_law(num_missing, is_above, what):
    random = np.random.default_rng(num_missing)
    values = random.standard_normal(400) * 10 + 5
    grid = Grid(1.0, -100.0) if what == "grid" else None
    atoms = np.array([0.0]) if what == "zeros" else None
    values = np.where(random.random(400) < 0.3, 0.0, values) if what == "zeros" else values
    values = np.floor(values) + random.uniform(0.01, 0.99, 400) if grid else values
    plain = fit_curve(values, grid, atoms)
    curve, missing, end = with_missing(plain, 400 + num_missing, num_missing, is_above=is_above)
    share = max(num_missing, 0.5) / (400 + max(num_missing, 0.5))
    assert curve.atoms.values[-1 if is_above else 0] == missing
    assert curve.atoms.shares()[-1 if is_above else 0] == pytest.approx(share)
    assert (missing > end) == is_above
    levels = stats.norm.cdf(plain.to_scores(np.sort(values))) * (1 - share) + (0.0 if is_above else share)
    inner = slice(2, -2)  # the outermost row reaches to the missing ones
    is_free = ~np.isin(np.sort(values), [0.0])[inner]
    np.testing.assert_allclose(
        stats.norm.cdf(curve.to_scores(np.sort(values)))[inner][is_free], levels[inner][is_free], atol=0.01
    )
    scores = random.standard_normal(2000)
    found = curve.to_values(scores)
    assert not ((found > min(missing, end)) & (found < max(missing, end))).any()
    assert np.mean(found == missing) == pytest.approx(share, abs=0.05)


def test_one_value_and_gaps(write):
    table = pa.table({"flag": pa.array([0.3, None] * 30), "x": np.random.default_rng(0).normal(size=60)})
    for kind in ("quantile", "standardize", "none"):
        prepared = prepare(write(table), kind=kind, shuffle="none")
        rows = prepared.transform.inverse(prepared.reference())
        np.testing.assert_array_equal(rows[:, 0], prepared.train[:, 0])
        drawn = prepared.transform.inverse(np.random.default_rng(1).standard_normal((1000, 2)) * 3)
        assert set(drawn[~np.isnan(drawn[:, 0]), 0]) <= ({0.3} if kind == "quantile" else set(drawn[:, 0]))
        assert 0.2 < np.isnan(drawn[:, 0]).mean() < 0.8


def test_categories_of_held_out_rows_alone_are_known(write):
    names = np.array((["a", "b"] * 45) + ["rare"] * 10)
    prepared = prepare(write(pa.table({"n": names, "x": np.random.default_rng(0).normal(size=100)})), shuffle="none")
    assert prepared.types["n"].categories == ("a", "b", "rare")
    places = prepared.transform.codings[0].places
    assert places[2] == 0
    assert np.isfinite(prepared.flow_rows("test")).all()
    np.testing.assert_array_equal(prepared.transform.inverse(prepared.flow_rows("test"))[:, 0], prepared.test[:, 0])
    assert prepared.transform.curves[0].atoms.shares()[0] == pytest.approx(0.5 / 80.5)
