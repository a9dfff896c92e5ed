"""The figures of the bench: percentiles, medians and bootstrap intervals of known series."""

from __future__ import annotations

import math

import pytest

from bench import workload
from bench.report import Series, merged
from bench.sharing import Urgent, attributed
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


def test_compute_seconds_are_shared_by_the_tokens_of_each_micro_batch() -> None:
    calls = {"short": [(0.5, 10), (0.5, 10), (0.25, 10)], "long": [(0.5, 80), (0.125, 250), (0.125, 250)]}
    spent = attributed(calls)
    assert spent == pytest.approx({"short": 0.1 + 0.25, "long": 0.4 + 0.125})
    assert sum(spent.values()) == pytest.approx(0.5 + 0.25 + 0.125)


def test_what_a_bulk_costs_the_urgent_is_held_against_their_own_time_and_one_micro_batch() -> None:
    found = Urgent(alone=[[0.01, 0.02]], beside=[[0.05, 0.09]], micro_batches=[[0.07, 0.04]])
    assert found.ratios() == pytest.approx([1.0])


def test_one_client_is_compared_pair_by_pair() -> None:
    series = Series(latencies={"ours": [[0.02, 0.03, 0.04], [0.05]], "ceiling": [[0.02], [0.03, 0.04, 0.05]]})
    assert series.later().middle == pytest.approx(0.01)


def test_a_part_of_the_page_takes_the_place_of_its_own_and_leaves_other_profiles() -> None:
    old = "# Benchmarks\n\nhead\n\n## Embedding, torch fp32\n\n1\n\n## Plumbing\n\n2\n"
    new = "# Benchmarks\n\nother head\n\n## Embedding, openvino bf16\n\n3\n\n## Plumbing\n\n4\n"
    expected = "# Benchmarks\n\nhead\n\n## Embedding, torch fp32\n\n1\n\n## Plumbing\n\n4\n\n"
    assert merged(old, new) == expected + "## Embedding, openvino bf16\n\n3\n\n"
