"""How long a model that is not in memory still takes, and when to ask again."""

from __future__ import annotations

import pytest
from modelmora_inference.domain import retry_after, seconds_left


@pytest.mark.parametrize(
    ("due", "now", "expected"), [(9.0, 2.0, 7.0), (9.0, 8.75, 0.25), (9.0, 9.0, 1.0), (9.0, 9.5, 1.0), (9.0, 13.0, 4.0)]
)
def test_what_is_late_takes_as_long_again_and_never_nothing(due: float, now: float, expected: float) -> None:
    assert seconds_left(due, now) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(None, 1.0), (0.0, 0.1), (0.04, 0.1), (0.3, 0.3), (7.0, 7.0)])
def test_nobody_is_told_to_ask_all_the_time(seconds: float | None, expected: float) -> None:
    assert retry_after(seconds) == expected
