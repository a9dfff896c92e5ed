"""The queue under random traffic: every entry ends exactly once, in the order that is promised, within the bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from modelmora.errors import QueueFull
from modelmora_inference.domain import Aging, Batch, BatchLimits, Bounds, Entry, Place, Priority
from modelmora_inference.queue import EntryQueue

AGING = Aging(medium_seconds=3, low_seconds=8)
OFFSET = {Priority.HIGH: 0.0, Priority.MEDIUM: 3.0, Priority.LOW: 8.0}
BOUNDS = Bounds(max_entries=12, max_tokens=60, max_bytes=600)


@dataclass
class Told:
    """What the queue said about one entry."""

    entry: Entry
    ended: list[str] = field(default_factory=list)


class QueueUnderTraffic(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = EntryQueue(BOUNDS, AGING)
        self.now = 0.0
        self.told: list[Told] = []
        self.batches: list[Batch] = []

    def of(self, entry: Entry) -> Told:
        return next(told for told in self.told if told.entry is entry)

    def live(self) -> list[Entry]:
        return [told.entry for told in self.told if not told.ended]

    def waiting(self) -> list[Entry]:
        running = {id(entry) for batch in self.batches for entry in batch.entries if entry.batch is batch}
        return [entry for entry in self.live() if id(entry) not in running]

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        units=st.lists(
            st.tuples(
                st.sampled_from(list(Priority)),
                st.integers(1, 20),
                st.sampled_from([1.0, 4.0, 100.0]),
                st.sampled_from(["x", "x", "y"]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def push(self, units: list[tuple[Priority, int, float, str]]) -> None:
        entries = [
            Entry(None, None, i, priority, "", self.now, self.now + patience, tokens, tokens * 10, lane)
            for i, (priority, tokens, patience, lane) in enumerate(units)
        ]
        live = self.live()
        over = (
            len(live) + len(entries) > BOUNDS.max_entries
            or sum(e.tokens for e in live + entries) > BOUNDS.max_tokens
            or sum(e.size_bytes for e in live + entries) > BOUNDS.max_bytes
        )
        if over:
            with pytest.raises(QueueFull) as full:
                self.queue.push(entries, self.now)
            assert 0 < (full.value.retry_after_seconds or 0) <= 30
        else:
            self.queue.push(entries, self.now)
            self.told += [Told(entry) for entry in entries]

    @rule(entries=st.integers(1, 6), tokens=st.integers(1, 40), places=st.integers(1, 2))
    def pop(self, entries: int, tokens: int, places: int) -> None:
        limits = BatchLimits(max_entries=entries, max_tokens=tokens, max_batches=places, split_tokens=5)
        in_flight = len(self.batches)
        before = self.waiting()
        popped = self.queue.pop_batch(limits, self.now)
        for entry in popped.expired:
            assert entry in before
            assert entry.deadline <= self.now
            self.of(entry).ended.append("expired")
        batch = popped.batch
        if batch is None:
            alive = [entry for entry in before if entry.deadline > self.now]
            assert not alive or in_flight, "something waits while the worker is idle"
            return
        assert in_flight < places
        assert 1 <= len(batch.entries) <= entries
        assert len(batch.entries) == 1 or batch.tokens <= tokens
        assert batch.tokens == sum(entry.tokens for entry in batch.entries)
        assert len({entry.lane for entry in batch.entries}) == 1
        assert batch.alone == any(entry.suspect for entry in batch.entries)
        if batch.alone:
            assert len(batch.entries) == 1
            assert not self.batches
        assert not any(other.alone for other in self.batches)
        for entry in batch.entries:
            assert entry in before
            assert entry.deadline > self.now, "an expired entry is handed out"
        left = [entry for entry in before if entry not in batch.entries and entry.deadline > self.now]
        first = batch.entries[0]
        for other in left:
            # The bound: whoever is handed out first arrived at most the offset after anyone who still waits.
            assert first.arrival + OFFSET[first.priority] <= other.arrival + OFFSET[other.priority]
            for entry in batch.entries:
                if entry.lane == other.lane:
                    assert entry.arrival < other.arrival + OFFSET[other.priority] or entry.arrival <= other.arrival
                    if entry.priority is other.priority:
                        assert entry.sequence < other.sequence, "order within a priority"
        self.batches.append(batch)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def worker_answers(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        position = data.draw(st.integers(0, len(batch.entries) - 1))
        entry = batch.entries[position]
        wanted = entry.batch is batch and not self.of(entry).ended
        assert self.queue.answer(batch, position, self.now) is (entry if wanted else None)
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

    @rule(crashed=st.booleans())
    def worker_dies(self, crashed: bool) -> None:
        alone = len(self.batches) == 1 and len(self.batches[0].entries) == 1
        self.batches = []
        for entry in self.queue.worker_gone(crashed=crashed):
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
        assert self.queue.in_flight == len(self.live()) - len(waiting)
        assert self.queue.running == self.batches
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
            self.pop(6, 40, 1)
            if self.batches:
                self.worker_finishes()
        assert self.queue.empty
        assert all(len(told.ended) == 1 for told in self.told)
        assert self.queue._held_entries == self.queue._held_tokens == self.queue._held_bytes == 0


class TestQueueUnderTraffic(QueueUnderTraffic.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
