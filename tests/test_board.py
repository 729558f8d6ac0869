"""The curves of a fit as TensorBoard reads them, in a directory and in a bucket."""

import struct

import pytest
from tensorboardX.proto import event_pb2

from sfg_dist.distributed.fit.tensorboard import Board
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location


def events_of(content):
    """The events of a file of TensorFlow's records: length, its checksum, the event, its checksum."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event()
        event.ParseFromString(content[12 : 12 + length])
        yield event
        content = content[16 + length :]


def curves(location):
    """Points by curve, and the steps from which earlier ones are hidden."""
    points, starts = {}, []
    for entry in sorted(location.list("tensorboard")):
        for event in events_of(location.read(entry.key)):
            if event.HasField("session_log"):
                starts.append(event.step)
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points, starts


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    return Location(tmp_path if request.param == "local" else request.getfixturevalue("s3_url"), create=True)


def entry(step):
    return {
        "step": step,
        "train_loss": 1 / step,
        "validation_loss": 2 / step,
        "learning_rate": 0.5,
        "rows_per_s": 100.0,
    }


def test_epochs_and_words_within_them_are_points(output):
    with Board(output) as board:
        board.live({"step": 5, "train_loss": 0.25, "learning_rate": 0.5, "rows_per_s": 64.0})
        for step in (10, 20):
            board.epoch(entry(step))
    points, starts = curves(output)
    assert points["loss/training"] == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]
    assert points["loss/held_out"] == [(10, pytest.approx(0.2)), (20, pytest.approx(0.1))]
    assert points["live/loss"] == [(5, 0.25)]
    assert points["rows_per_s"] == [(10, 100.0), (20, 100.0)]
    assert starts == []


def test_a_resumed_fit_adds_a_file_and_a_fresh_one_starts_anew(output, monkeypatch):
    monkeypatch.setattr(
        "tensorboardX.event_file_writer.time.time", iter(range(1_000_000_000, 2_000_000_000, 9)).__next__
    )
    with Board(output) as board:
        board.epoch(entry(10))
        board.epoch(entry(20))
    with Board(output, from_step=12) as board:
        board.epoch(entry(21))
    points, starts = curves(output)
    assert [step for step, _ in points["loss/training"]] == [10, 20, 21]
    assert starts == [13]
    with Board(output) as board:
        board.epoch(entry(10))
    assert [step for step, _ in curves(output)[0]["loss/training"]] == [10]


def test_curves_that_cannot_be_written_are_said_once_and_end_nothing(tmp_path):
    output = Location(tmp_path, create=True)
    (tmp_path / "tensorboard").write_text("a file in the way")

    def add():
        with Board(output, from_step=1) as board:
            board.epoch(entry(10))
            board.epoch(entry(20))

    with pytest.warns(UserWarning, match="lacks some of its curves") as caught:
        add()
    assert len(caught) == 1


def test_a_run_leaves_its_curves(make_job, copy_labels):
    copy_labels()
    pipeline = Pipeline(make_job())
    pipeline.train()
    points, _ = curves(pipeline.output)
    assert [step for step, _ in points["loss/held_out"]] == [15, 30]
