"""References larger than memory: the bits of those in memory, within the budget, one copy a node."""

import fcntl
import importlib.metadata
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from examples import a_third
from patience import patience

from sfg_dist.distributed.labels import references, shared_blocks
from sfg_dist.distributed.labels.labeler import ShardLabeler, label_error
from sfg_dist.flow import Reference, block_ranges, label_latents
from sfg_dist.job.errors import LabelingError, StoreError
from sfg_dist.job.words import GIB
from sfg_dist.store import open_pairs, read_rows

TABLE = {"source": "moons", "max_rows": 6000}  # 4800 of them for training: enough for clusters
LABELS = {"num_pairs": 192, "shard_rows": 64, "batch_size": 64, "num_evaluations": 20, "t_min": 1e-3}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    """Blocks of 1500 rows, files of them in a directory of the test."""
    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", 1500)
    shared, temporary = tmp_path / "shared", tmp_path / "temporary"
    shared.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(shared_blocks, "SHARED_MEMORY", shared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return shared, temporary


@pytest.fixture
def tight(monkeypatch):
    """A budget, in GiB, that holds one block and no more."""
    monkeypatch.setattr(references, "base_bytes", lambda dim, has_clusters: 0)

    def make(pairs):
        stored = references.StoredReference(pairs)
        size = (stored.num_reference, stored.dim)
        return (references.reference_memory(*size, has_clusters=stored.has_clusters).streamed + 1) / GIB

    return make


def digests(pairs):
    return [pairs.commit_record(shard)["objects"] for shard in range(pairs.plan.num_shards)]


def label_all(pairs, **keywords):
    labeler = ShardLabeler(pairs.location.url, **keywords)
    return labeler, [labeler.label(shard) for shard in range(pairs.plan.num_shards)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("has_room", "keys"),
    a_third(
        itertools.product(
            [True, False],
            [
                {},
                {"direction": "both"},
                {"tolerance": 0.0},
                {"estimator": "minibatch", "num_reference": 100, "direction": "encode"},
                {"solver_tolerance": 1e-2},
            ],
        )
    ),
)
def test_streamed_labels_have_the_bits_of_those_in_memory(make_store, tight, monkeypatch, keys, has_room, small_blocks):
    labels = LABELS | keys
    resident, streamed = make_store("resident", data=TABLE, labels=labels), make_store("s", data=TABLE, labels=labels)
    labeler, records = label_all(resident)
    assert labeler.reference.num_blocks == 4
    assert all(record["blocks_streamed"] == 0 for record in records)
    if not has_room:
        monkeypatch.setattr(shared_blocks, "free_bytes", lambda directory: 0)
    labeler, records = label_all(streamed, memory_gib=tight(streamed))
    assert bool(list(small_blocks[1].rglob("*.blocks"))) == has_room
    assert all(record["blocks_streamed"] > 0 for record in records)
    assert all(record["tolerance_reached"] <= labels.get("tolerance", 1e-3) for record in records)
    assert digests(resident) == digests(streamed)
    labeler.close()
    assert not list(small_blocks[1].rglob("*.blocks"))


@pytest.mark.slow
def test_a_shared_file_gives_the_same_bits_and_goes_with_its_last_user(make_store, monkeypatch, small_blocks):
    alone, shared = make_store("alone", data=TABLE, labels=LABELS), make_store("shared", data=TABLE, labels=LABELS)
    label_all(alone)
    monkeypatch.setattr(references, "SHARED_BYTES", 0)
    first, second = ShardLabeler(shared.location.url), ShardLabeler(shared.location.url)
    (path,) = small_blocks[0].rglob("*.blocks")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for shard in range(shared.plan.num_shards):
        (first, second)[shard % 2].label(shard)
    assert digests(alone) == digests(shared)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


@pytest.fixture
def loads(monkeypatch):
    """Numbers of the blocks that were read from a store, in order."""
    numbers, read = [], references.StoredReference.block

    def block(self, number, *arguments):
        numbers.append(number)
        return read(self, number, *arguments)

    monkeypatch.setattr(references.StoredReference, "block", block)
    return numbers


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("num_evaluations", "direction"), a_third(itertools.product([6, 20], ["decode", "encode"])))
def test_the_measured_error_is_that_of_the_labels(make_store, monkeypatch, loads, direction, num_evaluations):
    """Whether all blocks fit in memory, some, or none: then they are read anew, but not often."""
    pairs = make_store(data=TABLE, labels=LABELS | {"direction": direction, "num_evaluations": num_evaluations})
    label_all(pairs)
    start, end = ("latents", "labels") if direction == "decode" else ("labels", "latents")
    given, made = (read_rows(getattr(pairs, name), 0, 64).astype(np.float64) for name in (start, end))
    exact = label_latents(
        given, Reference(pairs.reference, dtype=torch.float64, sigma_data=1.0), direction=direction, solver="rk4",
        num_evaluations=384, t_min=1e-3, batch_size=64, tolerance=0.0,
    )  # fmt: skip
    true = np.linalg.norm(made - exact, axis=1)
    for num_kept in (4, 2, 0):
        monkeypatch.setattr(references.StoredReference, "num_fitting", lambda *_, kept=num_kept: kept)
        loads.clear()
        error = label_error(pairs)
        assert error["num_rows"] == 64
        assert error["median"] == pytest.approx(np.median(true), rel=0.1)
        assert error["percentile_90"] == pytest.approx(np.quantile(true, 0.9), rel=0.1)
        assert len(loads) <= num_kept + (4 - num_kept) * 48
        assert all(loads.count(number) == 1 for number in range(num_kept))


@pytest.mark.slow
def test_a_planted_error_is_measured(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    label_all(pairs)
    pairs.group["labels"][:64] += np.float32([0.3, 0.4])
    assert label_error(pairs)["median"] == pytest.approx(0.5, abs=5e-3)


@pytest.mark.slow
def test_as_many_blocks_are_kept_as_fit(make_store, monkeypatch):
    stored = references.StoredReference(make_store(data=TABLE, labels=LABELS))
    block = 1500 * 3 * 8
    reading = block + references.WORK_BYTES + 1.25 * 1500 * 3 * 4

    monkeypatch.setattr(references, "resident_memory", lambda: 100 << 20)
    for num_kept in (0, 1, 2):
        budget = ((100 << 20) + reading + num_kept * block + 10) / GIB
        assert stored.num_fitting(budget, torch.float64) == num_kept
    assert stored.num_fitting(((100 << 20) + reading + 3 * block + 10) / GIB, torch.float64) == 4
    assert stored.num_fitting(1e-3, torch.float64) == 0
    assert stored.num_fitting(None, torch.float64) == 4


@pytest.mark.slow
def test_a_shard_that_is_done_is_not_done_again(make_store, monkeypatch):
    pairs = make_store(data=TABLE, labels=LABELS)
    labeler = ShardLabeler(pairs.location.url)
    record = labeler.label(1)
    monkeypatch.setattr(labeler, "_integrate", lambda *arguments: pytest.fail("integrated again"))
    assert labeler.label(1, attempt=2) == record
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["memory_peak"] > 10**8


@pytest.mark.slow
def test_a_budget_below_one_block_is_refused_with_what_would_do(make_store, monkeypatch):
    pairs = make_store(data=TABLE, labels=LABELS)
    monkeypatch.setattr(references, "base_bytes", lambda dim, has_clusters: GIB)
    with pytest.raises(LabelingError, match=r"memory_gib = 0.5 cannot hold one block.*needs 1\.06 GiB"):
        ShardLabeler(pairs.location.url, memory_gib=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["rows", "order"])
def test_a_damaged_reference_is_refused(make_store, place):
    pairs = make_store(data=TABLE, labels=LABELS)
    pairs.group[f"reference/{place}"][4000:4002] = 5
    with pytest.raises(StoreError, match="changed or damaged"):
        ShardLabeler(pairs.location.url)


@pytest.mark.slow
def test_rows_of_the_store_are_read_as_they_are(make_store):
    pairs = make_store(data=TABLE, labels=LABELS)
    stored = references.StoredReference(pairs)
    whole = Reference(
        pairs.reference, order=np.concatenate([stored.order(*part) for part in block_ranges(4800)]), sigma_data=1.0
    )
    opened, _ = references.prepared_reference(pairs, device=CPU)
    assert torch.equal(whole.center, opened.center)
    for one, other in zip(whole.blocks(), opened.blocks(), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert np.array_equal(one.clusters.bounds, other.clusters.bounds)


def _hold(directory, ready, leave):
    table = shared_blocks.open_shared_blocks(directory, "held", 10, lambda handle: pytest.fail("made again"))
    ready.put(table is not None)
    leave.get()


@pytest.fixture
def make_file(make_store):
    """Makes the content of a table, counting how often."""
    pairs = make_store(data=TABLE, labels=LABELS)
    stored = references.StoredReference(pairs)
    calls = []

    def make(handle):
        calls.append(handle)
        center = stored.center()
        blocks = [stored.block(number, center, CPU) for number in range(4)]
        references.write_blocks(handle, blocks, center, has_clusters=True)

    make.calls = calls
    return make


@pytest.mark.slow
def test_a_file_is_made_once_and_again_where_its_maker_died(tmp_path, make_file):
    (tmp_path / "held.blocks").write_bytes(b"cut off")
    first = shared_blocks.open_shared_blocks(tmp_path, "held", 10, make_file)
    second = shared_blocks.open_shared_blocks(tmp_path, "held", 10, make_file)
    assert len(make_file.calls) == 1
    shared_blocks.sweep(tmp_path)
    assert first.path.exists()
    first.close()
    second.close()
    assert not first.path.exists()
    third = shared_blocks.open_shared_blocks(tmp_path, "held", 10, make_file)
    assert len(make_file.calls) == 2
    third.close()


@pytest.mark.slow
def test_a_file_outlives_a_killed_user_no_longer_than_the_next_sweep(tmp_path, make_file):
    table = shared_blocks.open_shared_blocks(tmp_path, "held", 10, make_file)
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Queue(), context.Queue()
    user = context.Process(target=_hold, args=(tmp_path, ready, leave))
    user.start()
    assert ready.get(timeout=patience(120))
    table.close()
    assert table.path.exists()
    user.kill()
    user.join()
    assert table.path.exists()
    shared_blocks.sweep(tmp_path)
    assert not table.path.exists()
    for queue in (ready, leave):
        queue.close()
        queue.join_thread()


@pytest.mark.slow
def test_no_room_means_no_file(tmp_path, monkeypatch, make_file):
    assert shared_blocks.open_shared_blocks(tmp_path, "large", 1 << 60, make_file) is None
    assert not list(tmp_path.glob("*.blocks"))
    assert not make_file.calls


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def fail(handle):
        os.write(handle, b"half")
        raise StoreError("damaged")

    with pytest.raises(StoreError, match="damaged"):
        shared_blocks.open_shared_blocks(tmp_path, "failed", 10, fail)
    assert not list(tmp_path.glob("*.blocks"))


def test_a_directory_that_others_can_read_is_not_used(tmp_path):
    directory = tmp_path / f"sfg_dist-{os.getuid()}"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    assert shared_blocks.blocks_directory(tmp_path) is None


@pytest.mark.slow
def test_a_file_removed_between_two_locks_is_made_again(tmp_path, make_file, monkeypatch):
    flock, removed = fcntl.flock, []

    def remove_once(handle, kind):
        if kind == fcntl.LOCK_SH and not removed:
            removed.append(True)
            (tmp_path / "held.blocks").unlink()
        return flock(handle, kind)

    monkeypatch.setattr(shared_blocks.fcntl, "flock", remove_once)
    table = shared_blocks.open_shared_blocks(tmp_path, "held", 10, make_file)
    assert len(make_file.calls) == 2
    assert table.path.exists()
    table.close()


# A worker with blocks of 8192 rows, whose budget is what it holds already and ROOM beside.
WORKER = """
import sys, torch
torch.set_num_threads(1)
import sfg_dist.flow.posterior.reference
from sfg_dist.distributed.labels import references
from sfg_dist.distributed.labels.labeler import ShardLabeler
from sfg_dist.distributed.machine import peak_memory
from sfg_dist.job.words import GIB
from sfg_dist.store import open_pairs
url, room = sys.argv[1], int(sys.argv[2])
sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS = 1 << 13
references.WORK_BYTES = 4 << 20
open_pairs(url).commit_record(0)
stored = references.StoredReference(open_pairs(url))
stored.rows(0, 16)
total = references.reference_bytes(stored.num_reference, stored.dim, has_clusters=stored.has_clusters)
assert total >= 10 * room, (total, room)
budget = references.base_bytes(stored.dim, stored.has_clusters) + room
labeler = ShardLabeler(url, memory_gib=budget / GIB)
record = labeler.label(0)
labeler.close()
assert labeler.reference.num_blocks > 10
assert record["blocks_streamed"] > 0
print(peak_memory() - budget)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("tolerance", a_third([1e-3, 0.0]))
def test_ten_times_the_budget_is_labelled_within_it(tmp_path, monkeypatch, tolerance):
    from sfg_dist.distributed.labels.ordering import order_with_threads
    from sfg_dist.job.config import resolve_job
    from sfg_dist.job.fingerprint import fingerprint
    from sfg_dist.job.plan import Plan
    from sfg_dist.job.version import versions
    from sfg_dist.pipeline.plan import identity_of_keys
    from sfg_dist.store import Frame, create_store

    monkeypatch.setattr("sfg_dist.flow.posterior.reference.REFERENCE_BLOCK_ROWS", 1 << 13)
    room, dim, num_rows = 12 << 20, 32, 480_000 if tolerance == 0 else 294_000
    rows = np.random.default_rng(0).standard_normal((num_rows, dim), dtype=np.float32) * np.geomspace(1, 0.05, dim)
    labels = {"num_pairs": 16, "shard_rows": 16, "batch_size": 16, "t_min": 1e-3, "num_evaluations": 4}
    job = resolve_job({"data": {"source": "moons"}, "labels": labels | {"tolerance": tolerance}})
    rows = rows.astype(np.float32)
    content = fingerprint(rows)
    contents = {"table": content, "reference": content, "queries": None, "blur": {"t_min": job.labels.t_min}}
    plan = Plan(identity_of_keys(job) | contents, 16, dim, 16, tuple(f"x{k}" for k in range(dim)), "moons", versions())
    url = tmp_path / "pairs.zarr"
    create_store(url, plan, Frame(rows, {}, {}, make_order=order_with_threads if tolerance else None))
    command = [sys.executable, "-c", WORKER, str(url), str(room)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, timeout=patience(500))
    assert int(done.stdout) <= 0
    assert open_pairs(url).is_complete
