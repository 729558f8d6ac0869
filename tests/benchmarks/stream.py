"""The stream of pairs: rows a second beside peers, what it adds to a training step, and two ranks against one.

    .venv/bin/python tests/benchmarks/stream.py [--quick] [--only rows step ranks]

``rows``: batches of 1024 pairs in 8 columns, in a random order where the peer has one, from the page cache, nothing
trained. Peers that take one row at a time read fewer rows. ``step``: a training step of the default network with the
stream, the reading of its windows included, over the time with the very same batches in memory. ``ranks``: rows a
second of a fit with two ranks of one thread over twice those of one rank of one thread.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from sfg_dist.distributed.cluster import ray_session
from sfg_dist.distributed.fit.training import fit_with_workers, make_trainer
from sfg_dist.job.config import TrainConfig, resolve_job
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Batch, Pairs, PairStream

PARTS = ("rows", "step", "ranks")
DIM = 8
SHARD_ROWS = 4096
BATCH_ROWS = 1024
WINDOW_ROWS = 131_072  # a few windows in the store, so that none stays in memory from epoch to epoch
PEER_ROWS = {"xbatcher": 2**17, "litdata": 2**17}
"""Rows of one round for peers that are slower by orders of magnitude."""


def make_pairs(directory: Path, num_rows: int) -> Pairs:
    """A finished store of random pairs."""
    directory.mkdir(exist_ok=True)
    table = directory / "table.npy"
    np.save(table, np.random.default_rng(0).standard_normal((1000, DIM)))
    job = {
        "data": {"source": str(table)},
        "labels": {"num_pairs": num_rows, "shard_rows": SHARD_ROWS, "tolerance": 0.0},
        "output": {"dir": str(directory / "run")},
    }
    pairs = Pipeline(resolve_job(job)).open_store()
    for shard in range(pairs.plan.num_shards):
        latents = np.random.default_rng(shard).standard_normal((SHARD_ROWS, DIM), dtype=np.float32)
        pairs.write_shard(shard, latents, np.tanh(latents) + 0.1 * latents[:, ::-1])
    return pairs


def open_stream(pairs: Pairs, num_rows: int | None = None) -> PairStream:
    return PairStream.of(
        pairs,
        num_rows=num_rows or pairs.plan.num_pairs,
        batch_size=BATCH_ROWS,
        seed=0,
        shuffle_rows=WINDOW_ROWS,
    )


def drain(batches: Iterator[tuple[np.ndarray, np.ndarray]], num_rows: int) -> None:
    """Take all batches and look at their numbers, so that nothing is left lazy."""
    taken, total = 0, 0.0
    for latents, labels in batches:
        total += float(np.asarray(latents)[:, 0].sum()) + float(np.asarray(labels)[:, 0].sum())
        taken += len(latents)
    if taken < num_rows or not np.isfinite(total):
        raise RuntimeError(f"{taken} of {num_rows} rows came")


def ours(pairs: Pairs) -> tuple[Callable[[], None], int]:
    stream = open_stream(pairs)
    epochs = iter(range(10**6))

    def read() -> None:
        drain(((b.latents, b.labels) for b in stream.epoch(next(epochs))), pairs.plan.num_pairs)

    return read, pairs.plan.num_pairs


def ray_data(pairs: Pairs, directory: Path, shuffled: bool) -> tuple[Callable[[], None], int]:
    """Ray Data over Parquet with tensor columns; shuffled in a buffer as large as our window."""
    import pyarrow
    import pyarrow.parquet
    import ray
    from ray.data.extensions import ArrowTensorArray

    folder = directory / "parquet"
    if not folder.exists():
        folder.mkdir()
        for number in range(0, pairs.plan.num_pairs, WINDOW_ROWS):
            columns = {
                name: ArrowTensorArray.from_numpy(pairs.rows(name)[number : number + WINDOW_ROWS])
                for name in ("latents", "labels")
            }
            pyarrow.parquet.write_table(
                pyarrow.table(columns), folder / f"{number:012d}.parquet", compression="none", row_group_size=SHARD_ROWS
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    buffer = {"local_shuffle_buffer_size": WINDOW_ROWS, "local_shuffle_seed": 0} if shuffled else {}

    def read() -> None:
        dataset = ray.data.read_parquet(str(folder))
        batches = dataset.iter_batches(batch_size=BATCH_ROWS, batch_format="numpy", prefetch_batches=4, **buffer)
        drain(((b["latents"], b["labels"]) for b in batches), pairs.plan.num_pairs)

    return read, pairs.plan.num_pairs


def xbatcher(pairs: Pairs) -> tuple[Callable[[], None], int]:
    """Xbatcher over the same Zarr arrays, in the order of the store: it has no other."""
    import xarray
    import xbatcher as package

    num_rows = min(PEER_ROWS["xbatcher"], pairs.plan.num_pairs)
    arrays = {name: (("row", "column"), getattr(pairs, name)[:num_rows]) for name in ("latents", "labels")}

    def read() -> None:
        made = package.BatchGenerator(
            xarray.Dataset(arrays), input_dims={"row": BATCH_ROWS, "column": DIM}, preload_batch=True
        )
        drain(((b["latents"].values, b["labels"].values) for b in made), num_rows)

    return read, num_rows


class Rows:
    """One row of both arrays: an item as litdata stores it."""

    def __init__(self, latents: np.ndarray, labels: np.ndarray) -> None:
        self.latents, self.labels = latents, labels

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        return {"latents": self.latents[number], "labels": self.labels[number]}


def litdata(pairs: Pairs, directory: Path) -> tuple[Callable[[], None], int]:
    """LitData's own format, an item a row, shuffled."""
    import litdata as package

    num_rows = min(PEER_ROWS["litdata"], pairs.plan.num_pairs)
    folder = directory / "litdata"
    package.optimize(
        fn=Rows(pairs.rows("latents")[:num_rows], pairs.rows("labels")[:num_rows]),
        inputs=list(range(num_rows)),
        output_dir=str(folder),
        chunk_size=SHARD_ROWS * 4,
        num_workers=1,
        verbose=False,
        start_method="fork",
    )
    dataset = package.StreamingDataset(str(folder), shuffle=True, drop_last=False)

    def read() -> None:
        loader = package.StreamingDataLoader(dataset, batch_size=BATCH_ROWS, num_workers=0)
        drain(((b["latents"], b["labels"]) for b in loader), num_rows)

    return read, num_rows


def rows_part(pairs: Pairs, directory: Path, quick: bool) -> list[dict[str, Any]]:
    contestants = {"ours": ours(pairs)}
    contestants["Ray Data, in order"] = ray_data(pairs, directory, shuffled=False)
    contestants["Ray Data, local shuffle"] = ray_data(pairs, directory, shuffled=True)
    for name, make in (("xbatcher", lambda: xbatcher(pairs)), ("litdata", lambda: litdata(pairs, directory))):
        if importlib.util.find_spec(name) is None:
            common.console.print(f"left out: {name} is not installed (pip install '.[bench]')")
            continue
        contestants[name] = make()
    times = common.alternate({name: read for name, (read, _) in contestants.items()}, rounds=1 if quick else 3)
    return [
        {"part": "rows", "name": name, "rows": rows, "rows_per_s": rows / common.median(times[name])}
        for name, (_, rows) in contestants.items()
    ]


def settings_of(**changed: Any) -> TrainConfig:
    """The job file's defaults."""
    return TrainConfig(**({"batch_size": BATCH_ROWS, "num_epochs": 3} | changed))


def step_part(pairs: Pairs, quick: bool) -> dict[str, Any]:
    """Steps over several windows, each read anew, in turn with the very same batches from memory."""
    trainer = make_trainer(pairs, settings_of())
    num_steps = 64 if quick else 2 * WINDOW_ROWS // BATCH_ROWS
    times: dict[str, list[tuple[float, float]]] = {"stream": [], "memory": []}
    for number in range(2 if quick else 3):
        with open_stream(pairs) as stream:
            kept = [batch for _, batch in zip(range(num_steps + 1), stream.epoch(number), strict=False)]

        def train(batches: Iterable[Batch]) -> tuple[float, float]:
            """Seconds of a step, and processor seconds of all threads, from when the first batch is there."""
            taken = iter(batches)
            next(taken)
            started, used = time.perf_counter(), time.process_time()
            for _, batch in zip(range(num_steps), taken, strict=False):
                trainer.step(batch.latents, batch.labels, batch.global_rows, 0.5)
            return (time.perf_counter() - started) / num_steps, (time.process_time() - used) / num_steps

        for name in ("stream", "memory") if number % 2 else ("memory", "stream"):
            with open_stream(pairs) as stream:
                times[name].append(train(stream.epoch(number) if name == "stream" else kept))
    row: dict[str, Any] = {"part": "step", "steps": num_steps}
    for place, kind in enumerate(("wall", "cpu")):
        stream, memory = ([each[place] for each in times[name]] for name in ("stream", "memory"))
        row[f"{kind}_stream_ms"] = 1e3 * common.median(stream)
        row[f"{kind}_memory_ms"] = 1e3 * common.median(memory)
        row[f"{kind}_ratio"] = common.median(s / m for s, m in zip(stream, memory, strict=True))
    return row


def ranks_part(pairs: Pairs, directory: Path) -> list[dict[str, Any]]:
    """Epochs after the first: what starting and compiling take is not counted."""
    found = []
    for batch_size in (BATCH_ROWS, 8 * BATCH_ROWS):
        row: dict[str, Any] = {"part": "ranks", "batch_size": batch_size}
        for num_workers in (1, 2):
            settings = settings_of(
                batch_size=batch_size, num_threads=1, validation_fraction=1e-4, num_workers=num_workers
            )
            place = directory / f"fit-{batch_size}-{num_workers}"
            _, history = fit_with_workers(pairs.location.url, place, settings, use_gpu=False)
            row[f"rows_per_s_{num_workers}"] = common.median(entry["rows_per_s"] for entry in history[1:])
        row["efficiency"] = row["rows_per_s_2"] / (2 * row["rows_per_s_1"])
        found.append(row)
    return found


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    arguments = options.parse_args()
    common.start(arguments.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    verdicts = []
    with tempfile.TemporaryDirectory() as place, ray_session():
        directory = Path(place)
        began = time.perf_counter()
        pairs = make_pairs(directory, 2**19 if arguments.quick else 2**20)
        common.console.print(f"store of {pairs.plan.num_pairs:,} pairs in {time.perf_counter() - began:.0f} s")
        if "rows" in arguments.only:
            found = rows_part(pairs, directory, arguments.quick)
            rows += found
            common.show(
                f"Rows a second in batches of {BATCH_ROWS}, {DIM} columns each side, {arguments.threads} threads",
                ["", "rows read", "rows/s", "ours over"],
                (
                    [r["name"], r["rows"], r["rows_per_s"], found[0]["rows_per_s"] / r["rows_per_s"]]
                    for r in sorted(found, key=lambda r: -r["rows_per_s"])
                ),
            )
            best = max(r["rows_per_s"] for r in found[1:])
            verdicts.append(common.Verdict("rows/s over the best peer's", found[0]["rows_per_s"] / best, ">=", 1.0))
        if "step" in arguments.only:
            row = step_part(pairs, arguments.quick)
            rows.append(row)
            common.show(
                f"A training step of the default network, {BATCH_ROWS} rows, {row['steps']} steps",
                ["", "with the stream, ms", "from memory, ms", "ratio"],
                (
                    [label, *(row[f"{kind}_{name}"] for name in ("stream_ms", "memory_ms", "ratio"))]
                    for label, kind in (("wall", "wall"), ("processor time", "cpu"))
                ),
            )
            verdicts.append(common.Verdict("step with the stream over in memory", row["wall_ratio"], "<=", 1.1))
        if "ranks" in arguments.only:
            found = ranks_part(make_pairs(directory / "ranks", 2**15 if arguments.quick else 2**17), directory)
            rows += found
            common.show(
                "Two ranks of one thread against one, gloo",
                ["rows of a global batch", "1 rank, rows/s", "2 ranks, rows/s", "efficiency"],
                ([r["batch_size"], r["rows_per_s_1"], r["rows_per_s_2"], r["efficiency"]] for r in found),
            )
    common.finish("stream", arguments.output, rows=rows, verdicts=verdicts, quick=arguments.quick)


if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    main()
