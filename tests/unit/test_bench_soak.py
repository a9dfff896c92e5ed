"""The soak's instruments see what they are there to see."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bench import soak_watch
from bench.soak import Goals, Report
from bench.soak_watch import Watch

DONE = {
    **{"swaps": 60, "kills": 15, "kills of fork servers": 1, "cancelled": 100},
    **{"answered": 2000, "answered by real engines": 700},
}


def passed(**changes: Any) -> Report:
    facts = {"counts": Counter(DONE), "before_bytes": 1000, "after_bytes": 1010, "watched": {"violations": {}}}
    return Report(1, Goals(), **{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"lost": ["a/b: UNAVAILABLE"]}, "lost: 1"),
        ({"unexplained": ["a/b: crashed: killed by SIGKILL"]}, "unexplained"),
        ({"after_bytes": 1021}, "+2.1%"),
        ({"after_bytes": 979}, "-2.1%"),
        ({"watched": {"violations": {"leaked": [1, "pid 7"]}}}, "leaked"),
        ({"counts": Counter({**DONE, "kills": 14})}, "only 14 kills"),
        ({"counts": Counter({**DONE, "kills of fork servers": 0})}, "no fork server"),
        ({"counts": Counter({**DONE, "answered by real engines": 600})}, "real engines"),
    ],
)
def test_a_soak_is_passed_only_when_nothing_is_wrong(changes: dict[str, Any], words: str) -> None:
    found = passed(**changes).wrong()
    assert len(found) == (1 if words else 0)
    assert words in "".join(found)


def test_a_wrong_that_lasts_is_a_violation_once_and_one_that_passes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(soak_watch.time, "monotonic", lambda: now)
    watch = Watch("127.0.0.1:1", "/nowhere")
    patience = soak_watch.PATIENCE_SECONDS["leaked"]
    watch._judge("leaked", {"7": "pid 7", "8": "pid 8"})
    now += patience - 1
    watch._judge("leaked", {"7": "pid 7"})
    assert watch.violations == {}
    for _ in range(5):
        now += 1
        watch._judge("leaked", {"7": "pid 7", "8": "pid 8"})
    assert watch.violations == {"leaked": ["pid 7"]}
