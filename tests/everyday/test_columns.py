"""Columns of everyday tables, by kind: what goes in comes out, and samples are of the same kind.

A column is prepared as a job does it. Then its training rows go to the flow and back, and 100,000 normal scores, which
is what a perfect generator gives, become samples. Exact columns come back bit for bit, the others to the rounding of a
float32 score; values that repeat have their share among the samples; no sample leaves the range, and whole numbers
stay whole.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.special import ndtri

from sfg_dist.cli.display import Display
from sfg_dist.data import prepare
from sfg_dist.job.errors import DataError
from sfg_dist.pipeline.report import _notes

NUM_ROWS, NUM_SAMPLES = 5000, 100_000


@dataclass(frozen=True)
class Kind:
    """A column: how it is made, and what is right for it.

    Attributes:
        make: draws it, for a numpy Generator.
        atoms: values that repeat.
        step: of its grid, None where it has none.
        error: largest difference of a row that came back, 0 where it is exact.
        forbidden: (low, high) without a sample strictly between.
    """

    make: object
    atoms: tuple = ()
    step: float | None = None
    error: float = 0.0
    forbidden: tuple = field(default=())


def mixed(random, others, *parts):
    """Others with a share of the rows replaced, for each (share, value)."""
    values = np.array(others, dtype=float)
    for share, value in parts:
        values[random.random(len(values)) < share] = value
    return values


def normal(random):
    return random.standard_normal(NUM_ROWS)


KINDS = {
    "rain": Kind(lambda r: mixed(r, np.exp(normal(r)), (0.7, 0)), (0.0,), error=1e-4),
    "rain, float32": Kind(lambda r: mixed(r, np.exp(normal(r)).astype("f4"), (0.7, 0)), (0.0,), error=1e-4),
    "rain in tenths": Kind(lambda r: mixed(r, np.round(5 * np.exp(normal(r)), 1), (0.7, 0)), step=0.1),
    "clips": Kind(lambda r: np.clip(normal(r), -1, 1.5), (-1.0, 1.5), error=1e-5),
    "clips, float32": Kind(lambda r: np.clip(normal(r), -0.9, 1.1).astype("f4"), (-0.9, 1.1), error=1e-5),
    "sentinel": Kind(lambda r: mixed(r, normal(r), (0.1, -999)), (-999.0,), error=1e-4, forbidden=(-999, -9)),
    "two sentinels": Kind(
        lambda r: mixed(r, normal(r), (0.1, -999), (0.02, 9999)), (-999.0, 9999.0), error=1e-4, forbidden=(9, 9999)
    ),
    "sentinel of whole numbers": Kind(
        lambda r: mixed(r, r.integers(0, 90, NUM_ROWS), (0.1, -999)), (-999.0,), step=1, forbidden=(-999, 0)
    ),
    "sentinel of salaries": Kind(
        lambda r: mixed(r, r.integers(0, 10**6, NUM_ROWS), (0.1, -1)), step=1
    ),
    "one value in 99 of 100": Kind(lambda r: mixed(r, normal(r), (0.99, 5.5)), (5.5,), error=1e-4),
    "default of one in 200": Kind(lambda r: mixed(r, normal(r), (0.005, 0.1)), (0.1,), error=1e-4),
    "salaries": Kind(lambda r: r.integers(0, 10**7, 50_000), step=1, error=8),
    "salaries in hundreds": Kind(lambda r: r.integers(0, 10**5, NUM_ROWS) * 100, step=100),
    "salaries with zeros": Kind(lambda r: mixed(r, r.integers(0, 10**6, NUM_ROWS), (0.3, 0)), step=1),
    "up to 2^24": Kind(lambda r: 2**22 + r.integers(0, 3000, NUM_ROWS) * 4001 // 1000, step=1),
    "beyond 2^49": Kind(lambda r: 2.0**49 + 3 * r.integers(0, 3000, NUM_ROWS), step=3),
    "beyond 2^52": Kind(lambda r: 2.0**52 + r.integers(0, 3000, NUM_ROWS), step=1),
    "stamps at whole minutes": Kind(lambda r: 1.7e9 + 60 * r.integers(0, 10**4, NUM_ROWS) + 20, step=60),
    "latitude": Kind(lambda r: np.clip(40 * normal(r), -90, 90), (-90.0, 90.0), error=1e-3),
    "probability": Kind(lambda r: r.beta(0.5, 0.5, NUM_ROWS), error=1e-6),
    "certain probability": Kind(
        lambda r: mixed(r, r.beta(0.5, 0.5, NUM_ROWS), (0.1, 0), (0.1, 1)), (0.0, 1.0), error=1e-6
    ),
    "Julian dates of seconds": Kind(lambda r: 2451545 + r.random(NUM_ROWS) * 10 / 86400, error=2e-9),
    "coordinates": Kind(lambda r: 500000.123 + 0.01 * normal(r), error=1e-6),
    "with a sentinel far away": Kind(
        lambda r: mixed(r, 2451545 + r.random(NUM_ROWS) / 1e4, (0.1, 0)), (0.0,), error=2e-9, forbidden=(0, 2451540)
    ),
    "two values": Kind(lambda r: r.choice([0.3, 0.7], NUM_ROWS), step=0.4),
    "two values on no grid": Kind(lambda r: r.choice([np.e, np.pi], NUM_ROWS), (np.e, np.pi), forbidden=(np.e, np.pi)),
    "two neighbours": Kind(lambda r: r.choice([0.1, np.nextafter(0.1, 1)], NUM_ROWS), (0.1, np.nextafter(0.1, 1))),
    "degrees turned to Celsius": Kind(
        lambda r: (r.integers(0, 40, NUM_ROWS) - 32) * 5 / 9, tuple((np.arange(40) - 32) * 5 / 9)
    ),
    "counts": Kind(lambda r: r.poisson(3, NUM_ROWS), step=1),
    "counts with a spike": Kind(lambda r: mixed(r, r.poisson(30, NUM_ROWS), (0.4, 0)), (0.0,), step=1),
    "negative zeros": Kind(lambda r: mixed(r, normal(r), (0.1, -0.0), (0.1, 0.0)), (0.0,), error=1e-4),
    "a denormal": Kind(lambda r: mixed(r, normal(r), (0.1, 5e-324)), (5e-324,), error=1e-4),
    "alternating": Kind(
        lambda r: mixed(r, r.random(NUM_ROWS), (0.15, 0.25), (0.15, 0.75)), (0.25, 0.75), error=1e-5
    ),
    "half and half": Kind(
        lambda r: mixed(r, np.round(10 * r.random(NUM_ROWS)) / 7, (0.3, 2)), (*(np.arange(11) / 7), 2.0)
    ),
    "continuous": Kind(normal, error=1e-4),
    "continuous, float32": Kind(lambda r: normal(r).astype("f4"), error=1e-4),
    "continuous, float16": Kind(lambda r: normal(r).astype("f2"), error=1e-4),
}  # fmt: skip


def prepared(values, path, **keys):
    """The column beside one of noise, so that the flow has two."""
    rows = np.stack([np.asarray(values, dtype=float), np.random.default_rng(5).random(len(values))], axis=1)
    np.savez(path / "t.npz", X=rows, columns=np.array(["x", "other"]))
    return prepare(path / "t.npz", split=(0.95, 0, 0.05), **keys)


@pytest.mark.parametrize("name", KINDS)
def test_a_column_by_kind(name, tmp_path):
    kind = KINDS[name]
    table = prepared(kind.make(np.random.default_rng(1)), tmp_path)
    rows = table.train[:, 0]
    assert table.transform.steps[0] == pytest.approx(kind.step or 0)
    found = table.report["atoms"].get("x", {"held": True, "values": []})
    assert found["held"]
    np.testing.assert_allclose([entry["value"] for entry in found["values"]], kind.atoms, rtol=1e-7)

    back = table.transform.inverse(table.reference())[:, 0]
    np.testing.assert_allclose(back, rows, rtol=0, atol=kind.error)
    scores = np.random.default_rng(2).standard_normal((NUM_SAMPLES, 2))
    samples = table.transform.inverse(scores)[:, 0]
    for entry in found["values"]:
        value, share = entry["value"], np.mean(rows == entry["value"])
        np.testing.assert_array_equal(back[rows == value], value)
        assert entry["count"] >= np.sum(rows == value)
        error = 3.5 * np.sqrt(share * (1 - share) / NUM_SAMPLES)
        assert np.mean(samples == value) == pytest.approx(share, abs=error), value
    assert rows.min() <= samples.min() <= samples.max() <= rows.max() or kind.step
    if kind.step:
        cells = (samples - rows.min()) / kind.step
        np.testing.assert_allclose(cells, np.rint(cells), atol=1e-6)
        for value in (0.0, rows.min()):  # a heavy cell has its share too
            share = np.mean(rows == value)
            if share > 0.01:
                assert np.mean(samples == value) == pytest.approx(share, abs=0.01)
    if kind.forbidden:
        low, high = kind.forbidden
        assert not ((samples > low) & (samples < high)).any()


@pytest.mark.parametrize("name", ["rain", "clips", "sentinel", "two values on no grid"])
@pytest.mark.parametrize("num_rows", [40, 200])
def test_in_small_tables_too(name, num_rows, tmp_path):
    kind = KINDS[name]
    table = prepared(kind.make(np.random.default_rng(3))[:num_rows], tmp_path)
    found = [entry["value"] for entry in table.report["atoms"].get("x", {"values": []})["values"]]
    assert found or num_rows == 40
    assert set(found) <= set(kind.atoms)
    back = table.transform.inverse(table.reference())[:, 0]
    for value in found:
        np.testing.assert_array_equal(back[table.train[:, 0] == value], value)


def shown(table, capsys):
    """What the command line says of a table."""
    with Display(on_stderr=False) as display:
        display({"event": "table", **table.report})
    return capsys.readouterr().out


def test_what_repeats_is_said(tmp_path, capsys):
    table = prepared(KINDS["two sentinels"].make(np.random.default_rng(1)), tmp_path)
    assert re.search(
        r"data: values that repeat, given back exactly: 'x' -999 \(\d+.\d %\) and 1 more\n", shown(table, capsys)
    )
    notes = " ".join(_notes(table, None, ()))
    assert "are given back exactly: 'x' -999" in notes
    assert "no common grid" not in notes


@pytest.mark.parametrize("kind", ["standardize", "none"])
def test_a_transform_that_cannot_hold_them_says_so(kind, tmp_path, capsys):
    table = prepared(KINDS["rain"].make(np.random.default_rng(1)), tmp_path, kind=kind)
    assert table.report["atoms"]["x"]["held"] is False
    assert len(table.report["atoms"]["x"]["values"]) == 1
    lines = shown(table, capsys)
    assert re.search(r"repeat, which this transform.kind cannot give back exactly: 'x' 0 \(\d\d.\d %\)", lines)
    assert "cannot give back exactly: 'x' 0" in " ".join(_notes(table, None, ()))


def test_without_dequantization_nothing_is_spread(tmp_path):
    table = prepared(KINDS["rain"].make(np.random.default_rng(1)), tmp_path, dequantize="none")
    assert table.report["atoms"] == {}
    assert len(np.unique(table.reference()[table.train[:, 0] == 0, 0])) == 1


@pytest.mark.parametrize(
    "values",
    [1e9 + 1e-6 * np.random.default_rng(0).standard_normal(100), 1e-310 * np.random.default_rng(0).random(100)],
    ids=["far", "denormal"],
)
def test_what_doubles_do_not_resolve_is_refused_by_name(values, tmp_path):
    with pytest.raises(DataError, match=r"most of column 'x' lies between .* cannot be told apart"):
        prepared(values, tmp_path)


def test_a_column_of_latitudes_keeps_to_the_whole_globe_if_asked(tmp_path):
    values = np.random.default_rng(0).uniform(-89, 89, 3000)
    table = prepared(values, tmp_path, bounds={"x": [-90, 90]})
    scores = np.random.default_rng(2).standard_normal((NUM_SAMPLES, 2))
    samples = table.transform.inverse(scores)[:, 0]
    assert -90 <= samples.min() < values.min()
    assert values.max() < samples.max() <= 90


@pytest.mark.parametrize("missing", ["refuse", "drop"])
def test_a_column_without_any_value_is_named(tmp_path, missing):
    rows = np.stack([np.arange(60.0), np.full(60, np.nan)], axis=1)
    np.save(tmp_path / "t.npy", rows)
    words = r"t\.npy: column 'c1' without a finite value: choose the columns"
    with pytest.raises(DataError, match=words):
        prepare(tmp_path / "t.npy", missing=missing)
    with pytest.raises(DataError, match=words):
        prepare(tmp_path / "t.npy", missing=missing, shuffle="none", memory_gib=1e-9)


def test_a_value_that_is_too_large_is_named_by_its_row_in_the_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    rows[3] = np.nan
    rows[7, 1] = -1e200
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(DataError, match=r"t\.npy: column 'c1' holds -1e\+200 in row 7 \(counted from 0\)"):
        prepare(tmp_path / "t.npy", missing="drop")


@pytest.mark.parametrize("span", [10**5, 10**9, 10**11, 10**13])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_value_that_repeats_on_a_fine_grid_has_its_share(span, place, tmp_path):
    """As a default among stamps in microseconds has it: no knot close to an edge of its cell takes the edge's place."""
    random = np.random.default_rng(1)
    value = 10**9 + round(place * span)
    table = prepared(mixed(random, 10**9 + random.integers(0, span, NUM_ROWS), (0.2, value)), tmp_path)
    scores = ndtri((np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES)
    samples = table.transform.inverse(np.stack([scores, np.zeros(NUM_SAMPLES)], axis=1))[:, 0]
    assert np.mean(samples == value) == pytest.approx(np.mean(table.train[:, 0] == value), abs=3e-4)
