"""`sfg status` at the command line: once, again and again, on a terminal, in a pipe, for Prometheus."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from commands import sfg
from patience import patience

from sfg_dist.cli.display import Display
from sfg_dist.distributed.labels.inline import label_inline

COMMAND = [sys.executable, "-m", "sfg_dist", "status"]


@pytest.fixture
def store(copy_labels):
    """A store of which 5 of 8 shards are done."""
    return copy_labels(5)


@pytest.mark.slow
def test_watch_in_a_pipe_says_a_line_a_look_and_ends_when_all_is_done(store):
    words = [*COMMAND, store.location.url, "--watch", "--interval", "0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        label_inline(store.location.url)
        rest, _ = process.communicate(timeout=patience(120))
    assert "5 of 8 shards, 640 of 1,000 pairs" in first
    assert rest.splitlines()[-1].endswith("8 of 8 shards, 1,000 of 1,000 pairs; complete")
    assert process.returncode == 0


def test_watch_as_json_is_a_document_a_line(store):
    label_inline(store.location.url)
    (line,) = sfg(".", "status", store.location.url, "--watch", "--json").stdout.splitlines()
    assert json.loads(line)["is_complete"]


def test_watch_ends_on_ctrl_c_and_harms_nothing(store):
    words = [*COMMAND, store.location.url, "--watch", "--interval", "60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 0
    assert errors == ""


@pytest.mark.slow
def test_watch_on_a_terminal_shows_the_page_in_place(store):
    snapshot = {
        "driver": "node1-7-aa",
        "host": "node1",
        "pid": 7,
        "started": time.time() - 600,
        "updated": time.time() + 3600,
        "is_running": True,
        "total": 8,
        "done": 5,
        "todo": 3,
        "rows_per_s": 64.0,
        "workers": [{"worker": f"gpu-{n}", "host": "node1", "state": "at work", "shard": n} for n in range(200)],
    }
    store.location.write("drivers/node1-7-aa.json", json.dumps(snapshot).encode())
    mine, theirs = pty.openpty()
    words = [*COMMAND, store.location.url, "--watch", "--interval", "0.1"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while b"more workers" not in shown:
            shown += os.read(mine, 4096)
        label_inline(store.location.url)
        while True:
            try:
                shown += os.read(mine, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait(timeout=patience(60)) == 0
    os.close(mine)
    text = shown.decode()
    assert "and 186 more workers; --json lists all" in text
    assert "\x1b[2K" in text  # lines are cleared and written again
    assert "complete" in text.rsplit("\x1b[2K", 1)[1]


def test_prometheus_text_on_stdout(store):
    done = sfg(".", "status", store.location.url, "--prometheus")
    assert f'sfg_store_shards_done{{store="{store.location.url}"}} 5' in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prometheus", "--json"], "--prometheus prints one document"),
        (["--prometheus", "--watch"], "--prometheus prints one document"),
        (["--watch", "--interval", "0"], "--interval: expected 0.1 to 86400 seconds, got 0"),
    ],
)
def test_wrong_requests(tmp_path, words, message):
    assert message in sfg(tmp_path, "status", "run", *words, check=2).stderr


EVENTS = [
    ("worker_started", {"worker": "gpu-1"}, None),
    ("worker_started", {"worker": "gpu-2"}, None),
    (
        "attempt_failed",
        {"shard": 5, "attempt": 2, "worker": "gpu-1", "reason": "it hangs\nfor 10 s", "action": "retry"},
        "label: shard 5, attempt 2 on gpu-1 failed: it hangs for 10 s; tried again",
    ),
    (
        "attempt_failed",
        {"shard": 5, "attempt": 4, "worker": "gpu-1", "reason": "row 7 is NaN", "action": "give_up"},
        "label: shard 5, attempt 4 on gpu-1 failed: row 7 is NaN; given up",
    ),
    (
        "worker_lost",
        {"worker": "gpu-1", "reason": "its process died"},
        "label: worker gpu-1 was lost: its process died",
    ),
    (
        "backup",
        {"shard": 6, "worker": "gpu-2"},
        "label: shard 6 takes long: gpu-2 labels it too, and the first one counts",
    ),
    (
        "draining",
        {"node": "n1", "deadline": 1090.0},
        "label: node n1 leaves in 1 min 30 s: its workers finish what they can, and others take the rest",
    ),
    ("stopping", {"reason": "SIGUSR2"}, "label: stopping: SIGUSR2"),
]


def test_the_display_tells_of_what_goes_wrong(capsys):
    with Display(on_stderr=False) as display:
        for event, details, _ in EVENTS:
            display({"time": 1000.0, "event": event, **details})
    assert capsys.readouterr().out.splitlines() == [line for _, _, line in EVENTS if line]


def test_with_json_stdout_is_left_to_the_document(capsys):
    with Display(on_stderr=True):
        print("(raylet) A worker died or was killed")
    print("{}")
    assert capsys.readouterr() == ("{}\n", "(raylet) A worker died or was killed\n")


def test_the_display_counts_workers(capsys):
    with Display(on_stderr=True) as display:
        display({"time": 0.0, "event": "stage_started", "stage": "label", "missing": 2, "total": 2, "rows": 20})
        for name in ("a", "b"):
            display({"time": 0.0, "event": "worker_started", "worker": name})
        display({"time": 10.0, "event": "shard", "done": 1, "total": 2, "rows": [0, 10]})
    assert "label: 1 of 2 shards, 1 pairs/s, 2 workers" in capsys.readouterr().err
