"""Any document through its reader, and any file of a store through its commands: errors in words, or findings.

A document is made from a whole one by cutting it, by turning bits, by putting another value in the place of one of its
values, with a seal that fits where it has one; or it is any value at all.
"""

from __future__ import annotations

import json
import re
import time
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import sfg
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import patience
from safetensors.torch import load, save

from sfg_dist.data import Transform
from sfg_dist.data.column_type import ColumnType
from sfg_dist.distributed.fit.checkpoints import load_fitted, save_fitted
from sfg_dist.distributed.fit.journal import Journal
from sfg_dist.job.config import Job, load_job, resolve_job
from sfg_dist.job.errors import SfgError
from sfg_dist.job.plan import Plan, seal, unseal
from sfg_dist.job.reader import read_json
from sfg_dist.job.toml_documents import checked
from sfg_dist.launch.profile import load_profile
from sfg_dist.launch.submission import Submission, known, registry, remember
from sfg_dist.model.early_stopping import EarlyStopping
from sfg_dist.model.generator import Generator
from sfg_dist.model.mlp import MLP
from sfg_dist.model.trainer import Progress, read_progress
from sfg_dist.store import Location, open_pairs
from sfg_dist.store.commits import read_record
from sfg_dist.store.event_log import stage_times
from sfg_dist.store.manifest import read_manifest
from sfg_dist.store.snapshot import driver_of
from sfg_dist.store.status import StatusReader
from sfg_dist.studies.scale.document import compare_studies

MAX_S = patience(5.0)  # of a processor, for one document
ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 10**39, 10**60, 0.5, -0.0, 1e-300, 1e308, float("nan"),
    float("inf"), "", "a", "0", "\ud800", "\x1b[31m", "a" * 300, "../..", [], [[]], [0] * 40, {}, {"": None},
    {"a": {"a": {}}},
]  # fmt: skip
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


LIBRARY = re.compile(r"Traceback|[A-Z][a-z]+Error\b|object has no attribute|__init__")
CHANGES = {
    "shorter": lambda tensor: tensor[:-1] if tensor.ndim else tensor[None],
    "flat": lambda tensor: tensor.reshape(-1)[:1],
    "wider": lambda tensor: tensor[None].expand(3, *tensor.shape),
    "not finite": lambda tensor: tensor * float("nan"),
    "the other way round": lambda tensor: tensor.flip(0) if tensor.ndim else tensor,
    "whole": torch.Tensor.long,
    "half": torch.Tensor.bfloat16,
    "double": torch.Tensor.double,
    "true or false": torch.Tensor.bool,
}


def places(value, path=()):
    """Where a document has a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def put(document, path, value):
    """The document with another value in a place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


@st.composite
def damaged(draw, content, *, is_json=True, is_sealed=False):
    """A document that may be anything, most often nearly the one given."""
    kind = draw(st.sampled_from(["cut", "turned", "joined", *(["swapped"] * 4 + ["any"] if is_json else [])]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "turned":
        changed = bytearray(content)
        for place in draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
            changed[place // 8] ^= 1 << place % 8
        return bytes(changed)
    if kind == "joined":
        place, other = draw(st.integers(0, len(content))), draw(st.binary(max_size=12))
        return content[:place] + other + content[place:]
    if kind == "any":
        return json.dumps(draw(VALUES)).encode()
    document = unseal(content) if is_sealed else json.loads(content)
    spots = list(places(document))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(spots))
        try:
            document = put(document, path, draw(VALUES))
        except (KeyError, IndexError, TypeError):  # the first value took the place of the second
            continue
    return seal(document) if is_sealed and isinstance(document, dict) else json.dumps(document).encode()


RUN = {
    "stage": "label", "mode": "strong", "num_workers": 1, "repeat": 0, "wall_s": 1.0, "rows": 8, "shard_s": [1.0],
    "parts_s": {"start": 1.0, "load": 1.0, "write": 1.0}, "warm_up_s": 1.0, "num_shards": 2, "driver_s": 0.1,
}  # fmt: skip
TIMES = {
    "num_workers": 1, "num_runs": 1, "rows": 8.0, "wall_s": 1.0, "wall_s_low": 1.0, "wall_s_high": 1.0,
    "rows_per_s": 8.0, "efficiency": 1.0, "efficiency_low": 1.0, "efficiency_high": 1.0, "mode": "strong",
    "parts_s": {"start": 1.0},
}  # fmt: skip
STUDY = {"summary": {"label": [TIMES]}, "runs": [RUN], "job": "[data]\nsource = 'a'\n", "facts": {"cpu": "x"}}
WORKER = {"worker": "w", "shard": 0, "attempt": 1, "since": 1.0, "done": 1, "rows": 8, "seconds": 1.0}
SNAPSHOT = {
    "driver": "a", "host": "b", "pid": 1, "started": 1.0, "updated": 2.0, "is_running": True, "total": 1, "done": 0,
    "todo": 1, "rows_per_s": 1.0, "num_failures": {"retry": 1}, "workers": [WORKER],
    "failures": [{"shard": 0, "attempt": 1, "action": "give_up", "reason": "x"}],
}  # fmt: skip
ENTRY = {
    "epoch": 1, "step": 2, "train_loss": 0.5, "validation_loss": 0.5, "learning_rate": 0.1, "rows_per_s": 1.0,
    "elapsed_s": 1.0,
}  # fmt: skip
JOB = b"""[data]
source = "a.csv"
columns = ["a", "b"]
[labels]
num_pairs = 20_000
[data.bounds]
a = [0, inf]
"""
PROFILE = b"""[slurm]
nodes = 2
partition = "a"
[setup]
commands = ["a"]
"""
PLAIN = {
    "snapshot": SNAPSHOT,
    "event": {"event": "stage_started", "stage": "label", "fresh": True, "time": 1.0},
    "type": {"kind": "decimal", "dtype": "decimal128(10, 2)", "places": 2, "offset": 5},
    "progress": {"epoch": 1, "step_in_epoch": 1, "step": 2, "elapsed_s": 1.0, "ahead_steps": 0, "history": [ENTRY]},
    "live": ENTRY | {"step_in_epoch": 1, "num_batches": 2, "done": 0.1, "num_workers": 1},
    "history": ENTRY,
    "best": {"epoch": 3, "loss": 0.5},
    "study": STUDY,
}
SEALED, TEXTS = ("plan", "commit"), ("tensors", "job", "profile")


class Readers:
    """Whole documents by name, and what reads them."""

    def __init__(self, folder, run):
        self.folder, self.location = folder, Location(folder, create=True)
        pairs = open_pairs(run)
        self.plan, root = pairs.plan, pairs.location.root
        rows = np.random.default_rng(0).standard_normal((60, 2))
        self.transform = Transform.fit(rows, ["a", "b"], kind="quantile")
        Generator(MLP(2, width=4, depth=1), self.transform, None, {"train": {}}, {}).save(folder / "model")
        save_fitted(MLP(2, width=4, depth=1), folder / "fit", Progress(history=[{"epoch": 1, "train_loss": 0.5}]))
        submission = Submission("id", "slurm", "name", str(folder), ["out"], ["5"], "2026", {"a": "b"})
        submission.save()
        remember(submission)
        self.best = save(MLP(1, width=1, depth=1).state_dict())
        tables = resolve_job({"data": {"source": "moons"}}).model_dump(exclude_none=True)
        plain = {**PLAIN, "transform": self.transform.to_metadata(), "job tables": tables}
        self.whole = {name: json.dumps(document).encode() for name, document in plain.items()} | {
            "plan": self.plan.to_json(),
            "commit": (root / "commits" / "00000000.json").read_bytes(),
            "manifest": (root / "frame.json").read_bytes(),
            "model": (folder / "model" / "generator.json").read_bytes(),
            "tensors": (folder / "model" / "model.safetensors").read_bytes(),
            "fitted": (folder / "fit" / "fitted.json").read_bytes(),
            "submission": (folder / "submission.json").read_bytes(),
            "job": JOB,
            "profile": PROFILE,
        }
        self.readers = {
            "plan": Plan.from_json,
            "commit": lambda content: read_record(self.plan, 0, content),
            "manifest": self.manifest,
            "snapshot": lambda content: driver_of(content, 5.0),
            "event": lambda content: stage_times("\n".join([content.decode(errors="replace")] * 2)),
            "model": lambda content: self.generator(content, self.whole["tensors"]),
            "tensors": lambda content: self.generator(self.whole["model"], content),
            "transform": lambda content: Transform.from_arrays(self.transform.to_arrays(), parse_json(content)),
            "type": lambda content: ColumnType.from_dict(parse_json(content)).from_float(np.array([0.0, 1.0])),
            "progress": read_progress,
            "fitted": lambda content: load_fitted(self.written("fit/fitted.json", content)),
            "live": lambda content: Journal(self.written("fit/live.json", content)).read_live(),
            "history": self.history,
            "best": self.best_weights,
            "study": lambda content: compare_studies(*[self.written("scale.json", content) / "scale.json"] * 2),
            "submission": lambda content: self.written("submission.json", content) and list(known()),
            "job": lambda content: load_job(self.written("job.toml", content) / "job.toml"),
            "job tables": lambda content: checked(Job, parse_json(content), "the job"),
            "profile": lambda content: load_profile(self.written("profile.toml", content) / "profile.toml"),
        }

    def written(self, name, content):
        """The folder of a file that now has this content."""
        path = self.folder / name
        path.write_bytes(content)
        return path.parent

    def history(self, content):
        Journal(self.written("fit/history.jsonl", content + b"\n")).follow_epochs(0, dict)

    def manifest(self, content):
        self.written("frame.json", content)
        read_manifest(self.location, SimpleNamespace(frame=sha256(content).hexdigest()))

    def generator(self, document, tensors):
        self.written("model/generator.json", document)
        Generator.load(self.written("model/model.safetensors", tensors)).sample(3)

    def best_weights(self, content):
        weights = load(self.best)
        EarlyStopping(3).load_files({"best.json": content, "best.safetensors": self.best}, weights)


def parse_json(content):
    return read_json(content, "it", allow_nan=True)


def in_words(call, *values):
    """Call it; an error is one on purpose, in words."""
    begun = time.process_time()
    said = ""
    try:
        call(*values)
    except SfgError as error:
        said = str(error)
    assert not LIBRARY.search(said)
    assert time.process_time() - begun < MAX_S


NAMES = (*SEALED, *TEXTS, *PLAIN, "manifest", "model", "transform", "fitted", "submission", "job tables")


@pytest.fixture(scope="module")
def readers(small_labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        assert registry().is_relative_to(folder)
        yield Readers(folder, small_labels(8))


@pytest.mark.parametrize("name", NAMES)
def test_whole_documents_are_read(readers, name):
    readers.readers[name](readers.whole[name])


@given(data=st.data(), name=st.sampled_from(NAMES))
@settings(max_examples=examples(2000), suppress_health_check=list(HealthCheck))
def test_any_document_is_an_error_in_words(readers, data, name):
    content = data.draw(damaged(readers.whole[name], is_json=name not in TEXTS, is_sealed=name in SEALED))
    in_words(readers.readers[name], content)


@given(data=st.data())
@settings(max_examples=examples(150), suppress_health_check=list(HealthCheck))
def test_any_tensors_of_a_model_are_an_error_in_words(readers, data):
    """Other shapes, types and numbers, in a file that is whole."""
    tensors = load(readers.whole["tensors"])
    name, change = data.draw(st.sampled_from(sorted(tensors))), data.draw(st.sampled_from(sorted(CHANGES)))
    tensors[name] = CHANGES[change](tensors[name]).contiguous()
    in_words(readers.readers["tensors"], save(tensors))


@pytest.fixture(scope="module")
def store(small_labels, tmp_path_factory):
    """A copy of a whole store, of which a test changes one file and puts it back."""
    from conftest import copy_run

    return open_pairs(copy_run(small_labels(8), tmp_path_factory.mktemp("fuzzed") / "run"))


FILES = ("plan.json", "plan.copy.json", "frame.json", "commits/00000003.json", "zarr.json", "transform/zarr.json",
         "reference/rows/zarr.json", "drivers/a.json", "plan-0001.json", "../job.toml")  # fmt: skip


COMMANDS = (("status",), ("status", "--prometheus"), ("verify",), ("repair", "--dry-run"))


@pytest.mark.slow
@given(data=st.data(), key=st.sampled_from(FILES))
@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
def test_any_file_of_a_store_is_a_finding_or_an_error_in_words(store, data, key):
    path = store.location.root / key
    before = path.read_bytes() if path.exists() else None
    whole = before or b'{"driver": "a", "updated": 1.0, "is_running": true}'
    is_sealed = key.startswith(("plan", "commits")) and before is not None
    content = data.draw(damaged(whole, is_json=not key.endswith("toml"), is_sealed=is_sealed))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    try:
        begun = time.process_time()
        command = data.draw(
            st.sampled_from([("status",), ("status", "--prometheus"), ("verify",), ("repair", "--dry-run")])
        )
        done = sfg(store.location.root, command[0], ".", *command[1:], check=None)
        assert done.returncode in (0, 1, 2)
        assert not LIBRARY.search(done.stderr)
        assert time.process_time() - begun < MAX_S
    finally:
        path.unlink() if before is None else path.write_bytes(before)
    assert StatusReader(store).read(0.0).is_complete
