"""Every notebook runs from the first cell to the last, on small settings, and what it shows is there."""

import base64
import json
import re
from pathlib import Path

import pytest
from patience import patience

FOLDER = Path(__file__).parents[1] / "notebooks"


def execute(name, monkeypatch, **environment):
    """The notebook after a run in its own folder."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'sfg_dist[notebooks]'")
    import nbformat

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=round(patience(570)), resources={"metadata": {"path": str(FOLDER)}}
    )
    return client.execute()


def outputs(notebook, kind):
    """What cells gave, by its type."""
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", ())
    ]


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_and_is_kept_without_outputs(path):
    document = json.loads(path.read_text())
    for cell in document["cells"]:
        source = "".join(cell["source"])
        assert cell["cell_type"] != "code" or not cell["outputs"]
        assert not any(line.startswith(("def ", "class ", "    def ")) for line in source.splitlines()), source


@pytest.mark.notebooks
@pytest.mark.slow
def test_the_study_of_the_generator(monkeypatch, tmp_path):
    notebook = execute(
        "generator_study.ipynb", monkeypatch,
        SFG_STUDY_SECONDS="1", SFG_STUDY_PAIRS="4096", SFG_STUDY_JOBS="de*", SFG_STUDY_DIR=str(tmp_path),
    )  # fmt: skip
    table = [line.split("|")[1].strip() for line in printed(notebook).splitlines() if line.startswith("| ")]
    assert set(table) == {"job", "default", "deep_192x6"}
    (picture,) = outputs(notebook, "image/png")
    assert len(base64.b64decode(picture)) > 5000


@pytest.mark.notebooks
@pytest.mark.slow
def test_the_flow_in_two_dimensions(monkeypatch):
    notebook = execute("flow_2d.ipynb", monkeypatch)
    pictures = outputs(notebook, "image/png")
    assert len(pictures) == 4
    assert all(len(base64.b64decode(picture)) > 5000 for picture in pictures)
    difference = float(re.search(r"largest difference .*: ([0-9.]+) nats", printed(notebook)).group(1))
    assert difference < 0.1


@pytest.mark.notebooks
@pytest.mark.slow
def test_labels_and_training_on_a_table(monkeypatch):
    notebook = execute("labels_and_training.ipynb", monkeypatch, SFG_SECONDS="3", SFG_PAIRS="8192")
    assert len(outputs(notebook, "image/png")) == 3
    table = {line.split()[0]: line.split()[1:] for line in printed(notebook).splitlines() if line.startswith("c2st")}
    floor, labels, samples = map(float, table["c2st_auc"])
    assert 0.4 < floor < 0.6
    assert labels < 0.65
    assert samples < 0.85


@pytest.mark.notebooks
@pytest.mark.slow
@pytest.mark.ray
def test_reading_a_scaling_study(monkeypatch):
    notebook = execute("scaling_study.ipynb", monkeypatch, SFG_CLUSTERS="4,8,16", SFG_REPEATS="1")
    said = printed(notebook)
    assert "label, strong, 2 workers" in said
    assert said.count("limited by") == 9
    assert len(outputs(notebook, "image/png")) == 2
