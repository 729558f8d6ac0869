"""What is known of each figure of a judgement before it is measured, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sfg_dist.evaluate.judgement import FigureKind

_KINDS = (
    FigureKind(
        "shape",
        "fidelity",
        "Shape of columns",
        1.0,
        "high",
        "How much of each column's distribution the samples share with held-out rows, on average over the columns.",
    ),
    FigureKind(
        "trend",
        "fidelity",
        "Trend of pairs",
        1.0,
        "high",
        "How well two columns go together as they do in held-out rows, on average over all pairs of columns.",
    ),
    FigureKind(
        "c2st_trees_held_out",
        "fidelity",
        "Boosted trees against held-out rows",
        0.5,
        "low",
        "How well boosted trees tell samples from held-out rows: 0.5 is not at all, 1 is always.",
    ),
    FigureKind(
        "c2st_trees_train",
        "fidelity",
        "Boosted trees against training rows",
        0.5,
        "at",
        "How well boosted trees tell samples from training rows: 0.5 is not at all, and copied rows fall below it.",
    ),
    FigureKind(
        "c2st_linear_held_out",
        "fidelity",
        "Logistic regression against held-out rows",
        0.5,
        "low",
        "How well a linear model, which sees averages and shares alone, tells samples from held-out rows.",
    ),
    FigureKind(
        "c2st_linear_train",
        "fidelity",
        "Logistic regression against training rows",
        0.5,
        "low",
        "How well a linear model, which sees averages and shares alone, tells samples from training rows.",
    ),
    FigureKind(
        "mutual_information_error",
        "fidelity",
        "Error of mutual information",
        0.0,
        "low",
        "The difference of normalised mutual information from that of held-out rows, on average over all pairs.",
    ),
    FigureKind(
        "tail_error",
        "fidelity",
        "Error of the tails",
        0.0,
        "low",
        "The error of the 0.1 %, 1 %, 99 % and 99.9 % quantiles, over the distance between the outermost two, on "
        "average over the columns of numbers.",
    ),
    FigureKind(
        "three_way_accuracy",
        "fidelity",
        "Accuracy of triples",
        1.0,
        "high",
        "How much of the joint distribution of three columns, cut into a few bins each, the samples share with "
        "held-out rows.",
    ),
    FigureKind(
        "broken_rules",
        "fidelity",
        "Broken rules",
        0.0,
        "low",
        "The share of samples that break a rule that every training row keeps: a range, a set of categories, a sum, "
        "or a column that decides another.",
    ),
    FigureKind(
        "alpha_precision",
        "fidelity",
        "Alpha precision",
        1.0,
        "high",
        "How well the distances of samples from the centre of the data agree with those of held-out rows.",
    ),
    FigureKind(
        "beta_recall",
        "diversity",
        "Beta recall",
        1.0,
        "high",
        "How much of the held-out rows has a sample nearby; real rows reach about one half, and copies no more.",
        by_floor=True,
    ),
    FigureKind(
        "utility",
        "utility",
        "Utility for the target",
        1.0,
        "high",
        "How well a model fitted to samples predicts the target of held-out rows: the area under the ROC curve of "
        "classes, or R2 of numbers.",
        by_floor=True,
    ),
    FigureKind(
        "utility_calibration",
        "utility",
        "Brier score of the target",
        0.0,
        "low",
        "How far the probabilities of a model fitted to samples are from what held-out rows turn out to be, squared.",
        by_floor=True,
    ),
    FigureKind(
        "nearer_to_train",
        "privacy",
        "Nearer to training rows",
        0.5,
        "low",
        "The share of samples that lie nearer to a training row than to any of equally many held-out rows: one half "
        "is right.",
    ),
    FigureKind(
        "identical_share",
        "privacy",
        "Identical to a training row",
        0.0,
        "low",
        "The share of samples that are equal to a training row in every column.",
        by_floor=True,
    ),
    FigureKind(
        "nearest_ratio",
        "privacy",
        "Nearest-neighbour distance ratio",
        1.0,
        "high",
        "The distance to the nearest training row over the distance to the second nearest: 0 is a copy, 1 is equally "
        "far.",
        by_floor=True,
    ),
    FigureKind(
        "authenticity",
        "privacy",
        "Authenticity",
        1.0,
        "high",
        "The share of samples that lie further from their nearest training row than that row does from its own "
        "nearest one.",
        by_floor=True,
    ),
    FigureKind(
        "attack_auc",
        "privacy",
        "Membership attack",
        0.5,
        "low",
        "How well an attacker tells training rows from held-out rows: 0.5 is by chance, 1 is always. The attacker "
        "compares a row's distance to the nearest sample with its distance to the nearest of other real rows.",
    ),
    FigureKind(
        "attack_at_1_percent",
        "privacy",
        "Training rows found at 1 % false alarms",
        0.01,
        "low",
        "The share of training rows that the same attacker finds where 1 % of held-out rows are taken for training "
        "rows.",
    ),
)

FIGURE_KINDS: Mapping[str, FigureKind] = MappingProxyType({kind.name: kind for kind in _KINDS})
