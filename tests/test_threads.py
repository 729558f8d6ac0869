"""Threads that wait sleep, in every process of ours, and never in somebody else's program behind their back."""

import os
import subprocess
import sys

import numpy as np
import pytest
from imports import imported

from sfg_dist.distributed.cluster import local_environment
from sfg_dist.job.threads import SETTINGS, SpinWatch, wait_passively


@pytest.fixture
def unsettled(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_says_stands(name):
    environment = {name: "ACTIVE"}
    wait_passively(environment)
    assert environment == {name: "ACTIVE"}


def test_the_command_sets_it_before_torch_is_imported(unsettled):
    program = "import os, sys; from sfg_dist.cli import main as cli; cli.app = lambda: print({}); cli.main()".format(
        "os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout == "PASSIVE False\n"


@pytest.mark.parametrize("module", ["sfg_dist", pytest.param("sfg_dist.flow", marks=pytest.mark.slow)])
def test_a_library_leaves_the_environment_alone(module):
    assert imported(module).leaves_environment


def test_a_local_ray_has_it_and_the_caller_does_not(unsettled):
    with local_environment():
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ


def test_a_local_ray_leaves_the_users_choice(unsettled, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    with local_environment():
        assert "OMP_WAIT_POLICY" not in os.environ


def calibration_of(folder):
    from sfg_dist.studies.estimate.calibration import start_trial
    from sfg_dist.studies.estimate.calibration_process import TrialTask

    start_trial(TrialTask(str(folder), "", 0, 1, "cpu", 1, None, 0.1, 1, 0))


def encoder_beside_of(folder):
    from sfg_dist.distributed.fit.encoder_process import encoder_beside
    from sfg_dist.job.config import TrainConfig

    settings = TrainConfig(num_threads=1)
    with encoder_beside(str(folder), folder, settings, np.zeros((1, 2), np.float32), on_check=print):
        pass


def training_ahead_of(folder):
    from test_training import make_settings

    from sfg_dist.distributed.fit import ahead

    ahead._TrainingProcess(ahead.AheadTask("", "", make_settings(), ""), None)


@pytest.mark.parametrize("start", [calibration_of, encoder_beside_of, training_ahead_of])
def test_a_child_process_has_it(unsettled, monkeypatch, tmp_path, start):
    class Started(Exception):
        pass

    def popen(command, *, env, **_):
        raise Started(env["OMP_WAIT_POLICY"])

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Started, match="PASSIVE"):
        start(tmp_path)


def watch(load=9.0, is_settled=False):
    return SpinWatch(lambda: is_settled, lambda: load, num_cpus=2)


def test_a_step_that_became_much_slower_on_a_busy_machine_is_told_of_once():
    seen = watch()
    assert [seen.word(seconds) for seconds in (0.01, 0.008, 0.02)] == [None] * 3
    assert "10 times as long" in (word := seen.word(0.08))
    assert "OMP_WAIT_POLICY=PASSIVE" in word
    assert seen.word(0.2) is None


@pytest.mark.parametrize("keys", [{"load": 1.5}, {"is_settled": True}])
def test_an_idle_machine_or_a_settled_one_hears_nothing(keys):
    seen = watch(**keys)
    assert [seen.word(seconds) for seconds in (0.01, 0.5)] == [None, None]
