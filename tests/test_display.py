"""What a command shows while it works: steps with their time, lines of studies; the help, and what it imports."""

import contextlib
import io
import json
import re
import subprocess
import sys
import time

import pytest
import typer.main
from commands import sfg
from patience import patience
from rich.console import Console

from sfg_dist.cli import display as shown
from sfg_dist.cli import main as cli
from sfg_dist.cli.command import GROUPS
from sfg_dist.cli.display import Display
from sfg_dist.job.errors import ConfigError

STEP = "Ray: starting on this machine"


def wait_for(capsys, text):
    """The output so far, once the text stands there."""
    so_far, limit = "", time.monotonic() + patience(30)
    while text not in so_far:
        assert time.monotonic() < limit, so_far
        so_far += capsys.readouterr().out
        time.sleep(0.001)
    return so_far


def test_a_log_says_what_goes_on_and_how_long_it_took(capsys, monkeypatch):
    with Display(on_stderr=False) as display:
        monkeypatch.setattr(shown, "SAY_AFTER_S", 0.001)
        monkeypatch.setattr(shown, "AGAIN_AFTER_S", 0.001)
        display.step(STEP)
        monkeypatch.setattr(shown, "LONG_S", 0.0)
        told = wait_for(capsys, "so far")
        display.tell("worker_lost", worker="cpu-1", reason="gone")
    told += capsys.readouterr().out
    lines = [re.sub(r"\d+ ms|[\d.]+ s\b", "N s", line) for line in told.splitlines()]
    assert list(dict.fromkeys(lines)) == [
        STEP,
        f"{STEP}: N s so far",
        f"{STEP}: took N s",
        "label: worker cpu-1 was lost: gone",
    ]


def test_a_step_of_no_length_is_not_told(capsys, monkeypatch):
    monkeypatch.setattr(shown, "SAY_AFTER_S", 3600.0)
    monkeypatch.setattr(shown, "LONG_S", 3600.0)
    with Display(on_stderr=False) as display:
        display.step(STEP)
        display.step("evaluate: drawing the report")
        display.tell("stage_started", stage="label", missing=1, total=1, rows=1)
        display.tell("worker_started", worker="inline-1")
        display.tell("shard", done=1, total=1, rows=[0, 1])
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "label: 1 pairs in 1 shards",
        "label: 1 of 1 shards",
    ]


def test_a_line_that_has_the_time_of_a_step_is_its_end(capsys, monkeypatch):
    with Display(on_stderr=False) as display:
        run = {"stage": "label", "mode": "strong", "num_workers": 2, "repeat": 0}
        display.tell("run_started", **run)
        monkeypatch.setattr(shown, "LONG_S", 0.0)
        display.tell("run_finished", **run, wall_s=12.0)
    assert capsys.readouterr().out == "label, strong, 2 workers, run 1: 12.0 s\n"


def test_a_step_that_fails_leaves_the_word_to_the_error(capsys, monkeypatch):
    with contextlib.suppress(ConfigError), Display(on_stderr=False) as display:
        display.step(STEP)
        monkeypatch.setattr(shown, "LONG_S", 0.0)
        raise ConfigError("no")
    assert "took" not in capsys.readouterr().out


def test_a_terminal_shows_a_clock_beside_the_step_or_in_the_bar():
    display = Display(on_stderr=False)
    display._console = Console(force_terminal=True, width=120, file=io.StringIO())
    display.step(STEP)
    assert [task.description for task in display._progress.tasks] == [STEP]
    display.tell("stage_started", stage="label", missing=2, total=2, rows=2)
    assert [(task.description, task.total) for task in display._progress.tasks] == [
        ("label: finding out who labels", 2)
    ]
    display.step(STEP)
    assert [(task.description, task.total) for task in display._progress.tasks] == [(STEP, 2)]
    display.tell("shard", done=1, total=2, rows=[0, 1])
    assert display._progress.tasks[0].description.startswith("label: 1 of 2 shards")
    display.tell("stage_finished", stage="label", seconds=1.0)
    assert display._progress is None


@pytest.mark.slow
def test_every_stage_says_what_it_is_about_to_do(small_run):
    """Each silence of a run begins with a word of what goes on; the log, which has the times, needs none."""
    steps = [event["text"] for event in small_run.events if event["event"] == "step"]
    assert [text.partition(":")[0] for text in steps] == ["label", "label", "sample", *["evaluate"] * 6]
    assert "calibrating" in [event["event"] for event in small_run.events]
    logged = (small_run.directory / "events.jsonl").read_text().splitlines()
    assert "step" not in [json.loads(line)["event"] for line in logged]


STUDIES = [
    ("selection_started", {"method": "nsf", "time_s": 15.0}, None),
    (
        "trial",
        {"method": "nsf", "transform": "quantile", "learning_rate": 1e-3, "seconds": 15.0, "c2st_auc": 0.61},
        "nsf: quantile, learning rate 0.001, 15 s: validation AUC 0.610",
    ),
    (
        "selected",
        {"method": "nsf", "transform": "quantile", "learning_rate": 1e-3},
        "nsf: takes transform quantile, learning_rate 0.001",
    ),
    ("cell_kept", {"method": "sfg", "seed": 1}, "sfg, seed 1: done already"),
    ("cell_started", {"method": "sfg", "seed": 0, "max_time_s": 180.0}, None),
    ("cell_step", {"method": "sfg", "seed": 0, "text": "8 labels in 1 s", "next": "fitting the network"},
     "sfg, seed 0: 8 labels in 1 s"),
    ("cell_failed", {"method": "sfg", "seed": 0, "reason": "the loss"}, "sfg, seed 0 failed: the loss"),
    (
        "cell_finished",
        {"method": "sfg", "seed": 0, "c2st_auc": None, "test_log_likelihood": -1e20, "us_per_sample": 3.0},
        "sfg, seed 0: AUC none, log-likelihood -1.00e20, 3.0 us a row",
    ),
    ("run_started", {"stage": "label", "mode": "strong", "num_workers": 2, "repeat": 0}, None),
    (
        "run_finished",
        {"stage": "label", "mode": "strong", "num_workers": 2, "repeat": 0, "wall_s": 1.25},
        "label, strong, 2 workers, run 1: 1.2 s",
    ),
    (
        "run_kept",
        {"stage": "label", "mode": "strong", "num_workers": 2, "repeat": 1, "wall_s": 1.25},
        "label, strong, 2 workers, run 2: 1.2 s (kept)",
    ),
]  # fmt: skip


def test_events_of_studies(capsys):
    with Display(on_stderr=True) as display:
        for event, details, _ in STUDIES:
            display.tell(event, **details)
    told = capsys.readouterr()
    assert told.err.splitlines() == [line for _, _, line in STUDIES if line]
    assert told.out == ""


def test_help_has_all_commands_in_the_order_of_use():
    group = typer.main.get_command(cli.app)
    assert set(group.commands) <= {name for names in GROUPS.values() for name in names}
    told = sfg(".", "--help").stdout
    places = [told.index(f"\n  {name} ") for name in group.list_commands(None)]
    assert places == sorted(places)
    assert group.list_commands(None)[-1] == "export"
    assert [group_ for group_ in GROUPS if f"\n{group_}:\n" in told] == list(GROUPS)
    assert "..." not in told.partition("A job:")[2]


LOADED = "import sys; from sfg_dist.cli.main import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], {"numpy", "pydantic", "rich"}),
        (["keys", "labels.t_min"], {"numpy", "torch"}),
        (["status", "STORE"], {"torch", "ray", "zarr", "dask", "pyarrow", "pandas"}),
    ],
)
def test_words_come_before_libraries(words, unwanted, small_labels):
    words = [str(small_labels(3)) if word == "STORE" else word for word in words]
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True)
    assert unwanted & set(done.stdout.splitlines()[-1].split()) == set()
