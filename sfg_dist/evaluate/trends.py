"""How well two and three columns go together."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows
from sfg_dist.evaluate.contest import Contest, Estimate, NoFigureError, halved_error
from sfg_dist.evaluate.judgement import JudgedColumn
from sfg_dist.evaluate.shapes import shared_codes

NUM_BINS = 10
MAX_TRIPLES = 100
MAX_PAIRS = 500  # more are drawn at random
_MAX_CELLS = 100_000  # of a table of counts; beyond it the cells that occur are numbered first

Codes = NDArray[np.int64]
Pairs = list[tuple[int, int]]


def column_pairs(num_columns: int, generator: np.random.Generator) -> Pairs:
    """All pairs of columns, or ``MAX_PAIRS`` random ones, in order."""
    return [(first, second) for first, second in _chosen(num_columns, 2, MAX_PAIRS, generator)]


def _chosen(num_columns: int, size: int, at_most: int, generator: np.random.Generator) -> list[tuple[int, ...]]:
    """All choices of ``size`` columns, or random ones, in order; without a list of all of them."""
    number = comb(num_columns, size)
    if number <= at_most:
        return list(combinations(range(num_columns), size))
    drawn = np.sort(generator.choice(number, size=at_most, replace=False))
    return [_choice(int(place), num_columns, size) for place in drawn]


def _choice(place: int, num_columns: int, size: int) -> tuple[int, ...]:
    """The member of ``combinations(range(num_columns), size)`` at a place."""
    found: list[int] = []
    for column in range(num_columns):
        with_it = comb(num_columns - column - 1, size - len(found) - 1) if len(found) < size else 0
        if place < with_it:
            found.append(column)
        else:
            place -= with_it
    return tuple(found)


def pair_trends(judged: Rows, held_out: Rows, columns: tuple[JudgedColumn, ...], pairs: Pairs) -> Rows:
    """The trend of each pair between 0 and 1, shape (len(pairs),); 1 is best, NaN where there is none.

    Two numbers: 1 - |r_judged - r_held_out| / 2 of Pearson's correlations over rows where neither is missing; none if
    a column is constant or missing throughout (sdmetrics' CorrelationSimilarity). Two categories: 1 - sum |p - q| / 2
    over the cells of their contingency tables, a missing value a category of its own (its ContingencySimilarity). A
    number and a category: the same, with the number cut into ``NUM_BINS`` equal parts of each table's own range and the
    largest and missing values in one more, as its QualityReport does.
    """
    codes = _codes_with_gaps(judged, held_out)
    return _trends(judged, held_out, codes[: len(judged)], codes[len(judged) :], columns, pairs)


def _codes_with_gaps(judged: Rows, held_out: Rows) -> Codes:
    codes, sizes = shared_codes(judged, held_out)
    return np.where(codes < 0, np.array(sizes) - 1, codes)  # NaN is the last of the values


def _trends(
    judged: Rows,
    held_out: Rows,
    judged_codes: Codes,
    held_codes: Codes,
    columns: tuple[JudgedColumn, ...],
    pairs: Pairs,
) -> Rows:
    is_number = [not column.is_discrete for column in columns]
    numbers = [k for k, number in enumerate(is_number) if number]
    place = {k: i for i, k in enumerate(numbers)}
    correlations = [_correlations(table[:, numbers]) for table in (judged, held_out)]
    similarity = 1 - np.abs(correlations[0] - correlations[1]) / 2
    cut = [{k: _cut(table[:, k]) for k in numbers} for table in (judged, held_out)]
    codes = (judged_codes, held_codes)
    scores = np.empty(len(pairs))
    for i, pair in enumerate(pairs):
        if all(is_number[k] for k in pair):
            scores[i] = similarity[place[pair[0]], place[pair[1]]]
        else:
            both = [[cut[t][k] if is_number[k] else codes[t][:, k] for k in pair] for t in (0, 1)]
            scores[i] = 1 - np.abs(np.subtract(*_shares(*both))).sum() / 2
    return scores


def trend(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The mean of ``pair_trends``; its error by random halves of both tables."""
    pairs = column_pairs(len(contest.columns), generator)
    judged, held_out = contest.level(contest.held_out, generator)
    codes = _codes_with_gaps(judged, held_out)

    def mean(first: Codes, second: Codes) -> float:
        scores = _trends(
            judged[first], held_out[second], codes[: len(judged)][first], codes[len(judged) :][second],
            contest.columns, pairs,
        )  # fmt: skip
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else np.nan

    mixed = len({column.is_discrete for column in contest.columns}) == 2  # so extremes set the cuts
    all_rows = np.arange(len(judged)), np.arange(len(held_out))
    value = mean(*all_rows)
    if np.isnan(value):
        raise NoFigureError("no two columns can be compared")
    return {
        "trend": Estimate(
            value, contest.error(lambda: halved_error(mean, *all_rows, generator=generator, by_extremes=mixed))
        )
    }


def _correlations(table: Rows) -> Rows:
    """Pearson's correlation of each two columns over the rows where neither is missing, NaN for a constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        known = ~np.isnan(table)
        counts = np.maximum(known.sum(axis=0), 1)
        filled = np.where(known, table, 0.0)
        offset = np.where(known, table - filled.sum(axis=0) / counts, 0.0)
        largest = np.abs(offset).max(axis=0, initial=0.0)
        constant = largest == 0
        offset /= np.where(constant, 1.0, largest)  # no square is out of range
        present = known.astype(np.float64)
        together = present.T @ present
        sums, squares = offset.T @ present, np.square(offset).T @ present
        products = offset.T @ offset
        covariance = products - sums * sums.T / together
        variance = squares - np.square(sums) / together
        variance[variance < 1e-14 * np.maximum(squares, 1e-300)] = np.nan  # constant among the rows that both have
        found = covariance / np.sqrt(variance * variance.T)
        found[constant] = found[:, constant] = np.nan
        found[together < 2] = np.nan
    return np.asarray(np.clip(found, -1, 1))


def _cut(column: Rows) -> Codes:
    edges = np.histogram_bin_edges(column[~np.isnan(column)], bins=NUM_BINS)
    return np.asarray(np.digitize(column, edges), dtype=np.int64)


def _shares(judged: list[Codes], held_out: list[Codes]) -> tuple[Rows, Rows]:
    """The shares of the cells that several columns of codes span together, of either table."""
    width = [int(max(a.max(), b.max())) + 1 for a, b in zip(judged, held_out, strict=True)]
    cells = [np.ravel_multi_index(tuple(codes), tuple(width)) for codes in (judged, held_out)]
    num_cells = int(np.prod(width))
    if num_cells > _MAX_CELLS:
        values, numbered = np.unique(np.concatenate(cells), return_inverse=True)
        cells, num_cells = [numbered[: len(cells[0])], numbered[len(cells[0]) :]], len(values)
    first, second = (np.bincount(codes, minlength=num_cells) / len(codes) for codes in cells)
    return first, second


def binned(judged: Rows, held_out: Rows, columns: tuple[JudgedColumn, ...]) -> Codes:
    """Both tables, the judged rows first, cut into the bins of mostlyai-qa.

    A number has ``NUM_BINS`` bins of equal shares of the held-out rows, or fewer where values repeat; a category one of
    the ``NUM_BINS`` that are most frequent there or one for all others. Missing values have a bin of their own.
    """
    both = np.concatenate([judged, held_out])
    codes = np.empty(both.shape, dtype=np.int64)
    for k, column in enumerate(columns):
        values, present = both[:, k], held_out[~np.isnan(held_out[:, k]), k]
        if column.is_discrete:
            distinct, counts = np.unique(present, return_counts=True)
            kept = np.sort(distinct[np.argsort(-counts, kind="stable")[:NUM_BINS]])
            codes[:, k] = len(kept)
            for number, category in enumerate(kept):
                codes[values == category, k] = number
        else:
            shares = np.arange(1, NUM_BINS) / NUM_BINS
            edges = np.unique(np.quantile(present, shares)) if len(present) else np.empty(0)
            codes[:, k] = np.searchsorted(edges, values, side="right")
        codes[np.isnan(values), k] = NUM_BINS + 1
    return codes


def mutual_information_error(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """Mean over pairs of |normalised mutual information - that of held-out rows|, in ``binned`` columns.

    The information of two columns is divided by the root of the product of their entropies, so it lies between 0 and 1;
    it is 0 where a column is constant. The error is by random halves of both tables.
    """
    pairs = column_pairs(len(contest.columns), generator)
    judged, held_out = contest.level(contest.held_out, generator)
    if not pairs:
        raise NoFigureError("there is only one column")
    codes = binned(judged, held_out, contest.columns)

    def mean(first: Codes, second: Codes) -> float:
        return float(np.mean([abs(_information(first, pair) - _information(second, pair)) for pair in pairs]))

    both = codes[: len(judged)], codes[len(judged) :]
    error = contest.error(lambda: halved_error(mean, *both, generator=generator))
    return {"mutual_information_error": Estimate(mean(*both), error)}


def _information(codes: Codes, pair: tuple[int, int]) -> float:
    width = NUM_BINS + 2
    joint = np.bincount(codes[:, pair[0]] * width + codes[:, pair[1]], minlength=width**2) / len(codes)
    grid = joint.reshape(width, width)
    together, first, second = (_entropy(shares) for shares in (joint, grid.sum(axis=1), grid.sum(axis=0)))
    return (first + second - together) / float(np.sqrt(first * second)) if first > 0 and second > 0 else 0.0


def _entropy(shares: Rows) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def three_way_accuracy(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """Mean over three columns of 1 - sum |p - q| / 2 over the cells that their ``binned`` codes span.

    All triples, or ``MAX_TRIPLES`` random ones. It is the trivariate accuracy of mostlyai-qa (arXiv 2504.01908), here
    against held-out rows. The error is by random halves of both tables.
    """
    triples = _chosen(len(contest.columns), 3, MAX_TRIPLES, generator)
    if not triples:
        raise NoFigureError("there are fewer than three columns")
    judged, held_out = contest.level(contest.held_out, generator)
    codes = binned(judged, held_out, contest.columns)

    def mean(first: Codes, second: Codes) -> float:
        apart = [
            np.abs(np.subtract(*_shares([first[:, k] for k in triple], [second[:, k] for k in triple]))).sum() / 2
            for triple in triples
        ]
        return 1 - float(np.mean(apart))

    both = codes[: len(judged)], codes[len(judged) :]
    error = contest.error(lambda: halved_error(mean, *both, generator=generator))
    return {"three_way_accuracy": Estimate(mean(*both), error)}
