"""The state of a store as it is read from the store alone: finished, unfinished, with drivers at work, silent, gone."""

import json
import math
import re
import time

import pytest
from told import failed, snapshot

from sfg_dist.cli.prometheus import prometheus_text
from sfg_dist.cli.status import open_console, status_line, status_lines, status_page
from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.distributed.labels.label import label_pending
from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.distributed.labels.settings import LabelSettings
from sfg_dist.job.config import ExecutorConfig
from sfg_dist.job.words import duration, size_of
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location
from sfg_dist.store.snapshot import SILENT_S, driver_of
from sfg_dist.store.status import StatusReader

NOW = 1_800_000_000.0
WORKER = {
    "worker": "actor-1",
    "kind": "NVIDIA H100",
    "host": "node1",
    "pid": 7,
    "device": "NVIDIA H100",
    "state": "at work",
    "shard": 5,
    "attempt": 2,
    "since": NOW - 75,
    "done": 3,
    "rows": 384,
    "seconds": 12.0,
}
SNAPSHOT = {
    "driver": "node1-7-aa",
    "host": "node1",
    "pid": 7,
    "started": NOW - 600,
    "updated": NOW - 1,
    "is_running": True,
    "total": 8,
    "done": 3,
    "todo": 5,
    "workers": [WORKER, WORKER | {"worker": "actor-2", "state": "starting", "shard": None, "pid": None, "rows": 0}],
    "failures": [{"shard": 5, "attempt": 1, "worker": "actor-9", "reason": "it hangs\nfor 10 s", "action": "retry"}],
    "num_failures": {"retry": 1},
    "rows_per_s": 64.0,
}


@pytest.fixture
def half_done(copy_labels):
    """A store of 8 shards with the first 3 done."""
    return copy_labels(3)


def leave(pairs, **changes):
    snapshot = SNAPSHOT | changes
    pairs.location.write(f"drivers/{snapshot['driver']}.json", json.dumps(snapshot).encode())


def shown(state):
    console = open_console()
    with console.capture() as capture:
        console.print(status_page(state))
    return capture.get()


def test_a_running_driver(half_done):
    leave(half_done)
    state = StatusReader(half_done).read(NOW)
    assert (state.shards, state.shards_done, state.rows, state.rows_done) == (8, 3, 1000, 384)
    assert state.shards_running == (5,)
    assert state.rows_per_s == 64.0
    assert state.seconds_left == (1000 - 384) / 64
    assert [worker.rows_per_s for worker in state.drivers[0].workers] == [32.0, None]
    text = shown(state)
    assert "3 of 8 shards, 384 of 1,000 pairs, 1 at work, 64 pairs/s, about 9.6 s left, dim 2" in text
    assert "driver node1-7-aa: at work for 10 min with 2 workers, 64 pairs/s, 1 failed attempt" in text
    assert "shard 5, attempt 1 on actor-9 failed: it hangs for 10 s; tried again" in text
    assert re.search(r"actor-1 +node1 +NVIDIA H100 +shard 5, attempt 2 +1 min 15 s +3 +32\n", text)
    assert re.search(r"actor-2 +node1 +NVIDIA H100 +starting +3 *\n", text)


def test_a_silent_driver_is_gone_or_cut_off(half_done):
    leave(half_done, updated=NOW - SILENT_S - 1)
    state = StatusReader(half_done).read(NOW)
    assert state.drivers[0].state == "silent"
    assert state.shards_running == ()
    assert state.rows_per_s is None
    assert state.seconds_left is None
    text = shown(state)
    assert "silent for 31 s, so it is gone or cut off from the store; what it committed is kept" in text
    assert "no driver is at work" in text
    assert "actor-1 " not in text.replace("on actor-9", "")


def test_two_drivers_at_once_are_both_shown_and_their_rates_add_up(half_done):
    leave(half_done)
    second = WORKER | {"worker": "actor-1", "host": "node2", "shard": 6, "since": NOW - 5}
    leave(half_done, driver="node2-9-bb", host="node2", workers=[second], failures=[], num_failures={}, rows_per_s=36.0)
    state = StatusReader(half_done).read(NOW)
    assert state.shards_running == (5, 6)
    assert state.rows_per_s == 100.0
    text = shown(state)
    assert re.search(r"node1-7-aa +actor-1 +node1 .*\n(.*\n)*?node2-9-bb +actor-1 +node2 ", text)


def test_ended_drivers_and_shards_that_were_given_up(half_done):
    gave_up = [
        {"shard": 1, "attempt": 4, "worker": "a", "reason": "done since", "action": "give_up"},
        {"shard": 6, "attempt": 4, "worker": "a", "reason": "row 801 has no finite end point", "action": "give_up"},
    ]
    for number in range(6):
        leave(half_done, driver=f"old-{number}", is_running=False, updated=NOW - 100 * number, failures=gave_up)
    state = StatusReader(half_done).read(NOW)
    assert state.shards_failed == {6: "row 801 has no finite end point"}
    text = shown(state)
    assert "1 given up" in text
    assert "shard 6 was given up: row 801 has no finite end point" in text
    assert text.count(": ended ") == 3
    assert "and 3 older drivers" in text


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b'{"driver": "x", "updated": "noon", "is_running": true}', b"[" * 100_000, b"\xff"),
        *(
            json.dumps(SNAPSHOT | changes).encode()
            for changes in (
                {"updated": str(NOW)},
                {"started": math.nan},
                {"total": "8"},
                {"rows_per_s": "64.0"},
                {"pid": [7]},
                {"workers": 3},
                {"workers": ["actor-1"]},
                {"workers": [{"kind": "cpu"}]},
                *({"workers": [WORKER | {name: "x"}]} for name in ("shard", "rows", "seconds", "since", "attempt")),
                {"workers": [WORKER | {"host": 5}]},
                {"failures": ["it hangs"]},
                {"failures": [{"shard": "5", "action": "give_up"}]},
                {"failures": [{"shard": {}, "action": "give_up"}]},
                {"num_failures": {"retry": "one"}},
                {"num_failures": 3},
            )
        ),
        *(json.dumps({k: v for k, v in SNAPSHOT.items() if k != name}).encode() for name in ("driver", "todo", "done")),
    ],
)
def test_what_is_no_snapshot_is_passed_over(half_done, content):
    assert driver_of(content, NOW) is None
    half_done.location.write("drivers/torn.json", content)
    leave(half_done)
    state = StatusReader(half_done).read(NOW)
    assert [driver.driver for driver in state.drivers] == ["node1-7-aa"]
    assert "at work for 10 min" in shown(state)


def test_a_finished_store_says_how_it_was_made(make_store):
    pairs = make_store()
    label_inline(pairs.location.url)
    records = [pairs.commit_record(shard) for shard in range(8)]
    state = StatusReader(pairs).read(time.time())
    made = state.provenance
    assert state.is_complete
    assert state.seconds_left == 0
    assert sum(made.devices.values()) == sum(made.hosts.values()) == 8
    assert made.evaluations == records[0]["evaluations"] > 0
    assert made.seconds == pytest.approx(sum(record["seconds"] for record in records), abs=1e-3)
    assert made.tolerance_reached == max(record["tolerance_reached"] for record in records)
    assert made.bytes == sum(entry["bytes"] for record in records for entry in record["objects"].values())
    assert made.started < made.finished <= state.time
    assert made.versions == pairs.plan.versions
    lines = list(status_lines(state))
    assert lines[0] == f"{pairs.location.url}: 8 of 8 shards, 1,000 of 1,000 pairs, dim 2; complete"
    assert f"{made.evaluations:g} evaluations a row" in lines[1]
    assert json.loads(json.dumps(state.to_json()))["provenance"]["versions"] == dict(made.versions)


def test_a_second_look_reads_only_what_is_new(half_done, monkeypatch):
    from sfg_dist.distributed.labels.labeler import ShardLabeler

    reader = StatusReader(half_done)
    reader.read(NOW)
    keys = []
    read = Location.read
    monkeypatch.setattr(Location, "read", lambda self, key, *most: (keys.append(key), read(self, key, *most))[1])
    reader.read(NOW + 1)
    assert keys == []
    ShardLabeler(half_done.location.url).label(3)
    keys.clear()
    assert reader.read(NOW + 2).shards_done == 4
    assert keys == ["commits/00000003.json"]


def test_a_monitor_leaves_what_status_shows(half_done):
    with Monitor(half_done.location, SNAPSHOT["driver"]) as monitor:
        monitor.event(failed())
        monitor.snapshot(snapshot(driver=SNAPSHOT["driver"], updated=time.time(), num_failures={"retry": 1}))
        running = StatusReader(half_done).read(time.time())
        assert running.drivers[0].state == "running"
    ended = StatusReader(half_done).read(time.time())
    assert [driver.driver for driver in ended.drivers] == [monitor.driver]
    assert ended.drivers[0].state == "ended"
    assert ended.drivers[0].num_failures == {"retry": 1}
    (line,) = half_done.location.read(f"events/{monitor.driver}-0000.jsonl").splitlines()
    assert json.loads(line)["reason"] == "it hangs"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.012, "12 ms"),
        (5.5, "5.5 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (75, "1 min 15 s"),
        (12_300, "3 h 25 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(512, "512 bytes"), (3_500_000, "3.3 MiB"), (2**52, "4096.0 TiB")])
def test_sizes(number, text):
    assert size_of(number) == text


SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)')


def parse_exposition(text):
    """{(name, labels): value} of a document in Prometheus' text format; refuses what its grammar does."""
    assert text.endswith("\n")
    found, kinds, helped = {}, {}, set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in helped
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in {"counter", "gauge", "histogram", "summary", "untyped"}
            assert name not in kinds
            kinds[name] = kind
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert list(kinds)[-1] == name, "samples of a family stand together, after its TYPE"
            pairs = re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', labels)
            plain = {key: re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), text) for key, text in pairs}
            key = (name, frozenset(plain.items()))
            assert key not in found
            found[key] = float(value)
    return found


def test_prometheus_text(half_done):
    nasty = 'a "quoted" \\ name\nin two lines'
    leave(half_done, workers=[WORKER | {"device": nasty}])
    state = StatusReader(half_done).read(NOW)
    values = parse_exposition(prometheus_text(state))
    store = ("store", half_done.location.url)
    assert values["sfg_store_shards", frozenset({store})] == 8
    assert values["sfg_store_rows_done", frozenset({store})] == 384
    assert values["sfg_store_complete", frozenset({store})] == 0
    assert values["sfg_store_seconds_left", frozenset({store})] == 9.625
    assert values["sfg_store_drivers", frozenset({store, ("state", "running")})] == 1
    failed = frozenset({store, ("driver", "node1-7-aa"), ("action", "retry")})
    assert values["sfg_store_attempts_failed", failed] == 1
    (rate,) = [
        (dict(labels), value) for (name, labels), value in values.items() if name.endswith("worker_rows_per_second")
    ]
    assert rate[0]["device"] == nasty
    assert rate[1] == 32.0
    assert all(math.isfinite(value) for value in values.values())


def test_prometheus_text_leaves_out_what_is_not_known(half_done):
    names = {name for name, _ in parse_exposition(prometheus_text(StatusReader(half_done).read(NOW)))}
    assert "sfg_store_rows_done" in names
    assert not names & {"sfg_store_rows_per_second", "sfg_store_seconds_left", "sfg_store_worker_shards_done"}


def test_the_line_for_a_log(half_done):
    leave(half_done)
    line = status_line(StatusReader(half_done).read(NOW))
    assert line == "3 of 8 shards, 384 of 1,000 pairs, 1 at work, 64 pairs/s, about 9.6 s left"


def test_snapshots_and_files_name_one_driver(make_job):
    """What is shown of a driver, the name of its snapshot and that of its events are one id."""
    snapshots = []
    pairs = Pipeline(make_job()).open_store()
    label_pending(pairs, ExecutorConfig(kind="inline"), LabelSettings(on_snapshot=snapshots.append))
    (driver,) = {snapshot.driver for snapshot in snapshots}
    root = pairs.location.root
    assert [path.name for path in (root / "drivers").iterdir()] == [f"{driver}.json"]
    assert [path.name for path in (root / "events").iterdir()] == [f"{driver}-0000.jsonl"]
