"""From a table to a first job: what `sfg init` writes is what `sfg plan` and `sfg run` take, as they take the table."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import sfg
from machines import MACHINE, PACE
from pyarrow import parquet

from sfg_dist.cli.init import table_name
from sfg_dist.distributed.machine import Machine
from sfg_dist.job.config import load_job
from sfg_dist.job.words import GIB
from sfg_dist.pipeline.budget import MOST_PAIRS
from sfg_dist.studies.estimate.calibration import Calibration
from sfg_dist.studies.estimate.first_job import LEAST_PAIRS, first_job

SMALL = {
    "labels.num_pairs": "256", "labels.shard_rows": "64", "labels.batch_size": "64", "labels.num_evaluations": "8",
    "train.width": "16", "train.depth": "1", "train.num_epochs": "1", "train.max_time_s": "20",
    "evaluate.num_samples": "100", "evaluate.judge": "false", "executor.kind": "inline",
}  # fmt: skip
SETS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def paced(monkeypatch):
    """A machine of 4 CPUs that is not measured; the returned function says its pace."""

    def at(seconds_per_row=0.01, machine=MACHINE):
        pace = replace(PACE, seconds_per_row=seconds_per_row, write_s=0.0)
        monkeypatch.setattr(
            "sfg_dist.studies.estimate.estimate.calibrate", lambda *_, **__: Calibration({"cpu": pace}, 0.0)
        )
        monkeypatch.setattr("sfg_dist.studies.estimate.first_job.this_machine", lambda: machine)

    at()
    return at


@pytest.fixture
def folder(tmp_path):
    """A folder with a table that has all that a first one has."""
    rng = np.random.default_rng(0)
    lines = ["id,pressure,flow,city,unit,day"]
    for row, (pressure, flow) in enumerate(rng.normal(size=(300, 2))):
        shown = "" if row % 50 == 0 else f"{pressure:.3f}"
        lines.append(f"{row},{shown},{flow!r},Rome,7,{np.datetime64('2024-01-01') + row // 9}".replace("np.", ""))
    (tmp_path / "plant.csv").write_text("\n".join(lines).replace("float64(", "").replace(")", ""))
    return tmp_path


def test_the_job_says_what_was_found_and_passes_plan(folder, paced):
    said = sfg(folder, "init", "plant.csv").stdout
    assert "Column 'id' is left out: it numbers the rows.\n" in said
    assert "'city', 'unit' never change and are put back in samples.\n" in said
    assert said.endswith("job: plant.toml\nnext: sfg plan plant.toml, then sfg run plant.toml\n")
    text = (folder / "plant.toml").read_text()
    head, keys = text.split("\n[data]\n")
    assert all(line.startswith("#") for line in head.splitlines() if line)
    for words in ("4 CPUs", "left out: it numbers the rows", "2024-01-01", "0.001", "never changes", "2 %"):
        assert words in head
    document = tomllib.loads(text)
    assert document["data"] == {
        "source": "plant.csv", "columns": ["pressure", "flow", "city", "unit", "day"], "constant": "keep",
    }  # fmt: skip
    assert "num_pairs = 30_000\n" in keys
    assert document["train"] == {"num_epochs": 200, "max_time_s": 120}
    assert "30,000" in sfg(folder, "plan", "plant.toml").stdout


def test_marks_can_be_taken_off_the_examples(folder, paced):
    sfg(folder, "init", "plant.csv")
    text = (folder / "plant.toml").read_text()
    for example in ('# condition = ["day"]', "# memory_gib = "):
        assert text.count(example) == 1
        text = text.replace(example, example[2:])
    (folder / "plant.toml").write_text(text)
    job = load_job(folder / "plant.toml")
    assert job.data.condition == ["day"]
    assert job.labels.memory_gib == pytest.approx(64 / 6, abs=0.1)


def test_a_file_that_is_there_is_kept(folder):
    (folder / "plant.toml").write_text("mine")
    assert "--force writes over it" in sfg(folder, "init", "plant.csv", *SETS, check=2).stderr
    assert (folder / "plant.toml").read_text() == "mine"
    sfg(folder, "init", "plant.csv", *SETS, "--out", "jobs/other.toml")
    sfg(folder, "init", "plant.csv", *SETS, "--force")
    there = [load_job(folder / name).changed(output={"dir": "x"}) for name in ("plant.toml", "jobs/other.toml")]
    assert there[0] == there[1]


def test_what_is_asked_for_stands(folder):
    sfg(folder, "init", "plant.csv", "--condition", "flow", *SETS, "--set", "data.dequantize.pressure=0.01")
    text = (folder / "plant.toml").read_text()
    job = load_job(folder / "plant.toml")
    assert (job.data.condition, job.data.dequantize) == (["flow"], {"pressure": 0.01})
    assert "# condition" not in text
    assert "budget" not in text  # nothing was measured
    said = sfg(folder, "init", "plant.csv", "--condition", "flaw", *SETS, "--force", check=2).stderr
    assert "'flaw'" in said
    assert "did you mean 'flow'?" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init"], "name a table, or --example"),
        (["init", "plant.csv", "--out", "job.txt"], "--out 'job.txt': the name of a job file ends in .toml"),
        (["init", "job.toml"], "'job.toml' is no table by its name"),
        (["init", "none.csv"], "none.csv does not exist"),
        (["init", "sheet.xlsx"], "found the suffix .xlsx"),
        (["init", "text.csv"], "none of its 2 columns can be used"),
        (["init", "plant.csv", "--minutes", "0"], "--minutes: expected a number above 0"),
        (["init", "plant.csv", "--set", "data.colums=[]"], "did you mean data.columns?"),
        (["init", "--example", "quickstrat"], "there is no example 'quickstrat': there are conditional_toy, "),
        (["init", "--example", "../README"], "there is no example"),
        (["init", ".."], ".. is the current folder or one above it"),
        (["run", "left"], "left is what a run has left: name left/job.toml"),
        (["run", "sheet.xlsx"], "found the suffix .xlsx"),
        (["label", "plant.csv"], "plant.csv is a table"),
    ],
)
def test_refusals(folder, words, message):
    (folder / "text.csv").write_text("a,b\n" + "1 %,y$\n" * 30 + "2,3\n")
    (folder / "left").mkdir()
    (folder / "left" / "job.toml").touch()
    said = sfg(folder, *words, check=2).stderr
    assert message in said
    assert len(said.splitlines()) <= 2


def test_the_budget_follows_pace_time_and_room(paced):
    def made(**options):
        return first_job("moons", ["data.max_rows=200"], name="moons.toml", **options)

    # 16 shards by 4 actors take a quarter of the pace a pair; 86.5 s of the 90 s are left after the start.
    assert made().job.labels.num_pairs == 30_000
    paced(1e-3)
    assert made().job.labels.num_pairs == 300_000
    assert made(minutes=50).job.labels.num_pairs == MOST_PAIRS
    paced(1.0)
    slow = made()
    assert slow.job.labels.num_pairs == LEAST_PAIRS
    assert "about 1 h 23 min on this machine" in slow.text  # said, though it is beyond the budget


def test_a_table_beyond_memory_gets_a_budget_of_memory(tmp_path, paced):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({name: np.random.default_rng(0).normal(size=30_000) for name in "abcd"})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=8_000)
    paced(machine=Machine(num_cpus=2, memory_bytes=8 * GIB, available_bytes=8 * GIB))
    found = first_job(str(tmp_path / "rows.parquet"), ["labels.num_pairs=1000"], name="rows.toml")
    assert found.job.labels.memory_gib is None
    assert found.job.data.shuffle == "permutation"
    paced(machine=Machine(num_cpus=2, memory_bytes=GIB // 512, available_bytes=GIB))
    found = first_job(str(tmp_path / "rows.parquet"), ["labels.num_pairs=1000"], name="rows.toml")
    assert found.job.labels.memory_gib == 0.1
    assert found.job.data.shuffle == "none"
    assert any("read in parts" in sentence for sentence in found.chosen)


def test_an_output_directory_in_use_is_left_alone(folder):
    (folder / "runs" / "plant" / "pairs.zarr").mkdir(parents=True)
    sfg(folder, "init", "plant.csv", *SETS)
    assert load_job(folder / "plant.toml").output.dir == "runs/plant_2"
    assert "# runs/plant holds an earlier run." in (folder / "plant.toml").read_text()


@pytest.mark.slow
def test_a_table_is_run_and_gone_on_with(folder, no_pictures):
    said = sfg(folder, "run", "plant.csv", *SETS).stderr
    assert "job: 'city', 'unit' never change and are put back in samples" in said
    assert "job: a run keeps it in runs/plant/job.toml; `sfg init plant.csv` writes it with comments" in said
    left = folder / "runs" / "plant"
    assert (left / "report.html").exists()
    job = load_job(left / "job.toml")
    sfg(folder, "init", "plant.csv", *SETS)
    wanted = load_job(folder / "plant.toml")
    assert job.changed(output={"dir": "x"}) == wanted.changed(output={"dir": "x"})
    again = sfg(folder, "run", "plant.csv", "--set", "train.num_epochs=2", "--json")
    assert "job: goes on with runs/plant/job.toml" in again.stderr
    assert json.loads(again.stdout)["output"] == "runs/plant"
    assert load_job(left / "job.toml").train.num_epochs == 2
    (folder / "more").mkdir()
    (folder / "plant.csv").rename(folder / "more" / "plant.csv")
    said = sfg(folder, "run", "more/plant.csv", check=2).stderr
    assert "runs/plant/job.toml is the job of another table, plant.csv" in said


def test_plan_takes_a_table_and_writes_nothing(folder, paced):
    before = sorted(folder.rglob("*"))
    said = sfg(folder, "plan", "plant.csv")
    assert "30,000" in said.stdout
    assert "job: column 'id' is left out" in said.stderr
    assert sorted(folder.rglob("*")) == before


def test_examples(tmp_path):
    assert sfg(tmp_path, "init", "--example").stdout == "example: quickstart.toml\nnext: sfg run quickstart.toml\n"
    root = Path(__file__).parents[1]
    assert (tmp_path / "quickstart.toml").read_text() == (root / "jobs" / "quickstart.toml").read_text()
    assert "--force" in sfg(tmp_path, "init", "--example", check=2).stderr
    sfg(tmp_path, "init", "--example", "toy_2d", "--out", "mine.toml")
    assert load_job(tmp_path / "mine.toml").data.source == "moons"
    for name, file in (("study", "changes.txt"), ("cluster", "slurm.toml")):
        sfg(tmp_path, "init", "--example", name)
        assert (tmp_path / name / file).is_file()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("s3://bucket/july/rows.csv.gz", "rows"),
        ("parts/part-*.parquet", "part"),
        ("data/", "data"),
        ("a b/c d.v2.npy", "c_d.v2"),
        ("./moons", "moons"),
        ("*", "table"),
    ],
)
def test_names(source, name):
    assert table_name(source) == name


def test_a_directory_from_somebody_else_does_not_say_where_to_write(folder, paced):
    sfg(folder, "init", "plant.csv")
    left = folder / "runs" / "plant" / "job.toml"
    left.parent.mkdir(parents=True)
    left.write_text((folder / "plant.toml").read_text() + '\n[output]\ndir = "elsewhere"\n')
    assert json.loads(sfg(folder, "plan", "plant.csv", "--json").stdout)["output"] == "runs/plant"


def test_a_table_without_rows_is_named(tmp_path):
    parquet.write_table(pa.table({"a": pa.array([], pa.float64())}), tmp_path / "empty.parquet")
    assert "empty.parquet has no rows" in sfg(tmp_path, "init", "empty.parquet", check=2).stderr
