"""The drill sees what it is there to see."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from modelmora_worker.engines.echo import vector

from bench.drill import CALLS, DIMENSIONS, KINDS, Report, Wrong, check


def passed(**changes: Any) -> Report:
    facts: dict[str, Any] = {
        "kills": Counter(dict.fromkeys(KINDS, 2)),
        "accepted": {"jobs/1", "jobs/2"},
        "ended": Counter({"jobs/1": 1, "jobs/2": 1}),
        "answered": Counter(dict.fromkeys(CALLS, 9)),
        "before_bytes": 1000,
        "after_bytes": 1100,
    }
    return Report(1, **{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"ended": Counter({"jobs/1": 1})}, "jobs/2"),
        ({"ended": Counter({"jobs/1": 1, "jobs/2": 2})}, "jobs/2 ended 2 times"),
        ({"answered": Counter({**dict.fromkeys(CALLS, 9), "tei stream": 0})}, "no tei stream was answered"),
        ({"kills": Counter({**dict.fromkeys(KINDS, 2), "database": 0})}, "no database was killed"),
        ({"after_bytes": 1300}, "memory grew"),
        ({"wrong_things": ["embed 0: hangs"]}, "hangs"),
    ],
)
def test_a_drill_is_passed_only_when_nothing_is_wrong(changes: dict[str, Any], words: str) -> None:
    found = passed(**changes).wrong()
    assert len(found) == (1 if words else 0)
    assert words in "".join(found)


def test_a_vector_of_another_text_is_seen() -> None:
    texts = ["one", "two"]
    right = [vector(0, text, DIMENSIONS) for text in texts]
    check(right, texts)
    for wrong in (right[::-1], right[:1], [right[0], right[1][:-1]]):
        with pytest.raises(Wrong):
            check(wrong, texts)
