"""What a stranger hands over, through every command that reads it: nothing outside of the output directory is touched.

Each case lays one hostile thing in a sound run, and one command meets it. Whatever it is: nothing around is read,
written, renamed or removed, nothing runs, the command ends soon, in little memory, with a status and in words.
"""

from __future__ import annotations

from dataclasses import replace

import bad_directories
import bad_documents
import bad_models
import bad_stores
import bad_tables
import pytest
from commands import sfg
from examples import PROFILE
from harness import Case, observe, require_harmless

FEW_FIGURES = (
    "--set", 'evaluate.metrics=["ks_mean"]', "--set", "evaluate.num_samples=20", "--set", "evaluate.judge=false",
)  # fmt: skip
COMMANDS = {
    "status": ("status", "run"),
    "watch": ("status", "run", "--watch"),
    "prometheus": ("status", "run", "--prometheus"),
    "verify": ("verify", "run"),
    "repair": ("repair", "run"),
    "repair_dry": ("repair", "run", "--dry-run"),
    "label": ("label", "job.toml"),
    "extend": ("extend", "job.toml", "--set", "labels.num_pairs=1100"),
    "train": ("train", "job.toml"),
    "train_on": ("train", "job.toml", "--set", "train.num_epochs=3"),
    "refit": ("train", "job.toml", "--set", "train.seed=1", "--set", "train.num_epochs=1"),
    "sample": ("sample", "job.toml", "--set", "evaluate.num_samples=20"),
    "draw": ("sample", "run", "-n", "20", "--out", "rows.csv"),
    "draw_parts": ("sample", "run", "-n", "20", "--out", "run/rows.zarr"),
    "evaluate": ("evaluate", "job.toml", *FEW_FIGURES[:2], *FEW_FIGURES[4:]),
    "export": ("export", "run"),
    "report": ("report", "run"),
    "plan": ("plan", "table.toml"),
    "label_table": ("label", "table.toml"),
    "compare": ("compare", "job.toml", "--set", 'compare.methods=["sfg"]', "--set", "compare.max_time_s=1"),
    "scale": ("scale", "job.toml", "--workers", "1", "--repeats", "1", "--epochs", "1"),
    "given": ("sample", "run", "--given-table", "table.csv", "--out", "rows.csv"),
}  # fmt: skip
SLOW = {"compare", "scale"}
PARTS = 4  # of all cases, so that workers of pytest-xdist share them
READERS = {"status", "watch", "prometheus", "verify", "repair_dry", "plan"}
ALL = [*bad_directories.CASES, *bad_documents.CASES, *bad_stores.CASES, *bad_models.CASES, *bad_tables.CASES]


def parameters() -> list:
    """All cases with all of their commands where all examples are wanted; else some with one of them."""
    found, step = [], {"check": 15, "default": 3, "full": 1}[PROFILE]
    for number, case in enumerate(ALL):
        commands = case.commands if step == 1 else (case.commands[number % len(case.commands)],)
        if number % step == 0:
            is_slow = SLOW & set(commands) or case.name == "table.npz with a name above"  # which is planned to its end
            marks = [pytest.mark.slow] if is_slow else []
            marks.append(pytest.mark.xdist_group(f"hostile {number // step % PARTS}"))
            found.append(pytest.param(replace(case, commands=commands), id=case.name, marks=marks))
    return found


@pytest.mark.parametrize("case", parameters())
def test_nothing_outside_is_touched(make_world, case: Case):
    world, problems = None, []
    for command in case.commands:
        if world is None:
            world = make_world()
            case.spoil(world)
        try:
            require_harmless(observe(world, COMMANDS[command]), names=case.names, statuses=case.statuses)
        except AssertionError as error:
            problems.append(f"{command}: {str(error)[:3000]}")
        if command not in READERS:
            world = None  # a command that writes may have mended it
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in SLOW | {"plan", "label_table", "given"}])
def test_a_sound_run_is_none_of_these(make_world, command):
    """The harness itself finds nothing where nothing is hostile."""
    require_harmless(observe(make_world(), COMMANDS[command]), statuses=(0,))


MINE = {"report.html": "<p>my page</p>", "metrics.json": '{"mine": 1}', "tensorboard/mine.txt": "my curves"}


@pytest.mark.parametrize(
    "words", [("label",), ("train", "--set", "train.seed=1", "--set", "train.num_epochs=1"), ("evaluate",)], ids=str
)
def test_what_the_user_made_stays_where_it_is(make_world, words):
    """No stranger is needed: the output directory is the user's own folder, in which files of these names lie."""
    folder = make_world().run
    job = f"# my own remarks\n{(folder / 'job.toml').read_text()}".replace('dir = "run"', 'dir = "."')
    made = {**MINE, "job.toml": job}
    for name, text in made.items():
        (folder / name).write_text(text)
    done = sfg(folder, words[0], "job.toml", *words[1:], check=None)
    assert {name: (folder / name).read_text() if (folder / name).exists() else None for name in made} == made
    assert done.returncode in (0, 1, 2)


@pytest.mark.parametrize("to", ["slurm", "kuberay"])
def test_a_profile_that_nobody_named_is_not_used(make_world, to):
    world = make_world()
    (world.work / "cluster").mkdir()
    (world.work / "cluster" / f"{to}.toml").write_text('[setup.environment]\nPLANTED = "1"\n')
    done = sfg(world.work, "submit", "job.toml", "--to", to, "--dry-run", check=None)
    assert "planted" not in (done.stdout + done.stderr).lower()
