"""The figures of the bench: percentiles, medians and bootstrap intervals of known series."""

from __future__ import annotations

import math

import pytest

from bench import workload
from bench.statistics import bootstrap, median, percentile


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentile_is_the_smallest_value_that_so_many_do_not_exceed(percent: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_figures_of_nothing_are_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
    assert math.isnan(median([]))


def test_an_interval_holds_its_middle_and_shrinks_with_more_values() -> None:
    few, many = bootstrap([1.0, 2.0, 3.0, 4.0]), bootstrap([1.0, 2.0, 3.0, 4.0] * 25)
    for one in (few, many):
        assert one.low <= one.middle <= one.high
    assert many.high - many.low <= few.high - few.low
    assert bootstrap([2.0] * 5).low == bootstrap([2.0] * 5).high == 2.0


def test_the_workload_is_the_same_every_time_and_all_different() -> None:
    texts = workload.passages(300)
    assert texts == workload.passages(300)
    assert len(set(texts)) == 300
    assert all(20 <= len(text.split()) <= 220 for text in texts)
    assert workload.digest(texts) != workload.digest(texts[::-1])
