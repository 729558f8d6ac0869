"""Copies to a GPU beside compute: checked on a model of its streams, in which everything happens as late as it may."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sfg_dist.model.device_feed import DeviceFeed


@dataclass(frozen=True)
class Batch:
    tables: tuple


class Event:
    def __init__(self, machine):
        self.machine, self.is_recorded, self.is_done = machine, False, False

    def record(self, stream):
        self.is_recorded = True
        stream.add(lambda: setattr(self, "is_done", True))

    def synchronize(self):
        while self.is_recorded and not self.is_done:
            self.machine.run_one()


class Stream:
    """Work in order; each item is a condition and what is done once it holds."""

    def __init__(self, machine):
        self.machine, self.items = machine, []

    def add(self, work, condition=lambda: True):
        self.items.append((condition, work))

    def wait_event(self, event):
        assert event.is_recorded
        self.add(lambda: None, lambda: event.is_done)

    def wait_stream(self, other):
        event = Event(self.machine)
        event.record(other)
        self.wait_event(event)


class Machine:
    """What torch.cuda is to the feed: work on two streams, whose order is one of chance among those allowed."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)
        self.compute = Stream(self)
        self.streams = [self.compute]
        self.current = self.compute

    def Stream(self, device):
        self.streams.append(Stream(self))
        return self.streams[-1]

    def Event(self):
        return Event(self)

    def current_stream(self, device):
        return self.current

    def stream(self, stream):
        machine = self

        class Within:
            def __enter__(self):
                self.before, machine.current = machine.current, stream

            def __exit__(self, *_):
                machine.current = self.before

        return Within()

    def run_one(self):
        ready = [stream for stream in self.streams if stream.items and stream.items[0][0]()]
        assert ready, "all streams wait for each other"
        _, work = ready[self.generator.integers(len(ready))].items.pop(0)
        work()

    def run_some(self):
        for _ in range(self.generator.integers(0, 6)):
            if any(stream.items and stream.items[0][0]() for stream in self.streams):
                self.run_one()

    def run_all(self):
        while any(stream.items for stream in self.streams):
            self.run_one()


class ModelFeed(DeviceFeed):
    """The feed over the model: buffers are ordinary memory, and a copy reads when the copy stream comes to it."""

    def _pinned(self, shape):
        return torch.full(shape, torch.nan)

    _on_device = _pinned

    def _copy(self, target, pinned):
        self._cuda.current.add(lambda: target.copy_(pinned))


def make_batches(sizes, dim=2):
    return [
        Batch((np.full((size, dim), 10.0 * number, np.float32), np.full((size, 1), 10.0 * number + 1, np.float32)))
        for number, size in enumerate(sizes)
    ]


SIZES = {"equal": [4] * 12, "varied": [4, 3, 5, 4, 6, 9, 8, 0, 9, 12, 3, 12]}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_every_step_reads_its_own_batch_in_any_order_that_streams_allow(sizes, seed):
    machine = Machine(seed)
    feed = ModelFeed(torch.device("cuda"), cuda=machine)
    batches, seen = make_batches(sizes), []
    for batch, tensors in feed(batches):
        # A step is work on the compute stream, which may come long after the host has gone on.
        machine.compute.add(lambda tensors=tensors: seen.append([tensor.clone() for tensor in tensors]))
        assert [len(tensor) for tensor in tensors] == [len(table) for table in batch.tables]
        machine.run_some()
    machine.run_all()
    assert len(seen) == len(batches)
    for tensors, batch in zip(seen, batches, strict=True):
        for tensor, table in zip(tensors, batch.tables, strict=True):
            assert np.array_equal(tensor.numpy(), table)


class Careless(ModelFeed):
    """A feed that forgets one of the waits."""

    def __init__(self, *arguments, forgets, **keywords):
        super().__init__(*arguments, **keywords)
        self.forgets = forgets

    def _send(self, slot, tables):
        kept = getattr(slot, self.forgets)
        setattr(slot, self.forgets, None)
        tensors = super()._send(slot, tables)
        if getattr(slot, self.forgets) is None:
            setattr(slot, self.forgets, kept)
        return tensors


@pytest.mark.parametrize("forgets", ["copied", "used"])
def test_the_model_would_notice_a_wait_that_is_left_out(forgets):
    wrong = 0
    for seed in range(20):
        machine = Machine(seed)
        feed = Careless(torch.device("cuda"), cuda=machine, forgets=forgets)
        batches, seen = make_batches([4] * 12), []
        for _, tensors in feed(batches):
            machine.compute.add(lambda tensors=tensors, seen=seen: seen.append(float(tensors[0].sum())))
        machine.run_all()
        wrong += seen != [float(batch.tables[0].sum()) for batch in batches]
    assert wrong > 0


def test_the_copy_of_the_next_batch_is_under_way_before_a_batch_is_handed_out():
    machine = Machine(0)
    feed = ModelFeed(torch.device("cuda"), cuda=machine)
    batches = iter(feed(make_batches([4] * 3)))
    next(batches)
    machine.compute.add(lambda: None, lambda: False)  # a step that does not end
    while any(stream.items and stream.items[0][0]() for stream in machine.streams):
        machine.run_one()
    assert [float(slot.device[0][0, 0]) for slot in feed._slots] == [0.0, 10.0]


def test_on_a_cpu_nothing_is_copied():
    (batch,) = make_batches([3])
    ((same, tensors),) = DeviceFeed(torch.device("cpu"))([batch])
    assert same is batch
    assert all(tensor.data_ptr() == table.ctypes.data for tensor, table in zip(tensors, batch.tables, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_batches_arrive_whole(device):
    if device.type != "cuda":
        pytest.skip("no GPU")
    batches = [Batch((np.full((4096, 64), number, np.float32),)) for number in range(50)]
    sums = [tensor.sum() for _, (tensor,) in DeviceFeed(device)(batches)]
    assert [float(total) for total in sums] == [4096 * 64.0 * number for number in range(50)]
