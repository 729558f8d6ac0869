"""Small stores made without a job, in a directory and in a bucket."""

import numpy as np
import pytest
from examples import a_third

from sfg_dist.job.fingerprint import fingerprint
from sfg_dist.job.plan import Plan
from sfg_dist.store import Frame, Location, create_store


def pytest_collection_modifyitems(config, items):
    """All is tried on a disk before every commit; in a bucket every third case is, and before a push, or all of them.

    What everything else is made of is always tried in both.
    """
    in_bucket: dict[object, list[pytest.Item]] = {}
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("place") == "s3":
            if item.path.name != "test_location.py":
                item.add_marker("slow")
            if item.path.parent.name == "store":
                in_bucket.setdefault(item.function, []).append(item)
    kept = {item for cases in in_bucket.values() for item in a_third(cases)}
    left_out = [item for cases in in_bucket.values() for item in cases if item not in kept]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """Where a store can be made: a local path and an s3:// URL, one after the other."""
    if request.param == "local":
        return str(tmp_path / "pairs.zarr")
    return f"{request.getfixturevalue('s3_url')}/pairs.zarr"


@pytest.fixture
def location(place):
    return Location(place, create=True)


def reference_rows(num_rows=50, dim=2):
    return np.random.default_rng(3).standard_normal((num_rows, dim)).astype(np.float32)


@pytest.fixture
def small_plan():
    """A function that makes the plan of a store of 5 shards of 8 rows, the last one with 4; keywords change it."""

    def make(num_pairs=36, dim=2, shard_rows=8, *, direction="decode", reference=None, queries=None):
        reference = reference_rows(dim=dim) if reference is None else reference
        labels = {"direction": direction, "batch_size": 4, "seed": 0}
        identity = {"labels": labels, "reference": fingerprint(reference), "queries": queries}
        columns = tuple(f"x{k}" for k in range(dim))
        return Plan(identity, num_pairs, dim, shard_rows, columns, "table.npy", {"numpy": "2"})

    return make


@pytest.fixture
def new_store(small_plan, place):
    """A function that makes the store of a small plan; keywords are those of ``create_store`` and of the plan."""

    def make(url=place, *, reference=None, transform_arrays=None, queries=None, make_order=None, **keys):
        reference = reference_rows(dim=keys.get("dim", 2)) if reference is None else reference
        if queries is not None:
            keys["queries"] = fingerprint(queries)
        return create_store(
            url,
            small_plan(reference=reference, **keys),
            Frame(
                reference,
                {"scale": np.arange(1.0, 4.0)} if transform_arrays is None else transform_arrays,
                {"kind": "standardize"},
                queries=queries,
                make_order=make_order,
            ),
        )

    return make


@pytest.fixture
def rows_of():
    """A function that gives the latents and labels of a shard; a row's numbers are its own."""

    def rows(plan, shard, seed=0):
        start, stop = plan.shard_range(shard)
        return [
            np.stack(
                [np.random.default_rng([seed, part, row]).standard_normal(plan.dim) for row in range(start, stop)]
            ).astype(np.float32)
            for part in range(2)
        ]

    return rows


@pytest.fixture
def fill(rows_of):
    """A function that writes all pending shards of a store."""

    def write(pairs):
        for shard in pairs.pending():
            pairs.write_shard(shard, *rows_of(pairs.plan, shard), {"attempt": 1})
        return pairs

    return write
