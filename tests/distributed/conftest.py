"""What tests of training share."""

import pytest

from sfg_dist.distributed.inline import label_inline


@pytest.fixture
def url(make_store):
    """A small store, labelled to its end."""
    pairs = make_store()
    label_inline(pairs.location.url)
    return pairs.location.url
