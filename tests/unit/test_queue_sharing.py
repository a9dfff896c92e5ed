"""Bounds of the queue are shared by weight: who is refused, and who has to leave for whom."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.errors import QueueFull
from modelmora_inference.domain import Aging, BatchLimits, Bounds, ByteBudget, Entry, Place, Priority, Worker
from modelmora_inference.queue import EntryQueue
from modelmora_inference.sharing import who_leaves

LOW, MEDIUM, HIGH = Priority.LOW, Priority.MEDIUM, Priority.HIGH


def entries(
    tenant: str, count: int, *, priority: Priority = MEDIUM, tokens: int = 1, size_bytes: int = 1, now: float = 0.0
) -> list[Entry]:
    return [Entry(None, None, i, priority, tenant, now, 1e9, tokens, size_bytes) for i in range(count)]


def queue_of(
    max_entries: int = 100, *, budget: ByteBudget | None = None, weights: dict[str, float] | None = None
) -> EntryQueue:
    return EntryQueue(Bounds(max_entries, 1000, 1000), Aging(), budget=budget, weights=weights or {})


def held(queue: EntryQueue, tenant: str) -> int:
    return sum(entry.tenant == tenant for entry in queue.waiting())


def test_one_tenant_may_fill_the_queue_and_others_still_get_in() -> None:
    queue = queue_of()
    assert queue.push(entries("a", 100), 0.0) == []
    leaving = queue.push(entries("b", 30), 0.0)
    assert len(leaving) == 30
    assert {entry.tenant for entry in leaving} == {"a"}
    assert all(entry.place is Place.ENDED for entry in leaving)
    assert (held(queue, "a"), held(queue, "b")) == (70, 30)
    assert len(queue) == 100


def test_who_would_hold_more_than_its_share_is_refused_and_nothing_changes() -> None:
    queue = queue_of()
    queue.push(entries("a", 100), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("b", 51), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("a", 1), 0.0)
    assert (held(queue, "a"), held(queue, "b")) == (100, 0)
    queue.push(entries("b", 50), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("b", 1), 0.0)


def test_shares_of_the_bound_go_by_weight() -> None:
    queue = queue_of(weights={"b": 3.0})
    queue.push(entries("a", 100), 0.0)
    queue.push(entries("b", 75), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("b", 1), 0.0)
    assert (held(queue, "a"), held(queue, "b")) == (25, 75)


def test_low_leaves_first_and_of_one_priority_the_newest() -> None:
    queue = queue_of()
    old_low, high = entries("a", 10, priority=LOW), entries("a", 40, priority=HIGH)
    medium, new_low = entries("a", 45), entries("a", 5, priority=LOW)
    for some in (old_low, high, medium, new_low):
        queue.push(some, 0.0)
    assert queue.push(entries("b", 7), 0.0) == [*reversed(new_low), *reversed(old_low[8:])]
    assert queue.push(entries("b", 12), 0.0) == [*reversed(old_low[:8]), *reversed(medium[41:])]


def test_the_one_furthest_above_its_share_gives_way() -> None:
    queue = queue_of()
    queue.push(entries("a", 40), 0.0)
    queue.push(entries("b", 60), 0.0)
    leaving = queue.push(entries("c", 30), 0.0)
    assert [entry.tenant for entry in leaving].count("b") in (25, 26)
    assert abs(held(queue, "a") - held(queue, "b")) <= 1
    assert held(queue, "c") == 30


def test_what_is_on_a_worker_stays_and_counts() -> None:
    queue = queue_of(10)
    worker = Worker(BatchLimits(max_entries=8, max_tokens=100, max_batches=1))
    queue.push(entries("a", 10), 0.0)
    batch = queue.pop_batch(worker, 0.0).batch
    assert batch is not None
    assert len(batch.entries) == 8
    with pytest.raises(QueueFull):
        queue.push(entries("b", 3), 0.0)
    assert [entry.tenant for entry in queue.push(entries("b", 2), 0.0)] == ["a", "a"]
    for position in range(8):
        assert queue.answer(batch, position, 0.0) is batch.entries[position]
    queue.finish(batch)
    assert queue.push(entries("b", 3), 0.0) == []


def test_entries_that_came_back_from_a_worker_are_still_the_oldest() -> None:
    queue = queue_of(10)
    first, later = entries("a", 4), entries("a", 6)
    queue.push(first, 0.0)
    worker = Worker(BatchLimits(max_entries=4, max_tokens=100, max_batches=1))
    assert queue.pop_batch(worker, 0.0).batch is not None
    queue.push(later, 0.0)
    queue.worker_gone(worker, crashed=False)
    assert queue.push(entries("b", 5), 0.0) == list(reversed(later[1:]))


def test_bytes_of_the_process_are_shared_over_all_its_queues() -> None:
    budget = ByteBudget(100)
    one, other, third = (queue_of(budget=budget) for _ in range(3))
    one.push(entries("a", 5, size_bytes=10), 0.0)
    newest = entries("a", 5, size_bytes=10, now=1.0)
    other.push(newest, 1.0)
    leaving = third.push(entries("b", 2, size_bytes=10), 2.0)
    assert leaving == list(reversed(newest[3:]))
    assert (len(one), len(other), len(third), budget.held_bytes) == (5, 3, 2, 100)
    with pytest.raises(QueueFull):
        one.push(entries("a", 1, size_bytes=10), 2.0)
    for queue in (one, other, third):
        queue.clear()
    assert (budget.held_bytes, budget.by_tenant, budget.queues) == (0, {}, {})


@settings(max_examples=300, deadline=None, database=None)
@given(st.randoms(use_true_random=True), st.integers(2, 6), st.integers(5, 60))
def test_a_tenant_within_its_share_is_always_taken_in_and_loses_nothing(
    chance: random.Random, tenants: int, limit: int
) -> None:
    """Without workers: what waits is all that is held."""
    names = "abcdef"[:tenants]
    weights = {name: chance.choice([0.5, 1.0, 2.0, 5.0]) for name in names}
    queue = EntryQueue(Bounds(limit, 10**9, 10**9), Aging(), weights=weights)
    for _ in range(40):
        tenant, count = chance.choice(names), chance.randint(1, max(1, limit // 3))
        holds = {name: held(queue, name) for name in names}
        there = {name for name in names if holds[name]} | {tenant}
        unit = limit / sum(weights[name] for name in there)
        within = holds[tenant] + count <= weights[tenant] * unit
        try:
            leaving = queue.push(entries(tenant, count, priority=chance.choice(list(Priority))), 0.0)
        except QueueFull:
            assert not within, "refused within its share"
            assert sum(holds.values()) + count > limit
            continue
        assert within or sum(holds.values()) + count <= limit
        assert len(leaving) == max(0, sum(holds.values()) + count - limit)
        for entry in leaving:
            assert holds[entry.tenant] > weights[entry.tenant] * unit, "displaced within its share"
        for name in names:
            kept = holds[name] - sum(entry.tenant == name for entry in leaving)
            assert kept >= min(holds[name], weights[name] * unit - 1), "brought below its share"
        if chance.random() < 0.2:
            queue.withdraw(chance.sample(queue.waiting(), len(queue) // 2))


def test_two_that_are_above_their_share_do_not_push_each_other_out() -> None:
    queue = queue_of()
    queue.push(entries("a", 50), 0.0)
    queue.push(entries("b", 40), 0.0)
    queue.push(entries("c", 10), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("b", 1), 0.0)
    assert len(queue.push(entries("c", 20), 0.0)) == 20
    assert held(queue, "c") == 30


def test_nobody_within_its_share_leaves_when_what_is_above_is_on_workers() -> None:
    queue = queue_of(9)
    worker = Worker(BatchLimits(max_entries=7, max_tokens=100, max_batches=1))
    queue.push(entries("a", 7), 0.0)
    assert queue.pop_batch(worker, 0.0).batch is not None
    queue.push(entries("c", 2), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("b", 1), 0.0)
    assert held(queue, "c") == 2


def test_no_more_leave_than_make_room_under_all_bounds() -> None:
    queue = EntryQueue(Bounds(10, 100, 1000), Aging(), budget=ByteBudget(1000))
    queue.push(entries("a", 10, tokens=10, size_bytes=100), 0.0)
    assert len(queue.push(entries("b", 2, tokens=10, size_bytes=100), 0.0)) == 2
    assert len(queue.push(entries("b", 1, tokens=25, size_bytes=100), 0.0)) == 3


def test_nobody_leaves_for_one_that_is_above_its_share() -> None:
    waiting = {"a": [("a", 1)] * 10}
    assert who_leaves("b", 6, 6, 10, {"a": 10}, lambda _: 1.0, lambda one: iter(waiting[one])) is None
    assert who_leaves("b", 5, 5, 10, {"a": 10}, lambda _: 1.0, lambda one: iter(waiting[one])) == ["a"] * 5
