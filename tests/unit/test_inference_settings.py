"""Inference's settings that must fit together, and the histogram behind its metrics."""

from __future__ import annotations

import pytest
from modelmora_inference.main import Settings
from modelmora_inference.metrics import Histogram
from pydantic import ValidationError


def test_the_defaults_fit_together() -> None:
    rules = Settings().rules()
    assert rules.batches.max_batches == 2
    assert rules.aging.low_seconds > rules.aging.medium_seconds


@pytest.mark.parametrize(
    "values",
    [
        {"max_queue_bytes": 1024, "max_call_bytes": 2048},
        {"max_queue_tokens": 1000},
        {"aging_medium_seconds": 20, "aging_low_seconds": 10},
        {"aging_low_seconds": float("nan")},
        {"max_queue_entries": 100},
        {"idle_keep_seconds": 0},
        {"max_batches": 0},
        {"unknown": 1},
    ],
    ids=lambda values: next(iter(values)),
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(values)


def test_a_histogram_counts_up_to_and_with_its_bounds() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 2, 3, 9):
        histogram.observe(value)
    assert histogram.cumulative() == [("1", 2), ("2", 3), ("4", 4), ("+Inf", 5)]
    assert histogram.total == 15.5
