"""Child processes import nothing that lies beside a job: not in its directory, not in the working directory."""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from sfg_dist.distributed.fit import ahead, encoder_process
from sfg_dist.distributed.labels import process_pool
from sfg_dist.job import search_path
from sfg_dist.job.config import TrainConfig, resolve_job
from sfg_dist.launch import Order, load_profile, ray_jobs, submit
from sfg_dist.launch.slurm_task import SlurmTask
from sfg_dist.launch.submission import Submission, write_files
from sfg_dist.studies.estimate import calibration
from sfg_dist.studies.estimate.calibration_process import TrialTask

NAMES = (
    *("json", "sfg_dist", "numpy", "ray", "torch", "sitecustomize", "usercustomize", "zarr", "random", "typing"),
    *("contextlib", "subprocess", "psutil", "obstore", "pydantic", "secrets", "runpy", "socket", "tempfile", "hashlib"),
)
SMOKE = Path(search_path.PACKAGE_ROOT, "cluster", "smoke.py")


class Caught(Exception):
    """Raised in place of a child's start."""


def plant(folder, told):
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(told)!r}, 'a').write('{name} ')\n")


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What the files of the user in the working directory say, to which PYTHONPATH leads by three names."""
    here = tmp_path / "job"
    here.mkdir()
    plant(here, tmp_path / "told")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(here), "."]))
    monkeypatch.syspath_prepend("")
    return tmp_path / "told"


def caught(start):
    """The command and the environment of the child that a call starts, which does not come to be."""
    found = []

    def catch(command, *_, env=None, **__):
        found.append((command, os.environ if env is None else env))
        raise Caught

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", catch)
        patch.setattr(subprocess, "run", catch)
        with pytest.raises(Caught):
            start()
    return found[0]


def require_clean(told, command, environment):
    """Run the child's interpreter with another program in place of its own, and look at what it imports from where."""
    program = told.parent / "elsewhere" / "look_here.py"
    program.parent.mkdir()
    program.write_text("import json, random, sys; print(json.dumps(sys.path))")
    if "-m" in command:  # python -P -m MODULE
        words = [*command[: command.index("-m")], "-c", program.read_text()]
    else:  # python -P -c START PATH MODULE
        words = [*command[:4], f"{command[4]}{os.pathsep}{program.parent}", "look_here"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert not told.exists(), told.read_text()
    assert os.getcwd() not in [os.path.realpath(entry) for entry in json.loads(done.stdout)]


def calibrate(folder):
    calibration.start_trial(TrialTask(str(folder), "", 0, 1, "cpu", 1, None, 0.1, 1, 0))


def encode(folder):
    with encoder_process.encoder_beside(str(folder), folder, TrainConfig(), np.zeros((2, 2)), on_check=print):
        pass


def check_site(folder):
    smoke = runpy.run_path(str(SMOKE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", lambda **_: str(folder))
        smoke["start_ray"](smoke["Meeting"](folder, 0, 1))


def count_nodes(folder):
    environment = caught(lambda: check_site(folder))[1]
    smoke = runpy.run_path(str(SMOKE))
    smoke["count_nodes"]("127.0.0.1:1", 1, environment, 0.0)


def asked_of(to):
    return Submission("id", to, "x", "/tmp", [], ["x-0"], options={"address": "http://127.0.0.1:1"})


STARTS = {
    "plan": calibrate,
    "labels": lambda _: process_pool.Template(),
    "ahead": lambda _: ahead._TrainingProcess(ahead.AheadTask("", "", TrainConfig(), ""), None),
    "encoder": encode,
    "smoke": check_site,
    "smoke's count": count_nodes,
    "ray job status": lambda _: ray_jobs.status(asked_of("ray")),
    "ray job stop": lambda _: ray_jobs.cancel(asked_of("ray")),
}


@pytest.mark.parametrize("name", STARTS)
def test_the_child_of_each_launcher(told, name):
    require_clean(told, *caught(lambda: STARTS[name](told.parent)))


def submitted(folder, to="slurm", overrides=()):
    job = resolve_job({"data": {"source": "moons"}, "output": {"dir": "s3://bucket/run"}})
    profile = load_profile(None, [f"setup.dir={folder}", *overrides])
    return submit(Order([job], profile), to=to, name="x")[:2]


def test_the_batch_step_of_slurm(told):
    """Its script lies in the submission's folder; it ends at once where there is no Slurm."""
    submission, rendered = submitted(told.parent / "submissions")
    write_files(submission, rendered)
    plant(submission.path, told)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", submission.path / "job.sh"], env=environment, capture_output=True, text=True)
    assert "KeyError: 'SLURM_JOB_ID'" in done.stderr
    assert not told.exists(), told.read_text()


@pytest.mark.parametrize("word", ["sfg", "ray", "wait"])
def test_the_stages_and_steps_of_slurm(told, monkeypatch, word):
    submission, rendered = submitted(told.parent / "submissions")
    task = SlurmTask(submission.path, json.loads(rendered.files["task.json"]), {**os.environ, "SLURM_JOB_ID": "5"})
    given = {}
    monkeypatch.setattr(task, "_start_ray", lambda *_: "address")
    monkeypatch.setattr(task, "_run_driver", lambda command, environment: given.update(environment) or 0)
    assert task._run_stages(told.parent) == 0
    require_clean(told, task.task[word], given)


@pytest.mark.parametrize("to", ["kuberay", "ray"])
def test_clusters_run_the_command_that_looks_nowhere_else(told, to):
    """``sfg`` begins with its own directory on the path, and leaves it (see ``search_path``)."""
    _, rendered = submitted(told.parent / "submissions", to, ["ray.address=http://127.0.0.1:8265"])
    if to == "ray":
        assert rendered.commands[0][-1].startswith("sfg run ")
        assert rendered.commands[0][:4] == [sys.executable, "-P", "-m", "ray.scripts.scripts"]
    else:
        (ray_job,) = [each for each in yaml.safe_load_all(rendered.files["0.yaml"]) if each["kind"] == "RayJob"]
        assert ray_job["spec"]["entrypoint"].startswith("sfg run ")
        assert "PYTHONPATH" not in rendered.files["0.yaml"]


def test_the_command_line_hands_no_such_path_on(told, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.getcwd(), "/else/where", "."]))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    search_path.clean()
    assert os.environ["PYTHONPATH"] == "/else/where"
    assert os.environ["PYTHONSAFEPATH"] == "1"
    monkeypatch.delenv("PYTHONPATH")
    search_path.clean()
    assert "PYTHONPATH" not in os.environ
    assert search_path.child_environment() == dict(os.environ)


BY_JOBLIB = """
from sfg_dist.job.search_path import clean
clean()
from joblib import Parallel, delayed
assert Parallel(n_jobs=2, timeout=60)(delayed(abs)(number) for number in (-1, -2)) == [1, 2]
"""


@pytest.mark.slow
def test_children_that_libraries_start(told):
    """joblib, by which peers of a comparison work, starts its children by ``python -m`` and ``-c``."""
    program = told.parent / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(BY_JOBLIB)
    environment = {**os.environ, "PYTHONPATH": search_path.PACKAGE_ROOT}
    environment.pop("PYTHONSAFEPATH", None)
    subprocess.run([sys.executable, program], env=environment, check=True)
    assert not told.exists(), told.read_text()
