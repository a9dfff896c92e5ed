"""Traces that are replayed: what they cost by hand, and that they cost the same each time."""

from __future__ import annotations

from random import Random

import pytest
from modelmora.errors import InvalidArgument
from modelmora_lifecycle.domain import HOST
from modelmora_lifecycle.eviction import POLICIES, Policy
from modelmora_lifecycle.scheduler import Rules
from modelmora_lifecycle.simulation import EVENTS_LIMIT, STOP_SECONDS, AcquireEvent, simulate

GIB = 2**30
LRU = Policy()


def event(at: float, model: str, use: float = 0.5, gib: float = 1.0, load: float = 2.0) -> AcquireEvent:
    return AcquireEvent(at, model, 20, use, {HOST: int(gib * GIB)}, load)


def test_what_stays_in_memory_is_loaded_once() -> None:
    result = simulate([event(t, "a") for t in (0.0, 10.0, 10.1, 20.0)], LRU, {HOST: 2 * GIB}, Rules())
    assert (result.acquires, result.misses, result.evictions, result.never_fit) == (4, 1, 0, 0)
    assert result.waited_seconds == 2.0
    assert result.waited_p99_seconds == 2.0
    assert result.loaded_bytes == GIB


def test_a_first_load_takes_as_long_as_the_trace_tells_later() -> None:
    trace = [
        event(0.0, "a", load=0.0),
        event(10.0, "a", load=4.0),
        event(20.0, "b", load=0.0),
        event(40.0, "a", load=9.0),
    ]
    result = simulate(trace, LRU, {HOST: GIB}, Rules())
    assert (result.misses, result.evictions) == (3, 2)
    assert result.waited_seconds == pytest.approx(4.0 + 0.0 + 9.0 + 2 * STOP_SECONDS), "what nobody knows takes no time"


def test_two_models_in_a_place_for_one_cost_what_they_cost() -> None:
    result = simulate([event(t, "ab"[t // 10 % 2]) for t in range(0, 60, 10)], LRU, {HOST: GIB}, Rules())
    assert (result.misses, result.evictions, result.loaded_bytes) == (6, 5, 6 * GIB)
    assert result.waited_seconds == pytest.approx(6 * 2.0 + 5 * STOP_SECONDS)


def test_who_has_to_yield_gets_the_rest_of_its_time_later() -> None:
    result = simulate([event(0.0, "a", use=10.0), event(5.0, "b", use=1.0)], LRU, {HOST: GIB}, Rules())
    assert (result.acquires, result.misses, result.evictions) == (2, 2, 2)
    assert result.loaded_bytes == 3 * GIB


def test_what_never_fits_is_counted_and_waits_for_nothing() -> None:
    result = simulate([event(0.0, "a", gib=3), event(1.0, "b")], LRU, {HOST: 2 * GIB}, Rules())
    assert (result.never_fit, result.misses, result.loaded_bytes) == (1, 1, GIB)


def random_trace(seed: int, count: int = 150) -> list[AcquireEvent]:
    random = Random(seed)
    models = [(f"m{i}", random.choice([0.5, 1, 2, 3]), random.uniform(0.2, 9)) for i in range(8)]
    at, trace = 0.0, []
    for _ in range(count):
        at += random.expovariate(1.5)
        name, gib, load = models[min(int(random.paretovariate(0.8)) - 1, 7)]
        trace.append(event(at, name, random.uniform(0.0, 2.0), gib, load))
    return trace


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_trace_costs_the_same_and_every_acquire_ends(name: str) -> None:
    for seed in range(2):
        trace = random_trace(seed)
        policy = Policy(name)  # type: ignore[arg-type]
        first = simulate(trace, policy, {HOST: 5 * GIB}, Rules())
        assert first == simulate(trace, policy, {HOST: 5 * GIB}, Rules())
        assert first.acquires == 150
        assert 0 < first.misses < 150
        roomy = simulate(trace, policy, {HOST: 100 * GIB}, Rules())
        assert roomy.evictions == 0
        assert roomy.loaded_bytes <= first.loaded_bytes


def test_gdsf_waits_less_where_small_models_are_dear() -> None:
    trace, at = [], 0.0
    for turn in range(20):
        for name, gib, load in (("small", 1.0, 8.0), ("small", 1.0, 8.0), (f"large{turn % 2}", 3.0, 1.0)):
            at += 4.0
            trace.append(event(at, name, 0.5, gib, load))
        at += 30.0
    waits = {name: simulate(trace, Policy(name), {HOST: 4 * GIB}, Rules()).waited_seconds for name in POLICIES}
    assert waits["gdsf"] <= waits["lru"]


@pytest.mark.parametrize(
    ("trace", "field"),
    [
        ([event(5.0, "a"), event(4.0, "a")], "events[1].at_seconds"),
        ([event(-1.0, "a")], "events[0].at_seconds"),
        ([event(0.0, "a"), event(0.0, "")], "events[1].model_version"),
        ([event(float("nan"), "a")], "events[0].at_seconds"),
        ([event(0.0, "a", use=float("inf"))], "events[0].use_seconds"),
        ([event(0.0, "a", load=-1.0)], "events[0].load_seconds"),
        ([event(0.0, "a", gib=-1.0)], "events[0].memory"),
        ([event(0.0, "a")] * (EVENTS_LIMIT + 1), "events"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_at_its_field(trace: list[AcquireEvent], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        simulate(trace, LRU, {HOST: GIB}, Rules())
    assert raised.value.fields[0].field == field


def test_an_empty_trace_costs_nothing() -> None:
    assert simulate([], LRU, {HOST: GIB}, Rules()).acquires == 0
