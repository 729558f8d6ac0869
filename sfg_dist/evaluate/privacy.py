"""Whether rows in the place of samples give training rows away."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from sfg_dist.evaluate.compared_rows import Rows, share_in, subset
from sfg_dist.evaluate.contest import NUM_PARTS, Contest, Estimate, mean_error, share_error
from sfg_dist.evaluate.distances import area_and_variance
from sfg_dist.evaluate.neighbours import LOOK_THROUGH, nearest_drawn, nearest_rows

MAX_QUERIES = 2_500  # rows whose nearest rows are looked for
REFERENCE_MAX_QUERIES = 1_000  # of copies and of independent columns
FALSE_ALARMS = 0.01


def nearer_to_train(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The share of rows that lie nearer to training rows than to held-out rows, of which there are equally many.

    A tie counts one half. Where there are fewer held-out than training rows, most training rows are not among those
    that are compared, and a copy of such a row counts as any row does: the attack sees these. The error is of the rows
    in closed form, and of the two tables by resampling them.
    """
    train, size = contest.known_train(), min(len(contest.known_train()), len(contest.held_out))
    rows = contest.embed(subset(contest.judged, _num_queries(contest), generator))
    found = [
        nearest_rows(rows, contest.embed(subset(table, size, generator)), LOOK_THROUGH)
        for table in (train, contest.held_out)
    ]
    nearer = _nearer(*(distances[:, 0] for distances, _ in found))

    def error() -> float:
        means = []
        for _ in range(NUM_PARTS):
            drawn = [nearest_drawn(*nearest, generator.integers(size, size=size))[0] for nearest in found]
            means.append(_nearer(*drawn).mean())
        return float(np.hypot(mean_error(nearer), np.std(means, ddof=1)))

    return {"nearer_to_train": Estimate(float(nearer.mean()), contest.error(error))}


def _nearer(to_train: Rows, to_held_out: Rows) -> Rows:
    return np.where(to_train < to_held_out, 1.0, np.where(to_train == to_held_out, 0.5, 0.0))


def identical_share(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The share of rows that equal a training row in every column, missing values too.

    All training rows are read, also of a table of which other figures look at a part. The error is a closed form, of
    the mean of this share and that of held-out rows: with the share of copies alone, their number would excuse them.
    """
    rows, _ = contest.level(contest.known_train(), generator)
    train = contest.shared.all_train
    assert train is not None  # since some are known
    share = share_in(train, rows)

    def error() -> float:
        real = subset(contest.held_out, len(rows), generator)
        return share_error((share + share_in(train, real)) / 2, len(rows))

    return {"identical_share": Estimate(share, contest.error(error))}


def nearest_train_rows(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """Two figures of the distances to the nearest training rows, of all that are kept; errors in closed form.

    ``nearest_ratio``: mean over rows of the distance to the nearest over that to the second nearest, 1 where both are
    0. ``authenticity``: the share of rows that are further from the nearest than that row is from its own nearest one,
    as Alaa et al. 2022 (arXiv 2102.08921) define it; synthcity looks that row up by the number of a sample instead.
    """
    train, at_most = contest.known_train(), _num_queries(contest)
    rows, train = contest.embed(contest.level(train, generator, at_most=at_most)[0]), contest.embed(train)
    distances, numbers = nearest_rows(rows, train, 2)
    ratios = np.ones(len(rows))
    np.divide(distances[:, 0], distances[:, 1], out=ratios, where=distances[:, 1] > 0)

    own, place = np.unique(numbers[:, 0], return_inverse=True)
    around, found = nearest_rows(train[own], train, 2)
    spacing = np.where(found[:, 0] == own, around[:, 1], around[:, 0])
    is_authentic = (distances[:, 0] > spacing[place]).astype(np.float64)
    return {
        name: Estimate(float(values.mean()), contest.error(partial(mean_error, values)))
        for name, values in (("authenticity", is_authentic), ("nearest_ratio", ratios))
    }


def _num_queries(contest: Contest) -> int:
    return MAX_QUERIES if contest.is_close else REFERENCE_MAX_QUERIES


def attack(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """A membership attack by ratio of densities: its area under the ROC curve, and what it finds at 1 % false alarms.

        score(x) = log distance(x, nearest reference row) - log distance(x, nearest judged row)

    The attacker holds the judged rows and reference rows of the same law as the data. Members are training rows,
    others are held-out rows, equally many of both; one half of the held-out rows are the others, the rest is the
    reference, so that no row is in two tables. A row that the judged table holds and the reference does not comes
    before all others, the first the furthest from the reference: there it is least likely to be held by chance. One
    that the reference alone holds comes last. Where both hold it, the ratio is that of the numbers of equal rows, one
    added to either.

    The error of the area is DeLong's, that of the share found by resampling the scores. Both are times the root of 1.5
    for the floor, which has other members, and the same others with scores that are half alike.

    References:
        van Breugel et al. 2023, Membership inference attacks against synthetic data through overfitting detection
        (DOMIAS), whose ratio of densities this is, by nearest rows; arXiv 2505.01524, where such attacks break models
        that distances to the closest record pass.
    """
    num_others = len(contest.held_out) // 2
    order = generator.permutation(len(contest.held_out))
    others, reference = contest.held_out[order[:num_others]], contest.held_out[order[num_others:]]
    size = min(num_others, len(contest.known_train()), _num_queries(contest))
    members, others = subset(contest.known_train(), size, generator), subset(others, size, generator)
    scores = _ratios(*(contest.embed(rows) for rows in (np.concatenate([members, others]), contest.judged, reference)))
    of_members, of_others = scores[:size], scores[size:]
    area, variance = area_and_variance(of_members, of_others)

    def error() -> float:
        drawn = generator.integers(size, size=(NUM_PARTS, 2, size))
        return float(np.sqrt(1.5) * np.std([_found(of_members[m], of_others[o]) for m, o in drawn], ddof=1))

    return {
        "attack_auc": Estimate(area, float(np.sqrt(1.5 * variance))),
        "attack_at_1_percent": Estimate(_found(of_members, of_others), contest.error(error)),
    }


def _ratios(asked: Rows, judged: Rows, reference: Rows) -> Rows:
    to_judged, to_reference = (nearest_rows(asked, table, 1)[0][:, 0] for table in (judged, reference))
    in_judged, in_reference = to_judged == 0, to_reference == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        to_judged, to_reference = np.log(to_judged), np.log(to_reference)
        scores = to_reference - to_judged
    both = in_judged & in_reference
    if both.any():
        counts = [_equal_rows(asked[both], table) for table in (judged, reference)]
        scores[both] = np.log1p(counts[0] * (len(reference) / len(judged))) - np.log1p(counts[1])
    finite = np.concatenate([values[np.isfinite(values)] for values in (scores, to_judged, to_reference)])
    beyond = 2 * np.abs(finite).max(initial=0) + 1
    scores[in_judged & ~both] = beyond + to_reference[in_judged & ~both]
    scores[in_reference & ~both] = -beyond - to_judged[in_reference & ~both]
    return scores


def _equal_rows(asked: Rows, table: Rows) -> NDArray[np.float64]:
    """How many rows of the table are equal to each row that is asked for."""
    counts: dict[bytes, int] = {}
    for row in np.ascontiguousarray(table + 0.0):
        key = row.tobytes()
        counts[key] = counts.get(key, 0) + 1
    return np.array([counts.get(row.tobytes(), 0) for row in np.ascontiguousarray(asked + 0.0)], dtype=np.float64)


def _found(members: Rows, others: Rows) -> float:
    """The share of members above the score that ``FALSE_ALARMS`` of the others exceed, on the line between steps."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others]))
    return float(np.interp(FALSE_ALARMS, false, true))
