"""Missing values of samples beside those of the table: their shares, their pattern, and the values beside them.

    python tests/benchmarks/missing.py SAMPLES.parquet TRAIN.parquet TEST.parquet

For each column with gaps the shares, and their difference in standard errors of a table of training rows as long as
the samples. AUC: boosted trees on the 0/1 indicators of all such columns, samples against test rows, 3 folds. With
``--by``, a column of dates or of few values, the shares and the means of the columns with gaps for each of its values
(months of dates), in standard errors of both tables.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def shares(samples: pd.DataFrame, train: pd.DataFrame, columns: list[str]) -> dict[str, dict[str, float]]:
    """Shares of missing values, and how many binomial standard errors apart they are."""
    found = {}
    for name in columns:
        drawn, real = float(samples[name].isna().mean()), float(train[name].isna().mean())
        error = np.sqrt(real * (1 - real) / len(samples))
        found[name] = {"samples": drawn, "train": real, "errors_apart": float((drawn - real) / error)}
    return found


def auc(samples: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> float:
    """Mean AUC over three folds, of as many rows of both tables."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    number = min(len(samples), len(test))
    rows = pd.concat([test[columns].iloc[:number], samples[columns].iloc[:number]]).isna().to_numpy(np.float64)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    trees = HistGradientBoostingClassifier(random_state=0)
    return float(cross_val_score(trees, rows, np.arange(2 * number) >= number, scoring="roc_auc", cv=folds).mean())


def groups_of(column: pd.Series) -> NDArray[Any]:
    """Months of dates; other values as they stand."""
    return (column.dt.month if pd.api.types.is_datetime64_any_dtype(column) else column).to_numpy()


def by_group(samples: pd.DataFrame, train: pd.DataFrame, columns: list[str], by: str) -> dict[str, list[Any]]:
    """For each column: the value of ``by``, then missing share and mean of the training rows and of the samples.

    Behind them stands how many standard errors the shares and the means are apart.
    """
    found: dict[str, list[Any]] = {name: [] for name in columns}
    for group in sorted(pd.unique(groups_of(train[by]))):
        parts = [frame[groups_of(frame[by]) == group] for frame in (train, samples)]
        for name in columns:
            gaps = [part[name].isna() for part in parts]
            line = [float(some.mean()) for some in gaps]
            apart = [_apart(*gaps)]
            if pd.api.types.is_numeric_dtype(train[name]):
                line += [float(part[name].mean()) for part in parts]
                apart.append(_apart(*(part[name].dropna() for part in parts)))
            found[name].append([group, *(round(number, 4) for number in line), *(round(some, 1) for some in apart)])
    return found


def _apart(first: pd.Series, second: pd.Series) -> float:
    error = np.sqrt(first.var() / len(first) + second.var() / len(second))
    return float((second.mean() - first.mean()) / error) if error > 0 else 0.0


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs=3, metavar=("SAMPLES", "TRAIN", "TEST"))
    parser.add_argument("--by")
    arguments = parser.parse_args()
    samples, train, test = map(pd.read_parquet, arguments.tables)
    columns = [name for name in train if train[name].isna().any()]
    figures: dict[str, Any] = {"shares": shares(samples, train, columns), "auc_test": auc(samples, test, columns)}
    if arguments.by:
        figures["by"] = by_group(samples, train, columns, arguments.by)
    for name, value in figures.items():
        print(json.dumps({name: value}, default=str))


if __name__ == "__main__":
    main()
