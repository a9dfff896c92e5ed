"""The queue of one model version: decides who goes next, in which batch, and what a dead worker means for whom.

Pure: `now` is an argument (monotonic seconds, never running backwards), answers are values, nothing waits here. Every
operation costs O(log n) for each entry it touches.

Order. Each priority is a line served by arrival; the lines are merged by `arrival + offset of the priority`. So an
entry is overtaken only by entries that arrive less than its offset after it: LOW never starves, HIGH has no offset.
Entries of different lanes cannot share a batch; the entry that is first over all lanes decides the batch, and those of
its lane that follow in order fill it.

Batches, numbered as in the code:
  1. Nothing goes while every place on the worker is taken, or while an entry that must be alone is running.
  2. A suspect goes alone, when the worker is empty.
  3. Beside a running batch the next one goes once as much waits as is still unanswered. Sooner it would be small, and
     small batches waste more than the wait costs: the worker is busy anyway.
  4. What is there is shared between the places: a batch takes at most its share of all tokens, so that one part
     computes while the other is read, answered and asked again. Little work is not split.

Poison. When a worker dies, the batch that it was computing (the oldest unanswered one) is suspect: its entries are
tried again one by one, each alone; all others just go back to their places. An entry that was the only one on the
worker when it died twice is condemned. Deaths that the platform wanted (`crashed=False`) make nobody suspect.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import exp

from modelmora.errors import QueueFull

from modelmora_inference.domain import Aging, Batch, BatchLimits, Bounds, Entry, Level, Place, Priority

LONE_DEATHS = 2
"""Deaths of a worker with one entry alone on it that condemn the entry."""
_COMPACT_AT = 64
"""Withdrawn entries that a line may keep before it is cleared of them (or half its length, if more)."""

_LANES_KEPT = 16
"""Empty lanes that are not worth forgetting."""
_NEVER = float("inf")

_Line = list[tuple[float, int, Entry]]
_WAITING, _RUNNING, _ENDED = Place.WAITING, Place.RUNNING, Place.ENDED


@dataclass(slots=True)
class Popped:
    """What `pop_batch` decided: a batch for the worker, or none, and the entries whose time ran out before."""

    batch: Batch | None = None
    expired: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class _Charge:
    entries: int = 0
    tokens: int = 0
    size_bytes: int = 0
    withdrawn: int = 0
    """Entries of this priority that are ended but still lie in a line."""


class EntryQueue:
    """Every entry of one version from `push` until it has ended: waiting, or running on the one worker."""

    def __init__(self, bounds: Bounds, aging: Aging) -> None:
        self.bounds = bounds
        self.running: list[Batch] = []
        """Batches on the worker, oldest first."""
        self._offsets = {
            Priority.HIGH: 0.0,
            Priority.MEDIUM: aging.medium_seconds,
            Priority.LOW: aging.low_seconds,
        }
        self._lanes: dict[Hashable, dict[Priority, _Line]] = {}
        self._waiting = {priority: _Charge() for priority in Priority}
        self._waiting_entries = 0
        self._waiting_tokens = 0
        self._held_entries = self._held_tokens = self._held_bytes = 0
        self._sequence = 0
        self._drain = _DrainRate()

    def __len__(self) -> int:
        """Entries that wait."""
        return self._waiting_entries

    @property
    def in_flight(self) -> int:
        """Entries on the worker that somebody waits for."""
        return sum(batch.wanted for batch in self.running)

    @property
    def empty(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._waiting_entries and not self.running

    @property
    def drain_rate(self) -> float:
        """Entries a second that the worker answered lately, counted while there was work; 0 while unknown."""
        return self._drain.rate

    def push(self, entries: Sequence[Entry], now: float) -> None:
        """Takes all of them or none: QueueFull, with the time until there should be room, when a bound is reached."""
        tokens = sum(entry.tokens for entry in entries)
        size_bytes = sum(entry.size_bytes for entry in entries)
        bounds = self.bounds
        if (
            self._held_entries + len(entries) > bounds.max_entries
            or self._held_tokens + tokens > bounds.max_tokens
            or self._held_bytes + size_bytes > bounds.max_bytes
        ):
            raise self._full(len(entries), tokens, size_bytes)
        if not self._held_entries:
            self._drain.work_begins(now)
        for entry in entries:
            self._sequence += 1
            entry.sequence = self._sequence
            self._wait(entry)
        self._held_entries += len(entries)
        self._held_tokens += tokens
        self._held_bytes += size_bytes

    def pop_batch(self, limits: BatchLimits, now: float) -> Popped:
        """The next batch if one should go now; its entries are RUNNING from then on."""
        popped = Popped()
        running = self.running
        if len(running) >= limits.max_batches or any(batch.alone for batch in running):  # 1
            return popped
        first = self._first_of_all(now, popped.expired)
        if first is None:
            return popped
        in_flight_tokens = sum(batch.unanswered_tokens for batch in running)
        if first.suspect:  # 2
            if not running:
                popped.batch = self._start([self._take(first)], alone=True)
            return popped
        enough = min(in_flight_tokens, limits.max_tokens)
        if running and self._waiting_tokens < enough and self._waiting_entries < limits.max_entries:  # 3
            return popped
        share = -(-(self._waiting_tokens + in_flight_tokens) // limits.max_batches)  # 4
        budget = min(limits.max_tokens, max(share, limits.split_tokens))
        chosen = [self._take(first)]
        tokens = first.tokens
        while len(chosen) < limits.max_entries:
            entry = self._first(first.lane, now, popped.expired)
            if entry is None or entry.suspect or tokens + entry.tokens > budget:
                break
            chosen.append(self._take(entry))
            tokens += entry.tokens
        popped.batch = self._start(chosen, alone=False)
        return popped

    def answer(self, batch: Batch, position: int, now: float) -> Entry | None:
        """The worker answered a position: the entry, or None if nobody waits for it any more."""
        entry = batch.entries[position]
        if entry.batch is not batch:
            return None
        entry.batch = None
        batch.answered += 1
        batch.unanswered_tokens -= entry.tokens
        self._drain.answered(1, now)
        if entry.place is not _RUNNING:
            return None
        batch.wanted -= 1
        self._end(entry)
        return entry

    def finish(self, batch: Batch) -> None:
        """The worker has let go of a batch. What it left unanswered must have been given to `fail` before."""
        self.running.remove(batch)

    def fail(self, batch: Batch) -> list[Entry]:
        """The worker ended a batch with an error: the entries to answer with it.

        An entry that was alone has earned the error. Of several, one may have spoilt it for all: they go back and are
        tried alone.
        """
        self.running.remove(batch)
        left = self._left(batch)
        if len(batch.entries) == 1:
            for entry in left:
                self._end(entry)
            return left
        for entry in left:
            entry.suspect = True
            self._wait(entry)
        return []

    def worker_gone(self, *, crashed: bool) -> list[Entry]:
        """The worker is gone and everything on it goes back; the condemned entries, to be answered."""
        batches, self.running = self.running, []
        computing = next((batch for batch in batches if batch.answered < len(batch.entries)), None)
        lone = computing is not None and len(batches) == 1 and len(computing.entries) == 1
        condemned = []
        for batch in batches:
            for entry in self._left(batch):
                if crashed and batch is computing:
                    entry.suspect = True
                    entry.lone_deaths += lone
                if entry.lone_deaths >= LONE_DEATHS:
                    self._end(entry)
                    condemned.append(entry)
                else:
                    self._wait(entry)
        return condemned

    def withdraw(self, entries: Iterable[Entry]) -> None:
        """Nobody waits for these any more. What runs stays in its batch until the worker has let go of it."""
        for entry in entries:
            if entry.place is _WAITING:
                self._leave(entry)
                self._waiting[entry.priority].withdrawn += 1
                self._end(entry)
                self._compact(entry.priority)
            elif entry.place is _RUNNING:
                assert entry.batch is not None
                entry.batch.wanted -= 1
                self._end(entry)

    def clear(self) -> list[Entry]:
        """Ends everything that waits; what runs stays."""
        cleared = [entry for line in self._lines() for _, _, entry in line if entry.place is _WAITING]
        self.withdraw(cleared)
        return sorted(cleared, key=lambda entry: entry.sequence)

    def waiting(self) -> list[Entry]:
        """Everything that waits, in no order; as long as the queue, so not for the hot path."""
        return [entry for line in self._lines() for _, _, entry in line if entry.place is _WAITING]

    def levels(self, now: float) -> list[Level]:
        """What waits, most urgent first."""
        found = []
        for priority in sorted(Priority, reverse=True):
            charge = self._waiting[priority]
            arrivals = [line[0][0] for line in self._lines(priority) if self._tidy(line, priority)]
            age = max(0.0, now - min(arrivals)) if arrivals else 0.0
            found.append(Level(priority, charge.entries, charge.tokens, charge.size_bytes, age))
        return found

    # Lines: heaps by (arrival, sequence). Withdrawn entries stay in them until they come up or become too many.

    def _lines(self, priority: Priority | None = None) -> list[_Line]:
        return [
            line for lane in self._lanes.values() for key, line in lane.items() if priority is None or key is priority
        ]

    def _first_of_all(self, now: float, expired: list[Entry]) -> Entry | None:
        """The entry that is next in order over all lanes."""
        best, best_key = None, (_NEVER, 0)
        for lane in list(self._lanes) if len(self._lanes) > _LANES_KEPT else self._lanes:
            entry = self._first(lane, now, expired)
            if entry is not None:
                key = (entry.arrival + self._offsets[entry.priority], entry.sequence)
                if key < best_key:
                    best, best_key = entry, key
            elif len(self._lanes) > _LANES_KEPT:
                del self._lanes[lane]
        return best

    def _first(self, lane: Hashable, now: float, expired: list[Entry]) -> Entry | None:
        """The entry of a lane that is next in order; those whose time ran out leave the queue on the way."""
        best, best_time = None, _NEVER
        for priority, line in self._lanes[lane].items():
            while self._tidy(line, priority):
                entry = line[0][2]
                if entry.deadline <= now:
                    self._end(self._take(entry))
                    expired.append(entry)
                    continue
                time = entry.arrival + self._offsets[priority]
                if time < best_time or (time == best_time and best is not None and entry.sequence < best.sequence):
                    best, best_time = entry, time
                break
        return best

    def _tidy(self, line: _Line, priority: Priority) -> bool:
        """Drops withdrawn entries from the head of a line; whether anything is left."""
        while line and line[0][2].place is not _WAITING:
            heappop(line)
            self._waiting[priority].withdrawn -= 1
        return bool(line)

    def _compact(self, priority: Priority) -> None:
        charge = self._waiting[priority]
        if charge.withdrawn <= max(_COMPACT_AT, charge.entries):
            return
        for line in self._lines(priority):
            line[:] = [item for item in line if item[2].place is _WAITING]
            heapify(line)
        charge.withdrawn = 0

    def _wait(self, entry: Entry) -> None:
        """Puts an entry into its place in line, which is the same after every return."""
        entry.place = _WAITING
        entry.batch = None
        lane = self._lanes.get(entry.lane)
        if lane is None:
            lane = self._lanes[entry.lane] = {priority: [] for priority in Priority}
        heappush(lane[entry.priority], (entry.arrival, entry.sequence, entry))
        charge = self._waiting[entry.priority]
        charge.entries += 1
        charge.tokens += entry.tokens
        charge.size_bytes += entry.size_bytes
        self._waiting_entries += 1
        self._waiting_tokens += entry.tokens

    def _take(self, entry: Entry) -> Entry:
        """Takes the head of a line out of it."""
        heappop(self._lanes[entry.lane][entry.priority])
        self._leave(entry)
        return entry

    def _leave(self, entry: Entry) -> None:
        charge = self._waiting[entry.priority]
        charge.entries -= 1
        charge.tokens -= entry.tokens
        charge.size_bytes -= entry.size_bytes
        self._waiting_entries -= 1
        self._waiting_tokens -= entry.tokens

    def _start(self, entries: list[Entry], *, alone: bool) -> Batch:
        tokens = sum(entry.tokens for entry in entries)
        batch = Batch(entries, tokens, alone, wanted=len(entries), unanswered_tokens=tokens)
        for position, entry in enumerate(entries):
            entry.place = _RUNNING
            entry.batch = batch
            entry.position = position
        self.running.append(batch)
        return batch

    def _left(self, batch: Batch) -> list[Entry]:
        return [entry for entry in batch.entries if entry.batch is batch and entry.place is _RUNNING]

    def _end(self, entry: Entry) -> None:
        entry.place = _ENDED
        self._held_entries -= 1
        self._held_tokens -= entry.tokens
        self._held_bytes -= entry.size_bytes

    def _full(self, entries: int, tokens: int, size_bytes: int) -> QueueFull:
        """The part of what is held that must leave first, at the rate at which it leaves."""
        part = max(
            (self._held_entries + entries - self.bounds.max_entries) / max(self._held_entries, 1),
            (self._held_tokens + tokens - self.bounds.max_tokens) / max(self._held_tokens, 1),
            (self._held_bytes + size_bytes - self.bounds.max_bytes) / max(self._held_bytes, 1),
        )
        rate = self._drain.rate
        seconds = min(part, 1.0) * self._held_entries / rate if rate else 1.0
        return QueueFull(
            f"{self._held_entries} entries with {self._held_tokens} tokens and {self._held_bytes} bytes are queued for "
            "this model; retry after the delay",
            retry_after_seconds=min(max(seconds, 0.05), 30.0),
            entries=self._held_entries,
            max_entries=self.bounds.max_entries,
        )


@dataclass(slots=True)
class _DrainRate:
    """Answers per second of time with work, over about the last ten seconds."""

    rate: float = 0.0
    _count: float = 0.0
    _seconds: float = 0.0
    _last: float = 0.0

    def work_begins(self, now: float) -> None:
        self._last = now

    def answered(self, count: int, now: float) -> None:
        passed = now - self._last
        if passed <= 0:
            self._count += count
        else:
            keep = exp(-passed / 10.0)
            self._count = self._count * keep + count
            self._seconds = self._seconds * keep + passed
            self._last = now
        if self._seconds > 0:
            self.rate = self._count / self._seconds
