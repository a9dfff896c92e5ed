"""Tenants share a model by weight, charged in what they cost; and what a push or pop costs itself."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora_inference.domain import Aging, Batch, BatchLimits, Bounds, Entry, Place, Priority, Worker
from modelmora_inference.fairness import Account, Accounts, Line
from modelmora_inference.queue import EntryQueue

M = Priority.MEDIUM
WIDE = Bounds(10**6, 10**9, 10**9)
ONE_BY_ONE = BatchLimits(max_entries=1, max_tokens=1, max_batches=1, split_tokens=1)


def entry(tenant: str, tokens: int = 1, at: float = 0.0, priority: Priority = M) -> Entry:
    return Entry(tenant, None, 0, priority, tenant, at, 1e9, tokens, 1)


def serve(q: EntryQueue, worker: Worker, now: float = 0.0, cost: Callable[[Entry], float] | None = None) -> list[Entry]:
    """One batch, answered at once."""
    batch: Batch | None = q.pop_batch(worker, now).batch
    if batch is None:
        return []
    for position, one in enumerate(batch.entries):
        q.answer(batch, position, now, None if cost is None else cost(one))
    q.finish(batch)
    return batch.entries


@settings(max_examples=100, deadline=None, database=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 50), min_size=20, max_size=60), min_size=2, max_size=4),
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_tenants_that_wait_get_service_by_weight(sizes: list[list[int]], weights: list[float], seed: int) -> None:
    """Between any two that always waited the difference is at most their longest entries (Goyal et al., theorem 1)."""
    names = "abcd"[: len(sizes)]
    by_name = dict(zip(names, weights, strict=False))
    q = EntryQueue(WIDE, Aging(), weights=by_name)
    arrivals = [entry(name, tokens) for name, mine in zip(names, sizes, strict=True) for tokens in mine]
    random.Random(seed).shuffle(arrivals)
    q.push(arrivals, 0)
    worker = Worker(ONE_BY_ONE)
    given = dict.fromkeys(names, 0.0)
    left = {name: len(mine) for name, mine in zip(names, sizes, strict=True)}
    while all(left.values()):
        for served in serve(q, worker):
            given[served.tenant] += served.tokens / by_name[served.tenant]
            left[served.tenant] -= 1
        for one in names:
            for other in names:
                most = max(sizes[names.index(one)]) / by_name[one] + max(sizes[names.index(other)]) / by_name[other]
                assert abs(given[one] - given[other]) <= most + 1e-9


def test_tenants_are_charged_what_they_cost_not_what_was_estimated() -> None:
    q = EntryQueue(WIDE, Aging(), weights={"b": 3.0})
    q.push([entry(name, 10) for name in "ab" for _ in range(3000)], 0)
    worker = Worker(BatchLimits(max_entries=8, max_tokens=10**6, max_batches=1))
    spent = {"a": 0.0, "b": 0.0}

    def cost(one: Entry) -> float:
        seconds = 30.0 if one.tenant == "a" else 6.0
        spent[one.tenant] += seconds
        return seconds

    for _ in range(300):
        serve(q, worker, cost=cost)
    assert spent["b"] / spent["a"] == pytest.approx(3.0, rel=0.05)


def test_what_comes_back_from_a_dead_worker_is_not_charged() -> None:
    q = EntryQueue(WIDE, Aging())
    q.push([entry(name, 100) for _ in range(30) for name in "ab"], 0)
    worker = Worker(ONE_BY_ONE)
    deaths, order = 0, ""
    while len(order) < 30:
        batch = q.pop_batch(worker, 0).batch
        assert batch is not None
        if batch.entries[0].tenant == "a" and deaths < 8:
            deaths += 1
            q.worker_gone(worker, crashed=False)
        else:
            order += batch.entries[0].tenant
            q.answer(batch, 0, 0)
            q.finish(batch)
    assert order.count("a") == pytest.approx(15, abs=1)


def test_a_tenant_that_was_away_saves_nothing_up() -> None:
    q = EntryQueue(WIDE, Aging())
    worker = Worker(ONE_BY_ONE)
    q.push([entry("b")], 0)
    serve(q, worker)
    q.push([entry("a") for _ in range(200)], 0)
    for _ in range(100):
        serve(q, worker)
    q.push([entry("b") for _ in range(50)], 0)
    order = "".join(served.tenant for _ in range(40) for served in serve(q, worker))
    assert order.count("b") in (20, 21)


def test_a_tenant_cannot_begin_anew_by_emptying_its_line() -> None:
    q = EntryQueue(WIDE, Aging())
    worker = Worker(ONE_BY_ONE)
    q.push([entry("a", 10) for _ in range(200)], 0)
    given = {"a": 0, "b": 0}
    for _ in range(100):
        q.push([entry("b", 50)], 0)  # its line is empty after each
        for _ in range(2):
            for served in serve(q, worker):
                given[served.tenant] += served.tokens
    assert given["b"] <= given["a"] + 50


def test_a_weight_may_change_while_it_waits() -> None:
    weights: dict[str, float] = {}
    q = EntryQueue(WIDE, Aging(), weights=weights)
    worker = Worker(ONE_BY_ONE)
    q.push([entry(name) for name in "ab" for _ in range(200)], 0)
    before = "".join(served.tenant for _ in range(40) for served in serve(q, worker))
    weights["b"] = 4.0
    after = "".join(served.tenant for _ in range(100) for served in serve(q, worker))
    assert before.count("b") == 20
    assert after.count("b") == pytest.approx(80, abs=2)


def test_who_has_waited_for_the_time_of_fairness_is_next() -> None:
    q = EntryQueue(WIDE, Aging(fairness_seconds=5))
    worker = Worker(ONE_BY_ONE)
    q.push([entry("a", 1000), entry("a", 1000), entry("a", 1)], 0)
    assert serve(q, worker)[0].tenant == "a"
    q.push([entry("b", 1, at=4) for _ in range(5)], 4)
    assert serve(q, worker, 4.9)[0].tenant == "b", "a has had its share"
    assert serve(q, worker, 5.0)[0].tenant == "a", "whatever it had"


def test_a_tenant_in_several_lanes_has_one_account() -> None:
    q = EntryQueue(WIDE, Aging())
    worker = Worker(ONE_BY_ONE)
    for number in range(60):
        one = entry("a")
        one.lane = number % 2
        q.push([one, entry("b")], 0)
    order = "".join(served.tenant for _ in range(40) for served in serve(q, worker))
    assert order.count("b") == pytest.approx(20, abs=1)


def test_accounts_nobody_would_miss_are_forgotten() -> None:
    accounts = Accounts({})
    for number in range(5000):
        one = entry(f"tenant {number}")
        accounts.wait(one)
        accounts.leave(one)
        accounts.charge(one)
    assert len(accounts._accounts) < 3000


# What an operation costs, in instructions of the interpreter.


def instructions(work: Callable[[], Any]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("tenants", [1, 500])
def test_a_push_and_a_pop_cost_the_same_however_deep_the_queue_is(tenants: int) -> None:
    def cost(depth: int) -> float:
        q = EntryQueue(WIDE, Aging())
        worker = Worker(ONE_BY_ONE)
        chance = random.Random(1)
        q.push([entry(f"tenant {number % tenants}", chance.randint(1, 9)) for number in range(depth)], 0)

        def round_trip() -> None:
            for number in range(100):
                q.push([entry(f"tenant {number % tenants}", chance.randint(1, 9), at=1.0)], 1.0)
                serve(q, worker, 1.0)

        round_trip()
        return instructions(round_trip) / 100

    assert cost(10_000) < 1.1 * cost(tenants)


def test_who_was_forgotten_and_comes_back_is_charged_in_its_new_account() -> None:
    line, first, other = Line(), Account("a", 0.0), Account("b", 5.0)
    gone = entry("a")
    gone.place = Place.WAITING
    line.put(gone, first)
    gone.place = Place.ENDED
    line.withdraw()  # it still lies there, while nobody waits and its account is forgotten
    again, theirs = entry("a"), entry("b")
    again.place = theirs.place = Place.WAITING
    again.sequence, theirs.sequence = 1, 2
    line.put(again, Account("a", 9.0))
    line.put(theirs, other)
    assert line.first(0.0, 60.0) is theirs, "it was given less"
