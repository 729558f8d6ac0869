"""The planted faults fit the present source; `python tests/planted.py` says whether tests catch them."""

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAULTS = runpy.run_path(str(ROOT / "tests" / "planted.py"))["FAULTS"]


def test_there_are_enough_and_each_has_a_name_of_its_own():
    names = Counter(fault.name for fault in FAULTS)
    assert len(FAULTS) >= 40
    assert max(names.values()) == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_source(fault):
    source = (ROOT / fault.file).read_text(encoding="utf-8")
    planted = fault.apply(source)  # refuses a text that is not there once
    assert planted != source
    compile(planted, fault.file, "exec")
    assert fault.why.endswith(".")
    assert fault.tests
    for test in fault.tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(def|class) {name}\b", text, re.MULTILINE)
