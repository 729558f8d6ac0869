"""Directories that somebody hands over, with links at every level: nothing outside of them is touched, nor read."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import sfg
from conftest import copy_run
from told import failed, snapshot

from sfg_dist.distributed.fit.tensorboard import Board
from sfg_dist.distributed.labels import references, shared_blocks
from sfg_dist.distributed.labels.monitor import Monitor
from sfg_dist.job.config import resolve_job
from sfg_dist.job.errors import ConfigError, StoreError, StoreLinkError
from sfg_dist.launch.profile import Profile
from sfg_dist.launch.slurm_task import MAKE
from sfg_dist.launch.submission import Rendered, new_submission, write_files
from sfg_dist.pipeline.pipeline import Pipeline
from sfg_dist.store import Location, open_pairs, repair_store, verify
from sfg_dist.store.local import MAX_LEVELS
from sfg_dist.store.table import read_table, write_table

SECRET = b"# a start-up file of the shell\n"


def digests(folder):
    """All below a directory: what kind it is, and what is in it."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(place, name)
            mode = path.lstat().st_mode
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else ""
            found[str(path)] = (stat.S_IFMT(mode), content, os.readlink(path) if path.is_symlink() else "")
    return found


@pytest.fixture
def home(tmp_path):
    """A home directory whose files have the names that a run looks for, and which nothing may touch."""
    folder = tmp_path / "home"
    names = [".profile", "0", "c/0/0", "zarr.json", "notes.txt", "step_000000001/progress.json", "events.sfg_dist"]
    names += ["00000000.json", "part-000000.parquet", "half#1", "X/zarr.json", "fit.json", "model.safetensors"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SECRET)
    before = digests(folder)
    yield folder
    assert digests(folder) == before


@pytest.fixture
def run(small_labels, tmp_path):
    return copy_run(small_labels(8), tmp_path / "run")


@pytest.fixture
def job(make_job):
    return make_job()


def put_link(run, key, home, to=""):
    """A link in the place of what a key names."""
    path = run / key
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(home / to if to else home)


IN_STORE = [
    ("plan.json", ".profile"), ("plan.copy.json", ".profile"), ("frame.json", ".profile"), ("zarr.json", "zarr.json"),
    ("latents", ""), ("labels", ""), ("labels/c", "c"), ("labels/c/3", "c/0"), ("labels/c/3/0", ".profile"),
    ("commits", ""), ("commits/00000002.json", ".profile"), ("reference", ""), ("reference/rows", ""),
    ("reference/rows/c/0/0", ".profile"), ("transform", ""), ("column", ""), ("queries", ""), ("extensions", ""),
    ("notes", ""), ("a name with spaces", ".profile"), ("events", ""), ("drivers", ""), ("claims", ""),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("key", "to"), IN_STORE)
def test_a_link_in_a_store_is_named_and_set_aside_as_it_is(run, home, key, to):
    put_link(run, f"pairs.zarr/{key}", home, to)
    pairs = open_pairs(run, from_copies=True)
    report = verify(pairs)
    named = [finding for finding in report.findings if finding.kind == "link"]
    assert [finding.key for finding in named] == [key]
    assert "is a link" in str(named[0])
    if key in ("transform", "frame.json", "column", "reference", "zarr.json") or key.startswith("reference/"):
        return  # the frame is mended from the table, see below
    repair_store(pairs, report)
    aside = run / "pairs.zarr" / "quarantine" / key
    assert os.readlink(aside) == str(home / to if to else home)
    assert not [finding for finding in verify(open_pairs(run)).findings if finding.kind == "link"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "to"), [("reference", ""), ("zarr.json", ".profile"), ("labels/c", ""), ("commits", ""), ("notes", "")]
)
def test_repair_makes_again_what_a_link_hid(run, home, key, to):
    put_link(run, f"pairs.zarr/{key}", home, to)
    assert f"link: {key}: is a link, and links are not followed" in sfg(run.parent, "verify", run, check=1).stdout
    sfg(run.parent, "repair", run)
    assert "0 findings" in sfg(run.parent, "verify", run).stdout or verify(open_pairs(run)).is_clean
    assert (run / "pairs.zarr" / "quarantine" / key).is_symlink()


def test_a_linked_quarantine_is_refused_by_name(run, home):
    put_link(run, "pairs.zarr/quarantine", home)
    (run / "pairs.zarr" / "foreign").write_text("x")
    assert "quarantine: is a link" in sfg(run.parent, "verify", run, check=1).stdout
    assert "quarantine is a link" in sfg(run.parent, "repair", run, check=1).stderr
    assert (run / "pairs.zarr" / "foreign").exists()


OUTSIDE_OF_STORE = [
    ("events.jsonl", ".profile"), ("job.toml", ".profile"), ("metrics.json", ".profile"), ("report.html", ".profile"),
    ("pairs.zarr", ""), ("model", ""), ("model/generator.json", ".profile"), ("model/model.safetensors", ".profile"),
    ("checkpoints", ""), ("checkpoints/fit.json", "fit.json"), ("checkpoints/history.jsonl", ".profile"),
    ("checkpoints/step_000000009", "step_000000001"), ("checkpoints/hold.json", ".profile"),
    ("checkpoints/live.json", ".profile"), ("samples.zarr", ""), ("samples.zarr/X", ""),
    ("samples.zarr/X/c", "c"), ("tensorboard", ""), ("compare", ""), ("compare/cells", ""), ("scale", ""),
]  # fmt: skip


@pytest.mark.parametrize(("key", "to"), OUTSIDE_OF_STORE)
def test_a_run_refuses_a_linked_name_of_its_own_before_any_work(run, job, home, key, to):
    put_link(run, key, home, to)
    before = digests(run)
    for stage in ("label", "train", "sample", "evaluate", "extend"):
        with pytest.raises(StoreLinkError, match="is a link"):
            getattr(Pipeline(job), stage)()
    assert digests(run) == before


@pytest.mark.parametrize(("key", "to"), [("labels", ""), ("commits", ""), ("queries", ""), ("drivers", "")])
def test_labels_are_not_made_for_a_store_with_links(run, job, home, key, to):
    (run / "pairs.zarr" / "commits" / "00000001.json").unlink()
    put_link(run, f"pairs.zarr/{key}", home, to)
    with pytest.raises(StoreLinkError, match=f"pairs.zarr/{key} is a link, .*sfg repair"):
        Pipeline(job).label()


def test_a_linked_output_directory_is_the_users_own_choice(run, job, tmp_path):
    (tmp_path / "scratch").symlink_to(run)
    document = job.model_dump(exclude_none=True) | {"output": {"dir": str(tmp_path / "scratch")}}
    pairs = Pipeline(resolve_job(document)).label()
    assert pairs.is_complete
    assert verify(open_pairs(tmp_path / "scratch")).is_clean


@pytest.mark.parametrize("commands", ["status and verify", pytest.param("plan", marks=pytest.mark.slow)])
def test_commands_that_only_read_touch_nothing_behind_links(run, job, home, tmp_path, commands):
    (tmp_path / "job.toml").write_text(job.to_toml())
    for key in ("events", "drivers", "labels/c/2", "notes"):
        put_link(run, f"pairs.zarr/{key}", home)
    put_link(run, "tensorboard", home)
    before = digests(tmp_path)
    status = [["status", run], ["verify", run], ["status", run, "--json"]]
    for words in status if commands != "plan" else [["plan", "job.toml"]]:
        sfg(tmp_path, *words, check=None)
    assert digests(tmp_path) == before


def test_zarr_reads_through_no_link(run, home):
    pairs = open_pairs(run)
    for key in ("labels", "latents/c/1/0", "transform"):
        kept = run / "pairs.zarr" / key
        kept.rename(run / "kept")
        kept.symlink_to(run / "kept")  # the very bytes, and still a link
        fresh = open_pairs(run)
        with pytest.raises(Exception, match="is a link"):
            fresh.transform if key == "transform" else fresh.rows(key.split("/")[0])[:]
        kept.unlink()
        (run / "kept").rename(kept)
    assert np.isfinite(pairs.rows("labels")[:]).all()


# The interface itself.


@pytest.fixture
def location(tmp_path):
    return Location(tmp_path / "out", create=True)


WRITES = {
    "write": lambda location, key: location.write(key, b"new"),
    "create": lambda location, key: location.create(key, b"new"),
    "append": lambda location, key: location.append(key, b"new"),
    "append a line": lambda location, key: location.append(key, b"new\n", is_lines=True),
    "move": lambda location, key: location.move("own", key),
    "many": lambda location, key: location.write_many([(key, b"new")], is_settled=lambda: False),
}


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("key", ["link", "folder/link", "linked/.profile", "linked/new", "a/linked/c/new", "dangling"])
def test_nothing_is_written_through_a_link(location, home, way, key):
    location.write("own", b"own")
    for place in ("link", "folder/link"):
        put_link(location.root, place, home, ".profile")
    for place in ("linked", "a/linked"):
        put_link(location.root, place, home)
    put_link(location.root, "dangling", home, "not there yet")
    with pytest.raises(StoreLinkError, match="is a link"):
        WRITES[way](location, key)
    assert location.read("own") == b"own"


@pytest.mark.parametrize("key", ["link", "linked/.profile", "linked/c/0/0"])
def test_nothing_is_read_or_removed_through_a_link(location, home, key):
    put_link(location.root, "link", home, ".profile")
    put_link(location.root, "linked", home)
    for read in (location.read, location.look, location.size):
        with pytest.raises(StoreLinkError, match="is a link"):
            read(key)
    assert location.exists(key)
    with pytest.raises(StoreLinkError) if "/" in key else pytest.MonkeyPatch.context():
        location.delete(key)
    location.clear("linked")
    assert not list(location.list())
    assert not list(location.list("linked"))
    assert {entry.key for entry in location.oddities()} == {"link", "linked"}
    assert (location.root / "link").is_symlink()


@pytest.mark.parametrize("key", ["../out", "a/../b", "/etc/passwd", "a//b", ".", "", "a/."])
def test_a_key_leads_nowhere_but_down(location, key):
    with pytest.raises(StoreError, match="no name of an object"):
        location.write(key, b"x")


def test_a_pipe_or_a_socket_is_not_waited_for(location):
    os.mkfifo(location.root / "plan.json")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(location.root)  # a socket's path has room for 107 bytes
        server.bind("door")
        os.chdir(before)
        assert location.read("plan.json") is None
        with pytest.raises(StoreError, match="is no file"):
            location.write("plan.json", b"x")
        with pytest.raises(StoreError, match="is no file"):
            location.append("door", b"x")
        assert {entry.key for entry in location.oddities()} == {"plan.json", "door"}
        location.move("plan.json", "quarantine/plan.json")
        assert stat.S_ISFIFO((location.root / "quarantine" / "plan.json").stat().st_mode)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_zarr_reads_no_pipe_and_no_link_of_a_store(run, home, kind):
    place = run / "pairs.zarr" / "reference" / "rows" / "c" / "0" / "0"
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(home / ".profile")
    what = {
        "pipe": "rows/c/0/0 is a pipe, a socket or a device: move it away",
        "link": "rows/c/0/0 is a link, .*cp -rL",
    }
    with pytest.raises(StoreError, match=what[kind]):
        open_pairs(run).reference_rows(0, 1)


def test_a_file_that_has_another_name_elsewhere_keeps_its_bytes_there(location, tmp_path):
    (tmp_path / "profile").write_bytes(b"theirs\n")
    os.link(tmp_path / "profile", location.root / "log")
    location.append("log", b"ours\n", is_lines=True)
    assert location.read("log") == b"theirs\nours\n"
    assert (tmp_path / "profile").read_bytes() == b"theirs\n"


def test_directories_within_directories_end_nowhere(location):
    place = os.open(location.root, os.O_RDONLY)
    for _ in range(MAX_LEVELS + 200):
        os.mkdir("deep", dir_fd=place)
        inner = os.open("deep", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    assert list(location.list()) == []
    ((key, *_, oddity),) = location.oddities()
    assert key.count("/") == MAX_LEVELS - 1
    assert "directories deep" in oddity


def test_folders_that_turn_into_links_meanwhile_are_not_followed(location, home):
    """Somebody puts a link in the place of a directory, again and again, while files are written and removed there."""
    folder, away, is_over = location.root / "labels", location.root / "away", threading.Event()
    folder.mkdir()

    def turn():
        while not is_over.is_set():
            shutil.rmtree(away, ignore_errors=True)
            with contextlib.suppress(OSError):  # the other thread made or removed something meanwhile
                os.rename(folder, away)
                os.symlink(home, folder)
                os.unlink(folder)
                os.rename(away, folder)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            for act in (location.write, location.append):
                with contextlib.suppress(StoreError):
                    act("labels/0", b"x")
            for key in ("labels/.profile", "labels/0"):
                with contextlib.suppress(StoreError):
                    location.delete(key)
    finally:
        is_over.set()
        thread.join()


NAMES = [
    "line\nbreak",
    "tab\there",
    "bell\x07",
    b"not \xff text",
    "back\\slash",
    "percent%2F",
    " ",
    "\u202egnp.exe",
    "a#b",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_listed_told_and_moved(run, name):
    path = os.path.join(os.fsencode(run / "pairs.zarr"), name if isinstance(name, bytes) else name.encode())
    Path(os.fsdecode(path)).write_bytes(b"foreign")
    said = sfg(run.parent, "verify", run, check=1).stdout
    assert "foreign_file: " in said
    assert not set(said) & {"\x07", "\t", "\u202e"}
    assert len([line for line in said.splitlines() if "foreign_file" in line or "break" in line]) == 1
    json.loads(sfg(run.parent, "verify", run, "--json", check=1).stdout)
    sfg(run.parent, "status", run)
    sfg(run.parent, "repair", run)
    assert verify(open_pairs(run)).is_clean
    assert not os.path.exists(path)


# Logs, curves, tables.


def test_logs_and_snapshots_follow_no_link(location, home):
    for key, to in (("events", ""), ("drivers", "")):
        put_link(location.root, key, home, to)
    monitor = Monitor(location, "me")
    with pytest.warns(UserWarning, match="is a link"):
        monitor.event(failed())
    monitor.snapshot(snapshot())


def test_curves_follow_no_link_and_leave_what_others_made(location, home):
    put_link(location.root, "tensorboard", home)
    with (
        pytest.warns(UserWarning, match=r"lacks some of its curves: .*tensorboard is a link"),
        Board(location) as board,
    ):
        board.epoch({"step": 1, "train_loss": 1.0})
    (location.root / "tensorboard").unlink()
    for name in ("events.out.tfevents.1.host", "runs/today/events.out.tfevents.2.host", "notes.txt"):
        location.write(f"tensorboard/{name}", b"theirs")
    kept = {entry.key for entry in location.list()}
    for _ in range(2):
        with Board(location) as board:
            board.epoch({"step": 1, "train_loss": 1.0})
        assert len({entry.key for entry in location.list()} - kept) == 1
    assert kept < {entry.key for entry in location.list()}


def rows_of(ranges):
    yield from (np.zeros((stop - start, 2)) for start, stop in ranges)


@pytest.mark.parametrize("key", ["X", "column", "X/c", "notes"])
def test_a_table_of_samples_with_a_link_is_not_emptied(tmp_path, home, key):
    place = tmp_path / "s.zarr"
    write_table(place, ["a", "b"], 10, rows_of, source="one")
    put_link(place, key, home)
    before = digests(place)
    with pytest.raises(ConfigError, match="is a link, and links are not followed"):
        write_table(place, ["a", "b"], 10, rows_of, source="other")
    assert digests(place) == before


def test_a_folder_of_parquet_with_a_link_is_not_emptied(tmp_path, home):
    place = f"{tmp_path}/s.parquet/"
    write_table(place, ["a", "b"], 10, rows_of, source="one")
    put_link(tmp_path / "s.parquet", "part-000001.parquet", home, "part-000000.parquet")
    put_link(tmp_path / "s.parquet", "more", home)
    with pytest.raises(ConfigError, match="is a link"):
        write_table(place, ["a", "b"], 10, rows_of, source="other")
    put_link(tmp_path, "s.parquet.sample.json", home, ".profile")
    with pytest.raises(StoreLinkError, match="is a link"):
        write_table(place, ["a", "b"], 10, rows_of, source="other")


def test_a_table_is_not_read_through_a_link(tmp_path, home):
    place = tmp_path / "s.zarr"
    write_table(place, ["a", "b"], 10, rows_of, source="one")
    (place / "X").rename(tmp_path / "X")
    (place / "X").symlink_to(tmp_path / "X")
    with pytest.raises(Exception, match="is a link"):
        read_table(place, source="one")


@pytest.mark.parametrize("suffix", ["csv", "npy", "parquet"])
def test_half_a_table_is_never_written_through_a_link(tmp_path, home, suffix, monkeypatch):
    monkeypatch.setattr("sfg_dist.store.table.secrets.token_hex", lambda length: "00")
    (tmp_path / f".s.{os.getpid()}-00.partial.{suffix}").symlink_to(home / ".profile")
    with pytest.raises(StoreError, match="exists"):
        write_table(tmp_path / f"s.{suffix}", ["a", "b"], 10, rows_of, source="one")


# What the package did not make.


FOREIGN = {
    "report.html": b"<html><title>my own report</title></html>",
    "metrics.json": b'{"accuracy": 0.9}',
    "events.jsonl": b'{"event": "party", "time": "tonight"}\n',
    "job.toml": b"# my notes\n[data]\nsource = 'blobs'\n",
    "model/model.safetensors": b'\x10\0\0\0\0\0\0\0{"lm_head.weight":',
    "model/generator.json": b'{"layers": 3}',
    "checkpoints/fit.json": b'{"loss": 3}',
    "checkpoints/history.jsonl": b"1, 2, 3\n",
    "checkpoints/fitted.safetensors": b"weights",
    "checkpoints/step_000000100/progress.json": b"{}",
    "checkpoints/encoder.safetensors": b"weights",
    "compare/compare.json": b'{"apples": "pears"}',
    "scale/scale.json": b'{"kitchen": 3}',
    "pairs.zarr/zarr.json": b'{"zarr_format": 3, "node_type": "group", "attributes": {}}',
    "pairs.zarr/notes.txt": b"mine",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_foreign_file_is_refused_by_name_before_any_work(make_job, tmp_path, key):
    job = make_job()
    path = tmp_path / "run" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(FOREIGN[key])
    with pytest.raises(ConfigError, match="choose another output") as caught:
        Pipeline(job).label()
    assert key.rpartition("/")[2] in str(caught.value)
    left = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left - {tmp_path / "run" / "events.jsonl"} == {path} - {tmp_path / "run" / "events.jsonl"}
    assert path.read_bytes() == FOREIGN[key]


MINE = """# my own job, with a comment
data.source = "moons"
data.max_rows = 600
labels = {num_pairs = 256, shard_rows = 128, batch_size = 64, num_evaluations = 8, t_min = 1e-3}
executor.kind = "inline"
output.dir = "."
"""


def test_a_job_in_its_own_output_directory_keeps_its_comments(tmp_path):
    (tmp_path / "job.toml").write_text(MINE)
    sfg(tmp_path, "label", "job.toml")
    assert (tmp_path / "job.toml").read_text() == MINE
    assert sfg(tmp_path, "verify", ".").returncode == 0
    done = sfg(tmp_path, "label", "job.toml", "--set", "train.num_epochs=9", check=2)
    assert "./job.toml was not left by a run of this package" in done.stderr
    assert (tmp_path / "job.toml").read_text() == MINE


def test_a_copy_of_the_job_is_known_with_its_mark_and_without(run, job):
    other = resolve_job(job.model_dump(exclude_none=True) | {"evaluate": {"num_samples": 300}})
    copy = run / "job.toml"
    marked = copy.read_text()
    assert marked.startswith("# Written by sfg_dist")
    copy.write_text(marked.partition("\n")[2])  # as an earlier version leaves it
    Pipeline(other).label()
    assert "num_samples = 300" in copy.read_text()
    copy.write_text(copy.read_text() + "\n# a note of the user's\n")
    with pytest.raises(ConfigError, match=r"job\.toml was not left by a run"):
        Pipeline(job).label()
    assert "a note of the user's" in copy.read_text()


def test_pages_are_known_with_their_mark_and_as_earlier_versions_left_them(run, job):
    template = resources.files("sfg_dist.evaluate").joinpath("report.html").read_text()
    mark = '<meta name="generator" content="sfg_dist">\n'
    assert mark in template
    for page in (template, template.replace(mark, "")):
        (run / "report.html").write_text(page)
        Pipeline(job).require_own()


def test_what_lies_beside_a_frame_that_was_cut_off_stays(run, job, home):
    """A linked ``queries`` was emptied, and so was a note in a folder of the frame."""
    for name in ("plan.json", "plan.copy.json"):
        (run / "pairs.zarr" / name).unlink()
    (run / "pairs.zarr" / "transform" / "notes.txt").write_text("mine")
    put_link(run, "pairs.zarr/queries", home)
    Pipeline(job).label()
    assert (run / "pairs.zarr" / "queries").is_symlink()
    assert (run / "pairs.zarr" / "transform" / "notes.txt").read_text() == "mine"


# Submissions.


def test_files_of_a_submission_are_never_open_to_others(make_job, tmp_path, monkeypatch):
    modes = []
    opened = os.open

    def watch(path, flags, mode=0o777, **keys):
        if flags & os.O_CREAT:
            modes.append((str(path), mode, bool(flags & os.O_EXCL)))
        return opened(path, flags, mode, **keys)

    monkeypatch.setattr(os, "open", watch)
    profile = Profile.model_validate({"setup": {"dir": str(tmp_path / "submissions")}})
    submission = new_submission([make_job()], "slurm", "name", profile)
    before = os.umask(0)
    try:
        write_files(submission, Rendered([], {"jobs/0.toml": "secret", "job.sh": "secret"}))
    finally:
        os.umask(before)
    written = {path.rpartition("/")[2]: (mode, is_new) for path, mode, is_new in modes}
    assert written["0.toml"] == (0o600, True)
    assert written["job.sh"] == (0o700, True)
    submission.note_final_state("COMPLETED", 0)
    left = {path.name: path.stat().st_mode & 0o777 for path in submission.path.rglob("*") if path.is_file()}
    assert left == {"0.toml": 0o600, "job.sh": 0o700, "submission.json": 0o600, "state.json": 0o600}


def test_a_file_of_a_submission_is_not_written_through_a_link(make_job, tmp_path, home):
    profile = Profile.model_validate({"setup": {"dir": str(tmp_path / "submissions")}})
    submission = new_submission([make_job()], "slurm", "name", profile)
    submission.path.mkdir(parents=True)
    (submission.path / "job.sh").symlink_to(home / ".profile")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_files(submission, Rendered([], {"job.sh": "new"}))


@pytest.mark.parametrize("kind", ["link to a directory", "link to nothing", "file", "own", "none"])
def test_a_tasks_directory_on_a_node_is_its_own_or_none(tmp_path, home, kind):
    place = tmp_path / "scratch" / "sfg1-x"
    place.parent.mkdir()
    if kind == "own":
        place.mkdir(mode=0o700)
    elif kind == "file":
        place.touch()
    elif kind != "none":
        place.symlink_to(home if kind == "link to a directory" else tmp_path / "nowhere")
    done = subprocess.run(["sh", "-c", MAKE, "sh", "", "", str(place)], capture_output=True, text=True)
    is_fine = kind in ("own", "none")
    assert (done.returncode == 0) == is_fine
    assert ("somebody else's" in done.stderr) != is_fine
    if is_fine:
        assert place.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("to", ["slurm", "kuberay", "ray", "../cluster/slurm"])
def test_no_profile_is_taken_from_the_working_directory(tmp_path, monkeypatch, to):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "cluster").mkdir()
    for name in ("slurm", "kuberay", "ray"):
        (tmp_path / "cluster" / f"{name}.toml").write_text('[setup]\npython = "/planted/program"\n[bad]\nkey = 1\n')
    (tmp_path / "job.toml").write_text('data.source = "moons"\n')
    words = ["submit", "job.toml", "--to", to, "--dry-run", "--profile-set", "ray.address=http://127.0.0.1:1"]
    done = sfg(tmp_path, *words, check=None)
    assert "planted" not in done.stdout + done.stderr
    assert "bad" not in done.stderr
    named = sfg(tmp_path, *words, "--profile", f"cluster/{to}.toml", check=2)
    assert "bad" in named.stderr or to.startswith("..")


def test_a_pipe_in_the_place_of_a_file_is_named_and_set_aside(run):
    for key in ("plan.json", "labels/c/3/0", "door"):
        (run / "pairs.zarr" / key).unlink(missing_ok=True)
        os.mkfifo(run / "pairs.zarr" / key)
    pairs = open_pairs(run, from_copies=True)
    report = verify(pairs)
    assert {finding.key for finding in report.findings if finding.kind == "special_file"} == {
        "plan.json",
        "labels/c/3/0",
        "door",
    }
    assert repair_store(pairs, report) == [3]
    assert {finding.kind for finding in verify(open_pairs(run)).findings} == {"missing_data"}


# What lies outside of the output directory: files of the node, the folder of a judgement.


@pytest.mark.parametrize("name", ["reference", "debiased"])
def test_a_plan_does_not_name_the_file_of_its_reference(small_labels, tmp_path, monkeypatch, name):
    """Its fingerprints may be paths, and the file is made before the rows are read."""
    pairs = open_pairs(copy_run(small_labels(8), tmp_path / "run"))
    forged = replace(pairs, plan=replace(pairs.plan, identity={**pairs.plan.identity, name: "../../../home/x"}))
    names = []
    monkeypatch.setattr(references, "SHARED_BYTES", 0)
    monkeypatch.setattr(shared_blocks, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shared_blocks, "open_shared_blocks", lambda folder, name, *_: names.append(folder / name))
    with pytest.raises(StoreError):
        references.prepared_reference(forged, device=torch.device("cpu"))
    assert [place.resolve().parent.parent for place in names] == [tmp_path]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["report.html", "metrics.json"])
def test_a_judgement_of_files_is_not_written_through_a_link(tmp_path, home, no_pictures, key):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / key).symlink_to(home / "notes.txt")
    rows = np.random.default_rng(0).standard_normal((60, 2))
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, rows + (name == "b.npy"))
    done = sfg(tmp_path, "evaluate", "--samples", "a.npy", "--data", "b.npy", "--out", "page", check=None)
    assert done.returncode in (1, 2)
    assert key in done.stderr
