"""How many examples are tried, by Hypothesis and of long lists: HYPOTHESIS_PROFILE is check, default or full."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
# Of a test that asks for no number of its own; Hypothesis itself tries 100.
LARGEST = {"check": 25, "default": 50, "full": 100}


def load_profile() -> None:
    """Before the tests are imported, since each of them takes its settings from what is loaded then."""
    for name, number in LARGEST.items():
        settings.register_profile(name, max_examples=number, deadline=None)
    settings.load_profile(PROFILE)


def examples(number: int) -> int:
    """Of so many examples under "full" about a third are tried by default, and 25 at most under "check"."""
    few = min(number, LARGEST["check"])
    return {"check": few, "default": max(few, number // 3), "full": number}[PROFILE]


def a_third(cases: Iterable[T]) -> list[T]:
    """Every third of a list of cases, of which each takes long; all of them under "full"."""
    return list(cases)[:: 1 if PROFILE == "full" else 3]
