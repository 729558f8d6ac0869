"""Errors of workers reach the user as they were raised: they come through pickle whole."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from sfg_dist.data.naming import NoColumnError
from sfg_dist.data.unfit import UnfitColumnsError
from sfg_dist.job import errors
from sfg_dist.store.local import LinkError

ROOT = Path(__file__).parents[1] / "sfg_dist"
PLAIN = [kind("t.csv, row 3: expected a number") for kind in vars(errors).values() if isinstance(kind, type)]
WITH_ARGUMENTS = [
    NoColumnError("t.csv has no column 'x' (data.columns); it has 'y'", "t.csv has no column 'x'", "it has 'y'"),
    UnfitColumnsError("t.csv: column 'x' holds records", {"x": "it holds records"}, "leave it out with data.columns"),
    LinkError("pairs/0"),
]
WITH_ARGUMENTS[1].names = ("x", "y")


@pytest.mark.parametrize("error", PLAIN + WITH_ARGUMENTS, ids=lambda error: type(error).__name__)
def test_an_error_comes_through_pickle_whole(error):
    error.add_note("while shard 3 was labelled")
    found = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))


def test_all_errors_with_arguments_of_their_own_are_tried():
    texts = [source.read_text() for source in ROOT.rglob("*.py")]  # of which to parse all takes seconds
    texts = [text for text in texts if re.search(r"class \w+(Error|Exception)\b", text)]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception"))]
    made = {kind.name for kind in classes if any(getattr(node, "name", "") == "__init__" for node in kind.body)}
    assert made == {type(error).__name__ for error in WITH_ARGUMENTS}
