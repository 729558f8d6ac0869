"""The judgement of a table of samples: each figure with its error, and beside it what it is for other tables."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfg_dist.evaluate import detection, privacy, shapes, support, trends, utility
from sfg_dist.evaluate.contest import MIN_ROWS, Contest, Contests, Estimate, NoFigureError, share_error
from sfg_dist.evaluate.figure_kinds import FIGURE_KINDS
from sfg_dist.evaluate.judgement import BrokenRule, ColumnShape, Figure, JudgedTables, Judgement, PairTrend
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.plan import Stream, random_generator

_SPLIT_INDEX = 1000  # of the generators; those of ``metrics`` have lower numbers

Estimates = Mapping[str, Estimate | NoFigureError]
Measure = Callable[[Contest, np.random.Generator], Estimates]
Floor = Callable[[Contests], Contest]


class References:
    """What was measured of floors, copies and independent columns, for all samples that are judged beside one table.

    They are the same for as many samples with the same categories and gaps. Others are measured for themselves.
    """

    def __init__(self) -> None:
        self._measured: dict[Hashable, list[Estimates]] = {}

    def measured(self, group: Group, contests: Contests, seed: int) -> list[Estimates]:
        """The figures of a group in the order floor, copy, independent."""
        key = (group.names, seed, contests.footing)
        if key not in self._measured:
            self._measured[key] = _others(group, contests, seed)
        return self._measured[key]


def judge(
    tables: JudgedTables,
    *,
    seed: int = 0,
    figures: Sequence[str] = tuple(FIGURE_KINDS),
    on_step: Callable[[str], None] | None = None,
    references: References | None = None,
) -> Judgement:
    """Measure the samples by every figure of ``FIGURE_KINDS``, and three other tables in their place beside.

    ``floor`` is real rows in place of samples. What is compared with held-out rows takes training rows, and what is
    compared with training rows alone takes held-out rows. What is compared with both (``nearer_to_train`` and the
    attack) takes one half of the training rows, and the other half as training rows. ``copy`` is the training rows, and
    ``independent`` the training rows with each column permuted. Without training rows one half of the held-out rows
    stand for real ones, the other half are compared with, and there are no copies.

    ``error`` is the standard error of ``value`` beside ``floor``: for samples of the same law as the data, the two lie
    within two errors of each other about 19 times in 20. It does not hold what another training of the sampler would
    change. Each figure is defined in ``shapes``, ``trends``, ``detection``, ``rules``, ``support``, ``utility`` or
    ``privacy``, with the number of rows it reads at most.

    Every random choice is drawn from (seed, EVALUATE, figure), so a figure does not depend on which others are asked
    for. A figure that has no value for these tables is None, and a note says why.

    Args:
        tables: float64 in the user's units, a category by its code, a missing value as NaN. Codes that have no name,
            and such that the training rows do not have, are categories like others.
        seed: the job's seed.
        figures: names of ``FIGURE_KINDS``. The columns, pairs and rules come with "shape", "trend" and "broken_rules".
        on_step: told what is measured next.
        references: keeps what is measured of the other three tables, and gives it to the next judgement; None keeps
            nothing.

    Raises:
        ConfigError: a name that is not a figure.
        DataError: a table of another width or with infinity, or a target that is not a column.
    """
    unknown = [name for name in figures if name not in FIGURE_KINDS]
    if unknown:
        raise ConfigError(f"unknown figure {unknown[0]!r}; the figures are {', '.join(FIGURE_KINDS)}")
    contests = Contests(tables, random_generator(seed, Stream.EVALUATE, _SPLIT_INDEX))
    if contests.num_rows < MIN_ROWS:
        nothing = {name: Figure(name, None, None, None, None, None) for name in FIGURE_KINDS if name in figures}
        note = (
            f"No figure has a value: there are {contests.num_rows} rows to compare, and at least {MIN_ROWS} are needed."
        )
        return Judgement(nothing, (), (), target=tables.target, notes=(note,))
    found: dict[str, Figure] = {}
    notes: dict[str, list[str]] = {}
    for group in GROUPS:
        if any(name in figures for name in group.names):
            if on_step is not None:
                on_step(f"evaluate: {', '.join(FIGURE_KINDS[name].title for name in group.names)}")
            found |= _figures(group, contests, seed, notes, references)
    return Judgement(
        figures={name: found[name] for name in FIGURE_KINDS if name in figures},
        shapes=_column_shapes(contests, seed) if "shape" in figures else (),
        trends=_pair_trends(contests, seed) if "trend" in figures else (),
        rules=_broken_rules(contests, seed) if "broken_rules" in figures else (),
        target=tables.target,
        notes=(
            *(f"Not measured, because {reason}: {', '.join(titles)}." for reason, titles in notes.items()),
            *contests.notes,
        ),
    )


def _share_broken(contest: Contest, generator: np.random.Generator) -> dict[str, Estimate]:
    """The share of rows that break any rule of ``rules.find_rules``; the error is a closed form."""
    rows, _ = contest.level(contest.known_train(), generator)
    broken = np.zeros(len(rows), dtype=bool)
    for rule in contest.shared.rules:
        broken |= rule.broken(rows)
    share = float(broken.mean())
    return {"broken_rules": Estimate(share, contest.error(lambda: share_error(share, len(rows))))}


@dataclass(frozen=True)
class Group:
    """Figures that are measured together."""

    names: tuple[str, ...]
    measure: Measure
    floor: Floor


GROUPS = (
    Group(("shape",), shapes.shape, Contests.of_real),
    Group(("trend",), trends.trend, Contests.of_real),
    Group(("c2st_trees_held_out",), detection.trees_held_out, Contests.of_real),
    Group(("c2st_trees_train",), detection.trees_train, Contests.of_held_out),
    Group(("c2st_linear_held_out",), detection.linear_held_out, Contests.of_real),
    Group(("c2st_linear_train",), detection.linear_train, Contests.of_held_out),
    Group(("mutual_information_error",), trends.mutual_information_error, Contests.of_real),
    Group(("tail_error",), shapes.tail_error, Contests.of_real),
    Group(("three_way_accuracy",), trends.three_way_accuracy, Contests.of_real),
    Group(("broken_rules",), _share_broken, Contests.of_held_out),
    Group(("alpha_precision",), support.alpha_precision, Contests.of_real),
    Group(("beta_recall",), support.beta_recall, Contests.of_real),
    Group(("authenticity", "nearest_ratio"), privacy.nearest_train_rows, Contests.of_held_out),
    Group(("utility", "utility_calibration"), utility.utility, Contests.of_real),
    Group(("nearer_to_train",), privacy.nearer_to_train, Contests.of_halves),
    Group(("identical_share",), privacy.identical_share, Contests.of_held_out),
    Group(("attack_auc", "attack_at_1_percent"), privacy.attack, Contests.of_halves),
)


def figure_generator(seed: int, name: str) -> np.random.Generator:
    """What draws the random choices of a figure; figures that are measured together take that of the first."""
    return random_generator(seed, Stream.EVALUATE, _SPLIT_INDEX + 1 + list(FIGURE_KINDS).index(name))


def _measured(group: Group, made: Floor, contests: Contests, seed: int) -> Estimates:
    try:
        return group.measure(made(contests), figure_generator(seed, group.names[0]))
    except NoFigureError as absent:
        return dict.fromkeys(group.names, absent)


def _others(group: Group, contests: Contests, seed: int) -> list[Estimates]:
    """The figures of a group in the order floor, copy, independent."""
    makers = (group.floor, Contests.of_copies, Contests.of_independent)
    return [_measured(group, maker, contests, seed) for maker in makers]


def _figures(
    group: Group, contests: Contests, seed: int, notes: dict[str, list[str]], references: References | None
) -> dict[str, Figure]:
    """The figures of a group; why one has no value is added to ``notes``, the titles by their reason."""
    of_samples = _measured(group, Contests.of_samples, contests, seed)
    for name, absent in of_samples.items():
        if isinstance(absent, NoFigureError):
            notes.setdefault(str(absent), []).append(FIGURE_KINDS[name].title)
    found = _known(of_samples)
    measured = _others if references is None else references.measured
    others = [_known(each) for each in measured(group, contests, seed)] if found else [{}, {}, {}]
    figures = {}
    for name in group.names:
        value, floor, copies, independent = (each[name].value if name in each else None for each in (found, *others))
        figures[name] = Figure(name, value, found[name].error if name in found else None, floor, copies, independent)
    return figures


def _known(measured: Estimates) -> dict[str, Estimate]:
    return {name: found for name, found in measured.items() if isinstance(found, Estimate)}


def _column_shapes(contests: Contests, seed: int) -> tuple[ColumnShape, ...]:
    """Every column that is not missing throughout, the worst first."""
    both = [
        shapes.column_shapes(*contest.level(contest.held_out, figure_generator(seed, "shape")), contests.columns)
        for contest in (contests.of_samples(), contests.of_real())
    ]
    rows = zip(contests.columns, *both, strict=True)
    found = [ColumnShape(column.name, float(score), float(floor)) for column, score, floor in rows if score == score]
    return tuple(sorted(found, key=lambda column: column.score))


def _pair_trends(contests: Contests, seed: int) -> tuple[PairTrend, ...]:
    """Every pair that has a trend, the worst first."""
    names = [column.name for column in contests.columns]
    both = []
    for contest in (contests.of_samples(), contests.of_real()):
        generator = figure_generator(seed, "trend")  # in the order of ``trends.trend``
        pairs = trends.column_pairs(len(names), generator)
        tables = contest.level(contest.held_out, generator)
        both.append(trends.pair_trends(*tables, contests.columns, pairs))
    rows = zip(pairs, *both, strict=True)
    found = [
        PairTrend((names[first], names[second]), float(score), float(floor))
        for (first, second), score, floor in rows
        if score == score
    ]
    return tuple(sorted(found, key=lambda pair: pair.score))


def _broken_rules(contests: Contests, seed: int) -> tuple[BrokenRule, ...]:
    """Every rule that samples or held-out rows break, the most often broken first."""
    if contests.train is None:
        return ()
    judged, held_out = (
        contest.level(contests.train, figure_generator(seed, "broken_rules"))[0]
        for contest in (contests.of_samples(), contests.of_held_out())
    )
    found = [
        BrokenRule(rule.words, float(rule.broken(judged).mean()), float(rule.broken(held_out).mean()))
        for rule in contests.rules
    ]
    return tuple(sorted((rule for rule in found if rule.share or rule.floor), key=lambda rule: -rule.share))
