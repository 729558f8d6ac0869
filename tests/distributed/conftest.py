"""What tests of labels and of training share: one small store, labelled once and only read."""

import shutil

import pytest

from sfg_dist.distributed.labels.inline import label_inline
from sfg_dist.store import open_pairs


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Where the store of the small job will be, once a test has labelled it."""
    return tmp_path_factory.mktemp("labelled") / "run"


@pytest.fixture
def url(labelled, make_store):
    """A small store, labelled to its end; it is shared, and nobody writes to it."""
    if not labelled.exists():
        pairs = make_store("labelled")
        label_inline(pairs.location.url)
        assert pairs.is_complete
        shutil.move(pairs.location.root.parent, labelled)
    return open_pairs(labelled).location.url


@pytest.fixture
def inline_store(url, store_bytes):
    """Bytes of that store: what any other run of the small job must leave."""
    return store_bytes(url)


class Events(list):
    """What a driver told."""

    def __call__(self, event):
        self.append(event)

    def of(self, name):
        return [vars(event) for event in self if event.name == name]

    @property
    def records(self):
        """Commit records, in the order in which they came."""
        return [event["record"] for event in self.of("shard")]


@pytest.fixture
def events():
    """What a driver tells, for its ``on_event``."""
    return Events()
