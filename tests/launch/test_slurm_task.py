"""What the batch step decides by itself, without Slurm: when to requeue, what to sweep away."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import pytest

from sfg_dist.distributed.fit.hold import Hold, take_hold
from sfg_dist.job.threads import SETTINGS
from sfg_dist.launch import send, slurm, slurm_task
from sfg_dist.launch.slurm_task import MAKE, SWEEP, LaunchError, SlurmTask
from sfg_dist.launch.submission import Submission


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


class Bench:
    """A submission's folder, and a scontrol that notes what it is asked."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.output = folder, folder / "run"
        (folder / "bin").mkdir()
        self.said = folder / "scontrol.log"
        program = folder / "bin" / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$*" >> {self.said}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setattr(slurm_task, "DRIVER_GRACE_S", 0.0)
        (self.output / "pairs.zarr" / "commits").mkdir(parents=True)

    def task(self, attempt=0, output=None, max_requeues=100):
        task = {
            "root": str(self.folder), "jobs": ["0.toml"], "outputs": [output or str(self.output)],
            "stages": [["label", "{job}"]],
            "max_requeues": max_requeues, "scratch": str(self.folder), "signal_before_s": 180,
        }  # fmt: skip
        return SlurmTask(self.folder, task, {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": str(attempt)})

    def attempt(self, number, *, commits=0, is_near_the_limit=True, **options):
        """An attempt that was stopped with status 130 after so many commits."""
        task = self.task(number, **options)
        before = task._traces()
        for _ in range(commits):
            (self.output / "pairs.zarr" / "commits" / f"{secrets.token_hex(4)}.json").touch()
        task.is_near_the_limit = is_near_the_limit
        task._requeue(130, before)

    @property
    def num_requeued(self):
        return self.said.read_text().split().count("requeue") if self.said.exists() else 0

    def last(self):
        return json.loads((self.folder / "attempts" / "5_0.jsonl").read_text().splitlines()[-1])


def test_attempts_that_get_on_go_on(bench):
    for number in range(5):
        bench.attempt(number, commits=1)
    assert bench.num_requeued == 5


def test_two_attempts_that_get_nothing_done_are_the_end(bench, capsys):
    bench.attempt(0, commits=1)
    bench.attempt(1)
    assert bench.num_requeued == 2
    bench.attempt(2)
    assert bench.num_requeued == 2
    assert "longer slurm.walltime" in capsys.readouterr().err
    assert bench.last()["event"] == "ended"


def test_one_that_gets_on_in_between_begins_the_count_anew(bench):
    for number, commits in enumerate([0, 1, 0, 1, 0]):
        bench.attempt(number, commits=commits)
    assert bench.num_requeued == 5


def test_preemptions_are_not_counted(bench):
    for number in range(4):
        bench.attempt(number, is_near_the_limit=False)
    assert bench.num_requeued == 4


def test_a_checkpoint_of_the_fit_or_of_the_encoder_is_getting_on(bench):
    task = bench.task()
    seen = [task._traces()]
    for path in ("step_000000010/progress.json", "encoder.safetensors"):
        file = bench.output / "checkpoints" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        seen.append(task._traces())
    os.utime(file, (1, 1))
    seen.append(task._traces())
    for path in ("compare/cells/nsf-0.json", "samples.zarr/columns/c/3", "scale/runs/label-strong-1-0.json"):
        (bench.output / path).parent.mkdir(parents=True, exist_ok=True)
        (bench.output / path).touch()
        seen.append(task._traces())
    assert len(set(seen)) == 7
    (bench.output / "pairs.zarr" / "labels").mkdir()
    (bench.output / "pairs.zarr" / "labels" / "0").touch()  # a shard counts when it is committed
    assert task._traces() == seen[-1]
    (bench.output / "checkpoints" / "tensorboard").mkdir()
    (bench.output / "checkpoints" / "tensorboard" / "events.out.1").touch()
    for _ in range(2):  # as every attempt does, whatever comes of it
        Hold(bench.output / "checkpoints", take_hold(bench.output / "checkpoints"))
        assert task._traces() == seen[-1]


def test_nothing_is_known_of_an_object_store(bench):
    for number in range(4):
        bench.attempt(number, output="s3://bucket/run")
    assert bench.num_requeued == 4


def test_max_requeues(bench, capsys):
    bench.attempt(3, commits=1, max_requeues=3)
    assert bench.num_requeued == 0
    assert "max_requeues" in capsys.readouterr().err


def test_what_an_attempt_left_on_its_node_is_swept_away_and_nothing_else(bench):
    for name in ("sfg5-old", "sfg55-other", "sfg5"):
        (bench.folder / name / "r").mkdir(parents=True)
    with bench.task()._scratch() as scratch:
        assert scratch.is_dir()
        assert not (bench.folder / "sfg5-old").exists()
    assert not scratch.exists()
    assert (bench.folder / "sfg55-other" / "r").exists()
    assert (bench.folder / "sfg5" / "r").exists()


def test_a_scheduler_is_asked_until_it_says_the_end(tmp_path, monkeypatch):
    asked, states = [], ["running", "preempted", "pending", "completed"]

    def status(submission):
        asked.append(submission.id)
        return states[len(asked) - 1] if len(asked) <= len(states) else "running"

    monkeypatch.setattr(slurm, "status", status)
    one = Submission(id="x", to="slurm", name="x", folder=str(tmp_path), outputs=["run"], scheduler_ids=["5"])
    assert [send.state_of(one) for _ in range(6)] == [*states, "completed", "completed"]
    assert len(asked) == 4
    # Requeued by hand: an attempt that began since then makes the note old.
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "5_0.jsonl").write_text('{"event": "started", "part": "5", "task": 0}\n')
    assert send.state_of(one) == "running"


def test_a_state_that_is_guessed_is_not_noted(tmp_path, monkeypatch):
    """Slurm may have forgotten the job, or be another cluster's."""
    monkeypatch.setattr(slurm, "_states", lambda name: {})
    one = Submission(id="x", to="slurm", name="x", folder=str(tmp_path), outputs=["run"], scheduler_ids=["5"])
    lines = tmp_path / "attempts" / "5_0.jsonl"
    lines.parent.mkdir()
    lines.write_text('{"event": "started", "part": "5", "task": 0, "time": 1}\n')
    assert send.state_of(one) == "unknown"
    assert one.final_state() is None
    with lines.open("a") as file:
        file.write('{"event": "ended", "status": 0, "part": "5", "task": 0, "time": 2}\n')
    assert send.state_of(one) == "completed"
    assert one.final_state() == "completed"


@pytest.mark.parametrize("said", ["", "JobState=COMPLETING Reason=TimeLimit", "JobState=CANCELLED Reason=None"])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_job_at_its_limit_is_requeued_and_a_cancelled_one_is_not(bench, monkeypatch, said, is_late):
    """As Slurm says why it ends the job, or else by the clock."""
    program = bench.folder / "bin" / "scontrol"
    program.write_text(program.read_text() + f'case "$*" in *show*) echo "{said}";; esac\n')
    task = bench.task()

    def stages(scratch):
        task._on_limit(0, None)
        task.limit_at = time.monotonic() + (5.0 if is_late else 150.0)
        task._on_end(0, None)
        return 130

    monkeypatch.setattr(task, "_run_stages", stages)
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        assert task.run() == 130
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    is_limit = "TimeLimit" in said or (not said and is_late)
    assert bench.num_requeued == is_limit
    assert bench.last()["event"] == ("requeued" if is_limit else "ended")


def test_a_requeue_that_slurm_refuses_is_the_end(bench):
    (bench.folder / "bin" / "scontrol").write_text("#!/bin/sh\necho no >&2; exit 1\n")
    bench.attempt(0, commits=1)
    assert bench.last()["event"] == "ended"


@pytest.mark.parametrize("needs_ray", [False, True])
def test_variables_of_a_container_with_and_without_ray(bench, monkeypatch, needs_ray):
    task = bench.task()
    task.task |= {"environment": {"SITE": "a b"}, "needs_ray": needs_ray, "container_prefixes": ["APPTAINERENV_"]}
    task.task["sfg"] = ["sfg"]
    given = {}
    monkeypatch.setattr(task, "_start_ray", lambda *_: "address")
    monkeypatch.setattr(task, "_run_driver", lambda command, environment: given.update(environment) or 0)
    assert task._run_stages(bench.folder) == 0
    assert given["APPTAINERENV_SITE"] == "a b"
    assert ("APPTAINERENV_RAY_AUTH_TOKEN" in given) is needs_ray
    assert (given.items() >= slurm_task.NO_DRAINING.items()) is needs_ray


@pytest.mark.parametrize(("seconds_left", "is_limit"), [(8.0, True), (100.0, False)])
def test_word_of_the_end_is_the_limit_s_or_somebody_s_wish(bench, seconds_left, is_limit):
    task = bench.task()
    task._on_limit(0, None)
    assert task.limit_at == pytest.approx(time.monotonic() + 160, abs=5)
    task.limit_at = time.monotonic() + seconds_left
    task._on_end(0, None)
    assert task._is_cancelled() is not is_limit


def test_a_stage_that_does_not_end_is_ended_before_the_limit(bench, monkeypatch):
    task = bench.task()
    task._on_limit(0, None)
    task.limit_at = time.monotonic() + slurm_task.LEAST_ENDING_S + 0.5
    script = "import signal, time; signal.signal(signal.SIGUSR2, signal.SIG_IGN); time.sleep(600)"
    assert task._run_driver([sys.executable, "-c", script], dict(os.environ)) != 0


def test_a_place_for_ray_that_is_not_there_is_named(bench):
    task = bench.task()
    task.task["scratch"] = "$HERE/nowhere"
    with pytest.raises(LaunchError, match=r"setup\.scratch = .*nowhere: no directory"), task._scratch():
        pass


def test_other_nodes_are_swept_too_and_what_is_kept_stays(bench):
    for name in ("sfg5-old", "sfg5-new", "sfg55-other"):
        (bench.folder / name).mkdir()
    for _ in range(2):  # the directory may be there, where nodes share it
        command = ["sh", "-c", f"{MAKE}; {SWEEP}", "sh", str(bench.folder), "sfg5-*", str(bench.folder / "sfg5-new")]
        subprocess.run(command, check=True)
    assert sorted(path.name for path in bench.folder.glob("sfg*")) == ["sfg5-new", "sfg55-other"]


def test_the_variables_are_those_of_the_package():
    """The file needs the standard library alone, so it has a copy of them."""
    assert slurm_task.WAITING == SETTINGS
