"""The jobs that come with the project do what their first lines say, on tables of the right form."""

from pathlib import Path

import numpy as np
import pytest

from sfg_dist.job.config import load_job
from sfg_dist.pipeline.pipeline import Pipeline

JOBS = Path(__file__).parents[1] / "jobs"
ROWS = 400


def gas_turbine(generator):
    return {"X": generator.standard_normal((ROWS, 11)), "columns": np.array([f"g{i}" for i in range(11)])}


def power(generator):
    names = [*(f"Global_{name}" for name in ("active_power", "reactive_power")), "Voltage", "Global_intensity"]
    names += [f"Sub_metering_{number}" for number in (1, 2, 3)]
    rows = np.round(generator.uniform(0, 50, (ROWS, 7)), 2)
    rows[:, 4:] = np.floor(rows[:, 4:])
    return {"X": rows, "columns": np.array(names), "minute_of_day": np.arange(ROWS) % 1440}


def protein(generator):
    return {"X": generator.standard_normal((ROWS, 10))}


def beijing(generator):
    names = ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM"]
    rows = np.round(generator.uniform(0, 900, (ROWS, 11)))
    rows[::7, 3] = np.nan
    rows[::5, 9] = np.nan  # RAIN is left out, so its gaps cost no rows
    return {"X": rows, "columns": np.array(names)}


def miniboone(generator):
    return {
        name: generator.standard_normal((rows, 43))
        for name, rows in [("train_prefix", 90), ("val", 200), ("test", 210)]
    }


@pytest.mark.parametrize(
    ("table", "dim", "num_train"),
    [(gas_turbine, 11, 320), (power, 6, 324), (protein, 10, 320), (beijing, 10, 274), (miniboone, 43, 290)],
)
def test_uci_recipes(table, dim, num_train, tmp_path):
    path = tmp_path / "table.npz"
    np.savez(path, **table(np.random.default_rng(0)))
    job = load_job(JOBS / f"uci_{table.__name__}.toml", [f"data.source={path}", f"output.dir={tmp_path / 'run'}"])
    prepared = Pipeline(job).prepared
    assert prepared.transform.dim == dim
    assert len(prepared.train) == num_train
    assert prepared.reference().shape == (num_train, dim)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(JOBS.glob("published_*.toml")), ids=lambda path: path.stem)
def test_published_settings_run(path, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((ROWS, 5)))
    small = {
        "data.source": tmp_path / "rows.npy",
        "output.dir": tmp_path / "run",
        "executor.kind": "inline",
        "labels.num_pairs": 100,
        "labels.num_evaluations": 20,
        "labels.num_reference": 50,
        "labels.batch_size": 50,
        "labels.shard_rows": 50,
        "train.num_epochs": 2,
        "train.validation_fraction": 0.1,
    }
    pipeline = Pipeline(load_job(path, [f"{key}={value}" for key, value in small.items()]))
    pairs = pipeline.label()
    assert np.isfinite(pairs.labels.compute()).all()
    assert pairs.plan.labels["estimator"] == "minibatch"
    generator = pipeline.train()
    assert generator.network.skip is None
    assert generator.calibration is None
    assert generator.sample(10).shape == (10, 5)


@pytest.mark.parametrize("name", ["quickstart", "toy_2d"])
def test_jobs_that_need_no_file_open_their_table(name, tmp_path):
    pipeline = Pipeline(load_job(JOBS / f"{name}.toml", [f"output.dir={tmp_path}"]))
    assert len(pipeline.prepared.train) == 16_000


def test_the_study_changes_keys_that_there_are():
    lines = [line.split() for line in (JOBS / "study" / "changes.txt").read_text().splitlines()]
    jobs = [load_job(JOBS / "study" / "base.toml", ["data.source=moons", *keys]) for _, *keys in lines]
    assert len({job.to_toml() for job in jobs}) == len({name for name, *_ in lines}) == len(lines)
