"""What the figures of a judgement come to: fidelity, diversity, privacy, utility and calibration, each in plain words.

An aspect is decided by figures that tell a useless model or a copy from real rows. Where such a figure lies is said as
a share: 0 is its floor, what real rows have in place of the samples, and 1 is what the bad model has. The bad model is
independent columns for fidelity and utility, and a copy of the training rows for privacy. A difference from the floor
counts where it is beyond ``NOISE`` standard errors.

The grades are those of ``GRADES``. An aspect has the worst grade of its figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from sfg_dist.evaluate.judgement import Figure

Grade = Literal["good", "close", "poor", "bad", "unknown"]
GRADES: dict[Grade, str] = {
    "good": "as real rows", "close": "close", "poor": "falls short", "bad": "bad", "unknown": "not known",
}  # fmt: skip
NOISE = 3.0
"""Standard errors of a figure beside its floor. All of several figures of real rows are to lie within."""
_NARROW = 0.3
"""The bad model counts as at least this far from the floor, as a part of the way to the worst value there is."""
_TOO_NOISY = 0.4
"""Noise beyond this share of the way to the bad model says nothing."""
_BANDS: tuple[tuple[float, Grade], ...] = ((0.04, "good"), (0.14, "close"), (0.4, "poor"), (float("inf"), "bad"))
_PRIVACY_BANDS: tuple[tuple[float, Grade], ...] = ((0.1, "close"), (0.25, "poor"), (float("inf"), "bad"))
_IDENTICAL_BANDS: tuple[tuple[float, Grade], ...] = ((0.01, "close"), (0.1, "poor"), (float("inf"), "bad"))
"""Of privacy: beyond the noise nothing is as real rows."""


@dataclass(frozen=True)
class AspectVerdict:
    """One aspect in words."""

    aspect: str  # as a heading
    grade: Grade
    headline: str
    sentences: tuple[str, ...] = ()  # what it rests on, with numbers and errors

    @property
    def word(self) -> str:
        """The grade in words."""
        return GRADES[self.grade]


@dataclass(frozen=True)
class _Deciding:
    """How a figure decides."""

    name: str
    worst: float  # the worst value that it can have
    bad: Literal["copy", "independent"] | None = None  # the model that it must tell from real rows
    bands: tuple[tuple[float, Grade], ...] = _BANDS
    is_blunt: bool = False  # whether the bad model may come close to real rows, where other figures see it

    def grade(self, figure: Figure, best: float) -> Grade:
        """The grade of a value."""
        if figure.value is None:
            return "unknown"
        gap, noise, reach = self._way(figure, best)
        if reach <= 0:
            return "unknown"
        if gap <= noise:
            return "unknown" if noise > _TOO_NOISY * reach else "good"
        return next(grade for share, grade in self.bands if gap <= share * reach)

    def times_as_many(self, figure: Figure, best: float) -> float:
        """How many times the rows it takes until the figure of real rows is known: noise falls by the root of them."""
        _, noise, reach = self._way(figure, best)
        return (noise / (_TOO_NOISY * reach)) ** 2 if reach > 0 else 1.0

    def _way(self, figure: Figure, best: float) -> tuple[float, float, float]:
        """How far the value is from the floor, how far noise may take it, and how far the way goes."""
        sign = 1.0 if self.worst > best else -1.0
        floor = best if figure.floor is None else figure.floor
        floor = sign * max(sign * floor, sign * best)  # an AUC below one half is noise, and asks no more of samples
        noise = NOISE * (figure.error or 0.0)
        whole = sign * (self.worst - floor)
        reach = whole
        bad = getattr(figure, self.bad) if self.bad else None
        least = noise / _TOO_NOISY if self.is_blunt else noise
        if bad is not None and (told := sign * (bad - floor)) > least:
            reach = max(told, _NARROW * whole)
        return sign * ((floor if figure.value is None else figure.value) - floor), noise, reach


FIDELITY = _Deciding("c2st_trees_held_out", 1.0, "independent")
RULES = _Deciding("broken_rules", 1.0)
DIVERSITY = _Deciding("beta_recall", 0.0)
PRIVACY = (
    _Deciding("attack_auc", 1.0, "copy", _PRIVACY_BANDS),
    _Deciding("attack_at_1_percent", 1.0, "copy", _PRIVACY_BANDS),
    _Deciding("nearer_to_train", 1.0, "copy", _PRIVACY_BANDS, is_blunt=True),  # where most training rows are left out
    _Deciding("identical_share", 1.0, "copy", _IDENTICAL_BANDS),
    _Deciding("nearest_ratio", 0.0, "copy", _PRIVACY_BANDS),  # it sees few noisy copies, where the others do not
)
UTILITY = _Deciding("utility", 0.0, "independent")
_LEAST_TOLD, _MOST_ERROR = 0.05, 0.1
"""Of the way from real rows to independent columns: where it is shorter, nothing predicts the target; and the part of
it that the error of utility may be at most."""
_ORDER: Sequence[Grade] = ("unknown", "good", "close", "poor", "bad")
_PRIVACY_ORDER: Sequence[Grade] = ("good", "close", "unknown", "poor", "bad")  # what is not known may be bad


def verdicts(figures: Mapping[str, Figure], target: str | None, *, has_train: bool = True) -> list[AspectVerdict]:
    """The verdict of each aspect, in the order of the page.

    Args:
        figures: by name, those of the calibration too; a figure that is missing decides nothing.
        target: the column that utility predicts, or None.
        has_train: whether the training rows were known.
    """
    found = [_fidelity(figures), _diversity(figures), _privacy(figures, has_train), _utility(figures, target)]
    return found + ([_calibration(figures)] if "coverage_90" in figures else [])


def summary(found: Sequence[AspectVerdict]) -> str:
    """All aspects in one sentence.

    Examples:
        >>> summary([AspectVerdict("Fidelity", "good", ""), AspectVerdict("Privacy", "bad", "")])
        'Fidelity: as real rows. Privacy: bad.'
    """
    return " ".join(f"{each.aspect}: {each.word}." for each in found)


def shown_figure(figure: Figure, digits: int = 3) -> str:
    """A value with its error."""
    error = "" if figure.error is None else f" \N{PLUS-MINUS SIGN} {figure.error:.{digits}f}"
    return f"{figure.value:.{digits}f}{error}"


def _sentence(text: str, figure: Figure, *, copy: bool = False, independent: bool = False) -> str:
    """A text about a figure, and what others have of it."""
    others = [("real rows have", figure.floor)]
    others += [("a copy of the training rows has", figure.copy)] if copy else []
    others += [("independent columns have", figure.independent)] if independent else []
    known = [f"{words} {value:.3f}" for words, value in others if value is not None]
    return f"{text}{'; ' if known else ''}{', and '.join(known)}."


def _fidelity(figures: Mapping[str, Figure]) -> AspectVerdict:
    trees = figures.get(FIDELITY.name)
    if trees is None or trees.value is None:
        return AspectVerdict("Fidelity", "unknown", "Whether samples can be told from real rows was not measured.")
    is_blind = trees.value == 0.5 and trees.error == 0  # the trees did not split, which says nothing
    grade = "unknown" if is_blind else FIDELITY.grade(trees, 0.5)
    headline = {
        "good": "Boosted trees cannot tell samples from real rows.",
        "close": "Samples are close to real rows.",
        "poor": "Samples resemble real rows, with differences that are found.",
        "bad": "Boosted trees easily tell samples from real rows.",
        "unknown": "There are too few rows to tell samples from real ones.",
    }[grade]
    auc = f"an AUC of {shown_figure(trees)}, where 0.5 is guessing"
    sentences = [
        _sentence(f"Boosted trees that tell samples from held-out rows have {auc}", trees, independent=True),
    ]
    rules = figures.get(RULES.name)
    if rules is not None and rules.value is not None and (of_rules := RULES.grade(rules, 0.0)) in ("poor", "bad"):
        grade = max(grade, of_rules, key=_ORDER.index)
        headline = headline if grade != of_rules else "Samples break rules that the data keep."
    if rules is not None and rules.value:
        sentences.append(
            f"Of the samples {100 * rules.value:.1f} % break a rule that all training rows keep; of real rows "
            f"{100 * (rules.floor or 0.0):.1f} % do."
        )
    return AspectVerdict("Fidelity", grade, headline, tuple(sentences))


def _diversity(figures: Mapping[str, Figure]) -> AspectVerdict:
    recall = figures.get(DIVERSITY.name)
    if recall is None or recall.value is None:
        return AspectVerdict("Diversity", "unknown", "Whether samples reach all of the data was not measured.")
    grade = DIVERSITY.grade(recall, 1.0)
    headline = {
        "good": "Samples reach as much of the data as real rows do.",
        "close": "Samples reach nearly as much of the data as real rows do.",
        "poor": "Samples miss some of the data.",
        "bad": "Samples miss much of the data.",
        "unknown": "There are too few rows to tell how much of the data samples reach.",
    }[grade]
    return AspectVerdict(
        "Diversity", grade, headline, (_sentence(f"Beta recall is {shown_figure(recall)}", recall, independent=True),)
    )


def _privacy(figures: Mapping[str, Figure], has_train: bool) -> AspectVerdict:
    known = [(way, figures[way.name]) for way in PRIVACY if way.name in figures and figures[way.name].value is not None]
    if not known:
        why = "it was not measured." if has_train else "it takes the training rows, which were not given."
        return AspectVerdict("Privacy", "unknown", f"Whether samples give training rows away is not known: {why}")
    grades = {way.name: way.grade(figure, _BEST[way.name]) for way, figure in known}
    grade = max(grades.values(), key=_PRIVACY_ORDER.index)
    headline = {
        "good": "The attack and the distances find no more of the training rows in samples than in real rows.",
        "close": "The attack and the distances find hardly more of the training rows in samples than in real rows.",
        "poor": "Samples give some of the training rows away.",
        "bad": "Samples give many of the training rows away.",
        "unknown": "There are too few rows to tell whether samples give training rows away.",
    }[grade]
    if grade == "unknown" and (times := max(way.times_as_many(figure, _BEST[way.name]) for way, figure in known)) > 1:
        headline += f" About {ceil(10 * times) / 10:g} times as many samples and held-out rows would be enough to tell."
    told = [name for name, each in grades.items() if each == grade] if grade in _ORDER[2:] else ["attack_auc"]
    words = {
        "attack_auc": "An attacker who holds the samples tells training rows from others with an AUC of {}",
        "attack_at_1_percent": "Of the training rows the attacker finds a share of {} at 1 % false alarms",
        "nearer_to_train": "A share of {} of the samples lies nearer to a training row than to a held-out one",
        "identical_share": "A share of {} of the samples is equal to a training row",
        "nearest_ratio": "The nearest training row is on average {} times as far from a sample as the second nearest",
    }
    sentences = [
        _sentence(words[way.name].format(shown_figure(figure)), figure, copy=True)
        for way, figure in known
        if way.name in told
    ]
    return AspectVerdict("Privacy", grade, headline, tuple(sentences))


_BEST = {
    "attack_auc": 0.5, "attack_at_1_percent": 0.01, "nearer_to_train": 0.5, "identical_share": 0.0,
    "nearest_ratio": 1.0,
}  # fmt: skip


def _utility(figures: Mapping[str, Figure], target: str | None) -> AspectVerdict:
    figure = figures.get(UTILITY.name)
    if target is None:
        return AspectVerdict(
            "Utility", "unknown", "No target column was named, so how well samples train a model is not known."
        )
    if figure is None or figure.value is None:
        return AspectVerdict("Utility", "unknown", f"How well samples train a model of {target!r} was not measured.")
    measured = figure
    told = None if figure.floor is None or figure.independent is None else figure.floor - figure.independent
    if told is not None:  # a useless model predicts by chance, and has an error that would excuse it
        figure = replace(figure, error=min(figure.error or 0.0, _MOST_ERROR * max(told, 0.0)))
    grade = "unknown" if told is not None and told < _LEAST_TOLD else UTILITY.grade(figure, 1.0)
    headline = {
        "good": f"A model of {target!r} that is trained on samples predicts as well as one of real rows.",
        "close": f"A model of {target!r} that is trained on samples predicts nearly as well as one of real rows.",
        "poor": f"A model of {target!r} that is trained on samples predicts worse than one of real rows.",
        "bad": f"A model of {target!r} that is trained on samples is of little use.",
        "unknown": f"Real rows predict {target!r} hardly better than independent columns do: utility cannot be judged.",
    }[grade]
    score = f"The score (AUC of classes, R2 of numbers) is {shown_figure(measured)}"
    return AspectVerdict("Utility", grade, headline, (_sentence(score, measured, independent=True),))


def _use_of_condition(score: Figure | None) -> Literal["some", "ignored", "none"]:
    """Whether a law is better by its CRPS than one without the condition; "none" where the condition has no use."""
    if score is None or score.value is None or score.independent is None:
        return "some"
    noise = NOISE * (score.error or 0.0)
    if score.independent - score.value > noise:
        return "some"
    return "none" if score.copy is not None and score.independent - score.copy <= noise else "ignored"


def _calibration(figures: Mapping[str, Figure]) -> AspectVerdict:
    """The grade is by the spread of the ranks and by coverage, which are right at one value only, and by the CRPS.

    The first two are right for a law that ignores its condition too; the CRPS of such a law is that of no condition.
    """
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    shares = []
    for name, right, whole in (("coverage_50", 0.5, 0.5), ("coverage_90", 0.9, 0.5), ("rank_spread", 1.0, 1.0)):
        figure = known.get(name)
        if figure is not None and figure.value is not None:
            gap = abs(figure.value - right)
            shares.append(0.0 if gap <= NOISE * (figure.error or 0.0) else gap / whole)
    if not shares:
        return AspectVerdict("Calibration", "unknown", "Whether the law given a condition is right was not measured.")
    grade = next(grade for most, grade in _BANDS if max(shares) <= most)
    spread = known.get("rank_spread")
    beyond = 0.0 if spread is None else (spread.value or 0.0) - 1
    is_sure = spread is not None and abs(beyond) > NOISE * (spread.error or 0.0)
    way = "not calibrated" if not is_sure else "too narrow" if beyond > 0 else "too wide"
    headline = {
        "good": "The law given a condition is calibrated.",
        "close": "The law given a condition is nearly calibrated.",
        "poor": f"The law given a condition is {way}.",
        "bad": f"The law given a condition is far off: it is {way}.",
    }[grade]
    use = _use_of_condition(known.get("crps"))
    if use == "ignored" and grade in ("good", "close"):
        grade, headline = "poor", "The law given a condition is no better than the law without it."
    words = {
        "coverage_90": "A region that should hold 90 % of the outcomes holds a share of {}",
        "rank_spread": "The spread of the ranks is {}, where 1 is right",
    }
    sentences = [f"{text.format(shown_figure(known[name]))}." for name, text in words.items() if name in known]
    if (score := known.get("crps")) is not None:
        others = (
            ("a calibrated law of the same width has", score.floor),
            ("the training rows of the nearest conditions", score.copy),
            ("a law without the condition", score.independent),
        )
        beside = ", ".join(f"{text} {value:.3f}" for text, value in others if value is not None)
        sentences.append(f"The CRPS is {shown_figure(score)}{'; ' if beside else ''}{beside}.")
    if use == "ignored":
        sentences.append("That is no better than without the condition.")
    if use == "none":
        sentences.append("The condition tells nothing: training rows of the nearest conditions do no better than all.")
    return AspectVerdict("Calibration", grade, headline, tuple(sentences))
