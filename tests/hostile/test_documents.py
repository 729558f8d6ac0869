"""Documents that nobody honest wrote: each is an error in words or a finding, and none costs memory, time or a stop."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from commands import sfg

from sfg_dist.data.column_type import ColumnType
from sfg_dist.data.transform import Transform
from sfg_dist.distributed.fit.checkpoints import Checkpoints, identity_of
from sfg_dist.distributed.fit.hold import Hold
from sfg_dist.distributed.fit.journal import Journal
from sfg_dist.job.config import TrainConfig, parse_job
from sfg_dist.job.errors import ConfigError, DataError, DocumentError, SfgError, StoreError, TrainingError
from sfg_dist.job.plan import Plan, seal, unseal
from sfg_dist.job.reader import MAYBE_NAN, read_json
from sfg_dist.job.toml_documents import parse_document
from sfg_dist.launch.submission import Attempt, Submission, known
from sfg_dist.pipeline.repair import job_beside
from sfg_dist.store import Location, open_pairs
from sfg_dist.store.arrays import row_digest, shard_layout
from sfg_dist.store.commits import make_record, parse_record, stored_digest
from sfg_dist.store.event_log import stage_times
from sfg_dist.store.parts import attributes_of
from sfg_dist.store.snapshot import driver_of
from sfg_dist.studies.compare.run import RECORD_FIELDS, kept_cells
from sfg_dist.studies.records import Records, from_json
from sfg_dist.studies.scale.document import compare_studies, read_study
from sfg_dist.studies.scale.predict import costs_of
from sfg_dist.studies.scale.results import StudyDocument

DEEP = b'{"a": ' * 100_000 + b"1" + b"}" * 100_000
HALF_DEEP = b'{"a": ' * 50 + b"1" + b"}" * 50
HOSTILE = {
    "deep": (DEEP, "too deep"),
    "deep lists": (b'{"a": ' + b"[" * 100_000, "too deep"),
    "as deep as Python reads": (HALF_DEEP, "too deep"),
    "key twice": (b'{"a": 1, "a": 2}', "the key 'a' twice"),
    "key twice inside": (b'{"b": [{"a": 1, "a": 2}]}', "the key 'a' twice"),
    "NaN": (b'{"a": NaN}', "the number NaN"),
    "infinity": (b'{"a": -Infinity}', "the number -Infinity"),
    "beyond float64": (b'{"a": 1e999}', "too large"),
    "long number": (b'{"a": ' + b"9" * 41 + b"}", "a number of 41 digits"),
    "longer than Python reads": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
    "half a character": (b'{"a": "\\ud800"}', "half a character"),
    "half a character in a key": (b'{"\\udc80": 1}', "half a character"),
    "no UTF-8": (b'{"a": "\xff"}', "no text in UTF-8"),
    "surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "no text in UTF-8"),
    "empty": (b"", "it is empty"),
    "torn": (b'{"a": 1', "ends after 7 characters"),
    "more behind it": (b'{"a": 1} x', "line 1, character 10"),
    "list": (b"[1]", r"must be a table, got \[1\]"),
    "null": (b"null", "must be a table, got nothing"),
    "long": (b'{"a": "' + b"x" * (1 << 20) + b'"}', "longer than the 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_document_is_bounded_in_size_depth_and_numbers(name):
    content, words = HOSTILE[name]
    with pytest.raises(DocumentError, match=rf"^commits/1\.json.*{words}"):
        read_json(content, "commits/1.json")


def test_a_document_of_many_values_takes_no_memory():
    content = b"[" + b"[]," * (2 << 20) + b"[]]"
    tracemalloc.start()
    with pytest.raises(DocumentError, match="more values than"):
        read_json(content, "a log", list, max_bytes=64 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(content)


@pytest.mark.parametrize(
    ("fields", "value", "words"),
    [
        (int, -1, "a whole number of 0 or more, got -1"),
        (int, True, "a whole number of 0 or more, got true"),
        (int, 1.0, "a whole number"),
        (int, 2**63, "a whole number"),
        (range(1, 5), 5, "a whole number of 1 to 4, got 5"),
        (float, "1.5", "a finite number, got '1.5'"),
        (float, None, "a finite number, got nothing"),
        (str, 5, "a text, got 5"),
        (bool, 0, "true or false, got 0"),
        ({"x", "y"}, "z", "one of x, y, got 'z'"),
        ((int, None), "a", "a whole number of 0 or more or null, got 'a'"),
        (MAYBE_NAN, "a", "a number, got 'a'"),
        ([int], [1, "a"], r"a\.1 must be"),
        ({str: int}, {"b": [1]}, r"a\.b must be"),
        ({"b": int}, {}, r"a\.b is missing"),
        ({"b?": {"c": [str]}}, {"b": {"c": [5]}}, r"a\.b\.c\.0 must be a text, got 5"),
        (({"b": int}, None), {"b": "c"}, r"a\.b must be"),
    ],
)
def test_a_field_is_named_with_what_it_must_be(fields, value, words):
    with pytest.raises(DocumentError, match=words):
        read_json(json.dumps({"a": value}), "it", {"a": fields})
    assert read_json('{"b": 1e0}', "it", {"a?": fields}) == {"b": 1.0}  # others may be there


def test_what_is_no_fault_is_read():
    text = '{"a": [1, -2.5, "\\u00e9\\ud83d\\ude00", true, null], "b": 12345678901234567890}'
    assert read_json(b"\xef\xbb\xbf" + text.encode(), "it") == json.loads(text)
    assert np.isnan(read_json('{"a": NaN}', "it", {"a": MAYBE_NAN}, allow_nan=True)["a"])


# Commits, plans and manifests of a store.

COMMITS = {
    "deep": lambda fields: DEEP,
    "deep and sealed": lambda fields: seal(fields | {"device": json.loads(HALF_DEEP)}),
    "key twice": lambda fields: seal(fields).replace(b'"attempt": ', b'"attempt": 1, "attempt": ', 1),
    "long": lambda fields: seal(fields | {"device": "x" * (2 << 20)}),
    "seconds": lambda fields: seal(fields | {"seconds": "abc"}),
    "finished": lambda fields: seal(fields | {"finished": float("nan")}),
    "evaluations": lambda fields: seal(fields | {"evaluations": [1]}),
    "pairs": lambda fields: seal(fields | {"pairs": {}}),
    "attempt": lambda fields: seal(fields | {"attempt": "two"}),
    "host": lambda fields: seal(fields | {"host": ["a"]}),
    "rows": lambda fields: seal(fields | {"rows": 5}),
    "objects": lambda fields: seal(fields | {"objects": [1]}),
    "bytes": lambda fields: seal(fields | {"objects": {"latents": {"bytes": "many"}}}),
    "list": lambda fields: b"[1, 2]",
}


def numbered(values):
    """Parameters without their content in the test's name, which may be long."""
    return [pytest.param(value, id=str(number)) for number, value in enumerate(values)]


def damage_commit(pairs, shard, name):
    path = pairs.location.root / f"commits/{shard:08d}.json"
    path.write_bytes(COMMITS[name](unseal(path.read_bytes())))


@pytest.mark.slow
@pytest.mark.parametrize("names", [list(COMMITS)[:7], list(COMMITS)[7:]])
def test_hostile_commits_are_findings(copy_labels, names):
    pairs = copy_labels(8)
    for shard, name in enumerate(names):
        damage_commit(pairs, shard, name)
    shards = list(range(len(names)))
    state = json.loads(sfg(pairs.location.root, "status", ".", "--json").stdout)
    assert state["shards_done"] == 8 - len(shards)
    report = json.loads(sfg(pairs.location.root, "verify", ".", "--json", check=1).stdout)
    assert [finding["shard"] for finding in report["findings"]] == shards
    assert {finding["kind"] for finding in report["findings"]} <= {"torn_commit", "edited_commit"}
    shown = json.loads(sfg(pairs.location.root, "repair", ".", "--dry-run", "--json").stdout)
    assert shown["shards"] == shards


@pytest.mark.slow
def test_hostile_commits_are_repaired(copy_labels):
    pairs = copy_labels(8)
    before = pairs.commit_record(5)["objects"]
    for shard, name in ((1, "deep"), (3, "deep and sealed"), (5, "seconds")):
        damage_commit(pairs, shard, name)
    sfg(pairs.location.root, "repair", ".")
    sfg(pairs.location.root, "verify", ".")
    assert pairs.commit_record(5)["objects"] == before


def test_a_commit_with_a_field_of_another_type_is_not_written(copy_labels):
    pairs = copy_labels(8)
    content = SimpleNamespace(objects={"latents": b"", "labels": b""}, digests={"latents": "", "labels": ""})
    with pytest.raises(DocumentError, match="shard 0: seconds must be a finite number, got 'abc'"):
        make_record(pairs.plan, 0, content, {"seconds": "abc"})


def plan_document(plan, **changes):
    """A plan with other fields, its digests made to fit as a careful hand makes them."""
    fields = json.loads(plan.to_json())
    del fields["sha256"]
    fields |= changes
    told = [fields.get("identity"), fields.get("num_pairs"), fields.get("format_version")]
    fields["run_id"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return seal({key: value for key, value in fields.items() if value is not ...})


def with_labels(plan, **labels):
    return {**plan.identity, "labels": {**plan.identity["labels"], **labels}}


def measured(plan, **changes):
    record = {"seed": 0, "quantile": 0.99, "confidence": 0.95, "beta_sq": [0.5, 0.1], "thresholds": [0.1, 0.1],
              "num_fresh": 48, "num_over": [0, 0], "largest": 0.0, "tolerance": plan.labels["tolerance"]}  # fmt: skip
    return with_labels(plan, certificate="measured") | {"certificate": {"decode": record | changes}}


PLANS = {
    "num_pairs": (lambda plan: {"num_pairs": "many"}, "num_pairs must be a whole number"),
    "num_pairs beyond": (lambda plan: {"num_pairs": 2**70}, "num_pairs must be a whole number"),
    "half a pair": (lambda plan: {"num_pairs": 10.5}, "num_pairs must be a whole number"),
    "too many shards": (lambda plan: {"num_pairs": 2**40, "shard_rows": 64}, "shards, and a store may have"),
    "shard_rows": (lambda plan: {"shard_rows": 0}, "shard_rows must be a whole number of 1 to"),
    "dim": (lambda plan: {"dim": 2**30}, "dim = 1073741824 of 2 columns"),
    "dim of text": (lambda plan: {"dim": "2"}, "dim must be a whole number"),
    "columns": (lambda plan: {"columns": "ab"}, "columns must be a list, got 'ab'"),
    "column": (lambda plan: {"columns": ["a", 5]}, r"columns\.1 must be a text, got 5"),
    "no columns": (lambda plan: {"columns": ...}, "columns is missing"),
    "source": (lambda plan: {"source": ["a"]}, "source must be a text"),
    "versions": (lambda plan: {"versions": {"numpy": 2}}, r"versions\.numpy must be a text"),
    "identity": (lambda plan: {"identity": []}, "identity must be a table"),
    "no labels": (lambda plan: {"identity": {}}, r"identity\.labels is missing"),
    "labels": (lambda plan: {"identity": {"labels": "all"}}, r"identity\.labels must be a table"),
    "batch_size": (lambda plan: {"identity": with_labels(plan, batch_size=0)}, r"labels\.batch_size must be"),
    "direction": (lambda plan: {"identity": with_labels(plan, direction=["decode"])}, r"labels\.direction must be one"),
    "t_min": (lambda plan: {"identity": {**plan.identity, "blur": {"t_min": float("inf")}}}, r"blur\.t_min must be"),
    "time_grid": (lambda plan: {"identity": {**plan.identity, "time_grid": {"decode": 5}}}, r"time_grid\.decode must"),
    "grid of another direction": (
        lambda plan: {"identity": with_labels(plan, time_grid="fitted") | {"time_grid": {"encode": [0.0, -1.0]}}},
        r"identity\.time_grid is not of the directions",
    ),
    "grids without end": (
        lambda plan: {"identity": {**plan.identity, "time_grid": {"decode": [0.0]}}},
        "is not of the",
    ),
    "certificate of nobody": (lambda plan: {"identity": with_labels(plan, certificate="measured")}, "is not of the"),
    "fewer thresholds": (lambda plan: {"identity": measured(plan, thresholds=[0.1])}, "one threshold of 0 or more for"),
    "thresholds below 0": (lambda plan: {"identity": measured(plan, thresholds=[0.1, -1])}, "one threshold of 0 or mo"),
    "times that rise": (lambda plan: {"identity": measured(plan, beta_sq=[0.1, 0.5])}, "times that do not fall"),
    "tolerance": (lambda plan: {"identity": measured(plan, tolerance=1e300)}, "of another tolerance than its labels"),
    "condition": (lambda plan: {"identity": {**plan.identity, "data": {"condition": 5}}}, r"data\.condition must be"),
    "deep": (lambda plan: {"identity": {**plan.identity, "data": json.loads(HALF_DEEP)}}, "too deep"),
    "unknown key": (lambda plan: {"owner": "me"}, "a key that this version does not know, 'owner'"),
    "frame": (lambda plan: {"frame": 5}, "frame must be a text"),
    "format": (lambda plan: {"format_version": [2]}, r"format \[2\], this version reads format 2"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_hostile_plan_is_an_error_that_names_file_and_field(small_labels, tmp_path, name):
    plan = open_pairs(small_labels(8)).plan
    change, words = PLANS[name]
    for key in ("plan.json", "plan.copy.json"):
        (tmp_path / key).write_bytes(plan_document(plan, **change(plan)))
    with pytest.raises(StoreError, match=rf"plan\.json cannot be used: .*{words}"):
        open_pairs(tmp_path, from_copies=True)


@pytest.mark.parametrize("name", ["deep", "columns"])
def test_commands_say_what_is_wrong_with_a_hostile_plan(copy_labels, name):
    pairs = copy_labels(8)
    for key in ("plan.json", "plan.copy.json"):
        (pairs.location.root / key).write_bytes(plan_document(pairs.plan, **PLANS[name][0](pairs.plan)))
    for command in ("status", "verify", "repair"):
        done = sfg(pairs.location.root, command, ".", check=1)
        assert "plan.json cannot be used" in done.stderr
        assert "Error" not in done.stderr


def test_labels_that_no_job_could_ask_for_are_refused_before_a_repair(copy_labels):
    pairs = copy_labels(8)
    content = plan_document(pairs.plan, identity=with_labels(pairs.plan, tolerance=-1.0))
    for key in ("plan.json", "plan.copy.json"):
        (pairs.location.root / key).write_bytes(content)
    with pytest.raises(ConfigError, match=r"labels\.tolerance must be"):
        job_beside(open_pairs(pairs.location.root))


@pytest.mark.parametrize("value", numbered([DEEP, b"{}", b"[]", seal({"num_pairs": "2000", "before": "", "run_id": ""}),
                                   seal({"num_pairs": 2**61, "before": "", "run_id": ""})]))  # fmt: skip
def test_a_hostile_extension_is_an_error(copy_labels, value):
    pairs = copy_labels(8)
    (pairs.location.root / "plan-0001.json").write_bytes(value)
    done = sfg(pairs.location.root, "status", ".", check=1)
    assert "plan-0001.json cannot be used" in done.stderr
    assert "Error" not in done.stderr


MANIFESTS = {
    "deep": (b"[" * 100_000, "too deep"),
    "table": (b'{"key": "a"}', "must be a list"),
    "entry": (b"[5]", "0 must be a table"),
    "no digest": (b'[{"key": "a", "bytes": 1}]', r"0\.sha256 is missing"),
    "bytes": (b'[{"key": "a", "bytes": "1", "sha256": ""}]', r"0\.bytes must be a whole number"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_a_finding(copy_labels, name):
    pairs = copy_labels(8)
    content, words = MANIFESTS[name]
    (pairs.location.root / "frame.json").write_bytes(content)
    for key in ("plan.json", "plan.copy.json"):
        (pairs.location.root / key).write_bytes(plan_document(pairs.plan, frame=hashlib.sha256(content).hexdigest()))
    done = sfg(pairs.location.root, "verify", ".", check=1)
    assert "damaged_frame: frame.json" in done.stdout
    with pytest.raises(StoreError, match=words):
        open_pairs(pairs.location.root).check_frame()


# Sizes.


def test_what_a_plan_declares_takes_no_memory(copy_labels):
    pairs = copy_labels(8)
    for key in ("plan.json", "plan.copy.json"):
        (pairs.location.root / key).write_bytes(plan_document(pairs.plan, num_pairs=2**31, shard_rows=64))
    tracemalloc.start()
    begun = time.process_time()
    for command in ("status", "verify", "repair"):
        sfg(pairs.location.root, command, ".", check=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.process_time() - begun < 5


def test_an_object_takes_memory_for_the_rows_of_its_shard_alone():
    """Its chunks are the first ones of an object that could hold a hundred times as many."""
    plan = Plan({"labels": {"batch_size": 1}}, 100, 1, 1 << 26, ("a",), "", {})
    layout = shard_layout(plan)
    rows = np.arange(layout.chunk_rows, dtype="<f4")[:, None]
    content = layout.encode(rows)
    tracemalloc.start()
    assert stored_digest(plan, 0, content) == row_digest(rows[:100])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_an_array_that_says_to_be_larger_than_its_objects_is_refused(copy_labels):
    pairs = copy_labels(8)
    for name in ("reference/rows", "transform/scale"):
        path = pairs.location.root / name / "zarr.json"
        document = json.loads(path.read_text())
        document["shape"][0] = 2**45
        path.write_text(json.dumps(document))
    (pairs.location.root / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(StoreError, match=r"reference/rows declares .*, and .* are stored"):
        _ = pairs.num_reference
    with pytest.raises(StoreError, match=r"transform/scale declares .*, and .* are stored"):
        _ = pairs.transform


def test_only_the_beginning_of_a_long_object_is_read(tmp_path):
    (tmp_path / "long").write_bytes(b"0123456789")
    location = Location(tmp_path)
    assert location.read("long", 10) == b"0123456789"
    assert location.read("long", 4) == b"01234"
    assert dict(location.read_many(["long", "none"], 2)) == {"long": b"012", "none": None}


# What others leave beside.

SNAPSHOT = {"driver": "a", "host": "b", "started": 1.0, "updated": 2.0, "is_running": True, "total": 1, "done": 0,
            "todo": 1, "workers": [], "failures": [], "num_failures": {}}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    numbered(
        [
            DEEP,
            HALF_DEEP,
            json.dumps(SNAPSHOT | {"updated": 1e300}).encode(),
            json.dumps(SNAPSHOT | {"total": 10**30}).encode(),
            json.dumps(SNAPSHOT | {"driver": "\ud800"}).encode(),
            json.dumps(SNAPSHOT | {"workers": [{"worker": "a", "rows": float("inf")}]}).encode(),
            json.dumps(SNAPSHOT)[:-1].encode() + b', "total": 2}',
        ]
    ),
)
def test_a_hostile_snapshot_is_passed_over(content, copy_labels):
    assert driver_of(json.dumps(SNAPSHOT).encode(), 3.0) is not None
    assert driver_of(content, 3.0) is None
    pairs = copy_labels(3)
    pairs.location.write("drivers/a.json", content)
    for words in ((), ("--json",), ("--prometheus",)):
        sfg(pairs.location.root, "status", ".", *words)


@pytest.mark.parametrize(
    "line",
    numbered(
        [
            "[]",
            "5",
            '"event"',
            "{}",
            '{"event": "epoch"}',
            '{"event": "epoch", "time": "noon"}',
            '{"event": "epoch", "time": NaN}',
            '{"event": ["stage_started"], "time": 1}',
            '{"event": "stage_started", "time": 5.0}',
            '{"event": "stage_started", "time": 5.0, "stage": ["label"], "fresh": true}',
            '{"event": "stage_started", "time": 5.0, "stage": "label", "fresh": 1}',
            '{"event": "epoch", "time": ' + "[" * 100_000,
            '{"event": "epoch", "time": 1, "time": 2}',
            '{"event": "epoch", "time": ' + "9" * 5000 + "}",
        ]
    ),
)
def test_a_bad_line_of_a_log_is_passed_over(line):
    good = [
        '{"event": "stage_started", "stage": "label", "fresh": true, "time": 1.0}',
        '{"event": "stage_finished", "time": 3.5}',
    ]
    assert stage_times("\n".join([good[0], line, good[1], line])) == {"label": 2.5}


def test_attributes_and_records_beside_tables(tmp_path):
    location = Location(tmp_path)
    for content in (DEEP, b"[]", b'{"attributes": 5}', b'{"attributes": {"a": 1, "a": 2}}'):
        location.write("zarr.json", content)
        assert attributes_of(location) == {}


@pytest.mark.parametrize(
    "content",
    numbered(
        [
            DEEP,
            b"[]",
            b"{}",
            b'{"keys": {}, "found": []}',
            b'{"keys": {}, "found": {}, "tables": 5}',
            b'{"keys": {}, "found": {"nsf": {}}}',
            b'{"keys": {}, "found": {"nsf": 5}}',
        ]
    ),
)
def test_a_hostile_record_of_a_comparison_is_made_again(tmp_path, content):
    location = Location(tmp_path)
    location.write("compare/cells/nsf_0.json", content)
    records = Records(location, "compare", RECORD_FIELDS)
    assert records.load("cells/nsf_0", {}, lambda document: kept_cells(location, "cells/nsf_0", document)) is None


ENTRY = dict.fromkeys(
    ("wall_s", "wall_s_low", "wall_s_high", "rows_per_s", "efficiency", "efficiency_low", "efficiency_high"), 1.0
)
ENTRY |= {"num_workers": 1, "num_runs": 1, "rows": 8.0, "mode": "strong", "parts_s": {}}
STUDY = {"summary": {"label": [ENTRY]}, "runs": [], "job": "[data]\nsource = 'a'\n", "facts": {}}


@pytest.mark.parametrize(
    "change",
    numbered(
        [
            {"summary": []},
            {"summary": {"label": {}}},
            {"summary": {"label": [5]}},
            {"summary": {"label": [{**ENTRY, "rows": "8"}]}},
            {"runs": 5},
            {"runs": [{"stage": "label"}]},
            {"job": {}},
            {"job": "[data"},
            {"job": "a." * 20_000 + "b = 1"},
            {"facts": [1]},
        ]
    ),
)
def test_a_hostile_study_is_an_error(tmp_path, change):
    (tmp_path / "scale.json").write_text(json.dumps(STUDY | change))
    with pytest.raises(ConfigError, match=r"scale\.json is no scaling study: it"):
        read_study(tmp_path)
    (tmp_path / "scale.json").write_bytes(DEEP)
    with pytest.raises(ConfigError, match=r"scale\.json is no scaling study: it .*too deep"):
        read_study(tmp_path)


def test_a_study_with_times_of_nothing_is_not_divided_by(tmp_path):
    for name, change in (("a", {}), ("b", {"wall_s_low": 0.0, "rows": 0.0})):
        (tmp_path / f"{name}.json").write_text(json.dumps(STUDY | {"summary": {"label": [ENTRY | change]}}))
    for pair in (("a", "b"), ("b", "a")):
        with pytest.raises(ConfigError, match="in common"):
            compare_studies(*(tmp_path / f"{name}.json" for name in pair))
    run = {"stage": "label", "mode": "strong", "num_workers": 1, "wall_s": 1.0}

    def costs_with(**changed):
        return costs_of(from_json(StudyDocument, STUDY | {"runs": [run | changed]}, "it"))

    with pytest.raises(ConfigError, match=r"label runs of the study: parts_s\.start is missing"):
        costs_with()
    parts = dict.fromkeys(("start", "load", "write", "end"), 1.0)
    run |= {"parts_s": parts, "warm_up_s": 1.0, "num_shards": 2, "driver_s": 0.1}
    with pytest.raises(ConfigError, match="workers and shards must be 1 to"):
        costs_with(num_shards=0)
    for shard_s in ([], [1e300], [-1.0]):
        with pytest.raises(ConfigError, match="times must lie within 0 and"):
            costs_with(shard_s=shard_s)


def test_hostile_submissions_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    good = Submission("id", "slurm", "name", str(tmp_path / "good"), ["out"])
    good.save()
    from sfg_dist.launch.submission import registry, remember

    remember(good)
    with registry().open("ab") as file:
        for number, content in enumerate((DEEP, b"[]", b'{"id": 5}', b'{"id": "a", "id": "b"}')):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "submission.json").write_bytes(content)
            file.write(json.dumps({"folder": str(folder)}).encode() + b"\n")
        file.write(DEEP + b'\n[]\n{"folder": 5}\n\xff\n')
    assert [one.id for one in known()] == ["id"]
    attempts = good.path / "attempts"
    attempts.mkdir()
    (attempts / "1.jsonl").write_bytes(DEEP + b'\n[]\n5\n{"time": "noon"}\n{"time": 2.0}\n\xff\n{"time": 1}\n{}\n')
    assert good.attempts() == [Attempt(), Attempt(time=1), Attempt(time=2.0)]
    for state in (DEEP, b"[]", b'{"lines": 3}', b'{"lines": "3", "state": "ended"}'):
        (good.path / "state.json").write_bytes(state)
        assert good.final_state() is None


# Checkpoints' metadata.


@pytest.mark.parametrize("content", numbered([DEEP, b"[]", b'{"step": "1"}', b"\xff", b'{"step": 1, "step": 1}']))
def test_hostile_words_of_checkpoints(tmp_path, content):
    settings = TrainConfig(num_epochs=1)
    (tmp_path / "step_000000001").mkdir()
    (tmp_path / "step_000000001" / "progress.json").write_bytes(content)
    for name in ("fit.json", "fitted.json", "live.json", "hold.json"):
        (tmp_path / name).write_bytes(content)
    checkpoints = Checkpoints(tmp_path, settings, "run")
    assert not checkpoints.is_ours
    assert not checkpoints.is_finished
    assert Journal(tmp_path).read_live() is None
    with pytest.raises(TrainingError, match=r"fit\.json cannot be used: fit\.json"):
        checkpoints.go_back_to("1")
    with pytest.raises(TrainingError, match=r"hold\.json cannot be read|another run"):
        Hold(tmp_path, "attempt")
    (tmp_path / "fit.json").write_text(json.dumps({"settings": identity_of(settings), "pairs": "run"}))
    assert checkpoints.is_ours
    assert not checkpoints.is_finished


def test_a_bad_line_of_the_history_is_passed_over(tmp_path):
    entry = {"epoch": 1, "step": 2, "learning_rate": 0.1, "rows_per_s": 5.0, "elapsed_s": 1.0,
             "train_loss": float("nan"), "validation_loss": 0.5}  # fmt: skip
    bad = [DEEP, b"[]", b"{}", json.dumps(entry | {"step": "a"}).encode(), b"\xff"]
    lines = b"\n".join([*bad, json.dumps(entry).encode(), b""])
    (tmp_path / "history.jsonl").write_bytes(lines)
    found = []
    assert Journal(tmp_path).follow_epochs(0, found.append) == len(lines)
    assert [each["step"] for each in found] == [2]


# Job files.


@pytest.mark.parametrize(
    "text",
    numbered(
        [
            ".".join(["a"] * 20_000) + " = 1",
            "[" + ".".join(["a"] * 20_000) + "]",
            "x = {" + ".".join(['"a"'] * 20_000) + " = 1}",
            "x = " + "[" * 100_000,
            "x = " + "9" * 5000,
            "x = 1\nx = 2",
            'x = "\\ud800"',
        ]
    ),
)
def test_a_hostile_job_file_is_an_error_at_once(text):
    begun = time.process_time()
    with pytest.raises(ConfigError, match="the job is not valid TOML"):
        parse_document(text, "the job")
    assert time.process_time() - begun < 1
    with pytest.raises(ConfigError):
        parse_job(text, origin="the job")


def test_names_with_many_points_are_no_deep_keys():
    text = 'source = "' + "1." * 100 + '"\n' + "\n".join(f"a{number}.b.c = 1" for number in range(100))
    assert parse_document(text, "the job")["source"] == "1." * 100


def test_a_job_file_beside_a_store_is_bounded(copy_labels):
    pairs = copy_labels(8)
    job = pairs.location.root.parent / "job.toml"
    for content in (b"#" * (5 << 20), b"\xff", b"x = " + b"[" * 100_000):
        job.write_bytes(content)
        done = sfg(pairs.location.root, "repair", ".", check=2)
        assert "job.toml is" in done.stderr


# Words of a transform.

TRANSFORM = Transform.fit(np.random.default_rng(0).random((50, 2)), ["a", "b"], kind="standardize")


@pytest.mark.parametrize(
    "change",
    numbered(
        [
            {"kind": ["quantile"]},
            {"kind": "other"},
            {"columns": "ab"},
            {"columns": ["a", 5]},
            {"types": 5},
            {"types": [5, 5]},
            {"types": [{"kind": "decimal", "dtype": "float64", "places": 10**9}] * 2},
            {"types": [{"kind": "decimal", "dtype": "decimal128(99, 2)", "places": 2}] * 2},
            {"types": [{"kind": "integer", "dtype": "float64"}] * 2},
            {"types": [{"kind": "integer", "dtype": "int64", "offset": 10**50}] * 2},
            {"types": [{"kind": "timestamp", "dtype": "timestamp[us]"}] * 2},
            {"types": [{"kind": "timestamp", "dtype": "timestamp[us]", "unit": "years"}] * 2},
            {"types": [{"kind": "float", "dtype": "float64", "zone": 5}] * 2},
            {"types": [{"kind": "float", "dtype": "string"}] * 2},
            {"types": [{"owner": "me"}] * 2},
        ]
    ),
)
def test_hostile_words_of_a_transform_are_an_error(change):
    with pytest.raises(DataError, match="the saved transform is damaged"):
        Transform.from_arrays(TRANSFORM.to_arrays(), TRANSFORM.to_metadata() | change)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", 0.0), ("scale", np.nan), ("location", np.inf), ("steps", -1.0), ("offsets", np.nan),
     ("cell_ranges", np.nan), ("constants", np.inf), ("bounds", np.nan), ("origins", np.inf)],
)  # fmt: skip
def test_hostile_arrays_of_a_transform_are_an_error(name, value):
    arrays = {key: array.copy() for key, array in TRANSFORM.to_arrays().items()}
    arrays[name].reshape(-1)[0] = value
    with pytest.raises(DataError, match="the saved transform is damaged"):
        Transform.from_arrays(arrays, TRANSFORM.to_metadata())
    for wrong in (np.zeros(3), np.array(["a", "b"]), np.zeros((2, 2, 2))):
        with pytest.raises(DataError, match="the saved transform is damaged"):
            Transform.from_arrays(TRANSFORM.to_arrays() | {name: wrong}, TRANSFORM.to_metadata())


def test_types_that_there_are_come_back():
    for words in ({"kind": "decimal", "dtype": "decimal128(10, -2)", "places": -2},
                  {"kind": "timestamp", "dtype": "timestamp[us, tz=Asia/Tokyo]", "unit": "us", "zone": "Asia/Tokyo"},
                  {"kind": "date", "dtype": "date32[day]", "unit": "D", "offset": -5},
                  {"kind": "time", "dtype": "time64[ns]", "unit": "ns"}):  # fmt: skip
        assert ColumnType.from_dict(words).to_dict() == words


def test_metadata_of_a_stored_transform(copy_labels):
    pairs = copy_labels(8)
    path = pairs.location.root / "transform" / "zarr.json"
    document = json.loads(path.read_text())
    for metadata in ("[" * 100_000, "[]", '{"kind": NaN}'):
        document["attributes"]["metadata"] = metadata
        path.write_text(json.dumps(document))
        with pytest.raises(SfgError, match="metadata"):
            Transform.from_arrays(*open_pairs(pairs.location.root).transform)


def test_a_record_is_parsed_as_it_was_made(copy_labels):
    """Nothing that this package writes is refused."""
    pairs = copy_labels(8)
    for shard in range(8):
        content = pairs.location.read(f"commits/{shard:08d}.json")
        assert parse_record(pairs.plan, shard, content) == unseal(content)
