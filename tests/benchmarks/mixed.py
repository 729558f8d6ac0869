"""Samples of a mixed table by the figures that are published for such tables.

    pip install xgboost sdmetrics
    python tests/benchmarks/mixed.py SAMPLES.parquet TRAIN.parquet TEST.parquet

AUC: XGBoost, 3 folds, 100 trees, one-hot text, as many samples as real rows, against training and against test rows.
Shape and Trend: sdmetrics' quality report against the training rows. Distance: that of a sample to its nearest training
row over that of a test row, medians, in standard deviations of numbers with 1 for a category that differs. Nearer:
the share of samples that lie nearer to the training rows than to as many test rows.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
from numpy.typing import NDArray

GAP = "(missing)"
MOST_ROWS = 5000  # whose distances are measured


def is_number(column: pd.Series) -> bool:
    """Whether a column is compared as numbers; dates, text and truth values are not."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def as_compared(frame: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The columns of ``train``; what is no number is text, a gap too."""
    texts = {name: frame[name].astype(object).where(frame[name].notna(), GAP).astype(str) for name in train}
    return pd.DataFrame({name: frame[name].astype(float) if is_number(train[name]) else texts[name] for name in train})


def auc(samples: pd.DataFrame, real: pd.DataFrame, seed: int = 0) -> float:
    """Mean AUC over three folds."""
    import xgboost
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    number = min(len(samples), len(real))
    kept = np.random.default_rng(1).permutation(len(real))[:number]
    both = pd.concat([real.iloc[kept], samples.iloc[:number]], ignore_index=True)
    rows = pd.get_dummies(both, columns=[name for name in both if both[name].dtype.kind != "f"]).to_numpy(np.float32)
    is_sample = np.arange(len(both)) >= number
    found = []
    for fitted, judged in StratifiedKFold(3, shuffle=True, random_state=seed).split(rows, is_sample):
        model = xgboost.XGBClassifier(n_estimators=100, tree_method="hist")
        model.fit(rows[fitted], is_sample[fitted])
        found.append(roc_auc_score(is_sample[judged], model.predict_proba(rows[judged])[:, 1]))
    return float(np.mean(found))


def quality(samples: pd.DataFrame, train: pd.DataFrame) -> tuple[float, float]:
    """Shape and Trend."""
    from sdmetrics.reports.single_table import QualityReport

    kinds = {name: {"sdtype": "numerical" if train[name].dtype.kind == "f" else "categorical"} for name in train}
    report = QualityReport()
    report.generate(train, samples.iloc[: len(train)].reset_index(drop=True), {"columns": kinds}, verbose=False)
    scores = report.get_properties()["Score"]
    return float(scores.iloc[0]), float(scores.iloc[1])


def nearest(rows: pd.DataFrame, among: pd.DataFrame, scale: pd.Series) -> NDArray[np.float64]:
    """The distance of each row to the nearest one ``among`` others, the mean over the columns."""
    numbers = list(scale.index)
    texts = [name for name in rows if name not in numbers]
    few = rows.iloc[:MOST_ROWS]
    found = np.full(len(few), np.inf)
    for start in range(0, len(among), 256):
        part = among.iloc[start : start + 256]
        total = np.zeros((len(few), len(part)))
        for name in numbers:
            some, others = few[name].to_numpy()[:, None], part[name].to_numpy()
            apart = np.abs(some - others) / scale[name]
            total += np.where(np.isnan(apart), np.isnan(some) != np.isnan(others), apart)
        for name in texts:
            total += few[name].to_numpy()[:, None] != part[name].to_numpy()
        found = np.minimum(found, total.min(axis=1) / rows.shape[1])
    return found


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs=3, metavar=("SAMPLES", "TRAIN", "TEST"))
    read = [pd.read_parquet(path) for path in parser.parse_args().tables]
    samples, train, test = (as_compared(frame, read[1]) for frame in read)
    scale = train.select_dtypes("float").std()
    to_train, real = nearest(samples, train, scale), nearest(test, train, scale)
    few = train.sample(len(test), random_state=0) if len(train) > len(test) else train
    is_nearer = nearest(samples, few, scale) - nearest(samples, test, scale)
    shape, trend = quality(samples, train)
    figures = {
        "auc_train": auc(samples, train),
        "auc_test": auc(samples, test),
        "shape": shape,
        "trend": trend,
        "distance": float(np.median(to_train) / max(np.median(real), 1e-12)),
        "nearer": float((is_nearer < 0).mean() + (is_nearer == 0).mean() / 2),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
