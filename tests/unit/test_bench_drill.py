"""The drill sees what it is there to see."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import Any, cast

import pytest
from modelmora_worker.engines.echo import vector

from bench.drill import CALLS, DIMENSIONS, KINDS, Drill, Report, Wrong, check


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


@pytest.mark.parametrize("error", [None, Wrong("an answer of another text"), KeyError("a bug of the drill")])
def test_who_makes_load_and_fails_fails_the_drill(error: BaseException | None) -> None:
    drill, load = Drill(cast(Any, "no site"), 1), Future[None]()
    drill._load[load] = "embed 0"
    load.add_done_callback(drill._ended)
    if error is None:
        load.set_result(None)
    else:
        load.set_exception(error)
    assert drill.report.wrong_things == ([] if error is None else [f"embed 0: {error!r}"])
