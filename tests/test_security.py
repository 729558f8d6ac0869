"""SECURITY.md: each test that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=["::".join(filter(None, each)) for each in NAMED])
def test_each_named_test_is_there(file, name):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE)


def test_each_claim_names_a_test():
    tables = [block.split("\n") for block in re.split(r"\n\n", PAGE) if block.startswith("| claim")]
    claims = [line for lines in tables for line in lines[2:]]
    assert len(claims) >= 8
    assert [line for line in claims if not re.search(r"`tests/[\w/.]+::\w+`", line)] == []


def test_other_pages_lead_there():
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "(SECURITY.md)" in (ROOT / page).read_text(encoding="utf-8")


def test_the_pins_carry_no_hashes():
    """With one, pip refuses `make install`, whose last step is an editable installation; SECURITY.md says more."""
    assert "--hash" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")
