"""Which version is chosen, and why each other one is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_registry.domain import ModelVersionState
from modelmora_registry.selection import Candidate, Criteria, select

START = datetime(2026, 1, 1, tzinfo=UTC)


def candidate(version: str, *, state: str = "ready", age: int = 0, **fields: Any) -> Candidate:
    moment = START - timedelta(days=age)
    return Candidate(version=version, state=ModelVersionState(state), create_time=moment, **fields)


NEWEST_FIRST = [
    candidate("6", state="creating"),
    candidate("5", age=1, archived=True, metrics={"f1": 0.99}),
    candidate("4", age=2, size_bytes=900, metrics={"f1": 0.95, "recall": 0.5}),
    candidate("3", age=3, size_bytes=100, metrics={"f1": 0.91, "recall": 0.8}),
    candidate("2", age=4, size_bytes=100, metrics={"f1": 0.91, "recall": 0.9}),
    candidate("1", age=5, size_bytes=50),
]


@pytest.mark.parametrize(
    ("criteria", "chosen"),
    [
        ({}, "4"),
        ({"prefer_latest": False}, "1"),
        ({"primary_metric": "f1"}, "4"),
        ({"primary_metric": "f1", "lower_is_better": True}, "3"),
        ({"primary_metric": "f1", "lower_is_better": True, "prefer_latest": False}, "2"),
        ({"primary_metric": "f1", "max_size_bytes": 100}, "3"),
        ({"primary_metric": "f1", "secondary_metrics": {"recall": 0.85}}, "2"),
        ({"primary_metric": "f1", "metric_threshold": 0.95}, "4"),
        ({"primary_metric": "f1", "metric_threshold": 0.96}, None),
        ({"primary_metric": "f1", "metric_threshold": 0.91, "lower_is_better": True}, "3"),
        ({"primary_metric": "loss"}, None),
        ({"max_size_bytes": 60}, "1"),
    ],
)
def test_the_best_that_meets_the_criteria_is_chosen(criteria: dict[str, Any], chosen: str | None) -> None:
    selection = select(NEWEST_FIRST, Criteria(**criteria))
    assert selection.version == chosen
    assert [each.version for each in selection.rejected] == [c.version for c in NEWEST_FIRST if c.version != chosen]
    assert all(each.reason for each in selection.rejected)
    assert selection.reason


def test_each_rejected_version_is_told_its_own_reason() -> None:
    criteria = Criteria(primary_metric="f1", metric_threshold=0.93, secondary_metrics={"recall": 0.4})
    reasons = {each.version: each.reason for each in select(NEWEST_FIRST, criteria).rejected}
    assert reasons == {
        "6": "is creating, not ready",
        "5": "is archived",
        "3": "f1 0.91 is less than 0.93",
        "2": "f1 0.91 is less than 0.93",
        "1": "f1 was not measured",
    }
    ties = {each.version: each.reason for each in select(NEWEST_FIRST, Criteria(primary_metric="recall")).rejected}
    assert ties["4"] == "recall 0.5 is worse than 0.9 of 2"
    sized = {each.version: each.reason for each in select(NEWEST_FIRST, Criteria(max_size_bytes=100)).rejected}
    assert sized["4"] == "has 900 bytes, more than 100"
    assert sized["2"] == "is older than 3"


def test_a_model_without_versions_selects_none() -> None:
    assert select([], Criteria()).version is None


@pytest.mark.parametrize(
    ("criteria", "field"),
    [
        ({"metric_threshold": 1.0}, "primary_metric"),
        ({"lower_is_better": True}, "primary_metric"),
        ({"primary_metric": "f1", "metric_threshold": float("nan")}, "metric_threshold"),
    ],
)
def test_criteria_that_contradict_themselves_are_refused(criteria: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Criteria(**criteria).check()
    assert raised.value.fields[0].field == field


candidates = st.lists(
    st.builds(
        lambda state, archived, size, metrics: (state, archived, size, metrics),
        st.sampled_from(["ready", "ready", "ready", "failed"]),
        st.sampled_from([False, False, True]),
        st.none() | st.integers(0, 4),
        st.dictionaries(st.sampled_from(["f1", "recall"]), st.integers(0, 3).map(float), max_size=2),
    ),
    max_size=6,
)


@given(
    candidates,
    st.builds(
        Criteria,
        primary_metric=st.just("f1"),
        metric_threshold=st.none() | st.integers(0, 3).map(float),
        max_size_bytes=st.integers(0, 4),
        prefer_latest=st.booleans(),
        lower_is_better=st.booleans(),
    ),
)
def test_nothing_that_meets_the_criteria_is_better_than_the_chosen(drawn: list[Any], criteria: Criteria) -> None:
    found = [
        candidate(str(age), state=state, age=age, archived=archived, size_bytes=size, metrics=metrics)
        for age, (state, archived, size, metrics) in enumerate(drawn)
    ]
    selection = select(found, criteria)
    sign = -1 if criteria.lower_is_better else 1
    fit = [
        each
        for each in found
        if each.state is ModelVersionState.READY
        and not each.archived
        and "f1" in each.metrics
        and (criteria.metric_threshold is None or sign * (each.metrics["f1"] - criteria.metric_threshold) >= 0)
        and not (criteria.max_size_bytes and (each.size_bytes or 0) > criteria.max_size_bytes)
    ]
    assert (selection.version is None) == (not fit)
    if fit:
        chosen = next(each for each in fit if each.version == selection.version)
        best = [each for each in fit if each.metrics["f1"] == chosen.metrics["f1"]]
        assert all(sign * (chosen.metrics["f1"] - each.metrics["f1"]) >= 0 for each in fit)
        assert chosen is (best[0] if criteria.prefer_latest else best[-1])
    assert len(selection.rejected) == len(found) - bool(fit)
