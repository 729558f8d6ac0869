"""`sfg evaluate --samples`: any table is judged without a job, and bad requests are refused in a line."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import sfg

NASTY = '<script>alert("1")</script> & $x'


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("samples", 1), ("data", 2), ("train", 3)):
        rng = np.random.default_rng(seed)
        first = rng.normal(size=120)
        table = pd.DataFrame({NASTY: first, "town": np.where(first > 0, "<b>east</b>", "west"), "z": first**2})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


GOOD = ("--samples", "samples.csv", "--data", "data.csv")


@pytest.mark.slow
def test_the_page_the_figures_and_the_table(folder, no_pictures):
    done = sfg(folder, "evaluate", *GOOD, "--train", "train.csv", "--target", "town", "--out", "judged")
    assert "Boosted trees against held-out rows" in done.stdout
    assert "Membership attack" in done.stdout
    assert "Fidelity: " in done.stdout
    assert done.stdout.endswith("report: judged/report.html\n")
    metrics = json.loads((folder / "judged" / "metrics.json").read_text())
    assert metrics["target"] == "town"
    assert metrics["figures"]["attack_auc"].keys() == {"value", "error", "floor", "copy", "independent"}
    assert {record["column"] for record in metrics["columns"]} == {NASTY, "town", "z"}
    page = (folder / "judged" / "report.html").read_text()
    assert "<script>" not in page
    assert "<b>east" not in page
    assert "&lt;script&gt;" in page
    sfg(folder, "evaluate", *GOOD, "--out", "judged")  # over its own files


@pytest.mark.slow
def test_without_training_rows_privacy_is_left_out_and_said(folder):
    document = json.loads(sfg(folder, "evaluate", *GOOD, "--json").stdout)
    assert document["verdict"]["privacy"] == "unknown"
    assert document["metrics"]["figures"]["attack_auc"]["value"] is None
    assert document["metrics"]["left_out"]
    assert "takes the training rows, which were not given" in sfg(folder, "evaluate", *GOOD).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a job file, or tables by --samples and --data"),
        (("--samples", "samples.csv"), "--samples needs --data"),
        (("--data", "data.csv"), "--samples needs --data"),
        (("job.toml", *GOOD), "judge tables without a job"),
        (("job.toml", "--out", "judged"), "judge tables without a job"),
        ((*GOOD, "--set", "evaluate.seed=1"), "--set changes a job"),
        ((*GOOD, "--target", "twon"), "--target: data.csv has no column 'twon'; it has "),
        (("--samples", "none.csv", "--data", "data.csv"), "none.csv does not exist"),
        (("--samples", "samples.xyz", "--data", "data.csv"), "found the suffix .xyz"),
        (("--samples", "", "--data", "data.csv"), "samples: expected the name of a file or folder"),
        ((*GOOD, "--train", "none.parquet"), "none.parquet does not exist"),
        ((*GOOD, "--out", "mine"), "mine/report.html was not written by a command for table files"),
        ((*GOOD, "--out", "samples.csv"), "samples.csv"),
    ],
)
def test_bad_requests(folder, words, message):
    (folder / "mine").mkdir()
    (folder / "mine" / "report.html").write_text("my own page")
    said = sfg(folder, "evaluate", *words, check=None)
    assert said.returncode in (1, 2)
    assert message in said.stderr
    assert said.stderr.count("\n") == 1
    assert "Traceback" not in said.stderr
    assert (folder / "mine" / "report.html").read_text() == "my own page"


def test_the_folder_of_a_run_is_not_written_over(folder):
    (folder / "run").mkdir()
    (folder / "run" / "metrics.json").write_text('{\n "floor": {}}')
    said = sfg(folder, "evaluate", *GOOD, "--out", "run", check=2).stderr
    assert "run/metrics.json was not written by a command for table files" in said


def test_a_wrong_target_of_a_job_is_refused_before_any_work(make_job, folder):
    job = make_job(evaluate={"target": "z"})
    (folder / "job.toml").write_text(job.to_toml())
    said = sfg(folder, "run", "job.toml", check=2).stderr
    assert "evaluate.target: moons has no column 'z'; it has 'x', 'y'" in said
    assert not (folder / "run" / "pairs.zarr").exists()
