"""Coordinates of categories for a network of squared error, by the AUC of XGBoost against training rows.

    pip install xgboost sdmetrics
    python tests/benchmarks/coordinates.py TRAIN.parquet intervals circle points cells

"intervals": normal scores, as the package has them. "circle": the middle of that interval as an angle. "points": three
dimensions of a multiple correspondence analysis of all columns. Points have spread 1 over the training rows. Numbers
are normal scores each time. A network of squared error learns labels of the exact flow, and a category is the one
whose point is nearest. "cells" are intervals again, learnt by the package's network of mixed tables. Labels are judged
too, as what the coordinates leave to a perfect network.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from mixed import as_compared, auc
from numpy.typing import NDArray
from scipy import sparse

from sfg_dist.data import Prepared, prepare
from sfg_dist.data.cells import cell_edges
from sfg_dist.flow.labeling import label_latents
from sfg_dist.job.config import TrainConfig
from sfg_dist.model.cell_network import CellNetwork, Network
from sfg_dist.model.mlp import MLP, predict
from sfg_dist.model.trainer import Trainer

BINS, DIMENSIONS = 8, 3


def places_of(prepared: Prepared) -> dict[int, NDArray[np.intp]]:
    """The place of each training row's category, by flow column."""
    transform = prepared.transform
    columns = prepared.train[:, np.isnan(transform.constants)]
    coded = [index for index, coding in enumerate(transform.codings) if coding.places is not None]
    return {
        index: transform.codings[index].encode(columns[:, index], transform.flow_columns[index]).astype(np.intp)
        for index in coded
    }


def correspondence_points(prepared: Prepared, places: dict[int, NDArray[np.intp]]) -> dict[int, NDArray[np.float64]]:
    """The first axes of the indicator table of all columns, numbers in eighths: shape (number of categories, 3)."""
    scores = prepared.reference()
    edges = np.arange(1, BINS) / BINS
    codes = [
        places[index] if index in places else np.searchsorted(np.quantile(column, edges), column)
        for index, column in enumerate(scores.T)
    ]
    widths = [int(column.max()) + 1 for column in codes]
    starts = np.cumsum([0, *widths])
    columns = np.concatenate([column + start for column, start in zip(codes, starts, strict=False)])
    rows = np.tile(np.arange(len(scores)), len(codes))
    counts = np.maximum(np.bincount(columns, minlength=starts[-1]), 1)
    table = sparse.csr_matrix((1 / np.sqrt(counts[columns] * len(codes)), (rows, columns)))
    axes = sparse.linalg.svds(table, k=DIMENSIONS + 1, random_state=0)[2][::-1][1:].T / np.sqrt(counts)[:, None]
    return {index: axes[starts[index] : starts[index + 1]] for index in places}


def circle_points(prepared: Prepared, places: dict[int, NDArray[np.intp]]) -> dict[int, NDArray[np.float64]]:
    """The middle of each category's interval of probability as an angle, shape (number of categories, 2)."""
    found = {}
    for index, column in places.items():
        counts = np.bincount(column, minlength=len(prepared.transform.codings[index].codes_by_place))
        angles = 2 * np.pi * (np.cumsum(counts) - counts / 2) / counts.sum()
        found[index] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return found


def fitted(network: Network, latents: NDArray[np.float32], labels: NDArray[np.float32], steps: int) -> Network:
    """A network after so many steps of 2048 pairs."""
    trainer = Trainer(network, TrainConfig())
    random = np.random.default_rng(0)
    for step in range(steps):
        some = random.integers(0, len(labels), 2048)
        trainer.step(latents[some], labels[some], 2048, step / steps)
    trainer.model.load_state_dict(trainer.average)
    return trainer.model.eval()


def frame_of(prepared: Prepared, rows: NDArray[np.float64]) -> pd.DataFrame:
    """Rows as a frame."""
    columns = [type_.from_float(values) for type_, values in zip(prepared.transform.types, rows.T, strict=True)]
    return pa.table(columns, names=list(prepared.columns)).to_pandas()


def main() -> None:
    """Print a line for each kind of coordinates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("kinds", nargs="+", choices=["intervals", "circle", "points", "cells"])
    parser.add_argument("--pairs", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    prepared = prepare(arguments.table, split=[0.97, 0.0, 0.03])
    transform, reference, places = prepared.transform, prepared.reference(), places_of(prepared)
    real = as_compared(pd.read_parquet(arguments.table), pd.read_parquet(arguments.table))
    for kind in arguments.kinds:
        makers = {"circle": circle_points, "points": correspondence_points}
        points = makers[kind](prepared, places) if kind in makers else {}
        points = {index: some / some[places[index]].std(axis=0).clip(1e-9) for index, some in points.items()}
        numbers = [index for index in range(transform.dim) if index not in points]
        spread = np.concatenate([reference[:, numbers], *(points[index][places[index]] for index in points)], axis=1)
        random = np.random.default_rng(0)
        latents, fresh = random.standard_normal((2, arguments.pairs, spread.shape[1]), dtype=np.float32)
        labels = label_latents(latents, spread.astype(np.float32), t_min=1e-3, num_evaluations=16)
        torch.manual_seed(0)
        network: Network = MLP(spread.shape[1])
        if kind == "cells":
            network = CellNetwork.of_edges(cell_edges(transform, np.arange(transform.dim)))
            fresh = np.concatenate([fresh, random.standard_normal(fresh.shape, dtype=np.float32)], axis=1)
        network = fitted(network, latents, labels, arguments.steps)
        drawn = predict(network, torch.from_numpy(fresh), 2048).numpy()
        figures = {}
        for name, found in (("labels", labels), ("samples", drawn)):
            flow, start = np.zeros((len(found), transform.dim)), len(numbers)
            flow[:, numbers] = found[:, :start]
            rows = transform.inverse(flow)
            for index, some in points.items():
                near = found[:, start : start + some.shape[1]]
                start += some.shape[1]
                nearest = ((near[:, None] - some) ** 2).sum(axis=2).argmin(axis=1)
                rows[:, np.flatnonzero(np.isnan(transform.constants))[index]] = transform.codings[index].decode(
                    nearest.astype(np.float64)
                )
            figures[name] = round(auc(as_compared(frame_of(prepared, transform.looked_up(rows)), real), real), 3)
        print(json.dumps({"coordinates": kind, "columns": spread.shape[1], **figures}), flush=True)


if __name__ == "__main__":
    main()
