"""`sfg train` from the outside: going back to a checkpoint, and what is shown while a fit goes on."""

import json

import pytest
from commands import sfg

from sfg_dist.cli.display import Display


@pytest.mark.slow
def test_a_checkpoint_of_ones_choice(make_job, tmp_path):
    keys = {"num_epochs": 3, "checkpoint_interval_s": 1e-6, "keep_checkpoints": 40}
    job = make_job(labels={"num_pairs": 600}, train=keys, output={"dir": "run"})
    (tmp_path / "job.toml").write_text(job.to_toml())
    sfg(tmp_path, "label", "job.toml")
    sfg(tmp_path, "train", "job.toml")
    done = sfg(tmp_path, "train", "job.toml", "--resume-from", "step_000000012")
    assert "train: goes on from step_000000012" in done.stdout
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["checkpoint"] for event in events if event["event"] == "resumed_from"] == ["step_000000012"]
    # 570 rows in batches of 64: step 12 is in the second epoch, which is then finished and followed by the third.
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3, 2, 3]
    failed = sfg(tmp_path, "train", "job.toml", "--resume-from", "step_000000099", check=1)
    assert "holds no whole checkpoint step_000000099; kept there: step_000000027, " in failed.stderr
    failed = sfg(tmp_path, "train", "job.toml", "--set", "train.width=8", "--resume-from", "12", check=1)
    assert "is of another fit (checkpoint -> job): network: " in failed.stderr


def shown(capsys, *events):
    with Display(on_stderr=False) as display:
        for time, event, details in events:
            display({"time": time, "event": event, **details})
    return capsys.readouterr().out.splitlines()


STARTED = {"stage": "train", "num_epochs": 4, "max_time_s": None, "fresh": True}
LIVE = {
    "epoch": 1, "step": 500, "step_in_epoch": 500, "num_batches": 2000, "train_loss": 0.125, "rows_per_s": 51_234.5,
    "num_workers": 2, "elapsed_s": 10.0,
}  # fmt: skip


def test_a_long_epoch_shows_step_loss_rows_a_second_and_the_time_left(capsys):
    lines = shown(
        capsys,
        (100.0, "stage_started", STARTED),
        (110.0, "live", LIVE),
        (120.0, "live", LIVE | {"step": 1000, "step_in_epoch": 1000, "elapsed_s": 20.0}),
    )
    assert lines == [
        "train: 4 epochs",
        "train: epoch 1 (25 %), step 500, loss 0.1250, 51,234 rows/s, 2 workers",
        "train: epoch 1 (50 %), step 1,000, loss 0.1250, 51,234 rows/s, 2 workers, about 140 s left",
    ]


def test_with_a_time_limit_the_time_left_is_that_of_the_clock(capsys):
    lines = shown(capsys, (100.0, "stage_started", STARTED | {"max_time_s": 60.0}), (110.0, "live", LIVE))
    assert lines[1].endswith("51,234 rows/s, 2 workers, about 50 s left")


def test_an_epoch_shows_both_losses(capsys):
    entry = {"epoch": 2, "step": 4000, "train_loss": 0.1, "validation_loss": 0.09, "rows_per_s": 5e4, "elapsed_s": 30.0}
    lines = shown(capsys, (100.0, "stage_started", STARTED), (130.0, "epoch", entry))
    assert lines[1] == "train: epoch 2, step 4,000, loss 0.1000, held out 0.0900, 50,000 rows/s"


def test_training_ahead_of_the_labels_is_a_line_of_its_own(capsys):
    said = {"step": 120, "rows": 40_960, "train_loss": 0.2, "rows_per_s": 1e4}
    lines = shown(capsys, (100.0, "ahead", said), (105.0, "ahead", said), (111.0, "ahead", said))
    assert lines == ["train: ahead of the labels on 40,960 pairs, step 120, loss 0.2000, 10,000 rows/s"] * 2
