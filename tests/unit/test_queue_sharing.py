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
        priority = chance.choice(list(Priority))
        below = sum(entry.tenant == tenant and entry.priority < priority for entry in queue.waiting())
        need = max(0, sum(holds.values()) + count - limit)
        half = 2 * (below - need) >= holds[tenant]
        try:
            leaving = queue.push(entries(tenant, count, priority=priority), 0.0)
        except QueueFull:
            assert not within, "refused within its share"
            assert need, "refused while there is room"
            assert not half, "refused though its own could give way"
            continue
        assert within or half or not need
        assert len(leaving) == need
        own = [entry for entry in leaving if entry.tenant == tenant]
        assert own in ([], leaving)
        assert all(entry.priority < priority for entry in own)
        assert not own or not within, "loses nothing while others are above their share"
        for entry in leaving:
            assert entry in own or holds[entry.tenant] > weights[entry.tenant] * unit, "displaced within its share"
        for name in {*names} - {tenant}:
            kept = holds[name] - sum(entry.tenant == name for entry in leaving)
            assert kept >= min(holds[name], weights[name] * unit - 1), "brought below its share"
        if chance.random() < 0.2:
            queue.withdraw(chance.sample(queue.waiting(), len(queue) // 2))


def test_the_urgent_of_a_tenant_is_taken_in_for_its_own_newest_low() -> None:
    queue = queue_of()
    low = entries("a", 100, priority=LOW)
    queue.push(low, 0.0)
    assert queue.push(entries("a", 2, priority=HIGH), 1.0) == [low[99], low[98]]
    medium = entries("a", 3)
    assert queue.push(medium, 1.0) == [low[97], low[96], low[95]]
    with pytest.raises(QueueFull):
        queue.push(entries("a", 1, priority=LOW), 1.0)
    assert queue.push(entries("a", 1, priority=HIGH), 1.0) == [low[94]], "LOW before MEDIUM"
    assert queue.pop_batch(Worker(), 1.0).batch.entries[0].priority is HIGH  # type: ignore[union-attr]


def test_what_is_as_urgent_does_not_give_way() -> None:
    for priority in Priority:
        queue = queue_of()
        queue.push(entries("a", 100, priority=priority), 0.0)
        with pytest.raises(QueueFull):
            queue.push(entries("a", 1, priority=priority), 0.0)
        assert len(queue) == 100


def test_the_less_urgent_of_a_tenant_keeps_half_of_what_it_holds() -> None:
    queue = queue_of()
    queue.push(entries("a", 100, priority=LOW), 0.0)
    queue.push(entries("a", 50, priority=HIGH), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("a", 1, priority=HIGH), 0.0)
    assert sum(entry.priority is LOW for entry in queue.waiting()) == 50
    queue = queue_of()
    queue.push(entries("a", 100, priority=LOW), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("a", 51, priority=HIGH), 0.0)
    assert held(queue, "a") == 100


def test_nobody_gives_way_to_what_would_not_have_overtaken_it() -> None:
    aging = Aging()
    queue = queue_of()
    old, young = entries("a", 60, priority=LOW), entries("a", 40, priority=LOW, now=5.0)
    queue.push(old, 0.0)
    queue.push(young, 5.0)
    now = aging.low_seconds + 1.0
    assert queue.push(entries("a", 40, priority=HIGH, now=now), now) == young[::-1]
    with pytest.raises(QueueFull):
        queue.push(entries("a", 1, priority=HIGH, now=now), now)
    queue.clear()
    queue.push(entries("a", 100), 0.0)
    with pytest.raises(QueueFull):
        queue.push(entries("a", 1, priority=HIGH, now=aging.medium_seconds), aging.medium_seconds)
    assert queue.push(entries("a", 1, priority=HIGH, now=aging.medium_seconds - 1), aging.medium_seconds) != []


def test_low_is_computed_however_much_high_of_its_own_tenant_comes() -> None:
    aging = Aging(medium_seconds=3, low_seconds=8)
    queue = EntryQueue(Bounds(max_entries=20), aging)
    worker = Worker(BatchLimits(max_entries=1, max_tokens=1, max_batches=1))
    served: list[Entry] = []
    for second in range(200):
        now = float(second)
        for priority in (LOW, HIGH, HIGH, HIGH):
            try:
                queue.push(entries("a", 1, priority=priority, now=now), now)
            except QueueFull:
                pass
        batch = queue.pop_batch(worker, now).batch
        assert batch is not None
        served += batch.entries
        queue.answer(batch, 0, now)
        queue.finish(batch)
    assert sum(entry.priority is HIGH for entry in served) > 50
    assert sum(entry.priority is LOW for entry in served) > 50


def test_what_is_on_a_worker_does_not_give_way_to_its_own_tenant() -> None:
    queue = queue_of(10)
    queue.push(entries("a", 10, priority=LOW), 0.0)
    batch = queue.pop_batch(Worker(BatchLimits(max_entries=4, max_tokens=100, max_batches=1)), 0.0).batch
    assert batch is not None
    assert len(queue.push(entries("a", 1, priority=HIGH), 0.0)) == 1
    with pytest.raises(QueueFull):
        queue.push(entries("a", 1, priority=HIGH), 0.0)
    assert queue.in_flight == 4


def test_what_nobody_waits_for_is_told_until_the_worker_has_let_go() -> None:
    queue = queue_of(10)
    queue.push(entries("a", 6), 0.0)
    batch = queue.pop_batch(Worker(BatchLimits(max_entries=4, max_tokens=100, max_batches=1)), 0.0).batch
    assert batch is not None
    queue.withdraw(batch.entries[:3])
    assert (queue.in_flight, queue.abandoned, len(queue)) == (1, 3, 2)
    queue.answer(batch, 0, 0.0)
    assert (queue.in_flight, queue.abandoned) == (1, 2)
    queue.answer(batch, 3, 0.0)
    queue.finish(batch)
    assert (queue.in_flight, queue.abandoned) == (0, 0)


def test_of_all_queues_the_newest_low_of_a_tenant_gives_way_to_its_own_high() -> None:
    budget = ByteBudget(100)
    one, other, third = (queue_of(budget=budget) for _ in range(3))
    one.push(entries("a", 5, priority=LOW, size_bytes=10), 0.0)
    newest = entries("a", 5, priority=LOW, size_bytes=10, now=1.0)
    other.push(newest, 1.0)
    assert third.push(entries("a", 2, priority=HIGH, size_bytes=10, now=2.0), 2.0) == [newest[4], newest[3]]
    assert (len(one), len(other), len(third), budget.held_bytes) == (5, 3, 2, 100)


def test_no_more_of_its_own_leave_than_make_room_under_all_bounds() -> None:
    queue = EntryQueue(Bounds(10, 100, 1000), Aging())
    low = entries("a", 10, priority=LOW, tokens=10, size_bytes=100)
    queue.push(low, 0.0)
    assert queue.push(entries("a", 1, priority=HIGH, tokens=25, size_bytes=100), 0.0) == [low[9], low[8], low[7]]
    assert queue.push(entries("a", 1, priority=HIGH, tokens=5, size_bytes=100), 0.0) == []


def test_another_tenant_that_is_above_its_share_gives_way_before_ones_own_low() -> None:
    queue = queue_of()
    queue.push(entries("a", 80), 0.0)
    queue.push(entries("b", 20, priority=LOW), 0.0)
    assert {entry.tenant for entry in queue.push(entries("b", 10, priority=HIGH), 0.0)} == {"a"}
    assert (held(queue, "a"), held(queue, "b")) == (70, 30)


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
