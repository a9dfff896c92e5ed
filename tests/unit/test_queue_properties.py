"""The queue under random traffic: every entry ends exactly once, in the order that is promised, within the bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from modelmora.errors import QueueFull
from modelmora_inference.domain import (
    MAX_TIMEOUT_SECONDS,
    Aging,
    Batch,
    BatchLimits,
    Bounds,
    ByteBudget,
    Entry,
    Place,
    Priority,
    Worker,
)
from modelmora_inference.queue import EntryQueue

AGING = Aging(medium_seconds=3, low_seconds=8, fairness_seconds=4)
OFFSET = {Priority.HIGH: 0.0, Priority.MEDIUM: 3.0, Priority.LOW: 8.0}
BOUND = {priority: max(offset, 4.0) for priority, offset in OFFSET.items()}
"""An entry is overtaken only by entries that arrive at most so long after it."""
BOUNDS = Bounds(max_entries=12, max_tokens=60, max_bytes=600)
LIMITS: dict[str, tuple[int, Callable[[list[Entry]], int]]] = {
    "entries": (BOUNDS.max_entries, len),
    "tokens": (BOUNDS.max_tokens, lambda entries: sum(entry.tokens for entry in entries)),
    "bytes": (BOUNDS.max_bytes, lambda entries: sum(entry.size_bytes for entry in entries)),
}


@dataclass
class Told:
    """What the queue said about one entry."""

    entry: Entry
    ended: list[str] = field(default_factory=list)


class QueueUnderTraffic(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.budget = ByteBudget(700)
        self.queue = EntryQueue(BOUNDS, AGING, budget=self.budget, weights={"b": 3.0})
        self.workers = [Worker(), Worker()]
        self.now = 0.0
        self.told: list[Told] = []
        self.batches: list[Batch] = []
        self.elsewhere = 0

    def of(self, entry: Entry) -> Told:
        return next(told for told in self.told if told.entry is entry)

    def live(self) -> list[Entry]:
        return [told.entry for told in self.told if not told.ended]

    def held(self) -> list[Entry]:
        """What counts against the bounds: also what nobody wants any more, until the worker has let go of it."""
        running = [entry for batch in self.batches for entry in batch.entries if entry.batch is batch]
        return self.live() + [entry for entry in running if self.of(entry).ended]

    def waiting(self) -> list[Entry]:
        running = {id(entry) for batch in self.batches for entry in batch.entries if entry.batch is batch}
        return [entry for entry in self.live() if id(entry) not in running]

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        tenant=st.sampled_from("aab"),
        units=st.lists(
            st.tuples(
                st.sampled_from(list(Priority)),
                st.integers(1, 20),
                st.sampled_from([1.0, 4.0, 100.0]),
                st.sampled_from(["x", "x", "y"]),
            ),
            min_size=1,
            max_size=5,
        ),
    )
    def push(self, tenant: str, units: list[tuple[Priority, int, float, str]]) -> None:
        entries = [
            Entry(None, None, i, priority, tenant, self.now, self.now + patience, tokens, tokens * 10, lane)
            for i, (priority, tokens, patience, lane) in enumerate(units)
        ]
        held, waiting = self.held(), self.waiting()
        over = [name for name, (limit, measure) in LIMITS.items() if measure(held + entries) > limit]
        if self.elsewhere + LIMITS["bytes"][1](held + entries) > self.budget.limit_bytes:
            over.append("budget")
        try:
            leaving = self.queue.push(entries, self.now)
        except QueueFull as full:
            refused = full
        else:
            refused = None
        if refused is not None:
            assert over, "refused while there is room"
            assert 0 < (refused.retry_after_seconds or 0) <= MAX_TIMEOUT_SECONDS
            return
        assert over or not leaving, "displaced while there is room"
        least = min(entry.priority for entry in entries)
        for entry in leaving:
            assert entry in waiting, "what is on a worker cannot be taken back"
            if entry.tenant == tenant:
                assert entry.priority < least, "one's own gives way to what is more urgent only"
                assert entry.arrival + OFFSET[entry.priority] > self.now + OFFSET[least], "it would have gone before it"
            self.of(entry).ended.append("displaced")
        own = [entry for entry in leaving if entry.tenant == tenant]
        weights = {one: 3.0 if one == "b" else 1.0 for one in {tenant, *(entry.tenant for entry in held)}}
        for name in over:
            limit, measure = LIMITS.get(name, (self.budget.limit_bytes, LIMITS["bytes"][1]))
            mine = measure([entry for entry in held + entries if entry.tenant == tenant and entry not in own])
            if name != "budget" and not own:
                assert mine <= limit * weights[tenant] / sum(weights.values()), "taken in above its share"
        for victim in {entry.tenant for entry in leaving} - {tenant}:
            theirs = [entry for entry in held if entry.tenant == victim]
            assert any(
                measure(theirs) > limit * weights[victim] / sum(weights.values())
                for limit, measure in (*LIMITS.values(), (self.budget.limit_bytes, LIMITS["bytes"][1]))
            ), "displaced though within its share"
        for entry in leaving:
            for other in waiting:
                if entry.tenant == other.tenant and other not in leaving:
                    if entry.tenant == tenant and other.arrival + OFFSET[other.priority] <= self.now + OFFSET[least]:
                        continue  # it stands before what came
                    assert (other.priority, -other.sequence) >= (entry.priority, -entry.sequence), "newest LOW first"
        self.told += [Told(entry) for entry in entries]
        held = self.held()
        assert all(measure(held) <= limit for limit, measure in LIMITS.values())
        assert self.elsewhere + LIMITS["bytes"][1](held) <= self.budget.limit_bytes or "budget" not in over

    @rule(size_bytes=st.integers(0, 400))
    def other_queues_hold(self, size_bytes: int) -> None:
        self.budget.held_bytes += size_bytes - self.elsewhere
        self.elsewhere = size_bytes

    @rule(which=st.integers(0, 1), entries=st.integers(1, 6), tokens=st.integers(1, 40), places=st.integers(1, 2))
    def pop(self, which: int, entries: int, tokens: int, places: int) -> None:
        worker = self.workers[which]
        worker.limits = BatchLimits(max_entries=entries, max_tokens=tokens, max_batches=places, split_tokens=5)
        there = list(worker.running)
        before = self.waiting()
        popped = self.queue.pop_batch(worker, self.now)
        for entry in popped.expired:
            assert entry in before
            assert entry.deadline <= self.now
            self.of(entry).ended.append("expired")
        batch = popped.batch
        if batch is None:
            alive = [entry for entry in before if entry.deadline > self.now]
            assert not alive or there, "something waits while a worker is idle"
            return
        assert batch.worker is worker
        assert worker.running == [*there, batch]
        assert 1 <= len(batch.entries) <= entries
        assert len(batch.entries) == 1 or batch.tokens <= tokens
        assert batch.tokens == sum(entry.tokens for entry in batch.entries)
        assert len({entry.lane for entry in batch.entries}) == 1
        assert {entry.priority for entry in batch.entries} == {batch.priority}
        assert batch.alone == any(entry.suspect for entry in batch.entries)
        if batch.alone:
            assert len(batch.entries) == 1
            assert not there
        assert not any(other.alone for other in there)
        for entry in batch.entries:
            assert entry in before
            assert entry.deadline > self.now, "an expired entry is handed out"
        if batch.rank:
            assert all(other.rank < batch.rank for other in there)
            for entry in batch.entries[:1]:
                for other in there:
                    self.check_bound(entry, [waits for waits in other.entries if waits.batch is other])
        else:
            assert len(there) < places
        left = [entry for entry in before if entry not in batch.entries and entry.deadline > self.now]
        self.check_bound(batch.entries[0], left)
        for entry in batch.entries:
            same_lane = [other for other in left if other.lane == entry.lane]
            self.check_bound(entry, same_lane)
            for other in same_lane:
                if (entry.priority, entry.tenant) == (other.priority, other.tenant):
                    assert entry.sequence < other.sequence, "order within a tenant and priority"
        self.batches.append(batch)

    def check_bound(self, goes: Entry, others: list[Entry]) -> None:
        for other in others:
            assert goes.arrival <= other.arrival + BOUND[other.priority], "overtaken by one that came too late"

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def worker_answers(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        position = data.draw(st.integers(0, len(batch.entries) - 1))
        entry = batch.entries[position]
        wanted = entry.batch is batch and not self.of(entry).ended
        cost = data.draw(st.sampled_from([None, 0.0, 1.0, 50.0]))
        assert self.queue.answer(batch, position, self.now, cost) is (entry if wanted else None)
        if wanted:
            self.of(entry).ended.append("answered")

    @precondition(lambda self: self.batches)
    @rule()
    def worker_finishes(self) -> None:
        batch = self.batches.pop(0)
        for position, entry in enumerate(batch.entries):
            if self.queue.answer(batch, position, self.now) is not None:
                self.of(entry).ended.append("answered")
        self.queue.finish(batch)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def batch_fails(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        self.batches.remove(batch)
        for entry in self.queue.fail(batch):
            assert len(batch.entries) == 1
            self.of(entry).ended.append("failed")

    @rule(which=st.integers(0, 1), crashed=st.booleans())
    def worker_dies(self, which: int, crashed: bool) -> None:
        worker = self.workers[which]
        alone = len(worker.running) == 1 and len(worker.running[0].entries) == 1
        others = [batch for batch in self.batches if batch.worker is not worker]
        order = [list(batch.entries) for batch in others]
        self.batches = others
        gone = self.queue.worker_gone(worker, crashed=crashed)
        assert [batch.entries for batch in others] == order, "what the other worker has is not disturbed"
        assert not any(entry.suspect for batch in others if not batch.alone for entry in batch.entries)
        for entry in gone:
            assert crashed
            assert alone
            self.of(entry).ended.append("condemned")

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def callers_leave(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.told), max_size=4))
        self.queue.withdraw([told.entry for told in chosen])
        for told in chosen:
            if not told.ended:
                told.ended.append("withdrawn")

    @invariant()
    def every_entry_is_in_one_place(self) -> None:
        waiting = self.waiting()
        assert len(self.queue) == len(waiting)
        assert sorted(map(id, self.queue.waiting())) == sorted(map(id, waiting))
        assert sum(level.entries for level in self.queue.levels(self.now)) == len(waiting)
        assert sum(level.tokens for level in self.queue.levels(self.now)) == sum(entry.tokens for entry in waiting)
        assert self.queue.depths == {level.priority: level.entries for level in self.queue.levels(self.now)}
        assert self.queue.in_flight == len(self.live()) - len(waiting)
        assert {id(batch) for batch in self.queue.running} == {id(batch) for batch in self.batches}
        held = self.held()
        assert self.queue._held_entries == len(held)
        assert self.queue.abandoned == len(held) - len(self.live())
        assert self.budget.held_bytes == self.elsewhere + sum(entry.size_bytes for entry in held)
        levels = self.queue.levels(self.now)
        assert sum(tenant.entries for level in levels for tenant in level.tenants) == len(waiting)
        for level in levels:
            ages = [self.now - entry.arrival for entry in waiting if entry.priority is level.priority]
            assert level.oldest_age_seconds == max(ages, default=0.0)
        assert self.queue.oldest_age(self.now) == max((level.oldest_age_seconds for level in levels), default=0.0)
        for batch in self.batches:
            wanted = [entry for entry in batch.entries if entry.batch is batch and not self.of(entry).ended]
            assert batch.wanted == len(wanted)
            assert all(batch.entries[entry.position] is entry for entry in wanted)
        for told in self.told:
            assert len(told.ended) <= 1
            assert (told.entry.place is Place.ENDED) == bool(told.ended)

    def teardown(self) -> None:
        """Whatever happened, a worker that answers brings every entry to its end."""
        while self.batches:
            self.worker_finishes()
        for _ in range(1000):
            if not self.waiting():
                break
            self.pop(0, 6, 40, 1)
            if self.batches:
                self.worker_finishes()
        assert self.queue.empty
        assert all(len(told.ended) == 1 for told in self.told)
        assert self.queue._held_entries == self.queue._held_tokens == self.queue._held_bytes == 0
        assert not self.queue._held
        assert not self.budget.queues
        assert not self.budget.by_tenant
        assert self.budget.held_bytes == self.elsewhere


class TestQueueUnderTraffic(QueueUnderTraffic.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )


@settings(max_examples=60, deadline=None, database=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.5, 1.0]),
            st.sampled_from(list(Priority)),
            st.sampled_from([("a", 50), ("b", 1), ("c", 1)]),
        ),
        min_size=30,
        max_size=80,
    ),
    service_seconds=st.sampled_from([0.3, 1.0]),
)
def test_an_entry_is_overtaken_only_by_those_that_arrive_within_the_bound(
    arrivals: list[tuple[float, Priority, tuple[str, int]]], service_seconds: float
) -> None:
    queue = EntryQueue(Bounds(), AGING)
    worker = Worker(BatchLimits(max_entries=1, max_tokens=1, max_batches=1))
    coming, at = [], 0.0
    for gap, priority, (tenant, tokens) in arrivals:
        at += gap
        coming.append(Entry(None, None, 0, priority, tenant, at, 1e9, tokens, 1))
    now, served = 0.0, []
    while coming or len(queue):
        while coming and coming[0].arrival <= now:
            queue.push([coming.pop(0)], now)
        batch = queue.pop_batch(worker, now).batch
        if batch is not None:
            served += batch.entries
            queue.answer(batch, 0, now)
            queue.finish(batch)
        now += service_seconds
    assert len(served) == len(arrivals)
    for place, late in enumerate(served):
        for early in served[:place]:
            assert early.arrival <= late.arrival + BOUND[late.priority] + 1e-9
