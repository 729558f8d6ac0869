"""Coordinates of categories, by what is told of samples: AUC, Shape, Trend, and rows whose columns do not agree.

    pip install xgboost sdmetrics
    python tests/benchmarks/coordinates.py TRAIN.parquet TEST.parquet intervals points cells --agree city,region

"intervals": normal scores, as the package has them. "frequency": the same with categories in the order of how frequent
they are. "circle": the middle of an interval as an angle. "points": three dimensions of a multiple correspondence
analysis of all columns. "embeddings": four dimensions of a factorisation of how often categories meet, as in word2vec.
"onehot": a dimension a category. Numbers are normal scores each time, and points have spread 1.

All learn labels of the exact flow for the same time of one thread. A plain network of squared error learns them,
calibrated as the package does it, and the nearest point is the category. That of "onehot" has a softmax a column, and
takes the likeliest category or draws one. "cells" are intervals learnt by the package's network of mixed tables, and
"snapped" are these with the nearest training row in place of each label.

``--agree``: groups of columns; the figure is the share of rows whose combination no training row has.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from mixed import as_compared, auc, nearest, quality
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sfg_dist.data import Prepared, prepare
from sfg_dist.data.cells import cell_edges
from sfg_dist.flow.labeling import label_latents
from sfg_dist.job.config import TrainConfig
from sfg_dist.model.calibration import Calibration
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.mlp import MLP, predict
from sfg_dist.model.trainer import Trainer

KINDS = ("frequency", "intervals", "circle", "points", "embeddings", "onehot", "cells", "snapped")
BINS, POINT_DIMENSIONS, EMBEDDING_DIMENSIONS = 8, 3, 4
BATCH_ROWS, MOST_SAMPLES, MOST_NEAR = 2048, 8192, 1000

Points = dict[int, NDArray[np.float64]]  # of the categories of a flow column, shape (number of categories, dimensions)
Places = dict[int, NDArray[np.intp]]  # of the training rows' categories, by flow column


def places_of(prepared: Prepared) -> Places:
    """The place of each training row's category, by flow column."""
    transform = prepared.transform
    codings = {index: some for index, some in enumerate(transform.codings) if some.places is not None}
    names = {index: transform.flow_columns[index] for index in codings}
    rows = {index: prepared.train[:, prepared.columns.index(name)] for index, name in names.items()}
    return {index: some.encode(rows[index], names[index]).astype(np.intp) for index, some in codings.items()}


def indicators(prepared: Prepared, places: Places) -> tuple[sparse.csr_matrix, NDArray[np.intp]]:
    """The 0/1 table of all columns' categories, numbers in eighths, and where each column begins in it."""
    edges = np.arange(1, BINS) / BINS
    codes = [
        places[index] if index in places else np.searchsorted(np.quantile(column, edges), column)
        for index, column in enumerate(prepared.reference().T)
    ]
    starts = np.cumsum([0, *(int(column.max()) + 1 for column in codes)])
    columns = np.concatenate([column + start for column, start in zip(codes, starts, strict=False)])
    rows = np.tile(np.arange(prepared.num_train), len(codes))
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(prepared.num_train, starts[-1])), starts


def correspondence_points(prepared: Prepared, places: Places) -> Points:
    """The first axes of the indicator table."""
    table, starts = indicators(prepared, places)
    weights = 1 / np.sqrt(np.maximum(table.sum(axis=0).A1, 1))
    spread = table @ sparse.diags(weights)
    axes = sparse.linalg.svds(spread, k=POINT_DIMENSIONS + 1, random_state=0)[2][::-1][1:].T * weights[:, None]
    return {index: axes[starts[index] : starts[index + 1]] for index in places}


def embeddings(prepared: Prepared, places: Places) -> Points:
    """The positive pointwise mutual information of categories of two columns, factorised.

    References:
        Levy, Goldberg 2014, Neural word embedding as implicit matrix factorization.
    """
    table, starts = indicators(prepared, places)
    together = (table.T @ table).toarray()
    counts = np.maximum(np.diag(together), 1)
    information = np.log(np.maximum(together * prepared.num_train, 1e-9) / np.outer(counts, counts)).clip(0)
    for start, stop in itertools.pairwise(starts):
        information[start:stop, start:stop] = 0
    left, sizes, _ = np.linalg.svd(information)
    axes = (left * np.sqrt(sizes))[:, :EMBEDDING_DIMENSIONS]
    return {index: axes[starts[index] : starts[index + 1]] for index in places}


def circle_points(_prepared: Prepared, places: Places) -> Points:
    """The middle of each category's interval of probability as an angle."""
    found = {}
    for index, column in places.items():
        counts = np.bincount(column)
        angles = 2 * np.pi * (np.cumsum(counts) - counts / 2) / counts.sum()
        found[index] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return found


def one_hot(_prepared: Prepared, places: Places) -> Points:
    """A dimension a category."""
    return {index: np.eye(int(column.max()) + 1) for index, column in places.items()}


MAKERS = {"circle": circle_points, "points": correspondence_points, "embeddings": embeddings, "onehot": one_hot}


def points_of(kind: str, prepared: Prepared, places: Places) -> Points:
    """Points with spread 1 over the training rows."""
    points = MAKERS[kind](prepared, places) if kind in MAKERS else {}
    return {index: some / some[places[index]].std(axis=0).clip(1e-9) for index, some in points.items()}


def nearest_point(rows: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.intp]:
    """The nearest point of each row."""
    return ((points**2).sum(axis=1) - 2 * rows @ points.T).argmin(axis=1)


class SoftmaxTrainer(Trainer):
    """Numbers by squared error, the blocks of columns behind them by the cross-entropy of the largest entry."""

    def __init__(self, model: Network, numbers: int, sizes: list[int]) -> None:
        super().__init__(model, TrainConfig())
        self.sizes = [numbers, *sizes]

    def _loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        (numbers, *blocks), (wanted, *labels) = (some.split(self.sizes, 1) for some in (network(inputs), targets))
        loss = (numbers - wanted).square().sum()
        for block, label in zip(blocks, labels, strict=True):
            loss = loss + F.cross_entropy(block, label.argmax(1), reduction="sum")
        return loss


def fitted(
    trainer: Trainer, latents: NDArray[np.float32], labels: NDArray[np.float32], seconds: float
) -> tuple[Network, int]:
    """A network after so many seconds of this process, and its steps."""
    random, start, steps = np.random.default_rng(0), time.process_time(), 0
    while (done := (time.process_time() - start) / seconds) < 1:
        some = random.integers(0, len(labels), BATCH_ROWS)
        trainer.step(latents[some], labels[some], BATCH_ROWS, done)
        steps += 1
    trainer.model.load_state_dict(trainer.average)
    return trainer.model.eval(), steps


def frame_of(prepared: Prepared, points: Points, found: NDArray[np.float32]) -> pd.DataFrame:
    """Rows of the flow, numbers first and a block of dimensions a column behind them, as a frame."""
    transform = prepared.transform
    numbers = [index for index in range(transform.dim) if index not in points]
    flow, start = np.zeros((len(found), transform.dim)), len(numbers)
    flow[:, numbers] = found[:, :start]
    rows = transform.inverse(flow)
    for index, some in points.items():
        place = nearest_point(found[:, start : start + some.shape[1]], some)
        start += some.shape[1]
        column = prepared.columns.index(transform.flow_columns[index])
        rows[:, column] = transform.codings[index].decode(place.astype(np.float64))
    rows = transform.looked_up(rows)
    columns = [type_.from_float(values) for type_, values in zip(transform.types, rows.T, strict=True)]
    return pa.table(columns, names=list(prepared.columns)).to_pandas()


def unseen(frame: pd.DataFrame, train: pd.DataFrame, columns: list[str]) -> float:
    """The share of rows whose combination of some columns no training row has."""
    seen = set(train[columns].itertuples(index=False, name=None))
    return float(np.mean([row not in seen for row in frame[columns].itertuples(index=False, name=None)]))


def largest(rows: NDArray[np.float32], points: Points) -> NDArray[np.float32]:
    """Rows with the point of the largest entry in place of each block."""
    parts, stop = [], rows.shape[1]
    for some in reversed(points.values()):
        stop -= len(some)
        parts.insert(0, some[rows[:, stop : stop + len(some)].argmax(axis=1)].astype(np.float32))
    return np.concatenate([rows[:, :stop], *parts], axis=1)


def draws(
    kind: str, network: Network, fresh: NDArray[np.float32], spread: NDArray[np.float32], points: Points
) -> dict[str, NDArray[np.float32]]:
    """What a fitted network gives for fresh latents, by how it is read."""
    drawn = predict(network, torch.from_numpy(fresh), BATCH_ROWS).numpy()
    if kind in ("cells", "snapped"):
        return {"drawn": drawn}
    if kind == "onehot":
        noise = np.random.default_rng(1).gumbel(size=drawn.shape).astype(np.float32)
        noise[:, : drawn.shape[1] - sum(map(len, points.values()))] = 0
        return {"likeliest": largest(drawn, points), "drawn": largest(drawn + noise, points)}
    assert isinstance(network, MLP)
    return {"plain": drawn, "calibrated": Calibration.fit(network, spread, seed=0)(drawn)}


def by_frequency(frame: pd.DataFrame) -> dict[str, Any]:
    """Types that put the categories of text in the order of how frequent they are."""
    texts = [name for name in frame if pd.api.types.is_string_dtype(frame[name].dropna())]
    return {name: list(frame[name].value_counts().index) for name in texts}


def main() -> None:
    """Print a line for each kind of coordinates and each way to read them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--pairs", type=int, default=16384)
    parser.add_argument("--t-min", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--agree", nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    read = [pd.read_parquet(path) for path in arguments.tables]
    train, test = (as_compared(frame, read[0]) for frame in read)
    scale = train.select_dtypes("float").std()
    real_distance = float(np.median(nearest(test[:MOST_NEAR], train, scale)))
    groups = [group.split(",") for group in arguments.agree]
    agree = {",".join(columns): unseen(test, train, columns) for columns in groups}
    print(json.dumps({"rows": len(train), "test rows' unseen": agree}), flush=True)
    make = functools.partial(prepare, arguments.tables[0], split=[0.97, 0.0, 0.03], dependencies="ignore")
    for kind in arguments.kinds:
        prepared = make(types=by_frequency(read[0])) if kind == "frequency" else make()
        transform, places = prepared.transform, places_of(prepared)
        points = points_of(kind, prepared, places)
        numbers = [index for index in range(transform.dim) if index not in points]
        blocks = [points[index][places[index]] for index in points]
        spread = np.concatenate([prepared.reference()[:, numbers], *blocks], axis=1).astype(np.float32)
        random = np.random.default_rng(0)
        latents = random.standard_normal((arguments.pairs, spread.shape[1]), dtype=np.float32)
        fresh = random.standard_normal((min(len(train), MOST_SAMPLES), spread.shape[1]), dtype=np.float32)
        labels = label_latents(latents, spread, t_min=arguments.t_min, num_evaluations=16)
        torch.manual_seed(0)
        if kind == "snapped":
            labels = spread[cKDTree(spread).query(labels)[1]]
        if kind in ("cells", "snapped"):
            network = CellNetwork.of_edges(cell_edges(transform, np.arange(transform.dim)))
            fresh = np.concatenate([fresh, random.standard_normal(fresh.shape, dtype=np.float32)], axis=1)
            trainer = Trainer(network, TrainConfig())
        elif kind == "onehot":
            sizes = [len(points[index]) for index in points]
            trainer = SoftmaxTrainer(MLP(spread.shape[1]), len(numbers), sizes)
        else:
            trainer = Trainer(MLP(spread.shape[1]), TrainConfig())
        fit, steps = fitted(trainer, latents, labels, arguments.seconds)
        found = {"labels": labels} | draws(kind, fit, fresh, spread, points)
        for name, rows in found.items():
            frame = as_compared(frame_of(prepared, points, rows[:MOST_SAMPLES]), train)
            figures = {"auc_train": auc(frame, train)}
            if name in ("calibrated", "likeliest", "drawn"):
                shape, trend = quality(frame, train)
                figures |= {"auc_test": auc(frame, test), "shape": shape, "trend": trend}
                figures["distance"] = float(np.median(nearest(frame[:MOST_NEAR], train, scale))) / real_distance
            figures |= {",".join(columns): unseen(frame, train, columns) for columns in groups}
            line = {name: round(value, 4) for name, value in figures.items()}
            print(
                json.dumps(
                    {
                        "kind": kind,
                        "t_min": arguments.t_min,
                        "read": name,
                        "columns": spread.shape[1],
                        "steps": steps,
                        **line,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
